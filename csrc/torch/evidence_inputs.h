// What the bindings of proxy_evidence share, on any device: tensors to the problem.
#pragma once

#include "kernels/proxy_evidence.h"
#include "torch/mining_inputs.h"

namespace fastmine {

/// One number of this type for each of n rows.
inline const void* of_rows(const Tensor& x, int64_t n, ScalarType type) {
  FASTMINE_CHECK(x.numel() == n && x.scalar_type() == type, "one number of one type for each row");
  return x.const_data_ptr();
}

/// The tensors, made such that kernels can read them.
struct EvidenceInputs {
  Tensor x, labels, vector_norm, cosine, nearest_other, active;
  MaybeTensor valid, weight;

  EvidenceInputs(const Tensor& embeddings, const Tensor& labels_in, const MaybeTensor& valid_in,
                 const Tensor& vector_norm_in, const Tensor& cosine_in, const Tensor& nearest_other_in,
                 const Tensor& active_in, const MaybeTensor& weight_in)
      : x(with_dense_rows(embeddings)),
        labels(dense(labels_in)),
        vector_norm(dense(vector_norm_in)),
        cosine(dense(cosine_in)),
        nearest_other(dense(nearest_other_in)),
        active(dense(active_in)),
        valid(dense(valid_in)),
        weight(dense(weight_in)) {}

  /// The problem, which writes to `evidence`.
  ProxyEvidence problem(int64_t classes, double* evidence) const {
    const int64_t n = x.size(0);
    const ScalarType type = cosine.scalar_type();
    FASTMINE_CHECK(type == ScalarType::Float || type == ScalarType::Double, "cosines are float32 or float64");
    FASTMINE_CHECK(vector_norm.scalar_type() == ScalarType::Double, "norms are float64");
    FASTMINE_CHECK(!valid || valid->numel() == n, "one bit for each row");
    ProxyEvidence found{};
    found.x = rows_of(x);
    found.labels = static_cast<const int64_t*>(of_rows(labels, n, ScalarType::Long));
    found.valid = flags(valid);
    found.classes = classes;
    found.vector_norm = static_cast<const double*>(vector_norm.const_data_ptr());
    found.vectors = vector_norm.numel();
    found.cosine = of_rows(cosine, n, type);
    found.nearest_other = of_rows(nearest_other, n, type);
    found.weight = weight ? of_rows(*weight, n, type) : nullptr;
    found.dtype = dtype_of(type);
    found.active = static_cast<const bool*>(of_rows(active, n, ScalarType::Bool));
    found.evidence = evidence;
    return found;
  }
};

}  // namespace fastmine
