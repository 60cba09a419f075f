// Tensors as the bindings of every device speak of them.
#pragma once

#include <string>

#include "kernels/reduction.h"
#include "torch/compat.h"

namespace fastmine {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

/// Distances and losses are float64 for float64 inputs, else float32.
inline ScalarType result_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

inline Reduction reduction_of(const std::string& name) {
  if (name == "mean") return Reduction::mean;
  if (name == "sum") return Reduction::sum;
  FASTMINE_CHECK(name == "none", "unknown reduction ", name);
  return Reduction::none;
}

}  // namespace fastmine
