// Keys in float32, with a bound on how far they may be from those in float64: what rules out, or settles, pairs that
// need no comparison in float64, which many devices do at a 64th of float32's rate.
#pragma once

#include "kernels/cuda/math.h"
#include "kernels/cuda/rows.cuh"

namespace fastmine::cuda::mining {

/// keys[c] = the key of row i of x against row j[c] of y, added up in float32, in all lanes.
template <class S, int C>
FASTMINE_DEVICE void rough_keys(const RowSet& x, std::int64_t i, const RowSet& y, const std::int32_t (&j)[C],
                                float (&keys)[C]) {
  const bool dot = x.metric == Metric::dot, cosine = x.metric == Metric::cosine;
  const S* const a = row_of<S>(x.rows, i);
  const float own_scale = cosine ? static_cast<float>(1 / x.norm[i]) : 1;
  const S* b[C];
  float sum[C], scale[C];
  FASTMINE_UNROLL for (int c = 0; c < C; ++c) {
    b[c] = row_of<S>(y.rows, j[c]);
    scale[c] = cosine ? static_cast<float>(1 / y.norm[j[c]]) : 1;
    sum[c] = 0;
  }
  for (std::int64_t k = lane_index(); k < x.rows.d; k += kWarp) {
    const float own = value_of<float>(a[k]) * own_scale;
    FASTMINE_UNROLL for (int c = 0; c < C; ++c) {
      const float other = value_of<float>(b[c][k]) * scale[c], difference = own - other;
      sum[c] += dot ? own * other : difference * difference;
    }
  }
  FASTMINE_UNROLL for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    FASTMINE_UNROLL for (int c = 0; c < C; ++c) { sum[c] += from_across(sum[c], mask); }
  }
  FASTMINE_UNROLL for (int c = 0; c < C; ++c) { keys[c] = dot ? -2 * sum[c] : sum[c]; }
}

/// An upper bound on how far a finite rough key is from the key: a lane adds up d / 32 terms and 5 sums of others. Of
/// differences every rounding is relative to a term that adds to the key, but those of unit vectors, which are 2^-21
/// long in all; of products, to the norms.
FASTMINE_DEVICE double rough_error(const RowSet& x, std::int64_t i, const RowSet& y, std::int64_t j, double key) {
  const auto terms = static_cast<double>(divide_up(x.rows.d, kWarp) + 16);
  const double relative = terms * 0x1p-23, lost = static_cast<double>(x.rows.d) * 0x1p-120;  // subnormal terms
  switch (x.metric) {
    case Metric::dot:
      return 2 * relative * x.norm[i] * y.norm[j] + lost;
    case Metric::cosine:
      return relative * key + root(key) * 0x1p-19 + 0x1p-38;
    default:
      return relative * key + lost;
  }
}

/// Between which two a key is, given its rough one.
struct KeyRange {
  double low, high;
};

/// A rough key that is not finite says nothing; nor does one of a row whose norm has no inverse in float32.
FASTMINE_DEVICE KeyRange rough_range(const RowSet& x, std::int64_t i, const RowSet& y, std::int64_t j, float key) {
  const auto invertible = [](double norm) { return norm > 0x1p-100 && norm < 0x1p100; };
  if (key - key != 0 || (x.metric == Metric::cosine && !(invertible(x.norm[i]) && invertible(y.norm[j])))) {
    return {-static_cast<double>(__builtin_inf()), static_cast<double>(__builtin_inf())};
  }
  const auto wide = static_cast<double>(key);
  const double error = rough_error(x, i, y, j, wide);
  return {wide - error, wide + error};
}

}  // namespace fastmine::cuda::mining
