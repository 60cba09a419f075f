// Compiled once, for every CPU: O(n) scalar arithmetic.
#include "kernels/triplet_loss.h"

#include "kernels/triplet_formula.h"

namespace fastmine::cpu {

void triplet_loss(const TripletLoss& p) noexcept {
  using namespace triplet;
  const double sign = sign_of(p);
  double* slope_p = p.slopes;
  double* slope_n = p.slopes + p.n;
  bool empty = true;
  for (std::int64_t i = 0; i < p.n; ++i) {
    empty = empty && !is_valid(p, i);
  }
  double sum = 0, counted = 0;
  *p.active = *p.semi_hard = 0;
  for (std::int64_t i = 0; i < p.n; ++i) {
    const Term t = term(p, i, empty);
    const Activity a = activity(p, i);
    *p.active += a.active;
    *p.semi_hard += a.semi_hard;
    const double weight = weight_of(p, i);
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
