// The one door to torch: every torch header that this room uses, and the few words it speaks in.
//
// Only the LibTorch stable ABI, targeted at torch 2.10 (TORCH_TARGET_VERSION), so that one binary serves every torch
// from there on. The kernels never see these types.
#pragma once

#include <sstream>
#include <stdexcept>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "kernels/dtype.h"

#ifndef TORCH_TARGET_VERSION
#error "compile with -DTORCH_TARGET_VERSION (see cmake/TorchLibrary.cmake)"
#endif

namespace fastmine {

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

/// FASTMINE_CHECK(condition, parts of the message...): the second lock behind the validation in Python. Unlike
/// STD_TORCH_CHECK it says nothing but the message: no path of the machine that compiled it.
#define FASTMINE_CHECK(condition, ...) \
  do {                                 \
    if (!(condition)) [[unlikely]] {   \
      ::fastmine::fail(__VA_ARGS__);   \
    }                                  \
  } while (false)

/// The kernels' name for a torch scalar type.
inline DType dtype_of(torch::headeronly::ScalarType type) {
  using torch::headeronly::ScalarType;
  switch (type) {
    case ScalarType::Float:
      return DType::float32;
    case ScalarType::Double:
      return DType::float64;
    case ScalarType::BFloat16:
      return DType::bfloat16;
    case ScalarType::Half:
      return DType::float16;
    case ScalarType::Bool:
      return DType::bool_;
    case ScalarType::Byte:
      return DType::uint8;
    case ScalarType::Char:
      return DType::int8;
    case ScalarType::Short:
      return DType::int16;
    case ScalarType::Int:
      return DType::int32;
    case ScalarType::Long:
      return DType::int64;
    default:
      fail("no kernel reads torch scalar type number ", static_cast<int>(type));
  }
}

}  // namespace fastmine
