// Compiled once, for every CPU: O(triplets) scalar arithmetic.
#include "kernels/triplet_terms.h"

#include <algorithm>
#include <cmath>

#include "kernels/triplet_formula.h"

namespace fastmine::cpu {
namespace {

/// One positive and one negative of an anchor, by their places among the pairs of their sign.
struct Triplet {
  std::int64_t anchor, positive, negative;
};

/// f(triplet) for all combinations of an anchor's pairs.
template <class F>
void each_triplet(const TripletTerms& p, std::int64_t i, F f) {
  for (std::int64_t k = i * p.positives; k < (i + 1) * p.positives; ++k) {
    for (std::int64_t l = i * p.negatives; l < (i + 1) * p.negatives; ++l) {
      f(Triplet{i, k, l});
    }
  }
}

double sign_of(const TripletTerms& p) { return p.metric == Metric::dot ? -1 : 1; }
bool is_valid(const TripletTerms& p, Triplet t) { return p.has_positive[t.positive] && p.has_negative[t.negative]; }
double positive_of(const TripletTerms& p, Triplet t) { return sign_of(p) * p.positive_distance[t.positive]; }
double negative_of(const TripletTerms& p, Triplet t) { return sign_of(p) * p.negative_distance[t.negative]; }

bool is_swapped(const TripletTerms& p, Triplet t) {
  return p.between != nullptr && is_valid(p, t) && sign_of(p) * p.between[t.anchor] < negative_of(p, t);
}

/// d_p - d_n, adjusted, and its derivative by d_p.
struct Gap {
  double value, slope;
};

/// Not inlined: the margin of an active fraction is exact to the last bit, and so must be what is compared with it.
[[gnu::noinline]] Gap gap(const TripletTerms& p, Triplet t) {
  const double d_n = is_swapped(p, t) ? sign_of(p) * p.between[t.anchor] : negative_of(p, t);
  const double apart = positive_of(p, t) - d_n, slope = apart < 0 ? 1 - p.hardness : 1;
  return {slope * apart, slope};
}

/// The least margin, but not below the one given, with which the fraction of the valid triplets is above the kink.
double active_margin(const TripletTerms& p) {
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < p.n; ++i) {
    each_triplet(p, i, [&](Triplet t) {
      if (is_valid(p, t)) {
        p.violations[count++] = gap(p, t).value;
      }
    });
  }
  if (count == 0) {
    return p.margin;
  }
  const double wanted = std::ceil(p.active_fraction * static_cast<double>(count));
  double* last = p.violations + std::max<std::int64_t>(static_cast<std::int64_t>(wanted), 1) - 1;
  const auto nan_first = [](double a, double b) { return a > b || (std::isnan(a) && !std::isnan(b)); };
  std::nth_element(p.violations, last, p.violations + count, nan_first);
  const double above = std::nextafter(-*last, static_cast<double>(INFINITY));
  return above <= p.margin ? p.margin : above;
}

/// What a triplet adds; where none is valid, by the policy.
triplet::Term term(const TripletTerms& p, Triplet t, double margin, bool empty) {
  if (is_valid(p, t)) {
    const Gap apart = gap(p, t);
    const triplet::Curve c = triplet::curve(p.shape, p.leak, apart.value + margin);
    return {c.value, c.slope * apart.slope, -c.slope * apart.slope, true};
  }
  if (empty && p.on_empty == OnEmpty::pull && p.has_positive[t.positive]) {
    return {positive_of(p, t), 1, 0, true};
  }
  if (empty && p.on_empty == OnEmpty::push && p.has_negative[t.negative]) {
    const triplet::Curve c = triplet::curve(TripletShape::soft, 0, margin - negative_of(p, t));
    return {c.value, 0, -c.slope, true};
  }
  return {0, 0, 0, false};
}

double& counter(const TripletTerms& p, TripletTerm field) { return p.evidence[static_cast<int>(field)]; }

/// The counts of one anchor, added to those of all.
void count(const TripletTerms& p, std::int64_t i, double margin) {
  bool active = false;
  each_triplet(p, i, [&](Triplet t) {
    const bool valid = is_valid(p, t);
    const bool above = valid && (p.shape == TripletShape::soft || gap(p, t).value + margin > 0);
    counter(p, TripletTerm::triplets) += valid;
    counter(p, TripletTerm::active_triplets) += above;
    counter(p, TripletTerm::swapped) += is_swapped(p, t);
    active = active || above;
  });
  const Triplet first{i, i * p.positives, i * p.negatives};
  const double apart = positive_of(p, first) - negative_of(p, first);
  counter(p, TripletTerm::active) += active;
  counter(p, TripletTerm::semi_hard) += is_valid(p, first) && apart <= 0 && apart + margin > 0;
}

}  // namespace

void triplet_terms(const TripletTerms& p) noexcept {
  const std::int64_t pairs = p.n * (p.positives + p.negatives), slopes = pairs + (p.between == nullptr ? 0 : p.n);
  const double sign = sign_of(p), margin = p.active_fraction > 0 ? active_margin(p) : p.margin;
  std::fill(p.slopes, p.slopes + slopes, 0.0);
  std::fill(p.evidence, p.evidence + static_cast<int>(TripletTerm::count), 0.0);
  for (std::int64_t i = 0; i < p.n; ++i) {
    count(p, i, margin);
  }
  counter(p, TripletTerm::margin) = margin;
  const bool empty = counter(p, TripletTerm::triplets) == 0;
  double sum = 0, counted = 0;
  for (std::int64_t i = 0; i < p.n; ++i) {
    const double weight = p.weight == nullptr ? 1 : p.weight[i];
    double own = 0;
    each_triplet(p, i, [&](Triplet t) {
      const triplet::Term found = term(p, t, margin, empty);
      own += weight * found.value;
      counted += found.counted ? weight : 0;
      p.slopes[t.positive] += weight * sign * found.slope_p;
      p.slopes[is_swapped(p, t) ? pairs + i : p.n * p.positives + t.negative] += weight * sign * found.slope_n;
    });
    sum += own;
    if (p.reduction == Reduction::none) {
      triplet::write_loss(p, i, own);
    }
  }
  if (p.reduction == Reduction::none) {
    return;
  }
  const double scale = p.reduction == Reduction::mean && counted > 0 ? 1 / counted : 1;
  triplet::write_loss(p, 0, sum * scale);
  for (std::int64_t k = 0; k < slopes; ++k) {
    p.slopes[k] *= scale;
  }
}

}  // namespace fastmine::cpu
