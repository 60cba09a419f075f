// fastmine::batch_all and its backward pass on the CPU.
#include "kernels/batch_all.h"

#include <optional>
#include <string>
#include <tuple>

#include "kernels/batch_hard.h"
#include "torch/cpu/kernels.h"
#include "torch/cpu/mining.h"

namespace fastmine {
namespace {

using Eight = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Triplets kind_of(const std::string& name) {
  return name == "hard" ? Triplets::hard : name == "semi_hard" ? Triplets::semi_hard : Triplets::all;
}

/// The problem without its outputs, of tensors as kernels can read them.
BatchAll problem_of(const Tensor& x, const Tensor& labels, const MaybeTensor& valid, const Tensor& y,
                    const Tensor& ref_labels, const MaybeTensor& ref_valid, bool self, const MaybeTensor& self_index,
                    const std::string& metric, const std::string& triplets, double margin, double leak,
                    const Tensor& use) {
  BatchAll problem{};
  problem.x = rows_of(x);
  problem.labels = static_cast<const int64_t*>(labels.const_data_ptr());
  problem.valid = flags(valid);
  problem.y = rows_of(y);
  problem.ref_labels = static_cast<const int64_t*>(ref_labels.const_data_ptr());
  problem.ref_valid = flags(ref_valid);
  problem.self = self;
  problem.self_index = for_anchors<int64_t>(self_index, x.size(0));
  problem.metric = metric_of(metric);
  problem.kind = kind_of(triplets);
  problem.margin = margin;
  problem.leak = leak;
  problem.use = data<bool>(use);
  return problem;
}

/// The hardest pairs first: they say which anchors have a triplet above the kink, and what a batch without any is
/// worth.
Eight batch_all(const Tensor& embeddings, const Tensor& labels, const MaybeTensor& valid,
                const MaybeTensor& ref_embeddings, const MaybeTensor& ref_labels, const MaybeTensor& ref_valid,
                const MaybeTensor& self_index, const MaybeTensor& weight_in, const std::string& metric,
                const std::string& triplets, double margin, double leak, const std::string& on_empty,
                const std::string& reduction, const std::string& average) {
  constexpr int64_t kOfHardest = 2, kOfAll = 2;  // places of the evidence
  const Mined m = mine(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, self_index, metric, "hardest",
                       "hardest", kOfHardest + kOfAll);
  const MaybeTensor weight = dense(weight_in);
  const Formula hardest =
      apply_formula(m, weight, metric, leak > 0 ? "leaky" : "hinge", margin, leak, on_empty, reduction);
  const int64_t n = m.embeddings.size(0);
  const Tensor found = make({3, n}, ScalarType::Double), scale = make({n}, ScalarType::Double);
  const Tensor use = make({n}, ScalarType::Bool);

  BatchAllFormula formula{};
  formula.n = n;
  formula.positive_distance = data<double>(m.distances);
  formula.negative_distance = data<double>(m.distances) + n;
  formula.has_positive = data<bool>(m.has_positive);
  formula.has_negative = data<bool>(m.has_negative);
  formula.triplets = data<double>(found);
  formula.sum = data<double>(found) + n;
  formula.active = data<double>(found) + 2 * n;
  formula.weight = for_anchors<double>(weight, n);
  formula.metric = metric_of(metric);
  formula.kind = kind_of(triplets);
  formula.margin = margin;
  formula.leak = leak;
  formula.reduction = reduction_of(reduction);
  formula.of_active = average == "active";
  formula.use = data<bool>(use);
  formula.loss = hardest.loss.mutable_data_ptr();
  formula.loss_dtype = dtype_of(hardest.loss.scalar_type());
  formula.scale = data<double>(scale);
  formula.slopes = data<double>(hardest.slopes);
  formula.all_triplets = data<double>(m.evidence) + static_cast<int>(Mining::count) + kOfHardest;
  formula.all_active = formula.all_triplets + 1;
  cpu::use_of_anchors(formula);

  BatchAll problem = problem_of(m.embeddings, m.labels, m.valid, m.ref_embeddings, m.ref_labels, m.ref_valid,
                                !ref_embeddings.has_value(), m.self_index, metric, triplets, margin, leak, use);
  problem.triplets = data<double>(found);
  problem.sum = data<double>(found) + n;
  problem.active = data<double>(found) + 2 * n;
  // Similarities may be far larger than their differences, and rows are not centred for them: in float64 always.
  run(*kernels().batch_all[result_type(embeddings) == ScalarType::Double || problem.metric == Metric::dot], problem);
  cpu::batch_all_formula(formula);
  return {hardest.loss, m.positive_index, m.negative_index, m.has_positive, m.has_negative, hardest.slopes,
          scale,        m.evidence};
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
  problem.problem =
      problem_of(x, labels, valid, y, ref_labels, ref_valid, self, self_index, metric, triplets, margin, leak, use);
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
