// fastmine::pair_sums and its backward pass on CUDA devices. Compiled and linked; not yet run on a GPU.
#include "kernels/cuda/pair_sums.h"

#include <tuple>

#include "torch/cuda/device.h"
#include "torch/pair_inputs.h"

namespace fastmine {
namespace {

std::tuple<Tensor, Tensor> pair_sums(const Tensor& embeddings, const Tensor& labels, const MaybeTensor& valid,
                                     const MaybeTensor& ref_embeddings, const MaybeTensor& ref_labels,
                                     const MaybeTensor& ref_valid, const MaybeTensor& positive_bound,
                                     const MaybeTensor& negative_bound, const std::string& metric,
                                     const std::string& form, const std::vector<double>& curve,
                                     const MaybeTensor& scale, const MaybeTensor& level) {
  for (const MaybeTensor& other : {MaybeTensor(labels), valid, ref_embeddings, ref_labels, ref_valid, positive_bound,
                                   negative_bound, scale, level}) {
    check_same_device(embeddings, other, "an input");
  }
  const torch::stable::accelerator::DeviceGuard guard(embeddings.get_device_index());
  SummedPairs s;
  s.in = pairs_of(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, positive_bound, negative_bound);
  const PairSums problem =
      sums_problem(s, beside(embeddings), level, !ref_embeddings.has_value(), metric, form, curve, scale);
  const Tensor workspace = make_workspace(embeddings, cuda::pair_sums_workspace(problem));
  check_launch(cuda::pair_sums(problem, workspace.mutable_data_ptr(), current_stream(embeddings)));
  return {s.sums, s.evidence};
}

std::tuple<Tensor, Tensor> pair_sums_backward(const Tensor& grad, const Tensor& sums, const Tensor& embeddings,
                                              const Tensor& labels, const MaybeTensor& valid,
                                              const MaybeTensor& ref_embeddings, const MaybeTensor& ref_labels,
                                              const MaybeTensor& ref_valid, const MaybeTensor& positive_bound,
                                              const MaybeTensor& negative_bound, const std::string& metric,
                                              const std::string& form, const std::vector<double>& curve,
                                              const MaybeTensor& scale) {
  for (const MaybeTensor& other : {MaybeTensor(grad), MaybeTensor(sums), MaybeTensor(labels), valid, ref_embeddings,
                                   ref_labels, ref_valid, positive_bound, negative_bound, scale}) {
    check_same_device(embeddings, other, "an input");
  }
  const torch::stable::accelerator::DeviceGuard guard(embeddings.get_device_index());
  PulledPairs g;
  g.in = pairs_of(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, positive_bound, negative_bound);
  const PairSumsBackward problem =
      pulls_problem(g, beside(embeddings), grad, sums, !ref_embeddings.has_value(), metric, form, curve, scale);
  const Tensor workspace = make_workspace(embeddings, cuda::pair_sums_backward_workspace(problem));
  check_launch(cuda::pair_sums_backward(problem, workspace.mutable_data_ptr(), current_stream(embeddings)));
  return {g.grad_x, g.grad_y};
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CUDA, m) {
  if (!fastmine::unserved().empty()) {
    return;
  }
  m.impl("pair_sums", TORCH_BOX(&fastmine::pair_sums));
  m.impl("pair_sums_backward", TORCH_BOX(&fastmine::pair_sums_backward));
}
