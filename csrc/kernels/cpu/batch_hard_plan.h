// What the stages of batch-hard mining share: where everything lies, and how far screened keys may be from the truth.
#pragma once

#include "kernels/cpu/batch_hard_small.h"
#include "kernels/cpu/packing.h"
#include "kernels/cpu/screen.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::mining {

/// An integer of W's size, so that a mask of labels selects among values.
template <class W>
struct ClassId {
  using type = std::int32_t;
};
template <>
struct ClassId<double> {
  using type = std::int64_t;
};

/// The best candidate so far, by sign x key, then by original index.
struct Best {
  double key;
  std::int64_t index;
  bool found;
};

FASTMINE_INLINE bool better(double key, std::int64_t index, const Best& best) {
  return !best.found || key < best.key || (key == best.key && index < best.index);
}

template <class W>
struct Plan {
  using Id = typename ClassId<W>::type;

  BatchHard problem;
  SmallPlan small;  // for few pairs; then there is nothing else to do
  RowSet x, y;      // with one set, y is x; so it is for all pairs of names below
  double* centre;
  double* total;  // [d]: sum of the anchors that take part, as they are

  // Rows that take part: first those that are finite, grouped by label, which are the positions; then those that hold
  // a NaN or an Inf, in order.
  std::int64_t* x_order;
  std::int64_t* y_order;
  std::int64_t x_poisoned_count, y_poisoned_count;
  std::int64_t* spare;  // [the larger of n and m]: while they are being sorted; later `limit`

  Packed<W> a, b;
  Id* a_class;
  Id* b_class;
  std::int64_t* same_begin;  // per position of a: the references of its label are [begin, end) in b
  std::int64_t* same_end;
  std::int64_t classes;  // distinct labels among the anchors that take part
  double widest;         // the largest norm among the packed references

  std::int64_t panel;       // slivers in a panel
  std::int64_t full_panel;  // the same where the screen is not `rounded`
  double* radius;           // per panel of b, the largest norm in it
  bool rounded;             // the negatives are screened in bfloat16
  Rounded x_rounded, y_rounded;
  double* lost;  // per panel of b, the largest of y_rounded.error in it; 0 unless `rounded`
  double most_lost;
  std::int64_t stride;  // positions of a, padded
  W* nearest;           // [panels of b, stride]: per position of a, the least c[j] - 2 a.b[j] over a panel's negatives
  W* full_nearest;  // where it is for a full screen. Else a's copy makes place for it, once the positives are found,
                    // and x_rounded.data lies here
  W* floor;         // semi-hard: below it a negative is surely not farther than the positive (halved if `rounded`)
  double* bound;    // semi-hard: the key of the positive; -Inf without one

  // The search for the negative, per position of a. The best so far is in the outputs, its key in place of a distance.
  std::int32_t* start;  // the most promising panel; the number of panels: none is
  double* limit;        // what a candidate's key - c must not surely exceed

  std::int64_t a_panels() const { return divide_up(a.slivers(), panel); }
  std::int64_t b_panels() const { return divide_up(b.slivers(), panel); }
  std::int64_t panel_rows() const { return panel * static_cast<std::int64_t>(kSliver<W>); }
  const std::int64_t* x_poisoned() const { return x_order + a.count; }
  const std::int64_t* y_poisoned() const { return y_order + b.count; }
};

/// Whether to screen in bfloat16, before any row has been seen.
template <class W>
bool may_round(const BatchHard& problem) {
  if (sizeof(W) == 8 || problem.x.d > kWidestRounded || problem.screen == Screen::full) {
    return false;
  }
  const bool large = problem.x.n >= 256 && problem.y.n >= 256 && problem.x.d >= 32;
  return problem.screen != Screen::automatic || (kMatrixUnit && large);
}

inline constexpr std::int64_t kMostPanels = 128;

/// Slivers in a panel of n references: few enough panels that their minima take `share` elements a row at most, and
/// wide enough to be worth a task.
template <class W>
std::int64_t panel_for(std::int64_t n, std::int64_t share) {
  const std::int64_t most_panels = smaller<std::int64_t>(larger<std::int64_t>(share, 16), kMostPanels);
  return larger<std::int64_t>(1, divide_up(divide_up(n, kSliver<W>), most_panels));
}

