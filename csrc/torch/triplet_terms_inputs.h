// What the bindings of triplet_terms share, on any device: tensors to problems, options by name.
#pragma once

#include <optional>
#include <string>

#include "kernels/triplet_terms.h"
#include "torch/mining_inputs.h"

namespace fastmine {

/// The tensors that the formula reads, made such that kernels can, and those that it writes.
struct MinedTerms {
  Tensor positive_distance, negative_distance, has_positive, has_negative;
  MaybeTensor weight;
  Tensor loss, slopes;
  Tensor evidence;  // the first places are for that of mining
};

/// Pairs of one sign for each of n anchors: [n], or [n, k].
inline int64_t pairs_of_anchor(const Tensor& x, int64_t n) {
  FASTMINE_CHECK(x.dim() >= 1 && x.dim() <= 2 && x.size(0) == n, "pairs of each anchor");
  return x.dim() == 1 ? 1 : x.size(1);
}

inline const double* distances_of(const Tensor& x, const Tensor& exists) {
  FASTMINE_CHECK(x.scalar_type() == ScalarType::Double && x.numel() == exists.numel(), "a float64 distance per pair");
  return static_cast<const double*>(x.const_data_ptr());
}

/// The problem, its tensors kept in `m`, without the distances between pairs; make(shape, type) allocates.
template <class Make>
TripletTerms mined_terms_problem(MinedTerms& m, Make make, const Tensor& rows, const Tensor& positive_distance,
                                 const Tensor& negative_distance, const Tensor& has_positive,
                                 const Tensor& has_negative, const Tensor& mined, const MaybeTensor& weight,
                                 const std::string& metric, const std::string& shape, double margin, double leak,
                                 const std::string& on_empty, const std::string& reduction, bool swap, double hardness,
                                 const std::optional<double>& active_fraction) {
  m.positive_distance = dense(positive_distance);
  m.negative_distance = dense(negative_distance);
  m.has_positive = dense(has_positive);
  m.has_negative = dense(has_negative);
  m.weight = dense(weight);
  FASTMINE_CHECK(mined.scalar_type() == ScalarType::Double, "evidence is float64");
  const int64_t n = m.has_positive.size(0), known = mined.numel();
  const ScalarType type = result_type(rows);

  TripletTerms p{};
  p.n = n;
  p.positives = pairs_of_anchor(m.has_positive, n);
  p.negatives = pairs_of_anchor(m.has_negative, n);
  p.positive_distance = distances_of(m.positive_distance, m.has_positive);
  p.negative_distance = distances_of(m.negative_distance, m.has_negative);
  p.has_positive = static_cast<const bool*>(m.has_positive.const_data_ptr());
  p.has_negative = static_cast<const bool*>(m.has_negative.const_data_ptr());
  p.weight = for_anchors<double>(m.weight, n);
  p.metric = metric_of(metric);
  p.shape = shape_of(shape);
  p.margin = margin;
  p.leak = leak;
  p.hardness = hardness;
  p.active_fraction = active_fraction.value_or(0);
  p.on_empty = on_empty_of(on_empty);
  p.reduction = reduction_of(reduction);

  m.loss = p.reduction == Reduction::none ? make({n}, type) : make({}, type);
  m.slopes = make({n * (p.positives + p.negatives + (swap ? 1 : 0))}, ScalarType::Double);
  m.evidence = make({known + static_cast<int64_t>(TripletTerm::count)}, ScalarType::Double);
  p.loss = m.loss.mutable_data_ptr();
  p.loss_dtype = dtype_of(type);
  p.slopes = data<double>(m.slopes);
  p.evidence = data<double>(m.evidence) + known;
  return p;
}

/// How far each positive is from the negative of its anchor.
struct Between {
  Tensor rows, first, second, distance;
};

template <class Make>
PairedDistance between_problem(Between& b, Make make, const Tensor& rows, const Tensor& positive_index,
                               const Tensor& negative_index, const TripletTerms& p) {
  FASTMINE_CHECK(p.positives == 1 && p.negatives == 1, "a swap is for one pair of each sign");
  FASTMINE_CHECK(positive_index.numel() == p.n && negative_index.numel() == p.n, "one index per pair");
  b.rows = with_dense_rows(rows);
  b.first = dense(positive_index);
  b.second = dense(negative_index);
  b.distance = make({p.n}, ScalarType::Double);
  PairedDistance problem{};
  problem.rows = rows_of(b.rows);
  problem.metric = p.metric;
  problem.n = p.n;
  problem.first = static_cast<const int64_t*>(b.first.const_data_ptr());
  problem.second = static_cast<const int64_t*>(b.second.const_data_ptr());
  problem.has_first = p.has_positive;
  problem.has_second = p.has_negative;
  problem.distance = data<double>(b.distance);
  return problem;
}

}  // namespace fastmine
