// What the bindings of mined_pairs share, on any device: tensors to problems, options by name.
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/mined_pairs.h"
#include "torch/mining_inputs.h"

namespace fastmine {

inline constexpr int64_t kMinedEvidence =
    static_cast<int64_t>(Mining::count) + static_cast<int64_t>(sizeof kMinedExtraFields / sizeof *kMinedExtraFields);

inline PairOrder order_of(const std::string& name, bool positive) {
  if (name == "hardest") return positive ? PairOrder::farthest : PairOrder::nearest;
  if (name == "easiest") return positive ? PairOrder::nearest : PairOrder::farthest;
  if (name == "random") return PairOrder::random;
  FASTMINE_CHECK(name == "distance_weighted" && !positive, "unknown order ", name);
  return PairOrder::distance_weighted;
}

/// The pairs of one sign, and the tensors that they are written to.
struct RankedSign {
  Tensor index, distance, found;
  MinedSign problem;
};

template <class Make>
RankedSign sign_of(Make make, int64_t n, const std::string& order, bool positive, int64_t first, int64_t last) {
  FASTMINE_CHECK(0 <= first && first < last, "ranks must be a range");
  RankedSign s;
  s.index = make({n, last - first}, ScalarType::Long);
  s.distance = make({n, last - first}, ScalarType::Double);
  s.found = make({n, last - first}, ScalarType::Bool);
  s.problem = {order_of(order, positive), first, last, data<int64_t>(s.index), data<double>(s.distance),
               data<bool>(s.found)};
  return s;
}

/// The tensors that mining by rank reads, made such that kernels can, and those that it writes.
struct Ranked {
  Tensor x, y, labels, ref_labels, evidence;
  MaybeTensor valid, ref_valid, groups, ref_groups, self_index, seed;
  RankedSign positive, negative;
};

/// The problem, its tensors kept in `r`; make(shape, type) allocates.
template <class Make>
MinedPairs rank_problem(Ranked& r, Make make, const Tensor& embeddings, const Tensor& labels, const MaybeTensor& valid,
                        const MaybeTensor& ref_embeddings, const MaybeTensor& ref_labels, const MaybeTensor& ref_valid,
                        const std::string& metric, const std::string& positive, const std::string& negative,
                        const std::vector<int64_t>& ranks, const std::optional<double>& window,
                        const MaybeTensor& groups, const MaybeTensor& ref_groups, bool group_positives,
                        const MaybeTensor& self_index, const MaybeTensor& seed, double cutoff,
                        double nonzero_loss_cutoff) {
  const bool self = !ref_embeddings.has_value();
  r.x = with_dense_rows(embeddings);
  r.y = self ? r.x : with_dense_rows(*ref_embeddings);
  r.labels = dense(labels);
  r.ref_labels = self ? r.labels : dense(ref_labels.value());
  r.valid = dense(valid);
  r.ref_valid = self ? r.valid : dense(ref_valid);
  r.groups = dense(groups);
  r.ref_groups = self ? r.groups : dense(ref_groups);
  r.self_index = dense(self_index);
  r.seed = seed;
  const int64_t n = r.x.size(0), m = r.y.size(0);
  const bool sets = r.labels.dim() == 2;
  FASTMINE_CHECK(r.x.size(1) == r.y.size(1) && r.x.scalar_type() == r.y.scalar_type(),
                 "embeddings and ref_embeddings do not match");
  FASTMINE_CHECK(r.labels.size(0) == n && r.ref_labels.size(0) == m && r.labels.dim() == r.ref_labels.dim() &&
                     (!sets || r.labels.size(1) == r.ref_labels.size(1)),
                 "one label, or set of labels, per row");
  FASTMINE_CHECK(r.labels.scalar_type() == (sets ? ScalarType::Bool : ScalarType::Long) &&
                     r.ref_labels.scalar_type() == r.labels.scalar_type(),
                 "labels are int64, sets of labels boolean");
  FASTMINE_CHECK(r.groups.has_value() == r.ref_groups.has_value(), "groups on one side alone");
  FASTMINE_CHECK(ranks.size() == 4, "ranks are two of the positives and two of the negatives");
  r.positive = sign_of(make, n, positive, true, ranks[0], ranks[1]);
  r.negative = sign_of(make, n, negative, false, ranks[2], ranks[3]);
  const PairOrder orders[] = {r.positive.problem.order, r.negative.problem.order};
  const bool sampled =
      orders[0] == PairOrder::random || orders[1] == PairOrder::random || orders[1] == PairOrder::distance_weighted;
  FASTMINE_CHECK(!sampled || (seed && seed->numel() == 1 && seed->scalar_type() == ScalarType::Long),
                 "a sample needs a seed, one int64");
  r.evidence = make({kMinedEvidence}, ScalarType::Double);

  MinedPairs problem{};
  problem.x = rows_of(r.x);
  problem.y = rows_of(r.y);
  if (sets) {
    problem.label_sets = static_cast<const bool*>(r.labels.const_data_ptr());
    problem.ref_label_sets = static_cast<const bool*>(r.ref_labels.const_data_ptr());
    problem.label_count = r.labels.size(1);
  } else {
    problem.labels = static_cast<const int64_t*>(r.labels.const_data_ptr());
    problem.ref_labels = static_cast<const int64_t*>(r.ref_labels.const_data_ptr());
  }
  problem.valid = flags(r.valid);
  problem.ref_valid = flags(r.ref_valid);
  problem.groups = for_anchors<int64_t>(r.groups, n);
  problem.ref_groups = for_anchors<int64_t>(r.ref_groups, m);
  problem.self = self;
  problem.self_index = for_anchors<int64_t>(r.self_index, n);
  problem.metric = metric_of(metric);
  problem.group_positives = group_positives;
  problem.windowed = window.has_value();
  problem.window = window.value_or(0);
  problem.cutoff = cutoff;
  problem.nonzero_loss_cutoff = nonzero_loss_cutoff;
  problem.seed = sampled ? static_cast<const uint64_t*>(seed->const_data_ptr()) : nullptr;
  problem.positive = r.positive.problem;
  problem.negative = r.negative.problem;
  problem.evidence = data<double>(r.evidence);
  return problem;
}

/// Distances in the type of results.
template <class Make>
Tensor rounded(Make make, const Tensor& distance, ScalarType type) {
  if (type == ScalarType::Double) {
    return distance;
  }
  Tensor result = make({distance.size(0), distance.size(1)}, type);
  torch::stable::copy_(result, distance);
  return result;
}

using SevenMined = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

/// What the op returns; `wide`: distances in float64.
template <class Make>
SevenMined mined_of(const Ranked& r, Make make, bool wide) {
  const ScalarType type = wide ? ScalarType::Double : result_type(r.x);
  return {r.positive.index,
          r.negative.index,
          rounded(make, r.positive.distance, type),
          rounded(make, r.negative.distance, type),
          r.positive.found,
          r.negative.found,
          r.evidence};
}

}  // namespace fastmine
