// The element types that kernels read and write, named without torch or NumPy.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastmine {

enum class DType : std::uint8_t { float32, float64, bfloat16, float16, bool_, uint8, int8, int16, int32, int64 };

/// Bytes of one element. Always inlined: a weak copy compiled for one instruction set could serve all others.
[[gnu::always_inline]] inline constexpr std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::float64:
    case DType::int64:
      return 8;
    case DType::float32:
    case DType::int32:
      return 4;
    case DType::bfloat16:
    case DType::float16:
    case DType::int16:
      return 2;
    case DType::bool_:
    case DType::uint8:
    case DType::int8:
      return 1;
  }
  return 0;
}

/// Whether an element of that type can have this value.
[[gnu::always_inline]] inline constexpr bool holds(DType dtype, std::int64_t value) {
  const std::uint64_t size = value < 0 ? -static_cast<std::uint64_t>(value) : static_cast<std::uint64_t>(value);
  const std::uint64_t digits = size == 0 ? 0 : size >> __builtin_ctzll(size);  // without the zeros behind them
  switch (dtype) {
    case DType::float32:
      return digits >> 24 == 0;
    case DType::float64:
      return digits >> 53 == 0;
    case DType::bfloat16:
      return digits >> 8 == 0;
    case DType::float16:
      return digits >> 11 == 0 && size < 65536;
    case DType::bool_:
      return value == 0 || value == 1;
    case DType::uint8:
      return value >= 0 && value <= UINT8_MAX;
    case DType::int8:
      return value >= INT8_MIN && value <= INT8_MAX;
    case DType::int16:
      return value >= INT16_MIN && value <= INT16_MAX;
    case DType::int32:
      return value >= INT32_MIN && value <= INT32_MAX;
    case DType::int64:
      return true;
  }
  return false;
}

}  // namespace fastmine
