// Compiled once, for every CPU: O(triplets) scalar arithmetic.
#include "kernels/triplet_terms.h"

#include <algorithm>
#include <cmath>

#include "kernels/triplet_terms_formula.h"

namespace fastmine::cpu {
namespace {

/// The least margin, but not below the one given, with which the fraction of the valid triplets is above the kink.
double active_margin(const TripletTerms& p) {
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < p.n; ++i) {
    triplet::each_triplet(p, i, [&](triplet::Triplet t) {
      if (triplet::is_valid(p, t)) {
        p.violations[count++] = triplet::gap(p, t).value;
      }
    });
  }
  if (count == 0) {
    return p.margin;
  }
  double* last = p.violations + triplet::wanted(p, count) - 1;
  const auto nan_first = [](double a, double b) { return a > b || (std::isnan(a) && !std::isnan(b)); };
  std::nth_element(p.violations, last, p.violations + count, nan_first);
  return triplet::margin_above(p, *last);
}

double& counter(const TripletTerms& p, TripletTerm field) { return p.evidence[static_cast<int>(field)]; }

}  // namespace

void triplet_terms(const TripletTerms& p) noexcept {
  const double margin = p.active_fraction > 0 ? active_margin(p) : p.margin;
  std::fill(p.evidence, p.evidence + static_cast<int>(TripletTerm::count), 0.0);
  for (std::int64_t i = 0; i < p.n; ++i) {
    const triplet::Counts found = triplet::count(p, i, margin);
    counter(p, TripletTerm::active) += found.active;
    counter(p, TripletTerm::semi_hard) += found.semi_hard;
    counter(p, TripletTerm::triplets) += static_cast<double>(found.triplets);
    counter(p, TripletTerm::active_triplets) += static_cast<double>(found.active_triplets);
    counter(p, TripletTerm::swapped) += static_cast<double>(found.swapped);
  }
  counter(p, TripletTerm::margin) = margin;
  const bool empty = counter(p, TripletTerm::triplets) == 0;
  double sum = 0, counted = 0;
  for (std::int64_t i = 0; i < p.n; ++i) {
    triplet::each_slope(p, i, [](double& slope) { slope = 0; });
    const triplet::Share own = triplet::add_terms(p, i, margin, empty, p.slopes);
    sum += own.loss;
    counted += own.weight;
    if (p.reduction == Reduction::none) {
      triplet::write_loss(p, i, own.loss);
    }
  }
  if (p.reduction == Reduction::none) {
    return;
  }
  const double scale = p.reduction == Reduction::mean && counted > 0 ? 1 / counted : 1;
  triplet::write_loss(p, 0, sum * scale);
  for (std::int64_t i = 0; i < p.n; ++i) {
    triplet::each_slope(p, i, [&](double& slope) { slope *= scale; });
  }
}

}  // namespace fastmine::cpu
