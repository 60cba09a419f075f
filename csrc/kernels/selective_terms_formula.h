// The formula of kernels/selective_terms.h, anchor by anchor, the same on every device.
#pragma once

#include "kernels/selective_terms.h"
#include "kernels/triplet_formula.h"

namespace fastmine::triplet {

FASTMINE_HOST_DEVICE inline bool is_valid(const SelectiveTerms& p, std::int64_t i) {
  return p.has_positive[i] && p.has_negative[i];
}

FASTMINE_HOST_DEVICE inline double weight_of(const SelectiveTerms& p, std::int64_t i) {
  return p.weight == nullptr ? 1 : p.weight[i];
}

/// The slope of a similarity by what was mined.
FASTMINE_HOST_DEVICE inline double sign_of(const SelectiveTerms& p) { return p.metric == Metric::dot ? 1 : -1; }

/// What an anchor adds, by the policy for a batch that is `empty`, without a single valid anchor. Slopes are by
/// similarities.
FASTMINE_HOST_DEVICE inline Term term(const SelectiveTerms& p, std::int64_t i, bool empty) {
  const bool dot = p.metric == Metric::dot;
  const double d_p = p.positive_distance[i], d_n = p.negative_distance[i];
  const double to_positive = dot ? d_p : 1 - d_p, to_negative = dot ? d_n : 1 - d_n;
  if (is_valid(p, i)) {
    if (to_negative > to_positive) {
      return {p.hard_weight * to_negative, 0, p.hard_weight, true};
    }
    const Curve apart = softplus((to_negative - to_positive) / p.temperature);
    return {apart.value, -apart.slope / p.temperature, apart.slope / p.temperature, true};
  }
  if (empty && p.on_empty == OnEmpty::pull && p.has_positive[i]) {
    return {dot ? -d_p : d_p, -1, 0, true};
  }
  if (empty && p.on_empty == OnEmpty::push && p.has_negative[i]) {
    const Curve near = softplus(to_negative / p.temperature);
    return {near.value, 0, near.slope / p.temperature, true};
  }
  return {0, 0, 0, false};
}

/// The loss of a valid anchor is never flat, and none is semi-hard.
FASTMINE_HOST_DEVICE inline Activity activity(const SelectiveTerms& p, std::int64_t i) {
  return {is_valid(p, i), false};
}

FASTMINE_HOST_DEVICE inline void write_activity(const SelectiveTerms& p, double active, double) { *p.active = active; }

}  // namespace fastmine::triplet
