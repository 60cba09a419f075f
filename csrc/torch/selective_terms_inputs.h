// What the bindings of selective_terms share, on any device: tensors to a problem, options by name.
#pragma once

#include <string>

#include "kernels/selective_terms.h"
#include "torch/mining_inputs.h"

namespace fastmine {

/// The tensors that the formula reads, made such that kernels can, and those that it writes.
struct SelectiveTensors {
  Tensor positive_distance, negative_distance, has_positive, has_negative;
  MaybeTensor weight;
  Tensor loss, slopes;
  Tensor evidence;  // the first places are for that of mining
};

/// The problem, its tensors kept in `t`; make(shape, type) allocates.
template <class Make>
SelectiveTerms selective_terms_problem(SelectiveTensors& t, Make make, const Tensor& rows,
                                       const Tensor& positive_distance, const Tensor& negative_distance,
                                       const Tensor& has_positive, const Tensor& has_negative, const Tensor& mined,
                                       const MaybeTensor& weight, const std::string& metric, double temperature,
                                       double hard_weight, const std::string& on_empty, const std::string& reduction) {
  t.positive_distance = dense(positive_distance);
  t.negative_distance = dense(negative_distance);
  t.has_positive = dense(has_positive);
  t.has_negative = dense(has_negative);
  t.weight = dense(weight);
  const int64_t n = t.has_positive.numel(), known = mined.numel();
  const auto is_distance = [n](const Tensor& x) { return x.scalar_type() == ScalarType::Double && x.numel() == n; };
  FASTMINE_CHECK(is_distance(t.positive_distance) && is_distance(t.negative_distance), "a float64 distance per pair");
  FASTMINE_CHECK(t.has_negative.numel() == n, "one pair of each sign");
  FASTMINE_CHECK(mined.scalar_type() == ScalarType::Double, "evidence is float64");
  const ScalarType type = result_type(rows);

  SelectiveTerms p{};
  p.n = n;
  p.positive_distance = static_cast<const double*>(t.positive_distance.const_data_ptr());
  p.negative_distance = static_cast<const double*>(t.negative_distance.const_data_ptr());
  p.has_positive = static_cast<const bool*>(t.has_positive.const_data_ptr());
  p.has_negative = static_cast<const bool*>(t.has_negative.const_data_ptr());
  p.weight = for_anchors<double>(t.weight, n);
  p.metric = metric_of(metric);
  p.temperature = temperature;
  p.hard_weight = hard_weight;
  p.on_empty = on_empty_of(on_empty);
  p.reduction = reduction_of(reduction);

  t.loss = p.reduction == Reduction::none ? make({n}, type) : make({}, type);
  t.slopes = make({2 * n}, ScalarType::Double);
  t.evidence = make({known + 1}, ScalarType::Double);
  p.loss = t.loss.mutable_data_ptr();
  p.loss_dtype = dtype_of(type);
  p.slopes = data<double>(t.slopes);
  p.active = data<double>(t.evidence) + known;
  return p;
}

}  // namespace fastmine
