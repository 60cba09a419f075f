// Elements of any type as float64, to memory and back.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/dtype.h"

namespace fastmine::test {

inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
inline constexpr double kInf = std::numeric_limits<double>::infinity();

inline constexpr DType kFloats[] = {DType::float32, DType::float64, DType::bfloat16, DType::float16};

inline bool is_float(DType type) { return type <= DType::float16; }

/// A value that the type holds exactly, written to memory. Half types: normal numbers and zero only.
inline void put(void* at, DType type, double value) {
  const auto single = static_cast<float>(value);
  std::uint32_t bits = 0;
  std::memcpy(&bits, &single, sizeof bits);
  const auto copy = [&](const auto& x) { std::memcpy(at, &x, sizeof x); };
  switch (type) {
    case DType::float32:
      return copy(single);
    case DType::float64:
      return copy(value);
    case DType::bfloat16:
      return copy(static_cast<std::uint16_t>(bits >> 16));
    case DType::float16: {
      const std::uint32_t sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
      const std::uint32_t magnitude = rest >= 0x7f800000 ? 0x7c00 | (rest >> 13 & 0x3ff) : (rest >> 13) - (112U << 10);
      return copy(static_cast<std::uint16_t>(sign | (single == 0 ? 0 : magnitude)));
    }
    case DType::bool_:
    case DType::uint8:
      return copy(static_cast<std::uint8_t>(value));
    case DType::int8:
      return copy(static_cast<std::int8_t>(value));
    case DType::int16:
      return copy(static_cast<std::int16_t>(value));
    case DType::int32:
      return copy(static_cast<std::int32_t>(value));
    case DType::int64:
      return copy(static_cast<std::int64_t>(value));
  }
}

inline double get(const void* at, DType type) {
  const auto take = [&](auto x) {
    std::memcpy(&x, at, sizeof x);
    return x;
  };
  if (type == DType::float64) {
    return take(0.0);
  }
  if (type == DType::float32) {
    return static_cast<double>(take(0.0F));
  }
  const std::uint16_t half = take(std::uint16_t{});
  if (type == DType::bfloat16) {
    const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
    float value = 0;
    std::memcpy(&value, &bits, sizeof value);
    return static_cast<double>(value);
  }
  const int exponent = half >> 10 & 31;
  const double mantissa = static_cast<double>(half & 1023) / 1024;
  const double magnitude = exponent == 31  ? (mantissa == 0 ? kInf : kNan)
                           : exponent == 0 ? std::ldexp(mantissa, -14)
                                           : std::ldexp(1 + mantissa, exponent - 15);
  return half >> 15 != 0 ? -magnitude : magnitude;
}

}  // namespace fastmine::test
