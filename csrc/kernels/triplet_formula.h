// The formula of the triplet loss for one anchor, the same on every device.
#pragma once

#include <cmath>

#include "kernels/host_device.h"
#include "kernels/triplet_loss.h"

namespace fastmine::triplet {

/// The loss of one anchor and its derivative, by how far its pair is from what is asked.
struct Curve {
  double value, slope;
};

/// log(1 + e^v) and its derivative 1 / (1 + e^-v), from one exponential that cannot overflow.
FASTMINE_HOST_DEVICE inline Curve softplus(double v) {
  const double e = ::exp(-::fabs(v));
  return {(v > 0 ? v : 0) + ::log1p(e), (v >= 0 ? 1 : e) / (1 + e)};
}

FASTMINE_HOST_DEVICE inline Curve curve(TripletShape shape, double leak, double violation) {
  if (violation != violation) {
    return {violation, violation};
  }
  if (shape == TripletShape::soft) {
    return softplus(violation);
  }
  const double below = shape == TripletShape::leaky ? leak : 0;
  return violation <= 0 ? Curve{below * violation, below} : Curve{violation, 1};
}

struct Term {
  double value, slope_p, slope_n;
  bool counted;
};

FASTMINE_HOST_DEVICE inline bool is_valid(const TripletLoss& p, std::int64_t i) {
  return p.has_positive[i] && p.has_negative[i];
}

/// -1 where what was mined are similarities.
FASTMINE_HOST_DEVICE inline double sign_of(const TripletLoss& p) { return p.metric == Metric::dot ? -1 : 1; }

FASTMINE_HOST_DEVICE inline double weight_of(const TripletLoss& p, std::int64_t i) {
  return p.weight == nullptr ? 1 : p.weight[i];
}

/// What one anchor adds, by the policy for a batch that is `empty`, without a single valid anchor. Slopes are by
/// distances.
FASTMINE_HOST_DEVICE inline Term term(const TripletLoss& p, std::int64_t i, bool empty) {
  const double sign = sign_of(p), d_p = sign * p.positive_distance[i], d_n = sign * p.negative_distance[i];
  if (is_valid(p, i)) {
    const Curve c = curve(p.shape, p.leak, d_p - d_n + p.margin);
    return {c.value, c.slope, -c.slope, true};
  }
  if (empty && p.on_empty == OnEmpty::pull && p.has_positive[i]) {
    return {d_p, 1, 0, true};
  }
  if (empty && p.on_empty == OnEmpty::push && p.has_negative[i]) {
    const Curve c = curve(TripletShape::soft, 0, p.margin - d_n);
    return {c.value, 0, -c.slope, true};
  }
  return {0, 0, 0, false};
}

/// Whether a valid anchor's loss is not flat, and whether its pair is semi-hard.
struct Activity {
  bool active, semi_hard;
};

FASTMINE_HOST_DEVICE inline Activity activity(const TripletLoss& p, std::int64_t i) {
  const double gap = sign_of(p) * (p.positive_distance[i] - p.negative_distance[i]);
  const bool above = gap + p.margin > 0, valid = is_valid(p, i);
  return {valid && (p.shape == TripletShape::soft || above), valid && gap <= 0 && above};
}

FASTMINE_HOST_DEVICE inline void write_activity(const TripletLoss& p, double active, double semi_hard) {
  *p.active = active;
  *p.semi_hard = semi_hard;
}

template <class Problem>
FASTMINE_HOST_DEVICE void write_loss(const Problem& p, std::int64_t i, double value) {
  if (p.loss_dtype == DType::float64) {
    static_cast<double*>(p.loss)[i] = value;
  } else {
    static_cast<float*>(p.loss)[i] = static_cast<float>(value);
  }
}

}  // namespace fastmine::triplet
