// Reading rows of any element type into float or double, and writing them back: kernels compute in one of the two,
// whatever they are given, and so exist in few variants.
//
// A value never depends on where it stands: strided rows and the last few elements are converted like all others.
// Integers beyond the digits of a float or double are rounded (int64 to double first), and any bool but 0 counts as 1.
#pragma once

#include "kernels/cpu/isa.h"
#include "kernels/dtype.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {

/// float32 lanes of float16 bits, exactly. No arithmetic on subnormals, so it holds in flush-to-zero mode too.
template <std::size_t N>
FASTMINE_INLINE Vec<float, N> widen_float16(Vec<std::uint16_t, N> half) {
  using F = Vec<float, N>;
  using I = Vec<std::int32_t, N>;
  const I bits = convert<std::int32_t>(half);
  const I sign = (bits & 0x8000) << 16;
  const I magnitude = bits & 0x7fff;
  const I rebias = broadcast<std::int32_t, N>((127 - 15) << 23);
  const I normal = (magnitude << 13) + rebias;
  const I special = normal + rebias;  // Inf and NaN: the exponent goes up to all ones
  const F tiny = bitcast<float>(normal + (1 << 23)) - broadcast<float, N>(0x1p-14F);
  const I finite = select(magnitude < 0x0400, bitcast<std::int32_t>(tiny), normal);
  return bitcast<float>(select(magnitude >= 0x7c00, special, finite) | sign);
}

/// float16 bits of float32 lanes, to nearest even; too large is Inf, NaN stays NaN.
template <std::size_t N>
FASTMINE_INLINE Vec<std::uint16_t, N> narrow_float16(Vec<float, N> x) {
  using I = Vec<std::int32_t, N>;
  const I bits = bitcast<std::int32_t>(x);
  const I magnitude = bits & 0x7fffffff;
  const I sign = (bits >> 16) & 0x8000;
  const I odd = (magnitude >> 13) & 1;
  const I normal = (magnitude - ((127 - 15) << 23) + 0xfff + odd) >> 13;
  // Added to 0.5, a value below 2^-14 is rounded by the hardware at the last place of a subnormal half.
  const I tiny = bitcast<std::int32_t>(bitcast<float>(magnitude) + broadcast<float, N>(0.5F)) - (126 << 23);
  const I special =
      select(magnitude > 0x7f800000, broadcast<std::int32_t, N>(0x7e00), broadcast<std::int32_t, N>(0x7c00));
  const I finite = select(magnitude < (113 << 23), tiny, normal);
  return convert<std::uint16_t>(select(magnitude >= (143 << 23), special, finite) | sign);
}

/// float32 lanes of bfloat16 bits, exactly.
template <std::size_t N>
FASTMINE_INLINE Vec<float, N> widen_bfloat16(Vec<std::uint16_t, N> half) {
  return bitcast<float>(convert<std::int32_t>(half) << 16);
}

/// bfloat16 bits of float32 lanes, to nearest even; NaN stays NaN.
template <std::size_t N>
FASTMINE_INLINE Vec<std::uint16_t, N> narrow_bfloat16(Vec<float, N> x) {
  using I = Vec<std::int32_t, N>;
  const I bits = bitcast<std::int32_t>(x);
  const I rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const I quiet = bits | 0x400000;  // keeps a NaN whose payload sits in the lower half from becoming Inf
  const I chosen = select((bits & 0x7fffffff) > 0x7f800000, quiet, rounded);
  return convert<std::uint16_t>((chosen >> 16) & 0xffff);
}

/// double lanes of int64. Without AVX512DQ there is no instruction for it: both halves become the last digits of a
/// large double, and subtracting that double leaves their values.
template <std::size_t N>
FASTMINE_INLINE Vec<double, N> widen_int64(Vec<std::int64_t, N> v) {
#if defined(__AVX512DQ__) || !defined(__x86_64__)
  return convert<double>(v);
#else
  const auto low = bitcast<double>((v & 0xffffffff) | 0x4330000000000000);           // 2^52 + low
  const auto high = bitcast<double>(((v >> 32) & 0xffffffff) ^ 0x4530000080000000);  // 2^84 + 2^63 + 2^32 high
  return (high - broadcast<double, N>(0x1p84 + 0x1p63 + 0x1p52)) + low;
#endif
}

/// How an element of that type lies in memory.
template <DType D>
struct Storage {
  using type = std::uint8_t;
};
template <>
struct Storage<DType::float32> {
  using type = float;
};
template <>
struct Storage<DType::float64> {
  using type = double;
};
template <>
struct Storage<DType::bfloat16> {
  using type = std::uint16_t;
};
template <>
struct Storage<DType::float16> {
  using type = std::uint16_t;
};
template <>
struct Storage<DType::int8> {
  using type = std::int8_t;
};
template <>
struct Storage<DType::int16> {
  using type = std::int16_t;
};
template <>
struct Storage<DType::int32> {
  using type = std::int32_t;
};
template <>
struct Storage<DType::int64> {
  using type = std::int64_t;
};

/// The values of halves and int64 as T, float or double.
template <DType D, class T, std::size_t N>
FASTMINE_INLINE Vec<T, N> widen(Vec<typename Storage<D>::type, N> v) {
  if constexpr (D == DType::bfloat16) {
    return convert<T>(widen_bfloat16<N>(v));
  } else if constexpr (D == DType::float16) {
    return convert<T>(widen_float16<N>(v));
  } else {
    static_assert(D == DType::int64);
    return convert<T>(widen_int64<N>(v));
  }
}

