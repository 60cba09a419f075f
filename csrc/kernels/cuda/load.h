// Reading and writing a few neighbouring positions of a row, whatever their type: 16 bytes at a time where they lie
// next to each other and are aligned, else one by one.
#pragma once

#include "kernels/cuda/portable.h"
#include "kernels/dtype.h"

namespace fastmine::cuda {

/// How an element lies in memory. Halves are distinct types, so that code can be chosen by type.
struct BFloat16 {
  std::uint16_t bits;
};
struct Half {
  std::uint16_t bits;
};
struct Bool {
  std::uint8_t bits;
};

/// The type in which elements of type S are computed.
template <class S>
struct WorkingType {
  using type = float;
};
template <>
struct WorkingType<double> {
  using type = double;
};
template <class S>
using Working = typename WorkingType<S>::type;

/// Its value: exact as float or as double, but for int32, int64 and double as float.
template <class T, class S>
FASTMINE_DEVICE T value_of(S stored) {
  return static_cast<T>(stored);
}
template <class T>
FASTMINE_DEVICE T value_of(BFloat16 stored) {
  const std::uint32_t bits = static_cast<std::uint32_t>(stored.bits) << 16;
  float x;
  memcpy(&x, &bits, sizeof x);
  return static_cast<T>(x);
}
template <class T>
FASTMINE_DEVICE T value_of(Half stored) {
  return static_cast<T>(float_of_half(stored.bits));
}
template <class T>
FASTMINE_DEVICE T value_of(Bool stored) {
  return static_cast<T>(stored.bits != 0);
}

FASTMINE_DEVICE void assign(float& out, float x) { out = x; }
FASTMINE_DEVICE void assign(double& out, double x) { out = x; }
FASTMINE_DEVICE void assign(BFloat16& out, float x) { out.bits = bfloat16_of_float(x); }
FASTMINE_DEVICE void assign(Half& out, float x) { out.bits = half_of_float(x); }

/// N neighbours. Aligned to 16 bytes at most: that is the longest load.
template <class S, int N>
struct alignas(sizeof(S) * N < 16 ? sizeof(S) * N : 16) Pack {
  S item[N];
};

/// Whether n elements from p on make a whole pack.
template <class S, int N>
FASTMINE_DEVICE bool is_pack(const void* p, std::int64_t stride, std::int64_t n) {
  return n >= N && stride == 1 && reinterpret_cast<std::uintptr_t>(p) % alignof(Pack<S, N>) == 0;
}

/// A whole pack.
template <class S, int N>
FASTMINE_DEVICE Pack<S, N> load_pack(const S* p) {
  Pack<S, N> pack;
  load_bytes<sizeof pack>(p, &pack);
  return pack;
}
template <class S, int N>
FASTMINE_DEVICE void store_pack(const Pack<S, N>& pack, S* p) {
  store_bytes<sizeof pack>(&pack, p);
}

/// The first n of N elements, `stride` apart; the rest is zero.
template <class S, int N>
FASTMINE_DEVICE Pack<S, N> load(const S* p, std::int64_t stride, std::int64_t n) {
  if (is_pack<S, N>(p, stride, n)) {
    return load_pack<S, N>(p);
  }
  Pack<S, N> pack{};
  FASTMINE_UNROLL for (int i = 0; i < N; ++i) {
    if (i < n) {
      pack.item[i] = p[i * stride];
    }
  }
  return pack;
}

/// The first n of N elements, next to each other.
template <class S, int N>
FASTMINE_DEVICE void store(const Pack<S, N>& pack, S* p, std::int64_t n) {
  if (is_pack<S, N>(p, 1, n)) {
    return store_pack<S, N>(pack, p);
  }
  FASTMINE_UNROLL for (int i = 0; i < N; ++i) {
    if (i < n) {
      p[i] = pack.item[i];
    }
  }
}

/// f(S{}) with S the stored type of a target: any type.
template <class F>
FASTMINE_DEVICE void with_type(DType dtype, F f) {
  switch (dtype) {
    case DType::float32:
      return f(float{});
    case DType::float64:
      return f(double{});
    case DType::bfloat16:
      return f(BFloat16{});
    case DType::float16:
      return f(Half{});
    case DType::bool_:
      return f(Bool{});
    case DType::uint8:
      return f(std::uint8_t{});
    case DType::int8:
      return f(std::int8_t{});
    case DType::int16:
      return f(std::int16_t{});
    case DType::int32:
      return f(std::int32_t{});
    case DType::int64:
      return f(std::int64_t{});
  }
}

/// The same for class indices: integer types only.
template <class F>
FASTMINE_DEVICE void with_integer_type(DType dtype, F f) {
  switch (dtype) {
    case DType::bool_:
      return f(Bool{});
    case DType::uint8:
      return f(std::uint8_t{});
    case DType::int8:
      return f(std::int8_t{});
    case DType::int16:
      return f(std::int16_t{});
    case DType::int32:
      return f(std::int32_t{});
    default:
      return f(std::int64_t{});
  }
}

}  // namespace fastmine::cuda
