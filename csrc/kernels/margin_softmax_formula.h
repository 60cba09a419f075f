// The formula of kernels/margin_softmax.h for a row, the same on every device. Always inlined: a weak copy compiled for
// one instruction set could serve all others.
#pragma once

#include <cmath>

#include "kernels/host_device.h"
#include "kernels/margin_softmax.h"

namespace fastmine::margin {

/// Whether a row counts; one that takes part and has a label of no class spoils the loss instead.
FASTMINE_HOST_DEVICE [[gnu::always_inline]] inline bool takes_part(const MarginSoftmax& q, std::int64_t i) {
  return q.valid == nullptr || q.valid[i];
}
FASTMINE_HOST_DEVICE [[gnu::always_inline]] inline bool counts(const MarginSoftmax& q, std::int64_t i) {
  return takes_part(q, i) && q.labels[i] >= 0 && q.labels[i] < q.classes;
}

/// What row i counts for in the sum of all; W is the type of the numbers.
template <class W>
FASTMINE_HOST_DEVICE [[gnu::always_inline]] inline double weight_of(const MarginSoftmax& q, std::int64_t i) {
  if (!counts(q, i)) {
    return 0;
  }
  return q.weight == nullptr ? 1 : static_cast<double>(static_cast<const W*>(q.weight)[i]);
}

/// What the sum over all rows, which weigh `whole`, is divided by.
FASTMINE_HOST_DEVICE [[gnu::always_inline]] inline double divisor(const MarginSoftmax& q, double whole) {
  return q.reduction != Reduction::mean || whole == 0 ? 1 : whole;
}

/// The vector of the own class of row i, by its place in `unit`.
FASTMINE_HOST_DEVICE [[gnu::always_inline]] inline std::int64_t own_vector(const MarginSoftmax& q, std::int64_t i) {
  return q.n + (q.nearest == nullptr ? q.labels[i] : q.nearest[i]);
}

/// The margin, and of an angle its cosine and sine.
struct Margin {
  MarginKind kind;
  double size, cosine, sine;
};

[[gnu::always_inline]] inline Margin margin_of(const MarginSoftmax& q) {
  return {q.kind, q.margin, ::cos(q.margin), ::sin(q.margin)};
}

/// Whether phi turns a row of this cosine by the margin, for which it needs the sine.
FASTMINE_HOST_DEVICE [[gnu::always_inline]] inline bool turns(const Margin& m, double cosine) {
  return m.kind == MarginKind::angular && !(cosine < -m.cosine);
}

/// phi, and its derivative by the cosine.
struct Turned {
  double phi, slope;
};

/// `squared` is the squared length of what is left of the row beside its class vector. At a right angle, where a row of
/// zeros is too, the sine is 1.
template <class W>
FASTMINE_HOST_DEVICE [[gnu::always_inline]] inline Turned turned(const Margin& m, double cosine, double squared) {
  if (!turns(m, cosine)) {
    return {m.kind == MarginKind::cosine ? cosine - m.size : cosine + (m.cosine - 1), 1};
  }
  constexpr double kLeast = 16 * (sizeof(W) == 4 ? 0x1p-23 : 0x1p-52);
  const double sine = cosine == 0 ? 1 : ::sqrt(squared);
  return {cosine * m.cosine - sine * m.sine, m.cosine + m.sine * cosine / (sine < kLeast ? kLeast : sine)};
}

/// The logits of all other classes: the largest, and the sum of the exponentials about it; NaN if any is.
struct Others {
  double largest, sum;
};

/// What a row adds and hands out.
struct Row {
  double value;  // its part of the loss
  double share;  // of each exponential about the largest in the slope by its cosine
  double own;    // the slope by the cosine to the own class
  bool active;
};

/// Of a row that counts for `part` of the loss.
template <class W>
FASTMINE_HOST_DEVICE [[gnu::always_inline]] inline Row row_of(const MarginSoftmax& q, const Turned& turned,
                                                              const Others& others, double part) {
  const double excess = others.largest + ::log(others.sum) - q.scale * turned.phi;
  const double e = ::exp(-::fabs(excess));
  const double value = (excess > 0 ? excess : 0) + ::log1p(e), slope = (excess >= 0 ? 1 : e) / (1 + e);
  const double factor = part * slope * q.scale;
  const double spoilt = excess - excess;  // 0, or NaN
  return {part * (value + spoilt), factor / others.sum + spoilt, -factor * turned.slope, static_cast<W>(value) != 0};
}

}  // namespace fastmine::margin
