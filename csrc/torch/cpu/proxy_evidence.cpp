// fastmine::proxy_evidence on the CPU.
#include "kernels/proxy_evidence.h"

#include "torch/cpu/kernels.h"
#include "torch/cpu/mining.h"

namespace fastmine {
namespace {

/// One number of this type for each of n rows.
const void* of_rows(const Tensor& x, int64_t n, ScalarType type) {
  FASTMINE_CHECK(x.numel() == n && x.scalar_type() == type, "one number of one type for each row");
  return x.const_data_ptr();
}

Tensor proxy_evidence(const Tensor& embeddings, const Tensor& labels_in, const MaybeTensor& valid_in,
                      const Tensor& vector_norm_in, const Tensor& cosine_in, const Tensor& nearest_other_in,
                      const Tensor& active_in, const MaybeTensor& weight_in, int64_t classes) {
  const Tensor x = with_dense_rows(embeddings), labels = dense(labels_in), vector_norm = dense(vector_norm_in);
  const Tensor cosine = dense(cosine_in), nearest_other = dense(nearest_other_in), active = dense(active_in);
  const MaybeTensor valid = dense(valid_in), weight = dense(weight_in);
  const int64_t n = x.size(0);
  const ScalarType type = cosine.scalar_type();
  FASTMINE_CHECK(type == ScalarType::Float || type == ScalarType::Double, "cosines are float32 or float64");
  FASTMINE_CHECK(vector_norm.scalar_type() == ScalarType::Double, "norms are float64");
  FASTMINE_CHECK(!valid || valid->numel() == n, "one bit for each row");
  const Tensor evidence = make({static_cast<int64_t>(Proxy::count)}, ScalarType::Double);

  ProxyEvidence problem{};
  problem.x = rows_of(x);
  problem.labels = static_cast<const int64_t*>(of_rows(labels, n, ScalarType::Long));
  problem.valid = flags(valid);
  problem.classes = classes;
  problem.vector_norm = static_cast<const double*>(vector_norm.const_data_ptr());
  problem.vectors = vector_norm.numel();
  problem.cosine = of_rows(cosine, n, type);
  problem.nearest_other = of_rows(nearest_other, n, type);
  problem.weight = weight ? of_rows(*weight, n, type) : nullptr;
  problem.dtype = dtype_of(type);
  problem.active = static_cast<const bool*>(of_rows(active, n, ScalarType::Bool));
  problem.evidence = data<double>(evidence);
  run(*kernels().proxy_evidence[result_type(x) == ScalarType::Double], problem);
  return evidence;
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CPU, m) { m.impl("proxy_evidence", TORCH_BOX(&fastmine::proxy_evidence)); }
