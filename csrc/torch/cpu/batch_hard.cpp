// fastmine::batch_hard, fastmine::triplet_loss and their backward pass on the CPU.
#include "kernels/batch_hard.h"

#include <optional>
#include <string>
#include <tuple>

#include "kernels/triplet_loss.h"
#include "torch/cpu/kernels.h"
#include "torch/cpu/mining.h"

namespace fastmine {
namespace {

TripletShape shape_of(const std::string& name) {
  return name == "soft" ? TripletShape::soft : name == "leaky" ? TripletShape::leaky : TripletShape::hinge;
}

OnEmpty on_empty_of(const std::string& name) {
  return name == "pull" ? OnEmpty::pull : name == "push" ? OnEmpty::push : OnEmpty::zero;
}

}  // namespace

Mined mine(const Tensor& embeddings, const Tensor& labels, const MaybeTensor& valid, const MaybeTensor& ref_embeddings,
           const MaybeTensor& ref_labels, const MaybeTensor& ref_valid, const MaybeTensor& self_index,
           const std::string& metric, const std::string& positive, const std::string& negative, int64_t extra) {
  const bool self = !ref_embeddings.has_value();
  Mined m;
  m.embeddings = with_dense_rows(embeddings);
  m.labels = dense(labels);
  m.valid = dense(valid);
  m.ref_embeddings = self ? m.embeddings : with_dense_rows(*ref_embeddings);
  m.ref_labels = self ? m.labels : dense(ref_labels.value());
  m.ref_valid = self ? m.valid : dense(ref_valid);
  m.self_index = dense(self_index);
  const int64_t n = m.embeddings.size(0);
  FASTMINE_CHECK(m.labels.numel() == n && m.ref_labels.numel() == m.ref_embeddings.size(0), "one label per row");
  FASTMINE_CHECK(
      m.embeddings.size(1) == m.ref_embeddings.size(1) && m.embeddings.scalar_type() == m.ref_embeddings.scalar_type(),
      "embeddings and ref_embeddings do not match");
  m.positive_index = make({n}, ScalarType::Long);
  m.negative_index = make({n}, ScalarType::Long);
  m.distances = make({2, n}, ScalarType::Double);
  m.has_positive = make({n}, ScalarType::Bool);
  m.has_negative = make({n}, ScalarType::Bool);
  m.evidence = make({static_cast<int64_t>(Mining::count) + extra}, ScalarType::Double);

  BatchHard problem{};
  problem.x = rows_of(m.embeddings);
  problem.labels = static_cast<const int64_t*>(m.labels.const_data_ptr());
  problem.valid = flags(m.valid);
  problem.y = rows_of(m.ref_embeddings);
  problem.ref_labels = static_cast<const int64_t*>(m.ref_labels.const_data_ptr());
  problem.ref_valid = flags(m.ref_valid);
  problem.self = self;
  problem.self_index = for_anchors<int64_t>(m.self_index, n);
  problem.metric = metric_of(metric);
  problem.easiest_positive = positive == "easiest";
  problem.semi_hard_negative = negative == "semi_hard";
  problem.positive_index = data<int64_t>(m.positive_index);
  problem.negative_index = data<int64_t>(m.negative_index);
  problem.positive_distance = data<double>(m.distances);
  problem.negative_distance = data<double>(m.distances) + n;
  problem.has_positive = data<bool>(m.has_positive);
  problem.has_negative = data<bool>(m.has_negative);
  problem.evidence = data<double>(m.evidence);
  run(*kernels().batch_hard[result_type(embeddings) == ScalarType::Double], problem);
  return m;
}

Formula apply_formula(const Mined& m, const MaybeTensor& weight_in, const std::string& metric, const std::string& shape,
                      double margin, double leak, const std::string& on_empty, const std::string& reduction) {
  const int64_t n = m.embeddings.size(0);
  const ScalarType type = result_type(m.embeddings);
  const Tensor loss = reduction == "none" ? make({n}, type) : make({}, type);
  const Tensor slopes = make({2, n}, ScalarType::Double);
  const MaybeTensor weight = dense(weight_in);
  double* extra = data<double>(m.evidence) + static_cast<int>(Mining::count);

  TripletLoss problem{};
  problem.n = n;
  problem.positive_distance = data<double>(m.distances);
  problem.negative_distance = data<double>(m.distances) + n;
  problem.has_positive = data<bool>(m.has_positive);
  problem.has_negative = data<bool>(m.has_negative);
  problem.weight = for_anchors<double>(weight, n);
  problem.metric = metric_of(metric);
  problem.shape = shape_of(shape);
  problem.margin = margin;
  problem.leak = leak;
  problem.on_empty = on_empty_of(on_empty);
  problem.reduction = reduction_of(reduction);
  problem.loss = loss.mutable_data_ptr();
  problem.loss_dtype = dtype_of(type);
  problem.slopes = data<double>(slopes);
  problem.active = extra;
  problem.semi_hard = extra + 1;
  cpu::triplet_loss(problem);
  return {loss, slopes};
}

std::tuple<Tensor, Tensor> mining_gradient(const Tensor& grad_positive, const Tensor& grad_negative,
                                           const MaybeTensor& slopes_in, const Tensor& embeddings,
                                           const MaybeTensor& ref_embeddings, const Tensor& positive_index,
                                           const Tensor& negative_index, const Tensor& has_positive,
                                           const Tensor& has_negative, const std::string& metric) {
  const bool self = !ref_embeddings.has_value();
  const Tensor x = with_dense_rows(embeddings), y = self ? x : with_dense_rows(*ref_embeddings);
  const Tensor p = dense(positive_index), n = dense(negative_index);
  const Tensor has_p = dense(has_positive), has_n = dense(has_negative);
  const MaybeTensor slopes = dense(slopes_in);
  const int64_t positives = p.dim() == 2 ? p.size(1) : 1, negatives = n.dim() == 2 ? n.size(1) : 1;
  const Tensor grad_p = for_pairs(grad_positive, p), grad_n = for_pairs(grad_negative, n);
  FASTMINE_CHECK(grad_p.scalar_type() == grad_n.scalar_type(), "gradients of two types");
  FASTMINE_CHECK(
      p.size(0) == x.size(0) && n.size(0) == x.size(0) && p.numel() == has_p.numel() && n.numel() == has_n.numel(),
      "the pairs are of another problem");
  FASTMINE_CHECK(!slopes || (slopes->scalar_type() == ScalarType::Double && slopes->numel() == 2 * x.size(0) &&
                             positives == 1 && negatives == 1),
                 "the slopes are of another problem");
  const Tensor grad_x = make({x.size(0), x.size(1)}, x.scalar_type());
  const Tensor grad_y = self ? make({0}, x.scalar_type()) : make({y.size(0), y.size(1)}, y.scalar_type());

  BatchHardBackward problem{};
  problem.x = rows_of(x);
  problem.y = rows_of(y);
  problem.self = self;
  problem.metric = metric_of(metric);
  problem.positives = positives;
  problem.negatives = negatives;
  problem.positive_index = static_cast<const int64_t*>(p.const_data_ptr());
  problem.negative_index = static_cast<const int64_t*>(n.const_data_ptr());
  problem.has_positive = static_cast<const bool*>(has_p.const_data_ptr());
  problem.has_negative = static_cast<const bool*>(has_n.const_data_ptr());
  problem.grad_positive = grad_p.const_data_ptr();
  problem.grad_negative = grad_n.const_data_ptr();
  problem.slopes = slopes ? data<double>(*slopes) : nullptr;
  problem.grad_dtype = dtype_of(grad_p.scalar_type());
  problem.grad_positive_stride = step(grad_p);
  problem.grad_negative_stride = step(grad_n);
  problem.grad_x = grad_x.mutable_data_ptr();
  problem.grad_y = grad_y.mutable_data_ptr();
  run(*kernels().batch_hard_backward[result_type(x) == ScalarType::Double], problem);
  return {grad_x, grad_y};
}

namespace {

using Seven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Seven batch_hard(const Tensor& embeddings, const Tensor& labels, const MaybeTensor& valid,
                 const MaybeTensor& ref_embeddings, const MaybeTensor& ref_labels, const MaybeTensor& ref_valid,
                 const std::string& metric, const std::string& positive, const std::string& negative,
                 const MaybeTensor& self_index) {
  const Mined m =
      mine(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, self_index, metric, positive, negative, 0);
  const int64_t n = m.embeddings.size(0);
  Tensor d_p = make({n}, result_type(embeddings)), d_n = make({n}, result_type(embeddings));
  torch::stable::copy_(d_p, torch::stable::select(m.distances, 0, 0));
  torch::stable::copy_(d_n, torch::stable::select(m.distances, 0, 1));
  return {m.positive_index, m.negative_index, d_p, d_n, m.has_positive, m.has_negative, m.evidence};
}

Seven triplet_loss(const Tensor& embeddings, const Tensor& labels, const MaybeTensor& valid,
                   const MaybeTensor& ref_embeddings, const MaybeTensor& ref_labels, const MaybeTensor& ref_valid,
                   const std::string& metric, const std::string& positive, const std::string& negative,
                   const std::string& shape, double margin, double leak, const std::string& on_empty,
                   const std::string& reduction, const MaybeTensor& weight, const MaybeTensor& self_index) {
  const Mined m =
      mine(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, self_index, metric, positive, negative, 2);
  const Formula f = apply_formula(m, weight, metric, shape, margin, leak, on_empty, reduction);
  return {f.loss, m.positive_index, m.negative_index, m.has_positive, m.has_negative, f.slopes, m.evidence};
}

std::tuple<Tensor, Tensor> batch_hard_backward(const Tensor& grad_positive, const Tensor& grad_negative,
                                               const Tensor& embeddings, const MaybeTensor& ref_embeddings,
                                               const Tensor& positive_index, const Tensor& negative_index,
                                               const Tensor& has_positive, const Tensor& has_negative,
                                               const std::string& metric) {
  return mining_gradient(grad_positive, grad_negative, std::nullopt, embeddings, ref_embeddings, positive_index,
                         negative_index, has_positive, has_negative, metric);
}

std::tuple<Tensor, Tensor> triplet_loss_backward(const Tensor& grad, const Tensor& slopes, const Tensor& embeddings,
                                                 const MaybeTensor& ref_embeddings, const Tensor& positive_index,
                                                 const Tensor& negative_index, const Tensor& has_positive,
                                                 const Tensor& has_negative, const std::string& metric) {
  return mining_gradient(grad, grad, slopes, embeddings, ref_embeddings, positive_index, negative_index, has_positive,
                         has_negative, metric);
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CPU, m) {
  m.impl("batch_hard", TORCH_BOX(&fastmine::batch_hard));
  m.impl("batch_hard_backward", TORCH_BOX(&fastmine::batch_hard_backward));
  m.impl("triplet_loss", TORCH_BOX(&fastmine::triplet_loss));
  m.impl("triplet_loss_backward", TORCH_BOX(&fastmine::triplet_loss_backward));
}
