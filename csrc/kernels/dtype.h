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

}  // namespace fastmine
