// Tensors as the bindings of every device speak of them.
#pragma once

#include <optional>
#include <string>

#include "kernels/reduction.h"
#include "torch/compat.h"

namespace fastmine {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

/// Distances and losses are float64 for float64 inputs, else float32.
inline ScalarType result_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

/// The same values in one dense block; most tensors are so already, and asking is cheaper than a call of an op.
inline Tensor dense(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

inline MaybeTensor dense(const MaybeTensor& x) { return x ? MaybeTensor(dense(*x)) : std::nullopt; }

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
