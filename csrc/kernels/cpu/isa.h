// The one header of every source that is compiled once per instruction set.
//
// CMake compiles the same files several times with -DFASTMINE_ISA_NAMESPACE=<isa> and that set's flags; everything
// they define lives in fastmine::cpu::<isa>. Vectors are GCC/Clang vector extensions as wide as the register, so there
// are no intrinsics and the text is the same everywhere; two builtins that the extensions lack, minimum and a store
// past the caches, stay in this file.
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

/// The type of a vector's lanes, and the integer of the same size.
template <class V>
using Lane = std::remove_cvref_t<decltype(V{}[0])>;
template <class V>
using Bits = std::conditional_t<sizeof(Lane<V>) == 4, std::int32_t, std::int64_t>;

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

/// The bits of v, read as elements of U.
template <class U, class V>
FASTMINE_INLINE Vec<U, sizeof(V) / sizeof(U)> bitcast(V v) {
  Vec<U, sizeof(V) / sizeof(U)> u;
  static_assert(sizeof u == sizeof v);
  __builtin_memcpy(&u, &v, sizeof u);
  return u;
}

/// Store past the caches, to a place aligned to the size of v; an ordinary store where there is none of that kind.
/// stream_end() comes before anybody else reads it.
template <class T, std::size_t N = lanes<T>>
FASTMINE_INLINE void stream(T* p, Vec<T, N> v) {
#if defined(__clang__)
  __builtin_nontemporal_store(v, reinterpret_cast<Vec<T, N>*>(p));
#else
#if defined(__AVX512F__)
  if constexpr (sizeof v == 64) {
    return __builtin_ia32_movntdq512(reinterpret_cast<Vec<long long, 8>*>(p), bitcast<long long>(v));
  }
#endif
#if defined(__AVX__)
  if constexpr (sizeof v == 32) {
    return __builtin_ia32_movntdq256(reinterpret_cast<Vec<long long, 4>*>(p), bitcast<long long>(v));
  }
#endif
#if defined(__SSE2__)
  if constexpr (sizeof v == 16) {
    return __builtin_ia32_movntdq(reinterpret_cast<Vec<long long, 2>*>(p), bitcast<long long>(v));
  }
#endif
  store<T, N>(p, v);
#endif
}
FASTMINE_INLINE void stream_end() {
#if defined(__SSE2__)
  __builtin_ia32_sfence();
#endif
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

/// Lane by lane, the smaller and the larger; b where either is NaN. x86 has one instruction for exactly that, which GCC
/// does not always find.
template <class V>
FASTMINE_INLINE V minimum(V a, V b) {
#if defined(__AVX512F__) && !defined(__clang__)
  if constexpr (std::is_same_v<V, Vec<float, 16>>) {
    return __builtin_ia32_minps512_mask(a, b, a, -1, 4);
  }
#endif
#if defined(__AVX2__)
  if constexpr (std::is_same_v<V, Vec<float, 8>>) {
    return __builtin_ia32_minps256(a, b);
  }
#endif
  return select(a < b, a, b);
}
template <class V>
FASTMINE_INLINE V maximum(V a, V b) {
#if defined(__AVX512F__) && !defined(__clang__)
  if constexpr (std::is_same_v<V, Vec<float, 16>>) {
    return __builtin_ia32_maxps512_mask(a, b, a, -1, 4);
  }
#endif
#if defined(__AVX2__)
  if constexpr (std::is_same_v<V, Vec<float, 8>>) {
    return __builtin_ia32_maxps256(a, b);
  }
#endif
  return select(a > b, a, b);
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
#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__)
  // GCC 12 makes two halves of it and joins them: five instructions that compete for one port, in place of one.
  if constexpr (std::is_same_v<T, float> && std::is_same_v<U, double> && size<V> == 8) {
    constexpr int kCurrentRounding = 4;
    return __builtin_ia32_cvtps2pd512_mask(v, Vec<double, 8>{}, static_cast<unsigned char>(-1), kCurrentRounding);
  }
  if constexpr (std::is_same_v<T, double> && std::is_same_v<U, float> && size<V> == 8) {
    constexpr int kCurrentRounding = 4;
    return __builtin_ia32_cvtpd2ps512_mask(v, Vec<float, 8>{}, static_cast<unsigned char>(-1), kCurrentRounding);
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

/// 0, 1, 2, ...
template <class T>
FASTMINE_INLINE Vec<T> lane_numbers() {
  Vec<T> v;
  for (std::size_t i = 0; i < lanes<T>; ++i) {
    v[i] = static_cast<T>(i);
  }
  return v;
}

/// f over the lanes: the lower half with the upper half, until one is left.
template <class V, class F>
FASTMINE_INLINE auto fold(V v, F f) {
  using T = std::remove_cvref_t<decltype(v[0])>;
  Vec<T, size<V> / 2> halves[2];
  __builtin_memcpy(halves, &v, sizeof v);
  if constexpr (size<V> == 2) {
    return f(v[0], v[1]);
  } else {
    return fold(f(halves[0], halves[1]), f);
  }
}

/// The least lane, where none is NaN.
template <class V>
FASTMINE_INLINE auto least_of(V v) {
  return fold(v, [](auto a, auto b) { return a < b ? a : b; });
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
