// fastmine::proxy_evidence on the CPU.
#include "torch/cpu/embeddings.h"
#include "torch/cpu/kernels.h"
#include "torch/evidence_inputs.h"
#include "torch/mining_inputs.h"

namespace fastmine {
namespace {

Tensor proxy_evidence(const Tensor& embeddings, const Tensor& labels, const MaybeTensor& valid,
                      const Tensor& vector_norm, const Tensor& cosine, const Tensor& nearest_other,
                      const Tensor& active, const MaybeTensor& weight, int64_t classes) {
  const EvidenceInputs in(embeddings, labels, valid, vector_norm, cosine, nearest_other, active, weight);
  const Tensor evidence = make({static_cast<int64_t>(Proxy::count)}, ScalarType::Double);
  const ProxyEvidence problem = in.problem(classes, data<double>(evidence));
  run(*kernels().proxy_evidence[result_type(in.x) == ScalarType::Double], problem);
  return evidence;
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CPU, m) { m.impl("proxy_evidence", TORCH_BOX(&fastmine::proxy_evidence)); }
