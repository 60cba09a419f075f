// What the bindings of pair_sums share, on any device: tensors to problems, options by name.
#pragma once

#include <string>
#include <vector>

#include "kernels/pair_sums.h"
#include "torch/mining_inputs.h"

namespace fastmine {

inline constexpr int64_t kPairSums = static_cast<int64_t>(PairSum::count);
inline constexpr int64_t kPairEvidence =
    static_cast<int64_t>(Mining::count) + static_cast<int64_t>(sizeof kPairExtraFields / sizeof *kPairExtraFields);

/// The tensors that the kernels read, made such that they can.
struct Pairs {
  Tensor embeddings, labels, ref_embeddings, ref_labels;
  MaybeTensor valid, ref_valid, positive_bound, negative_bound;
};

inline Pairs pairs_of(const Tensor& embeddings, const Tensor& labels, const MaybeTensor& valid,
                      const MaybeTensor& ref_embeddings, const MaybeTensor& ref_labels, const MaybeTensor& ref_valid,
                      const MaybeTensor& positive_bound, const MaybeTensor& negative_bound) {
  const bool self = !ref_embeddings.has_value();
  Pairs p;
  p.embeddings = with_dense_rows(embeddings);
  p.labels = dense(labels);
  p.valid = dense(valid);
  p.ref_embeddings = self ? p.embeddings : with_dense_rows(*ref_embeddings);
  p.ref_labels = self ? p.labels : dense(ref_labels.value());
  p.ref_valid = self ? p.valid : dense(ref_valid);
  p.positive_bound = dense(positive_bound);
  p.negative_bound = dense(negative_bound);
  const int64_t n = p.embeddings.size(0);
  FASTMINE_CHECK(p.labels.numel() == n && p.ref_labels.numel() == p.ref_embeddings.size(0), "one label per row");
  FASTMINE_CHECK(
      p.embeddings.size(1) == p.ref_embeddings.size(1) && p.embeddings.scalar_type() == p.ref_embeddings.scalar_type(),
      "embeddings and ref_embeddings do not match");
  for (const MaybeTensor& bound : {p.positive_bound, p.negative_bound}) {
    FASTMINE_CHECK(!bound || (bound->numel() == n && bound->scalar_type() == ScalarType::Double),
                   "one float64 bound per anchor");
  }
  return p;
}

inline PairForm form_of(const std::string& name) {
  if (name == "sum") return PairForm::sum;
  if (name == "lse") return PairForm::lse;
  if (name == "nce") return PairForm::nce;
  FASTMINE_CHECK(name == "circle", "unknown form ", name);
  return PairForm::circle;
}

/// What forward and backward have in common.
template <class P>
P pair_problem(const Pairs& p, bool self, const std::string& metric, const std::string& form,
               const std::vector<double>& curve, const MaybeTensor& scale) {
  FASTMINE_CHECK(curve.size() == 6, "a curve is scale, offset and turn of the positives and of the negatives");
  P problem{};
  problem.x = rows_of(p.embeddings);
  problem.labels = static_cast<const int64_t*>(p.labels.const_data_ptr());
  problem.valid = flags(p.valid);
  problem.y = rows_of(p.ref_embeddings);
  problem.ref_labels = static_cast<const int64_t*>(p.ref_labels.const_data_ptr());
  problem.ref_valid = flags(p.ref_valid);
  problem.positive_bound = for_anchors<double>(p.positive_bound, p.embeddings.size(0));
  problem.negative_bound = for_anchors<double>(p.negative_bound, p.embeddings.size(0));
  problem.self = self;
  problem.metric = metric_of(metric);
  problem.form = form_of(form);
  FASTMINE_CHECK(!scale || (scale->numel() == 1 && scale->scalar_type() == ScalarType::Double),
                 "scale must be one float64 number");
  problem.scale = scale ? static_cast<const double*>(scale->const_data_ptr()) : nullptr;
  problem.positive = {curve[0], curve[1], curve[2]};
  problem.negative = {curve[3], curve[4], curve[5]};
  return problem;
}

/// The sums and their evidence, and what is kept for them.
struct SummedPairs {
  Pairs in;
  MaybeTensor level;
  Tensor sums, evidence;
};

template <class Make>
PairSums sums_problem(SummedPairs& s, Make make, const MaybeTensor& level, bool self, const std::string& metric,
                      const std::string& form, const std::vector<double>& curve, const MaybeTensor& scale) {
  const int64_t n = s.in.embeddings.size(0);
  s.level = dense(level);
  FASTMINE_CHECK(!level || level->scalar_type() == ScalarType::Double, "one float64 level per anchor");
  FASTMINE_CHECK(!level || (form == "nce" && !s.in.positive_bound && !s.in.negative_bound),
                 "a level is for nce without bounds");
  s.sums = make({kPairSums, n}, ScalarType::Double);
  s.evidence = make({kPairEvidence}, ScalarType::Double);
  auto problem = pair_problem<PairSums>(s.in, self, metric, form, curve, scale);
  problem.level = for_anchors<double>(s.level, n);
  problem.sums = data<double>(s.sums);
  problem.evidence = data<double>(s.evidence);
  return problem;
}

/// The gradient of the rows, and what it is made of.
struct PulledPairs {
  Pairs in;
  Tensor grad, sums, grad_x, grad_y;
};

template <class Make>
PairSumsBackward pulls_problem(PulledPairs& g, Make make, const Tensor& grad, const Tensor& sums, bool self,
                               const std::string& metric, const std::string& form, const std::vector<double>& curve,
                               const MaybeTensor& scale) {
  const Tensor &x = g.in.embeddings, &y = g.in.ref_embeddings;
  g.grad = dense(grad);
  g.sums = dense(sums);
  for (const Tensor& t : {g.grad, g.sums}) {
    FASTMINE_CHECK(t.numel() == kPairSums * x.size(0) && t.scalar_type() == ScalarType::Double,
                   "grad and sums must be what pair_sums returns");
  }
  g.grad_x = make({x.size(0), x.size(1)}, x.scalar_type());
  g.grad_y = self ? make({0}, x.scalar_type()) : make({y.size(0), y.size(1)}, y.scalar_type());
  auto problem = pair_problem<PairSumsBackward>(g.in, self, metric, form, curve, scale);
  problem.sums = static_cast<const double*>(g.sums.const_data_ptr());
  problem.grad = static_cast<const double*>(g.grad.const_data_ptr());
  problem.grad_x = g.grad_x.mutable_data_ptr();
  problem.grad_y = g.grad_y.mutable_data_ptr();
  return problem;
}

}  // namespace fastmine
