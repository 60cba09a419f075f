// What the bindings of batch-hard and triplet losses share, on any device: tensors to problems, options by name.
#pragma once

#include <string>

#include "kernels/batch_hard.h"
#include "kernels/triplet_loss.h"
#include "torch/rows.h"

namespace fastmine {

/// The tensors that mining reads, made such that kernels can, and those that it writes.
struct Mined {
  Tensor embeddings, labels, ref_embeddings, ref_labels;
  MaybeTensor valid, ref_valid, self_index;
  Tensor positive_index, negative_index, distances, has_positive, has_negative, evidence;
};

struct Formula {
  Tensor loss, slopes;
};

inline TripletShape shape_of(const std::string& name) {
  return name == "soft" ? TripletShape::soft : name == "leaky" ? TripletShape::leaky : TripletShape::hinge;
}

inline OnEmpty on_empty_of(const std::string& name) {
  return name == "pull" ? OnEmpty::pull : name == "push" ? OnEmpty::push : OnEmpty::zero;
}

inline const bool* flags(const MaybeTensor& mask) {
  return mask ? static_cast<const bool*>(mask->const_data_ptr()) : nullptr;
}

/// Integers or float64 numbers, one for each of n anchors; null where there are none.
template <class T>
const T* for_anchors(const MaybeTensor& x, int64_t n) {
  FASTMINE_CHECK(!x || x->numel() == n, "one per anchor");
  return x ? static_cast<const T*>(x->const_data_ptr()) : nullptr;
}

/// The gradient of a loss by an anchor: one number for each, or one for all of them.
inline void check_grad(const Tensor& grad, int64_t n) {
  FASTMINE_CHECK(grad.dim() == 0 || (grad.dim() == 1 && grad.size(0) == n), "one gradient per anchor, or one for all");
}
/// The gradients by the distances of these pairs; of a matrix of pairs one after another.
inline Tensor for_pairs(const Tensor& grad, const Tensor& pairs) {
  if (pairs.dim() == 1) {
    check_grad(grad, pairs.size(0));
    return grad;
  }
  FASTMINE_CHECK(grad.dim() == 2 && grad.numel() == pairs.numel(), "one gradient per pair");
  return torch::stable::flatten(dense(grad), 0, 1);
}
inline int64_t step(const Tensor& grad) { return grad.dim() == 0 ? 0 : grad.stride(0); }

/// The problem, its tensors kept in `m`; make(shape, type) allocates. `extra` places are left at the end of the
/// evidence, and stay for the caller to fill.
template <class Make>
BatchHard mining_problem(Mined& m, Make make, const Tensor& embeddings, const Tensor& labels, const MaybeTensor& valid,
                         const MaybeTensor& ref_embeddings, const MaybeTensor& ref_labels, const MaybeTensor& ref_valid,
                         const MaybeTensor& self_index, const std::string& metric, const std::string& positive,
                         const std::string& negative, int64_t extra) {
  const bool self = !ref_embeddings.has_value();
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
  return problem;
}

/// The triplet loss of mined pairs, with the first two extra places of their evidence. `weight` is dense.
template <class Make>
TripletLoss formula_problem(const Mined& m, Formula& f, Make make, const MaybeTensor& weight, const std::string& metric,
                            const std::string& shape, double margin, double leak, const std::string& on_empty,
                            const std::string& reduction) {
  const int64_t n = m.embeddings.size(0);
  const ScalarType type = result_type(m.embeddings);
  f.loss = reduction == "none" ? make({n}, type) : make({}, type);
  f.slopes = make({2, n}, ScalarType::Double);
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
  problem.loss = f.loss.mutable_data_ptr();
  problem.loss_dtype = dtype_of(type);
  problem.slopes = data<double>(f.slopes);
  problem.active = extra;
  problem.semi_hard = extra + 1;
  return problem;
}

/// What the gradient of mined distances is of, and where it goes.
struct MinedGradient {
  Tensor x, y, positive_index, negative_index, has_positive, has_negative, grad_positive, grad_negative;
  MaybeTensor slopes;  // factors of the gradients, which are then of each anchor
  Tensor grad_x, grad_y;
};

template <class Make>
BatchHardBackward gradient_problem(MinedGradient& g, Make make, const Tensor& grad_positive,
                                   const Tensor& grad_negative, const MaybeTensor& slopes, const Tensor& embeddings,
                                   const MaybeTensor& ref_embeddings, const Tensor& positive_index,
                                   const Tensor& negative_index, const Tensor& has_positive, const Tensor& has_negative,
                                   const std::string& metric) {
  const bool self = !ref_embeddings.has_value();
  g.x = with_dense_rows(embeddings);
  g.y = self ? g.x : with_dense_rows(*ref_embeddings);
  g.positive_index = dense(positive_index);
  g.negative_index = dense(negative_index);
  g.has_positive = dense(has_positive);
  g.has_negative = dense(has_negative);
  g.slopes = dense(slopes);
  const int64_t n = g.x.size(0), d = g.x.size(1);
  const auto pairs_of = [](const Tensor& index) { return index.dim() == 2 ? index.size(1) : int64_t{1}; };
  const int64_t positives = pairs_of(g.positive_index), negatives = pairs_of(g.negative_index);
  if (slopes) {
    check_grad(grad_positive, n);
    check_grad(grad_negative, n);
  }
  g.grad_positive = slopes ? grad_positive : for_pairs(grad_positive, g.positive_index);
  g.grad_negative = slopes ? grad_negative : for_pairs(grad_negative, g.negative_index);
  FASTMINE_CHECK(g.grad_positive.scalar_type() == g.grad_negative.scalar_type(), "gradients of two types");
  FASTMINE_CHECK(g.positive_index.size(0) == n && g.negative_index.size(0) == n &&
                     g.positive_index.numel() == g.has_positive.numel() &&
                     g.negative_index.numel() == g.has_negative.numel(),
                 "the pairs are of another problem");
  const int64_t pairs = n * (positives + negatives), factors = g.slopes ? g.slopes->numel() : pairs;
  FASTMINE_CHECK(!g.slopes || g.slopes->scalar_type() == ScalarType::Double, "slopes are float64");
  FASTMINE_CHECK(factors == pairs || (factors == pairs + n && positives == 1 && negatives == 1),
                 "the slopes are of another problem");
  g.grad_x = make({n, d}, g.x.scalar_type());
  g.grad_y = self ? make({0}, g.x.scalar_type()) : make({g.y.size(0), d}, g.y.scalar_type());

  BatchHardBackward problem{};
  problem.x = rows_of(g.x);
  problem.y = rows_of(g.y);
  problem.self = self;
  problem.metric = metric_of(metric);
  problem.positives = positives;
  problem.negatives = negatives;
  problem.positive_index = static_cast<const int64_t*>(g.positive_index.const_data_ptr());
  problem.negative_index = static_cast<const int64_t*>(g.negative_index.const_data_ptr());
  problem.has_positive = static_cast<const bool*>(g.has_positive.const_data_ptr());
  problem.has_negative = static_cast<const bool*>(g.has_negative.const_data_ptr());
  problem.grad_positive = g.grad_positive.const_data_ptr();
  problem.grad_negative = g.grad_negative.const_data_ptr();
  problem.slopes = g.slopes ? data<double>(*g.slopes) : nullptr;
  problem.between = factors > pairs;
  problem.grad_dtype = dtype_of(g.grad_positive.scalar_type());
  problem.grad_positive_stride = step(g.grad_positive);
  problem.grad_negative_stride = step(g.grad_negative);
  problem.grad_x = g.grad_x.mutable_data_ptr();
  problem.grad_y = g.grad_y.mutable_data_ptr();
  return problem;
}

}  // namespace fastmine
