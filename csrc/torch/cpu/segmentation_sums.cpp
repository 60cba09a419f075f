// fastmine::segmentation_sums and its backward pass on the CPU.
#include "kernels/segmentation_sums.h"

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "torch/cpu/embeddings.h"
#include "torch/cpu/kernels.h"
#include "torch/segmentation_inputs.h"

namespace fastmine {
namespace {

using Evidence = Tensor;

std::tuple<Tensor, Evidence> segmentation_sums(const Tensor& logits, const Tensor& target,
                                               const std::optional<Tensor>& valid, const std::optional<Tensor>& merged,
                                               std::optional<int64_t> ignore_index, const std::string& mode,
                                               const std::vector<std::string>& wanted, double focal_gamma) {
  Inputs in = inputs_of(logits, target, valid, ignore_index, mode);
  const MaybeTensor rows = add_merged(merged, in.kernel);
  const Tensor sums = make({in.kernel.samples, in.kernel.classes, kSegmentationSums}, ScalarType::Double);
  const Tensor evidence = make({static_cast<int64_t>(Segmentation::first_term)}, ScalarType::Double);
  const SegmentationSums problem{in.kernel, sums_of(wanted), focal_gamma, data<double>(sums), data<double>(evidence)};
  run(*kernels().segmentation_sums[logits.scalar_type() == ScalarType::Double], problem);
  return {sums, evidence};
}

Tensor segmentation_sums_backward(const Tensor& grad_in, const Tensor& logits, const Tensor& target,
                                  const std::optional<Tensor>& valid, const std::optional<Tensor>& merged,
                                  std::optional<int64_t> ignore_index, const std::string& mode,
                                  const std::vector<std::string>& wanted, double focal_gamma) {
  Inputs in = inputs_of(logits, target, valid, ignore_index, mode);
  const MaybeTensor rows = add_merged(merged, in.kernel);
  check_sums_gradient(grad_in, in.kernel);
  const Tensor grad = dense(grad_in);
  const Tensor grad_logits = make(logits.sizes(), logits.scalar_type());
  const SegmentationSumsBackward problem{in.kernel, sums_of(wanted), focal_gamma,
                                         static_cast<const double*>(grad.const_data_ptr()),
                                         grad_logits.mutable_data_ptr()};
  run(*kernels().segmentation_sums_backward[logits.scalar_type() == ScalarType::Double], problem);
  return grad_logits;
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CPU, m) {
  m.impl("segmentation_sums", TORCH_BOX(&fastmine::segmentation_sums));
  m.impl("segmentation_sums_backward", TORCH_BOX(&fastmine::segmentation_sums_backward));
}
