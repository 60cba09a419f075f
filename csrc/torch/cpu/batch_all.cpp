// fastmine::batch_all and its backward pass on the CPU.
#include <string>
#include <tuple>

#include "torch/cpu/embeddings.h"
#include "torch/cpu/kernels.h"
#include "torch/mining.h"
#include "torch/triplet_inputs.h"

namespace fastmine {
namespace {

/// The hardest pairs first: they say which anchors have a triplet above the kink, and what a batch without any is
/// worth.
Eight batch_all(const Tensor& embeddings, const Tensor& labels, const MaybeTensor& valid,
                const MaybeTensor& ref_embeddings, const MaybeTensor& ref_labels, const MaybeTensor& ref_valid,
                const MaybeTensor& self_index, const MaybeTensor& weight_in, const std::string& metric,
                const std::string& triplets, double margin, double leak, const std::string& on_empty,
                const std::string& reduction, const std::string& average) {
  const Mined m = mine(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, self_index, metric, "hardest",
                       "hardest", kOfHardest + kOfAll);
  const MaybeTensor weight = dense(weight_in);
  const Formula hardest =
      apply_formula(m, weight, metric, leak > 0 ? "leaky" : "hinge", margin, leak, on_empty, reduction);
  SummedTriplets t;
  const BatchAllFormula formula =
      sums_formula(t, &make, m, hardest, weight, metric, triplets, margin, leak, reduction, average);
  cpu::use_of_anchors(formula);
  const BatchAll problem = sums_problem(t, m, !ref_embeddings.has_value(), metric, triplets, margin, leak);
  // Similarities may be far larger than their differences, and rows are not centred for them: in float64 always.
  run(*kernels().batch_all[result_type(embeddings) == ScalarType::Double || problem.metric == Metric::dot], problem);
  cpu::batch_all_formula(formula);
  return {hardest.loss,   m.positive_index, m.negative_index, m.has_positive,
          m.has_negative, hardest.slopes,   t.scale,          m.evidence};
}

/// Of no anchor in use, the gradient is that of the hardest pairs: zero, but in a batch without a valid anchor.
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
  const Tensor scale = dense(scale_in), weight = make({n}, ScalarType::Double), use = make({n}, ScalarType::Bool);
  FASTMINE_CHECK(scale.scalar_type() == ScalarType::Double && scale.numel() == n, "the scale is of another problem");
  if (!cpu::weigh_anchors(grad.const_data_ptr(), dtype_of(grad.scalar_type()), step(grad), data<double>(scale), n,
                          data<double>(weight), data<bool>(use))) {
    return mining_gradient(grad, grad, slopes, embeddings, ref_embeddings, positive_index, negative_index, has_positive,
                           has_negative, metric);
  }
  const bool self = !ref_embeddings.has_value();
  const Tensor x = with_dense_rows(embeddings), y = self ? x : with_dense_rows(*ref_embeddings);
  const Tensor labels = dense(labels_in), ref_labels = self ? labels : dense(ref_labels_in.value());
  const MaybeTensor valid = dense(valid_in), ref_valid = self ? valid : dense(ref_valid_in);
  const MaybeTensor self_index = dense(self_index_in);
  const Tensor grad_x = make({n, x.size(1)}, x.scalar_type());
  const Tensor grad_y = self ? make({0}, x.scalar_type()) : make({y.size(0), y.size(1)}, y.scalar_type());

  BatchAllBackward problem{};
  problem.problem = triplets_problem(x, labels, valid, y, ref_labels, ref_valid, self, self_index, metric, triplets,
                                     margin, leak, use);
  problem.weight = data<double>(weight);
  problem.grad_x = grad_x.mutable_data_ptr();
  problem.grad_y = grad_y.mutable_data_ptr();
  run(*kernels().batch_all_backward[result_type(x) == ScalarType::Double], problem);
  return {grad_x, grad_y};
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CPU, m) {
  m.impl("batch_all", TORCH_BOX(&fastmine::batch_all));
  m.impl("batch_all_backward", TORCH_BOX(&fastmine::batch_all_backward));
}
