// Compiled once, for every CPU: O(n) scalar arithmetic.
#include <algorithm>
#include <cmath>

#include "kernels/batch_all.h"

namespace fastmine::cpu {
namespace {

bool has_both(const BatchAllFormula& p, std::int64_t i) { return p.has_positive[i] && p.has_negative[i]; }

/// Whether the anchor has a NaN or an Inf, or a candidate that has: mining finds those first.
bool spoiled(const BatchAllFormula& p, std::int64_t i) {
  return has_both(p, i) && std::isnan(p.positive_distance[i] + p.negative_distance[i]);
}

double weight(const BatchAllFormula& p, std::int64_t i) { return p.weight == nullptr ? 1 : p.weight[i]; }

void write_loss(const BatchAllFormula& p, std::int64_t i, double value) {
  if (p.loss_dtype == DType::float64) {
    static_cast<double*>(p.loss)[i] = value;
  } else {
    static_cast<float*>(p.loss)[i] = static_cast<float>(value);
  }
}

}  // namespace

void use_of_anchors(const BatchAllFormula& p) noexcept {
  const double sign = p.metric == Metric::dot ? -1 : 1, margin = p.kind == Triplets::hard ? 0 : p.margin;
  for (std::int64_t i = 0; i < p.n; ++i) {
    const bool above = sign * p.positive_distance[i] + margin > sign * p.negative_distance[i];
    p.use[i] = has_both(p, i) && !spoiled(p, i) && (p.leak > 0 || above);
  }
}

void batch_all_formula(const BatchAllFormula& p) noexcept {
  double total = 0, counted = 0;
  bool empty = true;
  *p.all_triplets = *p.all_active = 0;
  for (std::int64_t i = 0; i < p.n; ++i) {
    if (has_both(p, i)) {
      empty = false;
      total += spoiled(p, i) ? std::nan("") : weight(p, i) * p.sum[i];
      counted += weight(p, i) * (p.of_active && p.leak == 0 ? p.active[i] : p.triplets[i]);
      *p.all_triplets += p.triplets[i];
      *p.all_active += p.active[i];
    }
    p.scale[i] = 0;
  }
  if (empty) {
    return;
  }
  std::fill(p.slopes, p.slopes + 2 * p.n, 0.0);
  const double scale = p.reduction == Reduction::mean && counted > 0 ? 1 / counted : 1;
  for (std::int64_t i = 0; i < p.n; ++i) {
    const bool nan = spoiled(p, i);
    p.scale[i] = nan ? std::nan("") : p.use[i] ? scale * weight(p, i) : 0;
    if (p.reduction == Reduction::none) {
      write_loss(p, i, nan ? std::nan("") : has_both(p, i) ? weight(p, i) * p.sum[i] : 0);
    }
  }
  if (p.reduction != Reduction::none) {
    write_loss(p, 0, total * scale);
  }
}

bool weigh_anchors(const void* grad, DType grad_dtype, std::int64_t stride, const double* scale, std::int64_t n,
                   double* weight, bool* use) noexcept {
  bool any = false;
  for (std::int64_t i = 0; i < n; ++i) {
    const double upstream = grad_dtype == DType::float64
                                ? static_cast<const double*>(grad)[i * stride]
                                : static_cast<double>(static_cast<const float*>(grad)[i * stride]);
    weight[i] = scale[i] == 0 ? 0 : upstream * scale[i];
    use[i] = weight[i] != 0 && !std::isnan(weight[i]);
    any = any || weight[i] != 0;
  }
  return any;
}

}  // namespace fastmine::cpu
