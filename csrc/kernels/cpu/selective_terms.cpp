// Compiled once, for every CPU: O(n) scalar arithmetic.
#include "kernels/selective_terms_formula.h"

namespace fastmine::cpu {

void selective_terms(const SelectiveTerms& p) noexcept {
  *p.active = 0;
  for (std::int64_t i = 0; i < p.n; ++i) {
    *p.active += triplet::is_valid(p, i);
  }
  const bool empty = *p.active == 0;
  double sum = 0, counted = 0;
  for (std::int64_t i = 0; i < p.n; ++i) {
    const double weight = triplet::weight_of(p, i), by_distance = weight * triplet::sign_of(p);
    const triplet::Term found = triplet::term(p, i, empty);
    sum += weight * found.value;
    counted += found.counted ? weight : 0;
    p.slopes[i] = by_distance * found.slope_p;
    p.slopes[p.n + i] = by_distance * found.slope_n;
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
