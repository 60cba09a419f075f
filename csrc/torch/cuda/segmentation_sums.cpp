// fastmine::segmentation_sums and its backward pass on CUDA devices. Compiled and linked; not yet run on a GPU.
#include "kernels/cuda/segmentation_sums.h"

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "torch/cuda/device.h"
#include "torch/segmentation_inputs.h"

namespace fastmine {
namespace {

using Evidence = Tensor;

std::tuple<Tensor, Evidence> segmentation_sums(const Tensor& logits, const Tensor& target,
                                               const std::optional<Tensor>& valid, const std::optional<Tensor>& merged,
                                               std::optional<int64_t> ignore_index, const std::string& mode,
                                               const std::vector<std::string>& wanted, double focal_gamma) {
  check_same_device(logits, target, "target");
  check_same_device(logits, valid, "valid");
  check_same_device(logits, merged, "merged");
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  Inputs in = inputs_of(logits, target, valid, ignore_index, mode);
  const MaybeTensor rows = add_merged(merged, in.kernel);
  const Tensor sums = make_like(logits, {in.kernel.samples, in.kernel.classes, kSegmentationSums}, ScalarType::Double);
  const Tensor evidence = make_like(logits, {static_cast<int64_t>(Segmentation::first_term)}, ScalarType::Double);
  const Tensor workspace = make_workspace(logits, cuda::segmentation_sums_workspace(in.kernel));
  const SegmentationSums problem{in.kernel, sums_of(wanted), focal_gamma, data<double>(sums), data<double>(evidence)};
  check_launch(cuda::segmentation_sums(problem, workspace.mutable_data_ptr(), current_stream(logits)));
  return {sums, evidence};
}

Tensor segmentation_sums_backward(const Tensor& grad_in, const Tensor& logits, const Tensor& target,
                                  const std::optional<Tensor>& valid, const std::optional<Tensor>& merged,
                                  std::optional<int64_t> ignore_index, const std::string& mode,
                                  const std::vector<std::string>& wanted, double focal_gamma) {
  check_same_device(logits, grad_in, "the gradient");
  check_same_device(logits, target, "target");
  check_same_device(logits, valid, "valid");
  check_same_device(logits, merged, "merged");
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  Inputs in = inputs_of(logits, target, valid, ignore_index, mode);
  const MaybeTensor rows = add_merged(merged, in.kernel);
  check_sums_gradient(grad_in, in.kernel);
  const Tensor grad = dense(grad_in);
  const Tensor grad_logits = torch::stable::new_empty(logits, logits.sizes());
  const SegmentationSumsBackward problem{in.kernel, sums_of(wanted), focal_gamma,
                                         static_cast<const double*>(grad.const_data_ptr()),
                                         grad_logits.mutable_data_ptr()};
  check_launch(cuda::segmentation_sums_backward(problem, current_stream(logits)));
  return grad_logits;
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CUDA, m) {
  if (!fastmine::unserved().empty()) {
    return;
  }
  m.impl("segmentation_sums", TORCH_BOX(&fastmine::segmentation_sums));
  m.impl("segmentation_sums_backward", TORCH_BOX(&fastmine::segmentation_sums_backward));
}
