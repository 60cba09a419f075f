// The exact choice among the candidates of an anchor that screened keys cannot rule out.
#pragma once

#include "kernels/cpu/batch_hard_plan.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::mining {

/// A search of one anchor: for the nearest candidate (sign 1) or the farthest (-1).
template <class W>
struct Search {
  const Plan<W>& plan;
  std::int64_t anchor;  // its position
  double sign;
  double above;  // candidates must have a key above this
  double limit;  // no candidate whose sign x (c[j] - 2 a.b[j]) is surely above this can win
  Best best;
};

template <class W>
Search<W> search(const Plan<W>& plan, std::int64_t anchor, double sign) {
  return {plan, anchor, sign, -__builtin_inf(), __builtin_inf(), {0, 0, false}};
}

template <class W>
FASTMINE_NOINLINE void compare(Search<W>& s, std::int64_t candidate) {
  const Plan<W>& p = s.plan;
  const std::int64_t i = p.a.row(s.anchor), j = p.b.row(candidate);
  const double key = exact_key<W>(p.problem.x, i, p.x.norm, p.problem.y, j, p.y.norm, p.problem.metric);
  if (!(key > s.above)) {
    return;
  }
  const double signed_key = s.sign * key;
  if (better(signed_key, j, s.best)) {
    s.best = {signed_key, j, true};
    s.limit = smaller(s.limit, signed_key - s.sign * static_cast<double>(p.a.c[s.anchor]));
  }
}

/// What screened values in W may be above (below) `value` for theirs in float64 not to be: `value`, rounded up (down).
template <class W>
FASTMINE_INLINE W rounded(double value, double up) {
  return static_cast<W>(value + up * 2 * key_error<W>(1, ::sqrt(::fabs(value)), 0));
}

/// Positions from .. to, except for those from hole_from .. hole_to.
struct Range {
  std::int64_t from, to, hole_from, hole_to;
};

/// Whether `factor` times every one of `Vectors` vectors of values is above `highest`.
template <std::size_t Vectors, class W>
FASTMINE_INLINE bool all_above(const W* screened, W factor, W highest) {
  auto above = factor * load(screened) > highest;
  for (std::size_t v = 1; v < Vectors; ++v) {
    above &= factor * load(screened + v * lanes<W>) > highest;
  }
  return !any(~above);
}

/// found(position, screened) for those positions from `first` on that are in range and that `Vectors` vectors of
/// values, `unit` times which is c[j] - 2 a.b[j] up to `error`, cannot rule out: most often one or none.
template <std::size_t Vectors, class W, class F>
FASTMINE_INLINE void scan(const Search<W>& s, std::int64_t first, const W* values, W unit, double error,
                          const Range& range, F found) {
  using Id = typename ClassId<W>::type;
  using Ids = Vec<Id>;
  constexpr Id none = static_cast<Id>(Vectors * lanes<W>);
  const double least = s.above - static_cast<double>(s.plan.a.c[s.anchor]);
  const W highest = rounded<W>(s.limit + error, 1), lowest = rounded<W>(least - error, -1);
  const W sign = static_cast<W>(s.sign);
  const auto within = [first](std::int64_t j) {
    return broadcast(static_cast<Id>(smaller<std::int64_t>(larger<std::int64_t>(j - first, 0), none)));
  };
  const Ids from = within(range.from), to = within(range.to);
  const Ids hole_from = within(range.hole_from), hole_to = within(range.hole_to);
  Ids place = lane_numbers<Id>();
  Ids open[Vectors];
  for (std::size_t v = 0; v < Vectors; ++v, place += static_cast<Id>(lanes<W>)) {
    const Vec<W> screened = unit * load(values + v * lanes<W>);
    const auto out = (sign * screened > highest) | (screened < lowest) | (place < from) | (place >= to) |
                     ((place >= hole_from) & (place < hole_to));
    open[v] = select(out, broadcast(none), place);
  }
  for (;;) {
    Ids next = open[0];
    for (std::size_t v = 1; v < Vectors; ++v) {
      next = select(open[v] < next, open[v], next);
    }
    const Id k = least_of(next);
    if (k == none) {
      return;
    }
    for (Ids& v : open) {
      v = select(v == k, broadcast(none), v);
    }
    found(first + k, static_cast<double>(unit) * static_cast<double>(values[k]));
  }
}

/// Turn the products of an anchor with sliver `sliver` into screened values.
template <class W>
FASTMINE_INLINE void screen_products(const Plan<W>& p, std::int64_t sliver, W* dots) {
  const W* c = p.b.c + sliver * static_cast<std::int64_t>(kSliver<W>);
  for (std::size_t k = 0; k < kSliver<W>; k += lanes<W>) {
    store(dots + k, load(c + k) - 2 * load(dots + k));
  }
}

inline void settle(const Best& best, double sign, Metric metric, std::int64_t i, std::int64_t* index, double* distance,
                   bool* found) {
  if (best.found) {
    index[i] = best.index;
    distance[i] = distance_of(sign * best.key, metric);
    found[i] = true;
  }
}

/// The first poisoned reference of row i's label (or of another): a candidate at distance NaN, taken before all.
template <class W>
std::int64_t first_poisoned(const Plan<W>& p, std::int64_t i, bool same) {
  for (std::int64_t k = 0; k < p.y_poisoned_count; ++k) {
    const std::int64_t j = p.y_poisoned()[k];
    if ((p.problem.ref_labels[j] == p.problem.labels[i]) == same) {
      return j;
    }
  }
  return -1;
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::mining
