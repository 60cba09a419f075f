// What forward and backward of pair_sums share: the curve of a pair, and which pairs count.
#pragma once

#include "kernels/cpu/math.h"
#include "kernels/cpu/row_block.h"
#include "kernels/pair_sums.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::pairs {

constexpr std::size_t kVectors = kSliverVectors;

template <class W>
constexpr W kInf = static_cast<W>(__builtin_inf());

/// The problem with its scale in both curves.
template <class P>
P scaled(P problem) {
  const double by = problem.scale == nullptr ? 1 : *problem.scale;
  problem.positive.scale *= by;
  problem.negative.scale *= by;
  return problem;
}

/// A curve in the working type. Linear, or the circle's.
template <class W>
struct Curve {
  W scale, offset, turn, sign;

  explicit Curve(const PairCurve& c)
      : scale(static_cast<W>(c.scale)),
        offset(static_cast<W>(c.offset)),
        turn(static_cast<W>(c.turn)),
        sign(static_cast<W>(c.scale > 0 ? 1 : -1)) {}
};

/// The weight of the circle's curve at v.
template <class W, class V>
FASTMINE_INLINE V weight_at(const Curve<W>& c, V v) {
  const V w = c.sign * (v - c.turn);
  return select(w < 0, V{}, w);
}

template <bool circle, class W, class V>
FASTMINE_INLINE V curve_at(const Curve<W>& c, V v) {
  const V linear = c.scale * (v - c.offset);
  if constexpr (circle) {
    return linear * weight_at(c, v);
  } else {
    return linear;
  }
}

/// The rows of a sliver as lanes: who they are, the range across of their label, and their bounds.
template <class W>
struct Lanes {
  using Positions = Vec<Position<W>>;
  Positions itself[kVectors], begin[kVectors], end[kVectors];

  Lanes(const LabelledRows<W>& own, std::int64_t sliver, bool self) {
    const std::int64_t first = own.first(sliver);
    for (std::size_t v = 0; v < kVectors; ++v) {
      const std::int64_t at = first + static_cast<std::int64_t>(v * lanes<W>);
      itself[v] = self ? lane_numbers<Position<W>>() + static_cast<Position<W>>(at) : Positions{} - 1;
      begin[v] = load(own.begin + at);
      end[v] = load(own.end + at);
    }
  }

  Positions same(std::size_t v, Position<W> across) const { return (begin[v] <= across) & (end[v] > across); }
  Positions other_than(std::size_t v, Position<W> across) const { return itself[v] != across; }
};

/// Bounds as they are compared: with v times `sign`, -1 for a similarity, of which far means small. None admits all.
template <class W>
struct Bounds {
  const W* positive;  // per position
  const W* negative;
  W sign;

  /// Masks of the pairs with these v that the bounds admit; a NaN among them.
  template <class V>
  FASTMINE_INLINE auto admits_positive(V v, V bound) const {
    return ~(v * sign <= bound);
  }
  template <class V>
  FASTMINE_INLINE auto admits_negative(V v, V bound) const {
    return ~(v * sign >= bound);
  }
};

/// `out` [positions of anchors, to whole slivers] = the bounds times `sign`, `none` where there are none.
template <class W>
void order_bounds(const LabelledRows<W>& anchors, const double* bounds, W sign, W none, W* out) {
  for (std::int64_t k = 0; k < anchors.slivers() * kWidth<W>; ++k) {
    out[k] = bounds == nullptr || k >= anchors.count() ? none : static_cast<W>(bounds[anchors.order[k]]) * sign;
  }
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::pairs
