// fastmine::pair_sums and its backward pass on the CPU.
#include "kernels/pair_sums.h"

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/batch_hard.h"
#include "torch/cpu/embeddings.h"
#include "torch/cpu/kernels.h"

namespace fastmine {
namespace {

constexpr int64_t kSums = static_cast<int64_t>(PairSum::count);
constexpr int64_t kEvidence =
    static_cast<int64_t>(Mining::count) + static_cast<int64_t>(sizeof kPairExtraFields / sizeof *kPairExtraFields);

/// The tensors that the kernels read, made such that they can.
struct Pairs {
  Tensor embeddings, labels, ref_embeddings, ref_labels;
  MaybeTensor valid, ref_valid, positive_bound, negative_bound;
};

template <class T>
const T* values(const MaybeTensor& x) {
  return x ? static_cast<const T*>(x->const_data_ptr()) : nullptr;
}

Pairs pairs_of(const Tensor& embeddings, const Tensor& labels, const MaybeTensor& valid,
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

PairForm form_of(const std::string& name) {
  if (name == "sum") return PairForm::sum;
  if (name == "lse") return PairForm::lse;
  if (name == "nce") return PairForm::nce;
  FASTMINE_CHECK(name == "circle", "unknown form ", name);
  return PairForm::circle;
}

/// What forward and backward have in common.
template <class P>
P problem_of(const Pairs& p, bool self, const std::string& metric, const std::string& form,
             const std::vector<double>& curve, const MaybeTensor& scale) {
  FASTMINE_CHECK(curve.size() == 6, "a curve is scale, offset and turn of the positives and of the negatives");
  P problem{};
  problem.x = rows_of(p.embeddings);
  problem.labels = static_cast<const int64_t*>(p.labels.const_data_ptr());
  problem.valid = values<bool>(p.valid);
  problem.y = rows_of(p.ref_embeddings);
  problem.ref_labels = static_cast<const int64_t*>(p.ref_labels.const_data_ptr());
  problem.ref_valid = values<bool>(p.ref_valid);
  problem.positive_bound = values<double>(p.positive_bound);
  problem.negative_bound = values<double>(p.negative_bound);
  problem.self = self;
  problem.metric = metric_of(metric);
  problem.form = form_of(form);
  FASTMINE_CHECK(!scale || (scale->numel() == 1 && scale->scalar_type() == ScalarType::Double),
                 "scale must be one float64 number");
  const double by = scale ? *values<double>(scale) : 1;
  problem.positive = {curve[0] * by, curve[1], curve[2]};
  problem.negative = {curve[3] * by, curve[4], curve[5]};
  return problem;
}

std::tuple<Tensor, Tensor> pair_sums(const Tensor& embeddings, const Tensor& labels, const MaybeTensor& valid,
                                     const MaybeTensor& ref_embeddings, const MaybeTensor& ref_labels,
                                     const MaybeTensor& ref_valid, const MaybeTensor& positive_bound,
                                     const MaybeTensor& negative_bound, const std::string& metric,
                                     const std::string& form, const std::vector<double>& curve,
                                     const MaybeTensor& scale, const MaybeTensor& level_in) {
  const Pairs p =
      pairs_of(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, positive_bound, negative_bound);
  const MaybeTensor level = dense(level_in);
  FASTMINE_CHECK(!level || (level->numel() == embeddings.size(0) && level->scalar_type() == ScalarType::Double),
                 "one float64 level per anchor");
  FASTMINE_CHECK(!level || (form == "nce" && !positive_bound && !negative_bound), "a level is for nce without bounds");
  const Tensor sums = make({kSums, embeddings.size(0)}, ScalarType::Double);
  const Tensor evidence = make({kEvidence}, ScalarType::Double);
  auto problem = problem_of<PairSums>(p, !ref_embeddings.has_value(), metric, form, curve, scale);
  problem.level = values<double>(level);
  problem.sums = data<double>(sums);
  problem.evidence = data<double>(evidence);
  run(*kernels().pair_sums[result_type(embeddings) == ScalarType::Double], problem);
  return {sums, evidence};
}

std::tuple<Tensor, Tensor> pair_sums_backward(const Tensor& grad_in, const Tensor& sums_in, const Tensor& embeddings,
                                              const Tensor& labels, const MaybeTensor& valid,
                                              const MaybeTensor& ref_embeddings, const MaybeTensor& ref_labels,
                                              const MaybeTensor& ref_valid, const MaybeTensor& positive_bound,
                                              const MaybeTensor& negative_bound, const std::string& metric,
                                              const std::string& form, const std::vector<double>& curve,
                                              const MaybeTensor& scale) {
  const bool self = !ref_embeddings.has_value();
  const Pairs p =
      pairs_of(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, positive_bound, negative_bound);
  const Tensor grad = dense(grad_in), sums = dense(sums_in);
  for (const Tensor& t : {grad, sums}) {
    FASTMINE_CHECK(t.numel() == kSums * embeddings.size(0) && t.scalar_type() == ScalarType::Double,
                   "grad and sums must be what pair_sums returns");
  }
  const Tensor &x = p.embeddings, &y = p.ref_embeddings;
  const Tensor grad_x = make({x.size(0), x.size(1)}, x.scalar_type());
  const Tensor grad_y = self ? make({0}, x.scalar_type()) : make({y.size(0), y.size(1)}, y.scalar_type());
  auto problem = problem_of<PairSumsBackward>(p, self, metric, form, curve, scale);
  problem.sums = static_cast<const double*>(sums.const_data_ptr());
  problem.grad = static_cast<const double*>(grad.const_data_ptr());
  problem.grad_x = grad_x.mutable_data_ptr();
  problem.grad_y = grad_y.mutable_data_ptr();
  run(*kernels().pair_sums_backward[result_type(x) == ScalarType::Double], problem);
  return {grad_x, grad_y};
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CPU, m) {
  m.impl("pair_sums", TORCH_BOX(&fastmine::pair_sums));
  m.impl("pair_sums_backward", TORCH_BOX(&fastmine::pair_sums_backward));
}
