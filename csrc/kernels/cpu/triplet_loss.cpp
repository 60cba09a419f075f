// Compiled once, for every CPU: O(n) scalar arithmetic.
#include "kernels/triplet_loss.h"

#include <algorithm>
#include <cmath>

namespace fastmine::cpu {
namespace {

/// The loss of one anchor and its derivative, by how far its pair is from what is asked.
struct Curve {
  double value, slope;
};

/// log(1 + e^v) and its derivative 1 / (1 + e^-v), from one exponential that cannot overflow.
Curve softplus(double v) {
  const double e = std::exp(-std::abs(v));
  return {std::max(v, 0.0) + std::log1p(e), (v >= 0 ? 1 : e) / (1 + e)};
}

Curve curve(const TripletLoss& p, double violation) {
  if (std::isnan(violation)) {
    return {violation, violation};
  }
  if (p.shape == TripletShape::soft) {
    return softplus(violation);
  }
  const double below = p.shape == TripletShape::leaky ? p.leak : 0;
  return violation <= 0 ? Curve{below * violation, below} : Curve{violation, 1};
}

struct Term {
  double value, slope_p, slope_n;
  bool counted;
};

/// What one anchor adds, by the policy for a batch that is `empty`, without a single valid anchor. Slopes are by
/// distances; `sign` is -1 where what was mined are similarities.
Term term(const TripletLoss& p, std::int64_t i, bool empty, double sign) {
  const double d_p = sign * p.positive_distance[i], d_n = sign * p.negative_distance[i];
  if (p.has_positive[i] && p.has_negative[i]) {
    const Curve c = curve(p, d_p - d_n + p.margin);
    return {c.value, c.slope, -c.slope, true};
  }
  if (empty && p.on_empty == OnEmpty::pull && p.has_positive[i]) {
    return {d_p, 1, 0, true};
  }
  if (empty && p.on_empty == OnEmpty::push && p.has_negative[i]) {
    const double closeness = p.margin - d_n;
    const Curve c = std::isnan(closeness) ? Curve{closeness, closeness} : softplus(closeness);
    return {c.value, 0, -c.slope, true};
  }
  return {0, 0, 0, false};
}

void write_loss(const TripletLoss& p, std::int64_t i, double value) {
  if (p.loss_dtype == DType::float64) {
    static_cast<double*>(p.loss)[i] = value;
  } else {
    static_cast<float*>(p.loss)[i] = static_cast<float>(value);
  }
}

}  // namespace

void triplet_loss(const TripletLoss& p) noexcept {
  const double sign = p.metric == Metric::dot ? -1 : 1;
  double* slope_p = p.slopes;
  double* slope_n = p.slopes + p.n;
  bool empty = true;
  for (std::int64_t i = 0; i < p.n; ++i) {
    empty = empty && !(p.has_positive[i] && p.has_negative[i]);
  }
  double sum = 0, counted = 0;
  *p.active = *p.semi_hard = 0;
  for (std::int64_t i = 0; i < p.n; ++i) {
    const Term t = term(p, i, empty, sign);
    if (p.has_positive[i] && p.has_negative[i]) {
      const double gap = sign * (p.positive_distance[i] - p.negative_distance[i]);
      *p.active += p.shape == TripletShape::soft || gap + p.margin > 0;
      *p.semi_hard += gap <= 0 && gap + p.margin > 0;
    }
    const double weight = p.weight == nullptr ? 1 : p.weight[i];
    slope_p[i] = weight * sign * t.slope_p;
    slope_n[i] = weight * sign * t.slope_n;
    counted += t.counted ? weight : 0;
    sum += weight * t.value;
    if (p.reduction == Reduction::none) {
      write_loss(p, i, weight * t.value);
    }
  }
  if (p.reduction == Reduction::none) {
    return;
  }
  const double scale = p.reduction == Reduction::mean && counted > 0 ? 1 / counted : 1;
  write_loss(p, 0, sum * scale);
  for (std::int64_t k = 0; k < 2 * p.n; ++k) {
    p.slopes[k] *= scale;
  }
}

}  // namespace fastmine::cpu