/// n elements of type D, one after the other, as T.
template <DType D, class T>
FASTMINE_INLINE void read_row(const typename Storage<D>::type* from, std::size_t n, T* out) {
  using S = typename Storage<D>::type;
  constexpr std::size_t kStep = lanes<T>;
  if constexpr (D == DType::bool_) {
    for (std::size_t i = 0; i < n; ++i) {
      out[i] = static_cast<T>(from[i] != 0);
    }
  } else if constexpr (D == DType::bfloat16 || D == DType::float16 || D == DType::int64) {
    std::size_t i = 0;
    for (; i + kStep <= n; i += kStep) {
      store<T, kStep>(out + i, widen<D, T, kStep>(load<S, kStep>(from + i)));
    }
    if (i < n) {
      Vec<S, kStep> rest{};
      __builtin_memcpy(&rest, from + i, (n - i) * sizeof(S));
      const Vec<T, kStep> widened = widen<D, T, kStep>(rest);
      __builtin_memcpy(out + i, &widened, (n - i) * sizeof(T));
    }
  } else {
    for (std::size_t i = 0; i < n; ++i) {  // left to the compiler, which is better at widening bytes than isa.h
      out[i] = static_cast<T>(from[i]);
    }
  }
}

/// n elements of type D, `stride` elements apart (0 and negative too), as T.
template <DType D, class T>
FASTMINE_NOINLINE inline void read_as(const void* source, std::ptrdiff_t stride, std::size_t n, T* out) {
  using S = typename Storage<D>::type;
  const S* from = static_cast<const S*>(source);
  if (stride == 1) {
    return read_row<D, T>(from, n, out);
  }
  constexpr std::size_t kBatch = 128;  // long enough that no vector load waits for the scalar stores before it
  S gathered[kBatch];
  for (std::size_t i = 0; i < n; i += kBatch) {
    const std::size_t count = n - i < kBatch ? n - i : kBatch;
    for (std::size_t k = 0; k < count; ++k) {
      gathered[k] = from[static_cast<std::ptrdiff_t>(i + k) * stride];
    }
    read_row<D, T>(gathered, count, out + i);
  }
}

/// n elements of type D, one after the other, from T = float or double.
template <DType D, class T>
FASTMINE_NOINLINE inline void write_as(const T* source, std::size_t n, void* destination, bool past_caches) {
  using S = typename Storage<D>::type;
  constexpr std::size_t kStep = lanes<T>;
  const bool streamed = past_caches && reinterpret_cast<std::uintptr_t>(destination) % (kStep * sizeof(S)) == 0;
  S* to = static_cast<S*>(destination);
  for (std::size_t i = 0; i < n; i += kStep) {
    const std::size_t count = n - i < kStep ? n - i : kStep;
    Vec<T, kStep> v{};
    if (count == kStep) {
      v = load<T, kStep>(source + i);
    } else {
      __builtin_memcpy(&v, source + i, count * sizeof(T));
    }
    Vec<S, kStep> narrowed;
    if constexpr (D == DType::bfloat16) {
      narrowed = narrow_bfloat16<kStep>(convert<float>(v));
    } else if constexpr (D == DType::float16) {
      narrowed = narrow_float16<kStep>(convert<float>(v));
    } else {
      narrowed = convert<S>(v);
    }
    if (count == kStep && streamed) {
      stream<S, kStep>(to + i, narrowed);
    } else if (count == kStep) {
      store<S, kStep>(to + i, narrowed);
    } else {
      __builtin_memcpy(to + i, &narrowed, count * sizeof(S));
    }
  }
}

/// out[i] = source[i * stride] for i < n, as T = float or double. `stride` counts elements.
template <class T>
inline void read(const void* source, DType type, std::ptrdiff_t stride, std::size_t n, T* out) {
  switch (type) {
    case DType::float32:
      return read_as<DType::float32>(source, stride, n, out);
    case DType::float64:
      return read_as<DType::float64>(source, stride, n, out);
    case DType::bfloat16:
      return read_as<DType::bfloat16>(source, stride, n, out);
    case DType::float16:
      return read_as<DType::float16>(source, stride, n, out);
    case DType::bool_:
      return read_as<DType::bool_>(source, stride, n, out);
    case DType::uint8:
      return read_as<DType::uint8>(source, stride, n, out);
    case DType::int8:
      return read_as<DType::int8>(source, stride, n, out);
    case DType::int16:
      return read_as<DType::int16>(source, stride, n, out);
    case DType::int32:
      return read_as<DType::int32>(source, stride, n, out);
    case DType::int64:
      return read_as<DType::int64>(source, stride, n, out);
  }
}

/// destination[i] = source[i] for i < n, as float32, float64, bfloat16 or float16 (no other type is ever written);
/// to nearest even, NaN stays NaN. A double bound for a half goes through float. `past_caches`: see stream() in isa.h.
template <class T>
inline void write(const T* source, std::size_t n, void* destination, DType type, bool past_caches = false) {
  switch (type) {
    case DType::float32:
      return write_as<DType::float32>(source, n, destination, past_caches);
    case DType::float64:
      return write_as<DType::float64>(source, n, destination, past_caches);
    case DType::bfloat16:
      return write_as<DType::bfloat16>(source, n, destination, past_caches);
    case DType::float16:
      return write_as<DType::float16>(source, n, destination, past_caches);
    default:
      return;
  }
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
