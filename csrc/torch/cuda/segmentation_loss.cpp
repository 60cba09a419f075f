// fastmine::segmentation_loss and its backward pass on CUDA devices. Compiled and linked; not yet run on a GPU.
#include "kernels/cuda/segmentation_loss.h"

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "torch/cuda/device.h"
#include "torch/segmentation_inputs.h"

namespace fastmine {
namespace {

using Coefficients = Tensor;
using Evidence = Tensor;

std::tuple<Tensor, Coefficients, Evidence> segmentation_loss(
    const Tensor& logits, const Tensor& target, const std::optional<Tensor>& valid, std::optional<int64_t> ignore_index,
    const std::string& mode, const std::vector<double>& weights, double smooth, std::optional<double> focal_alpha,
    double focal_gamma, double tversky_alpha, double tversky_beta, const std::string& empty,
    const std::string& reduction) {
  check_same_device(logits, target, "target");
  check_same_device(logits, valid, "valid");
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const Inputs in = inputs_of(logits, target, valid, ignore_index, mode);
  SegmentationLoss problem = segmentation_problem(in.kernel, weights, smooth, focal_alpha, focal_gamma, tversky_alpha,
                                                  tversky_beta, empty, reduction);

  const ScalarType type = result_type(logits);
  const int64_t samples = in.kernel.samples;
  const Tensor loss =
      problem.reduction == Reduction::none ? make_like(logits, {samples}, type) : make_like(logits, {}, type);
  const Tensor coefficients = make_like(logits, {samples, in.kernel.classes, 4}, ScalarType::Double);
  const Tensor evidence = make_like(logits, {static_cast<int64_t>(Segmentation::count)}, ScalarType::Double);
  const Tensor workspace = make_workspace(logits, cuda::segmentation_loss_workspace(in.kernel));
  problem.loss = loss.mutable_data_ptr();
  problem.loss_dtype = dtype_of(type);
  problem.coefficients = data<double>(coefficients);
  problem.evidence = data<double>(evidence);
  check_launch(cuda::segmentation_loss(problem, workspace.mutable_data_ptr(), current_stream(logits)));
  return {loss, coefficients, evidence};
}

Tensor segmentation_loss_backward(const Tensor& grad, const Tensor& logits, const Tensor& target,
                                  const std::optional<Tensor>& valid, const Tensor& coefficients_in,
                                  std::optional<int64_t> ignore_index, const std::string& mode,
                                  std::optional<double> focal_alpha, double focal_gamma) {
  check_same_device(logits, target, "target");
  check_same_device(logits, valid, "valid");
  check_same_device(logits, coefficients_in, "coefficients");
  check_same_device(logits, grad, "the gradient");
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const Inputs in = inputs_of(logits, target, valid, ignore_index, mode);
  const Tensor coefficients = torch::stable::contiguous(coefficients_in);
  SegmentationLossBackward problem =
      segmentation_backward_problem(in.kernel, grad, coefficients, focal_alpha, focal_gamma);
  const Tensor grad_logits = torch::stable::new_empty(logits, logits.sizes());
  problem.grad_logits = grad_logits.mutable_data_ptr();
  check_launch(cuda::segmentation_loss_backward(problem, current_stream(logits)));
  return grad_logits;
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CUDA, m) {
  if (!fastmine::unserved().empty()) {
    return;
  }
  m.impl("segmentation_loss", TORCH_BOX(&fastmine::segmentation_loss));
  m.impl("segmentation_loss_backward", TORCH_BOX(&fastmine::segmentation_loss_backward));
}
