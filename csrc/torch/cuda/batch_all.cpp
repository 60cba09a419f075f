// fastmine::batch_all and its backward pass on CUDA devices. Compiled and linked; not yet run on a GPU.
#include "kernels/cuda/batch_all.h"

#include "torch/cuda/device.h"
#include "torch/mining.h"
#include "torch/triplet_inputs.h"

namespace fastmine {
namespace {

/// The hardest pairs first, as on the CPU.
Eight batch_all(const Tensor& embeddings, const Tensor& labels, const MaybeTensor& valid,
                const MaybeTensor& ref_embeddings, const MaybeTensor& ref_labels, const MaybeTensor& ref_valid,
                const MaybeTensor& self_index, const MaybeTensor& weight_in, const std::string& metric,
                const std::string& triplets, double margin, double leak, const std::string& on_empty,
                const std::string& reduction, const std::string& average) {
  check_same_device(embeddings, weight_in, "weight");
  const torch::stable::accelerator::DeviceGuard guard(embeddings.get_device_index());
  const cudaStream_t stream = current_stream(embeddings);
  const Mined m = mine(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, self_index, metric, "hardest",
                       "hardest", kOfHardest + kOfAll);
  const MaybeTensor weight = dense(weight_in);
  const Formula hardest =
      apply_formula(m, weight, metric, leak > 0 ? "leaky" : "hinge", margin, leak, on_empty, reduction);
  SummedTriplets t;
  const BatchAllFormula formula =
      sums_formula(t, beside(embeddings), m, hardest, weight, metric, triplets, margin, leak, reduction, average);
  check_launch(cuda::use_of_anchors(formula, stream));
  const BatchAll problem = sums_problem(t, m, !ref_embeddings.has_value(), metric, triplets, margin, leak);
  const Tensor workspace = make_workspace(embeddings, cuda::batch_all_workspace(problem));
  check_launch(cuda::batch_all(problem, workspace.mutable_data_ptr(), stream));
  const Tensor formula_workspace = make_workspace(embeddings, cuda::kFormulaWorkspace);
  check_launch(cuda::batch_all_formula(formula, formula_workspace.mutable_data_ptr(), stream));
  return {hardest.loss,   m.positive_index, m.negative_index, m.has_positive,
          m.has_negative, hardest.slopes,   t.scale,          m.evidence};
}

/// Only the device knows whether an anchor is in use. If none is, the gradient is that of the hardest pairs: it comes
/// first, and is overwritten if some are.
std::tuple<Tensor, Tensor> batch_all_backward(const Tensor& grad, const Tensor& slopes, const Tensor& scale_in,
                                              const Tensor& embeddings, const Tensor& labels_in,
                                              const MaybeTensor& valid_in, const MaybeTensor& ref_embeddings,
                                              const MaybeTensor& ref_labels_in, const MaybeTensor& ref_valid_in,
                                              const MaybeTensor& self_index_in, const Tensor& positive_index,
                                              const Tensor& negative_index, const Tensor& has_positive,
                                              const Tensor& has_negative, const std::string& metric,
                                              const std::string& triplets, double margin, double leak) {
  const int64_t n = embeddings.size(0);
  check_grad(grad, n);
  for (const MaybeTensor& other :
       {MaybeTensor(labels_in), valid_in, ref_labels_in, ref_valid_in, self_index_in, MaybeTensor(scale_in)}) {
    check_same_device(embeddings, other, "an input");
  }
  const torch::stable::accelerator::DeviceGuard guard(embeddings.get_device_index());
  const cudaStream_t stream = current_stream(embeddings);
  const auto [grad_x, grad_y] = mining_gradient(grad, grad, slopes, embeddings, ref_embeddings, positive_index,
                                                negative_index, has_positive, has_negative, metric);
  const Tensor scale = dense(scale_in), weight = make_like(embeddings, {n}, ScalarType::Double);
  const Tensor use = make_like(embeddings, {n}, ScalarType::Bool), any = make_like(embeddings, {1}, ScalarType::Int);
  FASTMINE_CHECK(scale.scalar_type() == ScalarType::Double && scale.numel() == n, "the scale is of another problem");
  check_launch(cuda::weigh_anchors(grad.const_data_ptr(), dtype_of(grad.scalar_type()), step(grad), data<double>(scale),
                                   n, data<double>(weight), data<bool>(use), data<int32_t>(any), stream));
  const bool self = !ref_embeddings.has_value();
  const Tensor x = with_dense_rows(embeddings), y = self ? x : with_dense_rows(*ref_embeddings);
  const Tensor labels = dense(labels_in), ref_labels = self ? labels : dense(ref_labels_in.value());
  const MaybeTensor valid = dense(valid_in), ref_valid = self ? valid : dense(ref_valid_in);
  const MaybeTensor self_index = dense(self_index_in);
  BatchAllBackward problem{};
  problem.problem = triplets_problem(x, labels, valid, y, ref_labels, ref_valid, self, self_index, metric, triplets,
                                     margin, leak, use);
  problem.weight = data<double>(weight);
  problem.grad_x = grad_x.mutable_data_ptr();
  problem.grad_y = grad_y.mutable_data_ptr();
  const Tensor workspace = make_workspace(embeddings, cuda::batch_all_backward_workspace(problem));
  check_launch(cuda::batch_all_backward(problem, data<int32_t>(any), workspace.mutable_data_ptr(), stream));
  return {grad_x, grad_y};
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CUDA, m) {
  if (!fastmine::unserved().empty()) {
    return;
  }
  m.impl("batch_all", TORCH_BOX(&fastmine::batch_all));
  m.impl("batch_all_backward", TORCH_BOX(&fastmine::batch_all_backward));
}
