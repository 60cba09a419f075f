// What forward and backward of pair_sums share: the curve of a pair, and which pairs count.
#pragma once

#include "kernels/cuda/math.h"
#include "kernels/cuda/row_block.cuh"
#include "kernels/pair_sums.h"

namespace fastmine::cuda::mining {

/// A curve in the working type: linear, or the circle's.
template <class W>
struct Curve {
  W scale, offset, turn;
  bool circle;

  FASTMINE_DEVICE Curve(const PairCurve& c, const double* scale_by, PairForm form)
      : scale(static_cast<W>(c.scale * (scale_by == nullptr ? 1 : *scale_by))),
        offset(static_cast<W>(c.offset)),
        turn(static_cast<W>(c.turn)),
        circle(form == PairForm::circle) {}

  /// The weight of the circle's curve at v, which counts as constant.
  FASTMINE_DEVICE W weight(W v) const {
    const W past = scale > 0 ? v - turn : turn - v;
    return !circle ? W{1} : past < 0 ? W{0} : past;
  }
  FASTMINE_DEVICE W operator()(W v) const { return scale * (v - offset) * weight(v); }
};

/// A bound as distances times `sign` are compared with it, sign being -1 for a similarity, of which far means small.
/// None admits all, and any admits NaN.
template <class W>
FASTMINE_DEVICE W bound_of(const double* bounds, bool positive, Metric metric, std::int64_t i) {
  const double none = positive ? -static_cast<double>(__builtin_inf()) : static_cast<double>(__builtin_inf());
  return static_cast<W>(bounds == nullptr ? none : metric == Metric::dot ? -bounds[i] : bounds[i]);
}

template <class W>
FASTMINE_DEVICE bool admits(W bound, bool positive, Metric metric, W v) {
  const W ordered = metric == Metric::dot ? -v : v;
  return positive ? !(ordered <= bound) : !(ordered >= bound);
}

}  // namespace fastmine::cuda::mining
