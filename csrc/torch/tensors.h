// Tensors as the bindings of every device speak of them.
#pragma once

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

}  // namespace fastmine
