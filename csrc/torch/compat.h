// The one door to torch: every torch header that this room uses, and the few words it speaks in.
//
// Only the LibTorch stable ABI, targeted at torch 2.10 (TORCH_TARGET_VERSION), so that one binary serves every torch
// from there on. The kernels never see these types.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

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

/// A string, and a list of strings, as arguments of an op: what torch makes std::string of them with leaves a copy
/// behind at every call (torch up to 2.13, pytorch/pytorch#191340).
struct Text : std::string {
  using std::string::string;
};
struct Texts : std::vector<std::string> {
  using std::vector<std::string>::vector;
};

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

namespace torch::stable::detail {

/// The string that the handle holds, which is given up.
template <>
struct ToImpl<fastmine::Text> {
  static fastmine::Text call(StableIValue value, uint64_t /*version*/, bool /*internal*/) {
    const StringHandle handle = to<StringHandle>(value);
    size_t length = 0;
    const char* characters = nullptr;
    FASTMINE_CHECK(torch_string_length(handle, &length) == AOTI_TORCH_SUCCESS &&
                       torch_string_c_str(handle, &characters) == AOTI_TORCH_SUCCESS,
                   "a string argument cannot be read");
    const fastmine::Text found(characters, length);
    FASTMINE_CHECK(torch_delete_string(handle) == AOTI_TORCH_SUCCESS, "a string argument cannot be given up");
    return found;
  }
};

template <>
struct ToImpl<fastmine::Texts> {
  static fastmine::Texts call(StableIValue value, uint64_t version, bool internal) {
    const auto found = ToImpl<std::vector<fastmine::Text>>::call(value, version, internal);
    return {found.begin(), found.end()};
  }
};

// What TORCH_BOX hands to parameters of these types.
template <>
struct UnboxType<std::string> {
  using type = fastmine::Text;
};
template <>
struct UnboxType<std::vector<std::string>> {
  using type = fastmine::Texts;
};

}  // namespace torch::stable::detail
