// fastmine::segmentation_loss and its backward pass on the CPU.
#include "kernels/segmentation_loss.h"

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "torch/cpu/embeddings.h"
#include "torch/cpu/kernels.h"
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
  const Inputs in = inputs_of(logits, target, valid, ignore_index, mode);
  SegmentationLoss problem = segmentation_problem(in.kernel, weights, smooth, focal_alpha, focal_gamma, tversky_alpha,
                                                  tversky_beta, empty, reduction);

  const ScalarType type = result_type(logits);
  const int64_t samples = in.kernel.samples;
  const Tensor loss = problem.reduction == Reduction::none ? make({samples}, type) : make({}, type);
  const Tensor coefficients = make({samples, in.kernel.classes, 4}, ScalarType::Double);
  const Tensor evidence = make({static_cast<int64_t>(Segmentation::count)}, ScalarType::Double);
  problem.loss = loss.mutable_data_ptr();
  problem.loss_dtype = dtype_of(type);
  problem.coefficients = data<double>(coefficients);
  problem.evidence = data<double>(evidence);
  run(*kernels().segmentation_loss[type == ScalarType::Double], problem);
  return {loss, coefficients, evidence};
}

Tensor segmentation_loss_backward(const Tensor& grad, const Tensor& logits, const Tensor& target,
                                  const std::optional<Tensor>& valid, const Tensor& coefficients_in,
                                  std::optional<int64_t> ignore_index, const std::string& mode,
                                  std::optional<double> focal_alpha, double focal_gamma) {
  const Inputs in = inputs_of(logits, target, valid, ignore_index, mode);
  const Tensor coefficients = dense(coefficients_in);
  SegmentationLossBackward problem =
      segmentation_backward_problem(in.kernel, grad, coefficients, focal_alpha, focal_gamma);
  const Tensor grad_logits = make(logits.sizes(), logits.scalar_type());
  problem.grad_logits = grad_logits.mutable_data_ptr();
  run(*kernels().segmentation_loss_backward[logits.scalar_type() == ScalarType::Double], problem);
  return grad_logits;
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CPU, m) {
  m.impl("segmentation_loss", TORCH_BOX(&fastmine::segmentation_loss));
  m.impl("segmentation_loss_backward", TORCH_BOX(&fastmine::segmentation_loss_backward));
}
