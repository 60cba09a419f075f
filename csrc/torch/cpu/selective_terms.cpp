// fastmine::selective_terms on the CPU; its slopes go to the backward pass of triplet_loss.
#include "kernels/selective_terms.h"

#include <cstring>
#include <string>
#include <tuple>

#include "torch/cpu/kernels.h"
#include "torch/cpu/mining.h"

namespace fastmine {
namespace {

/// The indices are there for the schema of `triplet_terms`, whose place this op takes.
std::tuple<Tensor, Tensor, Tensor> selective_terms(const Tensor& rows, const Tensor&, const Tensor&,
                                                   const Tensor& positive_distance_in,
                                                   const Tensor& negative_distance_in, const Tensor& has_positive_in,
                                                   const Tensor& has_negative_in, const Tensor& mined_in,
                                                   const MaybeTensor& weight_in, const std::string& metric,
                                                   double temperature, double hard_weight, const std::string& on_empty,
                                                   const std::string& reduction) {
  const Tensor positive_distance = dense(positive_distance_in), negative_distance = dense(negative_distance_in);
  const Tensor has_positive = dense(has_positive_in), has_negative = dense(has_negative_in), mined = dense(mined_in);
  const MaybeTensor weight = dense(weight_in);
  const int64_t n = has_positive.numel(), known = mined.numel();
  const auto is_distance = [&](const Tensor& x) { return x.scalar_type() == ScalarType::Double && x.numel() == n; };
  FASTMINE_CHECK(is_distance(positive_distance) && is_distance(negative_distance), "a float64 distance per pair");
  FASTMINE_CHECK(has_negative.numel() == n, "one pair of each sign");
  FASTMINE_CHECK(mined.scalar_type() == ScalarType::Double, "evidence is float64");
  const ScalarType type = result_type(rows);

  SelectiveTerms p{};
  p.n = n;
  p.positive_distance = static_cast<const double*>(positive_distance.const_data_ptr());
  p.negative_distance = static_cast<const double*>(negative_distance.const_data_ptr());
  p.has_positive = static_cast<const bool*>(has_positive.const_data_ptr());
  p.has_negative = static_cast<const bool*>(has_negative.const_data_ptr());
  p.weight = for_anchors<double>(weight, n);
  p.metric = metric_of(metric);
  p.temperature = temperature;
  p.hard_weight = hard_weight;
  p.on_empty = on_empty_of(on_empty);
  p.reduction = reduction_of(reduction);

  const Tensor loss = p.reduction == Reduction::none ? make({n}, type) : make({}, type);
  const Tensor slopes = make({2 * n}, ScalarType::Double);
  const Tensor evidence = make({known + 1}, ScalarType::Double);
  std::memcpy(data<double>(evidence), mined.const_data_ptr(), static_cast<size_t>(known) * sizeof(double));
  p.loss = loss.mutable_data_ptr();
  p.loss_dtype = dtype_of(type);
  p.slopes = data<double>(slopes);
  p.active = data<double>(evidence) + known;
  cpu::selective_terms(p);
  return {loss, slopes, evidence};
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CPU, m) { m.impl("selective_terms", TORCH_BOX(&fastmine::selective_terms)); }
