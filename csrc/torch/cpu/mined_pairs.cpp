// fastmine::mined_pairs on the CPU; its backward pass is that of batch_hard.
#include "kernels/mined_pairs.h"

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "torch/cpu/kernels.h"
#include "torch/cpu/mining.h"

namespace fastmine {
namespace {

constexpr int64_t kEvidence =
    static_cast<int64_t>(Mining::count) + static_cast<int64_t>(sizeof kMinedExtraFields / sizeof *kMinedExtraFields);

PairOrder order_of(const std::string& name, bool positive) {
  if (name == "hardest") return positive ? PairOrder::farthest : PairOrder::nearest;
  if (name == "easiest") return positive ? PairOrder::nearest : PairOrder::farthest;
  if (name == "random") return PairOrder::random;
  FASTMINE_CHECK(name == "distance_weighted" && !positive, "unknown order ", name);
  return PairOrder::distance_weighted;
}

/// The pairs of one sign, and the tensors that they are written to.
struct Sign {
  Tensor index, distance, found;
  MinedSign problem;
};

Sign sign_of(int64_t n, const std::string& order, bool positive, int64_t first, int64_t last) {
  FASTMINE_CHECK(0 <= first && first < last, "ranks must be a range");
  Sign s;
  s.index = make({n, last - first}, ScalarType::Long);
  s.distance = make({n, last - first}, ScalarType::Double);
  s.found = make({n, last - first}, ScalarType::Bool);
  s.problem = {order_of(order, positive), first, last, data<int64_t>(s.index), data<double>(s.distance),
               data<bool>(s.found)};
  return s;
}

Tensor rounded(const Tensor& distance, ScalarType type) {
  if (type == ScalarType::Double) {
    return distance;
  }
  Tensor result = make({distance.size(0), distance.size(1)}, type);
  torch::stable::copy_(result, distance);
  return result;
}

using Seven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Seven mined_pairs(const Tensor& embeddings_in, const Tensor& labels_in, const MaybeTensor& valid_in,
                  const MaybeTensor& ref_embeddings_in, const MaybeTensor& ref_labels_in,
                  const MaybeTensor& ref_valid_in, const std::string& metric, const std::string& positive,
                  const std::string& negative, const std::vector<int64_t>& ranks, const std::optional<double>& window,
                  const MaybeTensor& groups_in, const MaybeTensor& ref_groups_in, bool group_positives,
                  const MaybeTensor& self_index_in, const MaybeTensor& seed, double cutoff, double nonzero_loss_cutoff,
                  bool wide) {
  const bool self = !ref_embeddings_in.has_value();
  const Tensor x = with_dense_rows(embeddings_in), y = self ? x : with_dense_rows(*ref_embeddings_in);
  const Tensor labels = dense(labels_in), ref_labels = self ? labels : dense(ref_labels_in.value());
  const MaybeTensor valid = dense(valid_in), ref_valid = self ? valid : dense(ref_valid_in);
  const MaybeTensor groups = dense(groups_in), ref_groups = self ? groups : dense(ref_groups_in);
  const MaybeTensor self_index = dense(self_index_in);
  const int64_t n = x.size(0), m = y.size(0);
  const bool sets = labels.dim() == 2;
  FASTMINE_CHECK(x.size(1) == y.size(1) && x.scalar_type() == y.scalar_type(),
                 "embeddings and ref_embeddings do not match");
  FASTMINE_CHECK(labels.size(0) == n && ref_labels.size(0) == m && labels.dim() == ref_labels.dim() &&
                     (!sets || labels.size(1) == ref_labels.size(1)),
                 "one label, or set of labels, per row");
  FASTMINE_CHECK(labels.scalar_type() == (sets ? ScalarType::Bool : ScalarType::Long) &&
                     ref_labels.scalar_type() == labels.scalar_type(),
                 "labels are int64, sets of labels boolean");
  FASTMINE_CHECK(groups.has_value() == ref_groups.has_value(), "groups on one side alone");
  FASTMINE_CHECK(ranks.size() == 4, "ranks are two of the positives and two of the negatives");
  Sign p = sign_of(n, positive, true, ranks[0], ranks[1]), q = sign_of(n, negative, false, ranks[2], ranks[3]);
  const bool sampled = p.problem.order == PairOrder::random || q.problem.order == PairOrder::random ||
                       q.problem.order == PairOrder::distance_weighted;
  FASTMINE_CHECK(!sampled || (seed && seed->numel() == 1 && seed->scalar_type() == ScalarType::Long),
                 "a sample needs a seed, one int64");
  const Tensor evidence = make({kEvidence}, ScalarType::Double);

  MinedPairs problem{};
  problem.x = rows_of(x);
  problem.y = rows_of(y);
  if (sets) {
    problem.label_sets = static_cast<const bool*>(labels.const_data_ptr());
    problem.ref_label_sets = static_cast<const bool*>(ref_labels.const_data_ptr());
    problem.label_count = labels.size(1);
  } else {
    problem.labels = static_cast<const int64_t*>(labels.const_data_ptr());
    problem.ref_labels = static_cast<const int64_t*>(ref_labels.const_data_ptr());
  }
  problem.valid = flags(valid);
  problem.ref_valid = flags(ref_valid);
  problem.groups = for_anchors<int64_t>(groups, n);
  problem.ref_groups = for_anchors<int64_t>(ref_groups, m);
  problem.self = self;
  problem.self_index = for_anchors<int64_t>(self_index, n);
  problem.metric = metric_of(metric);
  problem.group_positives = group_positives;
  problem.windowed = window.has_value();
  problem.window = window.value_or(0);
  problem.cutoff = cutoff;
  problem.nonzero_loss_cutoff = nonzero_loss_cutoff;
  problem.seed = sampled ? *static_cast<const uint64_t*>(seed->const_data_ptr()) : 0;
  problem.positive = p.problem;
  problem.negative = q.problem;
  problem.evidence = data<double>(evidence);
  const ScalarType type = result_type(x);
  run(*kernels().mined_pairs[type == ScalarType::Double], problem);
  const ScalarType given = wide ? ScalarType::Double : type;
  return {p.index, q.index, rounded(p.distance, given), rounded(q.distance, given), p.found, q.found, evidence};
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CPU, m) { m.impl("mined_pairs", TORCH_BOX(&fastmine::mined_pairs)); }
