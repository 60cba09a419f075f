// What the bindings of the ops on embeddings share, on any device: tensors as rows, and options by name.
#pragma once

#include <string>

#include "kernels/embeddings.h"
#include "torch/tensors.h"

namespace fastmine {

/// x with the elements of each row next to each other; most tensors are so already.
inline Tensor with_dense_rows(const Tensor& x) {
  FASTMINE_CHECK(x.dim() == 2, "expected a matrix, got ", x.dim(), " dimensions");
  return x.size(1) <= 1 || x.stride(1) == 1 ? x : dense(x);
}

inline Rows rows_of(const Tensor& x) {
  return {x.const_data_ptr(), dtype_of(x.scalar_type()), x.size(0), x.size(1), x.stride(0)};
}

inline Metric metric_of(const std::string& name) {
  if (name == "euclidean") return Metric::euclidean;
  if (name == "sqeuclidean") return Metric::sqeuclidean;
  if (name == "cosine") return Metric::cosine;
  FASTMINE_CHECK(name == "dot", "unknown metric ", name);
  return Metric::dot;
}

inline void check_distance_gradient(const Tensor& grad, const Tensor& distance, const Tensor& x, const Tensor& y) {
  FASTMINE_CHECK(grad.numel() == x.size(0) * y.size(0) && distance.numel() == grad.numel() &&
                     grad.scalar_type() == result_type(x) && distance.scalar_type() == result_type(x),
                 "grad and distance must be [N, M], of the type of distances");
}

}  // namespace fastmine
