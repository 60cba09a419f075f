// What the bindings of batch_all share, on any device: tensors to problems, options by name.
#pragma once

#include <string>
#include <tuple>

#include "kernels/batch_all.h"
#include "torch/mining_inputs.h"

namespace fastmine {

inline constexpr int64_t kOfHardest = 2, kOfAll = 2;  // places of the evidence, after those of mining

using Eight = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

inline Triplets kind_of(const std::string& name) {
  return name == "hard" ? Triplets::hard : name == "semi_hard" ? Triplets::semi_hard : Triplets::all;
}

/// The problem without its outputs, of tensors as kernels can read them.
inline BatchAll triplets_problem(const Tensor& x, const Tensor& labels, const MaybeTensor& valid, const Tensor& y,
                                 const Tensor& ref_labels, const MaybeTensor& ref_valid, bool self,
                                 const MaybeTensor& self_index, const std::string& metric, const std::string& triplets,
                                 double margin, double leak, const Tensor& use) {
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

/// The sums of all anchors, and what becomes of them.
struct SummedTriplets {
  Tensor found, scale, use;  // [3, n]: triplets, sum and active
};

/// The formula on the sums, given mined pairs and the loss of the hardest, which it overwrites.
template <class Make>
BatchAllFormula sums_formula(SummedTriplets& t, Make make, const Mined& m, const Formula& hardest,
                             const MaybeTensor& weight, const std::string& metric, const std::string& triplets,
                             double margin, double leak, const std::string& reduction, const std::string& average) {
  const int64_t n = m.embeddings.size(0);
  t.found = make({3, n}, ScalarType::Double);
  t.scale = make({n}, ScalarType::Double);
  t.use = make({n}, ScalarType::Bool);
  BatchAllFormula formula{};
  formula.n = n;
  formula.positive_distance = data<double>(m.distances);
  formula.negative_distance = data<double>(m.distances) + n;
  formula.has_positive = data<bool>(m.has_positive);
  formula.has_negative = data<bool>(m.has_negative);
  formula.triplets = data<double>(t.found);
  formula.sum = data<double>(t.found) + n;
  formula.active = data<double>(t.found) + 2 * n;
  formula.weight = for_anchors<double>(weight, n);
  formula.metric = metric_of(metric);
  formula.kind = kind_of(triplets);
  formula.margin = margin;
  formula.leak = leak;
  formula.reduction = reduction_of(reduction);
  formula.of_active = average == "active";
  formula.use = data<bool>(t.use);
  formula.loss = hardest.loss.mutable_data_ptr();
  formula.loss_dtype = dtype_of(hardest.loss.scalar_type());
  formula.scale = data<double>(t.scale);
  formula.slopes = data<double>(hardest.slopes);
  formula.all_triplets = data<double>(m.evidence) + static_cast<int>(Mining::count) + kOfHardest;
  formula.all_active = formula.all_triplets + 1;
  return formula;
}

/// The sums that the formula is on.
inline BatchAll sums_problem(const SummedTriplets& t, const Mined& m, bool self, const std::string& metric,
                             const std::string& triplets, double margin, double leak) {
  const int64_t n = m.embeddings.size(0);
  BatchAll problem = triplets_problem(m.embeddings, m.labels, m.valid, m.ref_embeddings, m.ref_labels, m.ref_valid,
                                      self, m.self_index, metric, triplets, margin, leak, t.use);
  problem.triplets = data<double>(t.found);
  problem.sum = data<double>(t.found) + n;
  problem.active = data<double>(t.found) + 2 * n;
  return problem;
}

}  // namespace fastmine
