// The formula of kernels/triplet_terms.h, anchor by anchor, the same on every device.
#pragma once

#include "kernels/triplet_formula.h"
#include "kernels/triplet_terms.h"

namespace fastmine::triplet {

/// One positive and one negative of an anchor, by their places among the pairs of their sign.
struct Triplet {
  std::int64_t anchor, positive, negative;
};

FASTMINE_HOST_DEVICE inline std::int64_t triplets_of_anchor(const TripletTerms& p) { return p.positives * p.negatives; }

/// f(triplet) for all combinations of an anchor's pairs.
template <class F>
FASTMINE_HOST_DEVICE void each_triplet(const TripletTerms& p, std::int64_t i, F f) {
  for (std::int64_t k = i * p.positives; k < (i + 1) * p.positives; ++k) {
    for (std::int64_t l = i * p.negatives; l < (i + 1) * p.negatives; ++l) {
      f(Triplet{i, k, l});
    }
  }
}

FASTMINE_HOST_DEVICE inline double sign_of(const TripletTerms& p) { return p.metric == Metric::dot ? -1 : 1; }
FASTMINE_HOST_DEVICE inline double weight_of(const TripletTerms& p, std::int64_t i) {
  return p.weight == nullptr ? 1 : p.weight[i];
}
FASTMINE_HOST_DEVICE inline bool is_valid(const TripletTerms& p, Triplet t) {
  return p.has_positive[t.positive] && p.has_negative[t.negative];
}
FASTMINE_HOST_DEVICE inline double positive_of(const TripletTerms& p, Triplet t) {
  return sign_of(p) * p.positive_distance[t.positive];
}
FASTMINE_HOST_DEVICE inline double negative_of(const TripletTerms& p, Triplet t) {
  return sign_of(p) * p.negative_distance[t.negative];
}

FASTMINE_HOST_DEVICE inline bool is_swapped(const TripletTerms& p, Triplet t) {
  return p.between != nullptr && is_valid(p, t) && sign_of(p) * p.between[t.anchor] < negative_of(p, t);
}

/// a b, rounded by itself: the margin of an active fraction is exact to the last bit, and so must be what is compared
/// with it, which no fused addition may change.
FASTMINE_HOST_DEVICE inline double rounded_product(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  double product = a * b;
  __asm__("" : "+m"(product));
  return product;
#endif
}

/// d_p - d_n, adjusted, and its derivative by d_p.
struct Gap {
  double value, slope;
};

FASTMINE_HOST_DEVICE inline Gap gap(const TripletTerms& p, Triplet t) {
  const double d_n = is_swapped(p, t) ? sign_of(p) * p.between[t.anchor] : negative_of(p, t);
  const double apart = positive_of(p, t) - d_n, slope = apart < 0 ? 1 - p.hardness : 1;
  return {rounded_product(slope, apart), slope};
}

/// How many of so many valid triplets are to be above the kink: one at least.
FASTMINE_HOST_DEVICE inline std::int64_t wanted(const TripletTerms& p, std::int64_t count) {
  const double share = ::ceil(p.active_fraction * static_cast<double>(count));
  return share < 1 ? 1 : static_cast<std::int64_t>(share);
}

/// The least margin, but not below the one given, with which a triplet of this gap is above the kink.
FASTMINE_HOST_DEVICE inline double margin_above(const TripletTerms& p, double least_gap) {
  const double above = ::nextafter(-least_gap, static_cast<double>(__builtin_inf()));
  return above <= p.margin ? p.margin : above;
}

/// What a triplet adds; where none is valid, by the policy.
FASTMINE_HOST_DEVICE inline Term term(const TripletTerms& p, Triplet t, double margin, bool empty) {
  if (is_valid(p, t)) {
    const Gap apart = gap(p, t);
    const Curve c = curve(p.shape, p.leak, apart.value + margin);
    return {c.value, c.slope * apart.slope, -c.slope * apart.slope, true};
  }
  if (empty && p.on_empty == OnEmpty::pull && p.has_positive[t.positive]) {
    return {positive_of(p, t), 1, 0, true};
  }
  if (empty && p.on_empty == OnEmpty::push && p.has_negative[t.negative]) {
    const Curve c = curve(TripletShape::soft, 0, margin - negative_of(p, t));
    return {c.value, 0, -c.slope, true};
  }
  return {0, 0, 0, false};
}

/// What is counted of one anchor.
struct Counts {
  std::int64_t triplets, active_triplets, swapped;
  bool active, semi_hard;
};

FASTMINE_HOST_DEVICE inline Counts count(const TripletTerms& p, std::int64_t i, double margin) {
  Counts found{};
  each_triplet(p, i, [&](Triplet t) {
    const bool valid = is_valid(p, t);
    found.triplets += valid;
    found.active_triplets += valid && (p.shape == TripletShape::soft || gap(p, t).value + margin > 0);
    found.swapped += is_swapped(p, t);
  });
  const Triplet first{i, i * p.positives, i * p.negatives};
  found.active = found.active_triplets > 0;
  if (triplets_of_anchor(p) > 0 && is_valid(p, first)) {
    const double apart = positive_of(p, first) - negative_of(p, first);
    found.semi_hard = apart <= 0 && apart + margin > 0;
  }
  return found;
}

/// What one anchor adds to the loss, and to the weights that it is divided by.
struct Share {
  double loss, weight;
};

/// f(slope) for each that is of the distances of an anchor.
template <class F>
FASTMINE_HOST_DEVICE void each_slope(const TripletTerms& p, std::int64_t i, F f) {
  const std::int64_t negatives = p.n * p.positives, between = negatives + p.n * p.negatives;
  for (std::int64_t k = i * p.positives; k < (i + 1) * p.positives; ++k) {
    f(p.slopes[k]);
  }
  for (std::int64_t l = i * p.negatives; l < (i + 1) * p.negatives; ++l) {
    f(p.slopes[negatives + l]);
  }
  if (p.between != nullptr) {
    f(p.slopes[between + i]);
  }
}

/// The share of an anchor; its slopes are added to those in `slopes`, unless that is null.
FASTMINE_HOST_DEVICE inline Share add_terms(const TripletTerms& p, std::int64_t i, double margin, bool empty,
                                            double* slopes) {
  const double weight = weight_of(p, i), signed_weight = weight * sign_of(p);
  const std::int64_t negatives = p.n * p.positives, between = negatives + p.n * p.negatives;
  Share share{0, 0};
  each_triplet(p, i, [&](Triplet t) {
    const Term found = term(p, t, margin, empty);
    share.loss += weight * found.value;
    share.weight += found.counted ? weight : 0;
    if (slopes != nullptr) {
      slopes[t.positive] += signed_weight * found.slope_p;
      slopes[is_swapped(p, t) ? between + i : negatives + t.negative] += signed_weight * found.slope_n;
    }
  });
  return share;
}

}  // namespace fastmine::triplet
