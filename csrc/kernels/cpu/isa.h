// The one header of every source that is compiled once per instruction set.
//
// CMake compiles the same files several times with -DFASTMINE_ISA_NAMESPACE=<isa> and that set's flags; everything
// they define lives in fastmine::cpu::<isa>. Vectors are GCC/Clang vector extensions as wide as the register, so there
// are no intrinsics and the text is the same everywhere.
//
// Two rules keep a wide instruction out of code that an older CPU runs. A file that includes this one defines nothing
// outside its namespace, and it uses no inline std:: function or template: those become weak symbols, and the linker
// keeps any one copy of a weak symbol for the whole library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#ifndef FASTMINE_ISA_NAMESPACE
#error "isa.h is only for the sources compiled once per instruction set (see cmake/Kernels.cmake)"
#endif

#define FASTMINE_INLINE inline __attribute__((always_inline))
#define FASTMINE_NOINLINE __attribute__((noinline))

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {

#if defined(__AVX512F__)
inline constexpr std::size_t kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr std::size_t kVectorBytes = 32;
#else  // SSE2 and NEON
inline constexpr std::size_t kVectorBytes = 16;
#endif

/// Elements of type T in one register.
template <class T>
inline constexpr std::size_t lanes = kVectorBytes / sizeof(T);

template <class T, std::size_t N>
struct VecType {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};

/// N elements of T with elementwise + - * / & | ^ ~ < <= == != and v[i]; a full register by default. Name N to pair
/// elements of different sizes (N = lanes<float> bytes for as many floats). A comparison gives lanes of 0 or -1.
template <class T, std::size_t N = lanes<T>>
using Vec = typename VecType<T, N>::type;

/// Elements in the vector type V.
template <class V>
inline constexpr std::size_t size = sizeof(V) / sizeof(V{}[0]);

/// Unaligned load of N elements.
template <class T, std::size_t N = lanes<T>>
FASTMINE_INLINE Vec<T, N> load(const T* p) {
  Vec<T, N> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

/// Unaligned store of N elements.
template <class T, std::size_t N = lanes<T>>
FASTMINE_INLINE void store(T* p, Vec<T, N> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

/// x in every lane.
template <class T, std::size_t N = lanes<T>>
FASTMINE_INLINE Vec<T, N> broadcast(T x) {
  return x - Vec<T, N>{};  // not x + 0: that turns -0 into +0, so it is an addition wherever signed zeros count
}

/// Lane by lane, a where the mask is -1 and b where it is 0.
template <class M, class V>
FASTMINE_INLINE V select(M mask, V a, V b) {
  return mask ? a : b;
}

/// The bits of v, read as elements of U.
template <class U, class V>
FASTMINE_INLINE Vec<U, sizeof(V) / sizeof(U)> bitcast(V v) {
  Vec<U, sizeof(V) / sizeof(U)> u;
  static_assert(sizeof u == sizeof v);
  __builtin_memcpy(&u, &v, sizeof u);
  return u;
}

/// Whether a comparison holds in any lane.
template <class M>
FASTMINE_INLINE bool any(M mask) {
  std::int64_t bits = 0;
  for (std::size_t part = 0; part < sizeof mask / sizeof bits; ++part) {
    bits |= bitcast<std::int64_t>(mask)[part];
  }
  return bits != 0;
}

/// The values of v, each converted to U.
template <class U, class V>
FASTMINE_INLINE Vec<U, size<V>> convert(V v) {
  using T = std::remove_cvref_t<decltype(v[0])>;
#if defined(__AVX512F__) && !defined(__clang__)
  if constexpr (std::is_same_v<U, double> && std::is_same_v<V, Vec<float, 8>>) {  // which GCC 12 does in two halves
    return __builtin_ia32_cvtps2pd512_mask(v, Vec<double>{}, -1, 4);
  }
  if constexpr (std::is_same_v<U, float> && std::is_same_v<V, Vec<double, 8>>) {
    return __builtin_ia32_cvtpd2ps512_mask(v, Vec<float, 8>{}, -1, 4);
  }
#endif
  // GCC 12 takes a vector of integers apart lane by lane unless it widens it one doubling at a time.
  if constexpr (sizeof(T) == 1 && sizeof(U) > 2) {
    return convert<U>(__builtin_convertvector(v, Vec<std::int16_t, size<V>>));
  } else if constexpr (std::is_integral_v<T> && sizeof(T) == 2 && sizeof(U) > 2) {
    return __builtin_convertvector(__builtin_convertvector(v, Vec<std::int32_t, size<V>>), Vec<U, size<V>>);
  } else {
    return __builtin_convertvector(v, Vec<U, size<V>>);
  }
}

/// a[0], b[0], a[1], b[1], ...: the lower half of the lanes of each, alternating; and the upper half.
template <class V, std::size_t... I>
FASTMINE_INLINE V zip_low(V a, V b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, (I / 2 + I % 2 * sizeof...(I))...);
}
template <class V, std::size_t... I>
FASTMINE_INLINE V zip_high(V a, V b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, (sizeof...(I) / 2 + I / 2 + I % 2 * sizeof...(I))...);
}

/// Transpose as many vectors as each has lanes. Every round moves the highest bit of the row to the lowest of the lane.
template <class V>
FASTMINE_INLINE void transpose(V* rows) {
  constexpr std::size_t n = size<V>;
  constexpr auto lane = std::make_index_sequence<n>{};
  for (std::size_t round = 1; round < n; round *= 2) {
    V zipped[n];
    for (std::size_t i = 0; i < n / 2; ++i) {
      zipped[2 * i] = zip_low(rows[i], rows[i + n / 2], lane);
      zipped[2 * i + 1] = zip_high(rows[i], rows[i + n / 2], lane);
    }
    for (std::size_t i = 0; i < n; ++i) {
      rows[i] = zipped[i];
    }
  }
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