template <class W>
Plan<W> lay_out(const BatchHard& problem, Arena& arena) {
  using Id = typename ClassId<W>::type;
  const std::int64_t n = problem.x.n, m = problem.y.n, d = problem.x.d;
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<W>);
  const auto panels_of = [m](std::int64_t panel) { return divide_up(divide_up(m, sliver), panel); };
  Plan<W> p{};
  p.problem = problem;
  p.rounded = may_round<W>(problem);
  p.stride = round_up(n, kBlockRows);
  p.full_panel = p.panel = panel_for<W>(m, d);
  const std::int64_t panels = panels_of(p.panel);
  std::int64_t beside_a = panels * p.stride, instead_of_a = 0;
  if (p.rounded) {
    p.panel = round_up(panel_for<W>(m, d / 2), kBlockRows / sliver);
    instead_of_a = panels_of(p.panel) * p.stride;
  }

  p.centre = arena.take<double>(d);
  p.total = arena.take<double>(d);
  p.x = lay_out_rows(arena, problem.x, problem.valid, problem.metric);
  p.x_order = arena.take<std::int64_t>(n);
  p.a = lay_out_packed<W>(arena, n, d, instead_of_a);
  p.a_class = arena.take<Id>(p.stride);
  p.same_begin = arena.take<std::int64_t>(n);
  p.same_end = arena.take<std::int64_t>(n);
  p.y = p.x;
  p.y_order = p.x_order;
  p.b = p.a;
  p.b_class = p.a_class;
  if (!problem.self) {
    p.y = lay_out_rows(arena, problem.y, problem.ref_valid, problem.metric);
    p.y_order = arena.take<std::int64_t>(m);
    p.b = lay_out_packed<W>(arena, m, d);
    p.b_class = arena.take<Id>(round_up(m, kBlockRows));
  }
  if (p.rounded) {
    p.x_rounded = lay_out_rounded(arena, n, d);
    beside_a = larger(beside_a, p.stride * p.x_rounded.depth / 2);
  }
  p.full_nearest = arena.take<W>(beside_a);
  p.nearest = p.full_nearest;
  if (p.rounded) {
    p.x_rounded.data = reinterpret_cast<std::uint16_t*>(p.full_nearest);
    p.y_rounded = p.x_rounded;
    p.nearest = p.a.data;
    if (!problem.self) {
      p.y_rounded = lay_out_rounded(arena, m, d);
      p.y_rounded.data = arena.take<std::uint16_t>(round_up(m, kBlockRows) * p.y_rounded.depth);
    }
  }
  p.radius = arena.take<double>(panels);
  p.lost = arena.take<double>(panels);
  p.floor = arena.take<W>(problem.semi_hard_negative ? p.stride : 0);
  p.bound = arena.take<double>(problem.semi_hard_negative ? p.stride : 0);
  p.start = arena.take<std::int32_t>(p.stride);
  p.limit = arena.take<double>(larger(p.stride, m));
  p.spare = reinterpret_cast<std::int64_t*>(p.limit);
  p.small = lay_out_small(problem, p.x, p.y, p.total, arena);
  return p;
}

template <class W>
Plan<W>& as_plan(void* plan) {
  return *static_cast<Plan<W>*>(plan);
}

template <class W>
const Plan<W>& as_plan(const void* plan) {
  return *static_cast<const Plan<W>*>(plan);
}

inline Side side(const Rounded& rows, const std::int32_t* classes, const float* floor) {
  return {&rows, classes, floor};
}

/// Where panel `panel` of rounded rows ends.
template <class W>
std::int64_t panel_end(const Plan<W>& p, const Rounded& rows, std::int64_t panel) {
  return smaller(round_up(rows.count, kBlockRows), (panel + 1) * p.panel_rows());
}

// --- how far screening may be off ----------------------------------------------------------------------------------

/// What of a row the screen's error depends on: its norm, and the norm of what rounding took from it.
template <class D>
struct Reach {
  D norm, lost;
};

template <class W>
Reach<double> reach_of(const Plan<W>& p, std::int64_t anchor) {
  return {static_cast<double>(p.a.norm[anchor]), p.rounded ? static_cast<double>(p.x_rounded.error[anchor]) : 0};
}

/// Of a register full of anchors.
template <class W>
FASTMINE_INLINE Reach<Vec<double>> reach_of_vector(const Plan<W>& p, std::int64_t first) {
  return {load_double(p.a.norm + first), p.rounded ? load_double(p.x_rounded.error + first) : Vec<double>{}};
}

/// How far the screened key of an anchor with a reference may be from the truth. D: double, or a vector of them.
template <class W, class D>
FASTMINE_INLINE D screen_error(const Plan<W>& p, const Reach<D>& anchor, const Reach<double>& reference) {
  return p.rounded ? rounded_key_error(p.x_rounded.depth, anchor.norm, anchor.lost, reference.norm, reference.lost)
                   : key_error<W>(p.problem.x.d, anchor.norm, reference.norm);
}

/// How far the minimum over a panel may be from the key of what attains it, less c.
template <class W, class D>
FASTMINE_INLINE D panel_error(const Plan<W>& p, const Reach<D>& anchor, std::int64_t panel) {
  return screen_error(p, anchor, {p.radius[panel], p.lost[panel]});
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::mining
