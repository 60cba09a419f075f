// Compiled once, for every CPU: O(n) scalar arithmetic.
#include "kernels/selective_terms.h"

#include "kernels/triplet_formula.h"

namespace fastmine::cpu {
namespace {

/// What an anchor adds, with slopes by its similarities.
triplet::Term term(const SelectiveTerms& p, std::int64_t i, bool empty) {
  const bool has_p = p.has_positive[i], has_n = p.has_negative[i], dot = p.metric == Metric::dot;
  const double d_p = p.positive_distance[i], d_n = p.negative_distance[i];
  const double to_positive = dot ? d_p : 1 - d_p, to_negative = dot ? d_n : 1 - d_n;
  if (has_p && has_n) {
    if (to_negative > to_positive) {
      return {p.hard_weight * to_negative, 0, p.hard_weight, true};
    }
    const triplet::Curve apart = triplet::softplus((to_negative - to_positive) / p.temperature);
    return {apart.value, -apart.slope / p.temperature, apart.slope / p.temperature, true};
  }
  if (empty && p.on_empty == OnEmpty::pull && has_p) {
    return {dot ? -d_p : d_p, -1, 0, true};
  }
  if (empty && p.on_empty == OnEmpty::push && has_n) {
    const triplet::Curve near = triplet::softplus(to_negative / p.temperature);
    return {near.value, 0, near.slope / p.temperature, true};
  }
  return {0, 0, 0, false};
}

}  // namespace

void selective_terms(const SelectiveTerms& p) noexcept {
  const double by_distance = p.metric == Metric::dot ? 1 : -1;
  *p.active = 0;
  for (std::int64_t i = 0; i < p.n; ++i) {
    *p.active += p.has_positive[i] && p.has_negative[i];
  }
  const bool empty = *p.active == 0;
  double sum = 0, counted = 0;
  for (std::int64_t i = 0; i < p.n; ++i) {
    const double weight = p.weight == nullptr ? 1 : p.weight[i];
    const triplet::Term found = term(p, i, empty);
    sum += weight * found.value;
    counted += found.counted ? weight : 0;
    p.slopes[i] = weight * by_distance * found.slope_p;
    p.slopes[p.n + i] = weight * by_distance * found.slope_n;
    if (p.reduction == Reduction::none) {
      triplet::write_loss(p, i, weight * found.value);
    }
  }
  if (p.reduction == Reduction::none) {
    return;
  }
  const double scale = p.reduction == Reduction::mean && counted > 0 ? 1 / counted : 1;
  triplet::write_loss(p, 0, sum * scale);
  for (std::int64_t k = 0; k < 2 * p.n; ++k) {
    p.slopes[k] *= scale;
  }
}

}  // namespace fastmine::cpu
