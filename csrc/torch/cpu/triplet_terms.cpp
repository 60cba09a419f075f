// fastmine::triplet_terms on the CPU; its slopes go to the backward pass of triplet_loss.
#include "kernels/triplet_terms.h"

#include <cstring>
#include <optional>
#include <string>
#include <tuple>

#include "torch/cpu/kernels.h"
#include "torch/cpu/mining.h"

namespace fastmine {
namespace {

/// Pairs of one sign for each of n anchors: [n], or [n, k].
int64_t pairs_of(const Tensor& x, int64_t n) {
  FASTMINE_CHECK(x.dim() >= 1 && x.dim() <= 2 && x.size(0) == n, "pairs of each anchor");
  return x.dim() == 1 ? 1 : x.size(1);
}

const double* distances_of(const Tensor& x, const Tensor& exists) {
  FASTMINE_CHECK(x.scalar_type() == ScalarType::Double && x.numel() == exists.numel(), "a float64 distance per pair");
  return static_cast<const double*>(x.const_data_ptr());
}

/// How far each positive is from the negative of its anchor.
Tensor distances_between(const Tensor& rows_in, const Tensor& positive_index, const Tensor& negative_index,
                         const TripletTerms& p) {
  FASTMINE_CHECK(p.positives == 1 && p.negatives == 1, "a swap is for one pair of each sign");
  FASTMINE_CHECK(positive_index.numel() == p.n && negative_index.numel() == p.n, "one index per pair");
  const Tensor rows = with_dense_rows(rows_in), first = dense(positive_index), second = dense(negative_index);
  const Tensor distance = make({p.n}, ScalarType::Double);
  PairedDistance problem{};
  problem.rows = rows_of(rows);
  problem.metric = p.metric;
  problem.n = p.n;
  problem.first = static_cast<const int64_t*>(first.const_data_ptr());
  problem.second = static_cast<const int64_t*>(second.const_data_ptr());
  problem.has_first = p.has_positive;
  problem.has_second = p.has_negative;
  problem.distance = data<double>(distance);
  run(*kernels().paired_distance[result_type(rows) == ScalarType::Double], problem);
  return distance;
}

std::tuple<Tensor, Tensor, Tensor> triplet_terms(const Tensor& rows, const Tensor& positive_index,
                                                 const Tensor& negative_index, const Tensor& positive_distance_in,
                                                 const Tensor& negative_distance_in, const Tensor& has_positive_in,
                                                 const Tensor& has_negative_in, const Tensor& mined_in,
                                                 const MaybeTensor& weight_in, const std::string& metric,
                                                 const std::string& shape, double margin, double leak,
                                                 const std::string& on_empty, const std::string& reduction, bool swap,
                                                 double hardness, const std::optional<double>& active_fraction) {
  const Tensor positive_distance = dense(positive_distance_in), negative_distance = dense(negative_distance_in);
  const Tensor has_positive = dense(has_positive_in), has_negative = dense(has_negative_in), mined = dense(mined_in);
  const MaybeTensor weight = dense(weight_in);
  const int64_t n = has_positive.size(0), known = mined.numel();
  const ScalarType type = result_type(rows);

  TripletTerms p{};
  p.n = n;
  p.positives = pairs_of(has_positive, n);
  p.negatives = pairs_of(has_negative, n);
  p.positive_distance = distances_of(positive_distance, has_positive);
  p.negative_distance = distances_of(negative_distance, has_negative);
  p.has_positive = static_cast<const bool*>(has_positive.const_data_ptr());
  p.has_negative = static_cast<const bool*>(has_negative.const_data_ptr());
  p.weight = for_anchors<double>(weight, n);
  p.metric = metric_of(metric);
  p.shape = shape_of(shape);
  p.margin = margin;
  p.leak = leak;
  p.hardness = hardness;
  p.active_fraction = active_fraction.value_or(0);
  p.on_empty = on_empty_of(on_empty);
  p.reduction = reduction_of(reduction);

  MaybeTensor between, violations;
  if (swap) {
    between = distances_between(rows, positive_index, negative_index, p);
    p.between = data<double>(*between);
  }
  if (active_fraction) {
    violations = make({n * p.positives * p.negatives}, ScalarType::Double);
    p.violations = data<double>(*violations);
  }
  const Tensor loss = p.reduction == Reduction::none ? make({n}, type) : make({}, type);
  const Tensor slopes = make({n * (p.positives + p.negatives + (swap ? 1 : 0))}, ScalarType::Double);
  const Tensor evidence = make({known + static_cast<int64_t>(TripletTerm::count)}, ScalarType::Double);
  FASTMINE_CHECK(mined.scalar_type() == ScalarType::Double, "evidence is float64");
  std::memcpy(data<double>(evidence), mined.const_data_ptr(), static_cast<size_t>(known) * sizeof(double));
  p.loss = loss.mutable_data_ptr();
  p.loss_dtype = dtype_of(type);
  p.slopes = data<double>(slopes);
  p.evidence = data<double>(evidence) + known;
  cpu::triplet_terms(p);
  return {loss, slopes, evidence};
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CPU, m) { m.impl("triplet_terms", TORCH_BOX(&fastmine::triplet_terms)); }
