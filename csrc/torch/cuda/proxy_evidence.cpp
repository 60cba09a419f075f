// fastmine::proxy_evidence on CUDA devices. Compiled and linked; not yet run on a GPU.
#include "kernels/cuda/proxy_evidence.h"

#include "torch/cuda/device.h"
#include "torch/evidence_inputs.h"

namespace fastmine {
namespace {

Tensor proxy_evidence(const Tensor& embeddings, const Tensor& labels, const MaybeTensor& valid,
                      const Tensor& vector_norm, const Tensor& cosine, const Tensor& nearest_other,
                      const Tensor& active, const MaybeTensor& weight, int64_t classes) {
  for (const MaybeTensor& other : {MaybeTensor(labels), valid, MaybeTensor(vector_norm), MaybeTensor(cosine),
                                   MaybeTensor(nearest_other), MaybeTensor(active), weight}) {
    check_same_device(embeddings, other, "an input");
  }
  const torch::stable::accelerator::DeviceGuard guard(embeddings.get_device_index());
  const EvidenceInputs in(embeddings, labels, valid, vector_norm, cosine, nearest_other, active, weight);
  const Tensor evidence = make_like(embeddings, {static_cast<int64_t>(Proxy::count)}, ScalarType::Double);
  const ProxyEvidence problem = in.problem(classes, data<double>(evidence));
  const Tensor workspace = make_workspace(embeddings, cuda::proxy_evidence_workspace(problem));
  check_launch(cuda::proxy_evidence(problem, workspace.mutable_data_ptr(), current_stream(embeddings)));
  return evidence;
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CUDA, m) {
  if (fastmine::unserved().empty()) {
    m.impl("proxy_evidence", TORCH_BOX(&fastmine::proxy_evidence));
  }
}
