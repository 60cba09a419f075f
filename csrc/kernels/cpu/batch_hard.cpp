#include "kernels/batch_hard.h"

#include "kernels/cpu/batch_hard_small.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/order.h"
#include "kernels/cpu/packing.h"
#include "kernels/cpu/screen.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {
namespace {

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

  // Positions: rows that take part and are finite, grouped by label.
  std::int64_t* x_order;
  std::int64_t* y_order;
  std::int64_t* spare;  // [the larger of n and m]: while they are being sorted
  Packed<W> a, b;
  Id* a_class;
  Id* b_class;
  std::int64_t* same_begin;  // per position of a: the references of its label are [begin, end) in b
  std::int64_t* same_end;

  // Rows that take part and hold a NaN or an Inf, in order.
  std::int64_t* x_poisoned;
  std::int64_t* y_poisoned;
  std::int64_t x_poisoned_count, y_poisoned_count;

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
  W* nearest;           // [panels of b, stride]: per position of a, the least c[j] - 2 a.b[j] over a panel's negatives;
                        // x_rounded.data lies behind those minima, where the smaller panels of a full screen reach
  W* floor;             // semi-hard: below it a negative is surely not farther than the positive (halved if `rounded`)
  double* bound;        // semi-hard: the key of the positive; -Inf without one

  // The search for the nearest negative, per position of a.
  std::int32_t* start;          // the most promising panel; the number of panels: none is
  double* limit;                // what a candidate's key - c must not surely exceed
  Best* best;                   // in that panel
  std::int64_t* start_begin;    // per panel: its anchors are start_anchors[begin] .. start_anchors[next begin]
  std::int64_t* start_anchors;  // positions, by their most promising panel

  std::int64_t a_panels() const { return divide_up(a.slivers(), panel); }
  std::int64_t b_panels() const { return divide_up(b.slivers(), panel); }
  std::int64_t panel_rows() const { return panel * static_cast<std::int64_t>(kSliver<W>); }
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

/// Slivers in a panel of n references: few enough panels that their minima take `share` elements a row at most, and
/// wide enough to be worth a task.
template <class W>
std::int64_t panel_for(std::int64_t n, std::int64_t share) {
  const std::int64_t most_panels = smaller<std::int64_t>(larger<std::int64_t>(share, 16), 128);
  return larger<std::int64_t>(1, divide_up(divide_up(n, kSliver<W>), most_panels));
}

template <class W>
Plan<W> lay_out(const BatchHard& problem, Arena& arena) {
  using Id = typename ClassId<W>::type;
  const std::int64_t n = problem.x.n, m = problem.y.n, d = problem.x.d;
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<W>);
  Plan<W> p{};
  p.problem = problem;
  p.rounded = may_round<W>(problem);
  p.centre = arena.take<double>(d);
  p.total = arena.take<double>(d);
  p.x = lay_out_rows(arena, problem.x, problem.valid, problem.metric);
  p.x_order = arena.take<std::int64_t>(n);
  p.x_poisoned = arena.take<std::int64_t>(n);
  p.spare = arena.take<std::int64_t>(larger(n, m));
  p.a = lay_out_packed<W>(arena, n, d);
  p.a_class = arena.take<Id>(round_up(n, kBlockRows));
  p.same_begin = arena.take<std::int64_t>(n);
  p.same_end = arena.take<std::int64_t>(n);
  p.y = p.x;
  p.y_order = p.x_order;
  p.y_poisoned = p.x_poisoned;
  p.b = p.a;
  p.b_class = p.a_class;
  if (!problem.self) {
    p.y = lay_out_rows(arena, problem.y, problem.ref_valid, problem.metric);
    p.y_order = arena.take<std::int64_t>(m);
    p.y_poisoned = arena.take<std::int64_t>(m);
    p.b = lay_out_packed<W>(arena, m, d);
    p.b_class = arena.take<Id>(round_up(m, kBlockRows));
  }
  p.stride = round_up(n, kBlockRows);
  p.full_panel = panel_for<W>(m, d);
  const std::int64_t panels = divide_up(divide_up(m, sliver), p.full_panel);
  p.panel = p.full_panel;
  std::int64_t minima = panels * p.stride;
  if (p.rounded) {
    p.panel = round_up(panel_for<W>(m, d / 2), kBlockRows / sliver);
    const std::int64_t rounded_minima = divide_up(divide_up(m, sliver), p.panel) * p.stride;
    p.x_rounded = lay_out_rounded(arena, n, d);
    minima = larger(minima, rounded_minima + p.stride * p.x_rounded.depth / 2);
    p.nearest = arena.take<W>(minima);
    p.x_rounded.data = reinterpret_cast<std::uint16_t*>(p.nearest + rounded_minima);
    p.y_rounded = p.x_rounded;
    if (!problem.self) {
      p.y_rounded = lay_out_rounded(arena, m, d);
      p.y_rounded.data = arena.take<std::uint16_t>(round_up(m, kBlockRows) * p.y_rounded.depth);
    }
  } else {
    p.nearest = arena.take<W>(minima);
  }
  p.radius = arena.take<double>(panels);
  p.lost = arena.take<double>(panels);
  p.floor = arena.take<W>(p.stride);
  p.bound = arena.take<double>(p.stride);
  p.start = arena.take<std::int32_t>(p.stride);
  p.limit = arena.take<double>(p.stride);
  p.best = arena.take<Best>(n);
  p.start_begin = arena.take<std::int64_t>(panels + 2);
  p.start_anchors = arena.take<std::int64_t>(n);
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

// --- few pairs: all in one task ------------------------------------------------------------------------------------

template <class W>
std::int64_t small_tasks(const void* plan) {
  return has_few_pairs(as_plan<W>(plan).problem) ? 1 : 0;
}

template <class W>
void mine_small(void* plan, std::int64_t, std::int64_t) {
  mine_few_pairs<W>(as_plan<W>(plan).small);
}

// --- step 1: look at every row -------------------------------------------------------------------------------------

template <class W>
std::int64_t look_tasks(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  return p.x.blocks() + (p.problem.self ? 0 : p.y.blocks());
}

template <class W>
void look(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  const std::int64_t own = p.x.blocks();
  for (std::int64_t t = begin; t < end; ++t) {
    t < own ? look_at_block<W>(p.x, t) : look_at_block<W>(p.y, t - own);
  }
}

// --- step 2: group by label ----------------------------------------------------------------------------------------

/// Rows that take part, by label; their distinct labels; then those that are finite stay and the others are listed.
struct Grouped {
  std::int64_t finite, poisoned, classes;
};

Grouped group_rows(const RowSet& set, const std::int64_t* labels, std::int64_t* order, std::int64_t* spare,
                   std::int64_t* bad) {
  Grouped g{};
  std::int64_t taking_part = 0;
  for (std::int64_t i = 0; i < set.rows.n; ++i) {
    if (takes_part(set, i)) {
      order[taking_part++] = i;
      if (poisoned(set, i)) {
        bad[g.poisoned++] = i;
      }
    }
  }
  sort_by_label(labels, order, spare, taking_part);
  for (std::int64_t k = 0; k < taking_part; ++k) {
    g.classes += k == 0 || labels[order[k]] != labels[order[k - 1]];
  }
  for (std::int64_t k = 0; k < taking_part; ++k) {
    if (!poisoned(set, order[k])) {
      order[g.finite++] = order[k];
    }
  }
  return g;
}

/// For every anchor position its references of the same label, and class numbers that a and b share.
template <class W>
void match_classes(Plan<W>& p) {
  using Id = typename Plan<W>::Id;
  const std::int64_t* x_labels = p.problem.labels;
  const std::int64_t* y_labels = p.problem.ref_labels;
  std::int64_t begin = 0, number = 0, numbered = 0;  // references before `numbered` have their class number
  for (std::int64_t k = 0; k < p.a.count;) {
    const std::int64_t label = x_labels[p.x_order[k]];
    while (begin < p.b.count && y_labels[p.y_order[begin]] < label) {
      ++begin;
    }
    std::int64_t end = begin;
    while (end < p.b.count && y_labels[p.y_order[end]] == label) {
      ++end;
    }
    for (; numbered < begin; ++numbered) {  // labels without an anchor share the number between its neighbours
      p.b_class[numbered] = static_cast<Id>(number);
    }
    ++number;
    for (; numbered < end; ++numbered) {
      p.b_class[numbered] = static_cast<Id>(number);
    }
    for (; k < p.a.count && x_labels[p.x_order[k]] == label; ++k) {
      p.a_class[k] = static_cast<Id>(number);
      p.same_begin[k] = begin;
      p.same_end[k] = end;
    }
    ++number;
    begin = end;
  }
  for (; numbered < p.b.count; ++numbered) {
    p.b_class[numbered] = static_cast<Id>(number);
  }
}

template <class W>
void group(void* plan, std::int64_t, std::int64_t) {
  using Id = typename Plan<W>::Id;
  Plan<W>& p = as_plan<W>(plan);
  const bool self = p.problem.self;
  find_centre(p.x, self ? nullptr : &p.y, p.centre);
  for (std::int64_t k = 0; k < p.problem.x.d; ++k) {
    p.total[k] = 0;
  }
  add_blocks(p.x, p.x.raw_sums, p.total);

  const Grouped x = group_rows(p.x, p.problem.labels, p.x_order, p.spare, p.x_poisoned);
  const Grouped y = self ? x : group_rows(p.y, p.problem.ref_labels, p.y_order, p.spare, p.y_poisoned);
  p.classes = x.classes;
  p.x_poisoned_count = x.poisoned;
  p.y_poisoned_count = y.poisoned;
  p.a.count = x.finite;
  p.a.order = p.x_order;
  p.b.count = y.finite;
  p.b.order = p.y_order;
  p.x_rounded.count = x.finite;
  p.y_rounded.count = y.finite;
  match_classes(p);
  for (std::int64_t k = p.a.count; k < round_up(p.a.count, kBlockRows); ++k) {
    p.a_class[k] = static_cast<Id>(-1);
  }
  for (std::int64_t k = p.b.count; k < round_up(p.b.count, kBlockRows); ++k) {
    p.b_class[k] = static_cast<Id>(-1);
  }
  clear_pairs(p.problem);
}

// --- step 3: centre and pack ---------------------------------------------------------------------------------------

template <class W>
std::int64_t pack_tasks(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  return p.a.slivers() + (p.problem.self ? 0 : p.b.slivers());
}

template <class W>
void pack(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  const std::int64_t own = p.a.slivers();
  for (std::int64_t t = begin; t < end; ++t) {
    t < own ? pack_sliver(p.x, p.centre, p.a, t) : pack_sliver(p.y, p.centre, p.b, t - own);
  }
}

/// Task: a block of rows to round.
template <class W>
std::int64_t round_tasks(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  return p.rounded ? p.x_rounded.blocks() + (p.problem.self ? 0 : p.y_rounded.blocks()) : 0;
}

template <class W>
void round(void* plan, std::int64_t begin, std::int64_t end) {
  if constexpr (sizeof(W) == 4) {
    const Plan<W>& p = as_plan<W>(plan);
    const std::int64_t own = p.x_rounded.blocks();
    for (std::int64_t t = begin; t < end; ++t) {
      t < own ? round_block(p.a, p.problem.x.d, p.x_rounded, t) : round_block(p.b, p.problem.x.d, p.y_rounded, t - own);
    }
  }
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

template <class W>
void measure_panels(Plan<W>& p) {
  p.widest = p.most_lost = 0;
  for (std::int64_t panel = 0; panel < p.b_panels(); ++panel) {
    p.radius[panel] = p.lost[panel] = 0;
    for (std::int64_t s = panel * p.panel; s < smaller(p.b.slivers(), (panel + 1) * p.panel); ++s) {
      p.radius[panel] = larger(p.radius[panel], static_cast<double>(p.b.radius[s]));
    }
    for (std::int64_t k = panel * p.panel_rows(); p.rounded && k < smaller(p.b.count, (panel + 1) * p.panel_rows());
         ++k) {
      p.lost[panel] = larger(p.lost[panel], static_cast<double>(p.y_rounded.error[k]));
    }
    p.widest = larger(p.widest, p.radius[panel]);
    p.most_lost = larger(p.most_lost, p.lost[panel]);
  }
}

inline Side side(const Rounded& rows, const std::int32_t* classes, const float* floor) {
  return {&rows, classes, floor};
}

/// Where panel `panel` of rounded rows ends.
template <class W>
std::int64_t panel_end(const Plan<W>& p, const Rounded& rows, std::int64_t panel) {
  return smaller(round_up(rows.count, kBlockRows), (panel + 1) * p.panel_rows());
}

/// Panels that screening anchor `anchor` leaves over, from minima at nearest[panel * stride].
template <class W>
std::int64_t survivors(const Plan<W>& p, std::int64_t anchor, const W* nearest) {
  const Reach<double> reach = reach_of(p, anchor);
  double sure = __builtin_inf();
  for (std::int64_t panel = 0; panel < p.b_panels(); ++panel) {
    sure = smaller(sure, static_cast<double>(nearest[panel * p.stride]) + panel_error(p, reach, panel));
  }
  std::int64_t left = 0;
  for (std::int64_t panel = 0; panel < p.b_panels(); ++panel) {
    left += !(static_cast<double>(nearest[panel * p.stride]) - panel_error(p, reach, panel) > sure);
  }
  return left;
}

/// Screen a few anchors spread over all. Where embeddings lie in clusters narrower than the rounding, bfloat16 leaves
/// over panel after panel, and looking at them again would take longer than screening in float32 does.
template <class W>
bool rounding_pays(const Plan<W>& p) {
  if (p.a.count == 0) {
    return false;
  }
  Block block;
  std::int64_t anchors[kBlockRows];
  for (std::int64_t r = 0; r < kBlockRows; ++r) {
    anchors[r] = r * p.a.count / kBlockRows;
    take_row<false>(side(p.x_rounded, p.a_class, p.floor), anchors[r], block, r);
  }
  [[maybe_unused]] const MatrixUnit unit;
  for (std::int64_t J = 0; J < p.b_panels(); ++J) {
    screen_block<false, false>(block, side(p.y_rounded, p.b_class, p.floor), J * p.panel_rows(),
                               panel_end(p, p.y_rounded, J), true, nullptr, p.nearest + J * p.stride);
  }
  std::int64_t left = 0;
  for (std::int64_t r = 0; r < kBlockRows; ++r) {
    left += survivors(p, anchors[r], p.nearest + r);
  }
  // One anchor's look at one panel more takes four to six times as long as that panel's share of a full screen, which
  // visits each pair of rows once and in tiles.
  return left - kBlockRows <= kBlockRows * p.b_panels() / 10;
}

template <class W>
void measure(void* plan, std::int64_t, std::int64_t) {
  Plan<W>& p = as_plan<W>(plan);
  measure_panels(p);
  if constexpr (sizeof(W) == 4) {
    if (!p.rounded) {
      return;
    }
    p.rounded = p.problem.screen == Screen::rounded_always || rounding_pays(p);
    if (!p.rounded) {
      p.panel = p.full_panel;
      measure_panels(p);
    }
    if (p.problem.screened != nullptr) {
      *p.problem.screened = p.rounded ? Screened::rounded : Screened::rounding_gave_up;
    }
  }
}

// --- exact choice among what screening leaves ----------------------------------------------------------------------

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

/// Compare the anchor with the positions of one sliver that are in range and that its dot products cannot rule out:
/// most often one or none.
template <class W>
FASTMINE_INLINE void scan(Search<W>& s, std::int64_t sliver, const W* dots, const Range& range) {
  using Id = typename ClassId<W>::type;
  using Ids = Vec<Id>;
  constexpr Id none = static_cast<Id>(kSliver<W>);
  const Plan<W>& p = s.plan;
  const std::int64_t first = sliver * none;
  const W* c = p.b.c + first;
  const double error =
      key_error<W>(p.problem.x.d, static_cast<double>(p.a.norm[s.anchor]), static_cast<double>(p.b.radius[sliver]));
  const double least = s.above - static_cast<double>(p.a.c[s.anchor]);
  const W highest = rounded<W>(s.limit + error, 1), lowest = rounded<W>(least - error, -1);
  const W sign = static_cast<W>(s.sign);
  const auto within = [first](std::int64_t j) {
    return broadcast(static_cast<Id>(smaller<std::int64_t>(larger<std::int64_t>(j - first, 0), none)));
  };
  const Ids from = within(range.from), to = within(range.to);
  const Ids hole_from = within(range.hole_from), hole_to = within(range.hole_to);
  Ids place = lane_numbers<Id>();
  Ids open[kSliverVectors];
  for (std::size_t v = 0; v < kSliverVectors; ++v, place += static_cast<Id>(lanes<W>)) {
    const Vec<W> screened = load(c + v * lanes<W>) - 2 * load(dots + v * lanes<W>);
    const auto out = (sign * screened > highest) | (screened < lowest) | (place < from) | (place >= to) |
                     ((place >= hole_from) & (place < hole_to));
    open[v] = select(out, broadcast(none), place);
  }
  for (;;) {
    Ids next = open[0];
    for (std::size_t v = 1; v < kSliverVectors; ++v) {
      next = select(open[v] < next, open[v], next);
    }
    const Id k = least_of(next);
    if (k == none) {
      return;
    }
    for (Ids& v : open) {
      v = select(v == k, broadcast(none), v);
    }
    const double screened = static_cast<double>(c[k]) - 2 * static_cast<double>(dots[k]);
    if (!(s.sign * screened - error > s.limit)) {
      compare(s, first + k);
    }
  }
}

void settle(const Best& best, double sign, Metric metric, std::int64_t i, std::int64_t* index, double* distance,
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
    const std::int64_t j = p.y_poisoned[k];
    if ((p.problem.ref_labels[j] == p.problem.labels[i]) == same) {
      return j;
    }
  }
  return -1;
}

// --- step 4: positives ---------------------------------------------------------------------------------------------

/// Up to so many references of a label are all compared directly; more are screened first.
constexpr std::int64_t kFew = 24;

template <class W>
std::int64_t same(const Plan<W>& p, std::int64_t anchor) {
  return p.same_end[anchor] - p.same_begin[anchor];
}

template <class W>
FASTMINE_INLINE const W* packed_rows(const Plan<W>& p, std::int64_t position) {
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<W>);
  return p.a.sliver(position / sliver, p.problem.x.d) + position % sliver;
}

template <class W>
void settle_positive(const Plan<W>& p, std::int64_t anchor, const Best& best) {
  const double sign = p.problem.easiest_positive ? 1 : -1;
  const std::int64_t i = p.a.row(anchor);
  const std::int64_t bad = first_poisoned(p, i, true);
  if (bad >= 0) {
    settle_poisoned(i, bad, p.problem.positive_index, p.problem.positive_distance, p.problem.has_positive);
  } else {
    settle(best, sign, p.problem.metric, i, p.problem.positive_index, p.problem.positive_distance,
           p.problem.has_positive);
  }
  const bool bounded = best.found && bad < 0;
  const double key = sign * best.key;
  const double error = screen_error(p, reach_of(p, anchor), {p.widest, p.most_lost});
  const double unit = p.rounded ? 0.5 : 1;
  p.bound[anchor] = bounded ? key : -__builtin_inf();
  p.floor[anchor] =
      static_cast<W>(bounded ? unit * (key - static_cast<double>(p.a.c[anchor]) - 2 * error) : -__builtin_inf());
}

void consider(Best& best, double key, std::int64_t index) {
  if (better(key, index, best)) {
    best = {key, index, true};
  }
}

/// The keys of an anchor against `count` references from position `first` of b.
template <class W>
void keys_of(const Plan<W>& p, std::int64_t anchor, std::int64_t first, std::int64_t count, double* keys) {
  exact_keys<W>(p.problem.x, p.x_order[anchor], p.x.norm, p.problem.y, p.y_order + first, count, p.y.norm,
                p.problem.metric, keys);
}

/// A label with few anchors, which are their own references: each pair once.
template <class W>
void find_positives_of_class(const Plan<W>& p, std::int64_t begin, std::int64_t end) {
  const double sign = p.problem.easiest_positive ? 1 : -1;
  Best best[kFew] = {};
  double keys[kFew];
  for (std::int64_t a = begin; a < end; ++a) {
    keys_of(p, a, a + 1, end - a - 1, keys);
    for (std::int64_t b = a + 1; b < end; ++b) {
      const double key = sign * keys[b - a - 1];
      consider(best[a - begin], key, p.b.row(b));
      consider(best[b - begin], key, p.a.row(a));
    }
    settle_positive(p, a, best[a - begin]);
  }
}

/// An anchor with few references of its label.
template <class W>
void find_positive_among_few(const Plan<W>& p, std::int64_t anchor) {
  const double sign = p.problem.easiest_positive ? 1 : -1;
  Best best{};
  double keys[kFew];
  keys_of(p, anchor, p.same_begin[anchor], same(p, anchor), keys);
  for (std::int64_t k = 0; k < same(p, anchor); ++k) {
    consider(best, sign * keys[k], p.b.row(p.same_begin[anchor] + k));
  }
  settle_positive(p, anchor, best);
}

/// Those positions of one tile of rows that have many references of their label, against the slivers of these.
template <class W>
void find_positives_among_many(const Plan<W>& p, std::int64_t first) {
  constexpr std::int64_t tile_rows = static_cast<std::int64_t>(kTileRows<W>);
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<W>);
  alignas(64) W dots[kTileRows<W> * kSliver<W>];
  const std::int64_t rows = smaller(tile_rows, p.a.count - first);
  const double sign = p.problem.easiest_positive ? 1 : -1;
  Best best[kTileRows<W>] = {};
  double limit[kTileRows<W>];
  std::int64_t begin = p.b.count, end = 0;
  for (std::int64_t r = 0; r < rows; ++r) {
    limit[r] = __builtin_inf();
    if (same(p, first + r) > kFew) {
      begin = smaller(begin, p.same_begin[first + r]);
      end = larger(end, p.same_end[first + r]);
    }
  }
  for (std::int64_t s = begin / sliver; s * sliver < end; ++s) {
    dot_tile<W, kTileRows<W>>(packed_rows(p, first), p.b.sliver(s, p.problem.x.d),
                              static_cast<std::size_t>(p.problem.x.d), dots);
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t anchor = first + r, same_end = p.same_end[anchor];
      if (same(p, anchor) <= kFew) {
        continue;
      }
      Search<W> found = search(p, anchor, sign);
      found.best = best[r];
      found.limit = limit[r];
      const std::int64_t itself = p.problem.self ? anchor : same_end;
      scan(found, s, dots + r * sliver, {p.same_begin[anchor], same_end, itself, itself + 1});
      best[r] = found.best;
      limit[r] = found.limit;
    }
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    if (same(p, first + r) > kFew) {
      settle_positive(p, first + r, best[r]);
    }
  }
}

/// Task: the positions of one tile of rows; with one set, small labels whole, by the task in which they begin.
template <class W>
std::int64_t tile_tasks(const void* plan) {
  return divide_up(as_plan<W>(plan).a.count, static_cast<std::int64_t>(kTileRows<W>));
}

template <class W>
void find_positives(void* plan, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t tile_rows = static_cast<std::int64_t>(kTileRows<W>);
  const Plan<W>& p = as_plan<W>(plan);
  for (std::int64_t t = begin; t < end; ++t) {
    bool many = false;
    for (std::int64_t anchor = t * tile_rows; anchor < smaller(p.a.count, (t + 1) * tile_rows); ++anchor) {
      if (same(p, anchor) > kFew) {
        many = true;
      } else if (!p.problem.self) {
        find_positive_among_few(p, anchor);
      } else if (p.same_begin[anchor] == anchor) {
        find_positives_of_class(p, anchor, p.same_end[anchor]);
      }
    }
    if (many) {
      find_positives_among_many(p, t * tile_rows);
    }
  }
}

// --- step 5: screen the negatives ----------------------------------------------------------------------------------

/// Bring one tile of products into the minima of its rows and, with `Mirror`, of its columns.
///
/// `Mixed`: some pairs may be of one label, and are left out. `Floored`: semi-hard, values below the floor are left
/// out.
template <class W, bool Mirror, bool Mixed, bool Floored>
FASTMINE_INLINE void screen_tile(const Plan<W>& p, const W* dots, std::int64_t row, std::int64_t column,
                                 Vec<W>* row_least, W* column_least) {
  using V = Vec<W>;
  using Id = typename Plan<W>::Id;
  const V none = broadcast(static_cast<W>(__builtin_inf()));
  for (std::size_t v = 0; v < kSliverVectors; ++v) {
    const V c = load(p.b.c + column + v * lanes<W>);
    const auto id = load<Id, lanes<W>>(p.b_class + column + v * lanes<W>);
    V of_columns = Mirror ? load(column_least + v * lanes<W>) : none;
    const V column_floor = Mirror && Floored ? load(p.floor + column + v * lanes<W>) : none;
    for (std::size_t r = 0; r < kTileRows<W>; ++r) {
      const std::int64_t i = row + static_cast<std::int64_t>(r);
      const V twice = load(dots + r * kSliver<W> + v * lanes<W>) * 2;
      V to_row = c - twice;
      V to_column = p.a.c[i] - twice;
      if constexpr (Floored) {
        to_row = select(to_row < p.floor[i], none, to_row);
        to_column = Mirror ? select(to_column < column_floor, none, to_column) : to_column;
      }
      if constexpr (Mixed) {
        const auto same = id == broadcast<Id, lanes<W>>(p.a_class[i]);
        to_row = select(same, none, to_row);
        to_column = Mirror ? select(same, none, to_column) : to_column;
      }
      row_least[r] = least(row_least[r], to_row);
      if constexpr (Mirror) {
        of_columns = least(of_columns, to_column);
      }
    }
    if constexpr (Mirror) {
      store(column_least + v * lanes<W>, of_columns);
    }
  }
}

template <class W>
bool share_a_class(const Plan<W>& p, std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns) {
  return p.a_class[row + rows - 1] >= p.b_class[column] && p.b_class[column + columns - 1] >= p.a_class[row];
}

/// Rows of panel I against columns of panel J: writes the minima of I's rows over J and, with Mirror, of J's over I.
template <class W, bool Mirror, bool Floored>
void screen_panels(const Plan<W>& p, std::int64_t I, std::int64_t J) {
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<W>);
  constexpr std::int64_t tile_rows = static_cast<std::int64_t>(kTileRows<W>);
  using V = Vec<W>;
  const V none = broadcast(static_cast<W>(__builtin_inf()));
  alignas(64) W dots[kTileRows<W> * kSliver<W>];
  V row_least[kSliver<W>];
  const std::int64_t d = p.problem.x.d;
  const std::int64_t a_end = smaller(p.a.slivers(), (I + 1) * p.panel);
  const std::int64_t b_end = smaller(p.b.slivers(), (J + 1) * p.panel);
  W* mirrored = p.nearest + I * p.stride;
  if constexpr (Mirror) {
    for (std::int64_t k = J * p.panel * sliver; k < b_end * sliver; ++k) {
      mirrored[k] = none[0];
    }
  }
  for (std::int64_t a = I * p.panel; a < a_end; ++a) {
    const std::int64_t height = smaller(sliver, p.a.count - a * sliver);
    for (V& v : row_least) {
      v = none;
    }
    for (std::int64_t b = J * p.panel; b < b_end; ++b) {
      const std::int64_t column = b * sliver, width = smaller(sliver, p.b.count - column);
      for (std::int64_t r = 0; r < height; r += tile_rows) {
        const std::int64_t row = a * sliver + r;
        dot_tile<W, kTileRows<W>>(p.a.sliver(a, d) + r, p.b.sliver(b, d), static_cast<std::size_t>(d), dots);
        if (share_a_class(p, row, smaller(tile_rows, height - r), column, width)) {
          screen_tile<W, Mirror, true, Floored>(p, dots, row, column, row_least + r, mirrored + column);
        } else {
          screen_tile<W, Mirror, false, Floored>(p, dots, row, column, row_least + r, mirrored + column);
        }
      }
    }
    for (std::int64_t r = 0; r < height; ++r) {
      p.nearest[J * p.stride + a * sliver + r] = least_of(row_least[r]);
    }
  }
}

/// Task: a pair of panels; with one set, each unordered pair once.
template <class W>
std::int64_t screen_tasks(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  const std::int64_t n = p.a_panels();
  return p.problem.self ? n * (n + 1) / 2 : n * p.b_panels();
}

/// The pair of panels that is task `task`.
template <class W>
void locate(const Plan<W>& p, std::int64_t task, std::int64_t& I, std::int64_t& J) {
  const std::int64_t columns = p.b_panels();
  I = 0;
  while (task >= (p.problem.self ? columns - I : columns)) {
    task -= p.problem.self ? columns - I : columns;
    ++I;
  }
  J = (p.problem.self ? I : 0) + task;
}

template <class W, bool Floored>
void screen_range(const Plan<W>& p, std::int64_t begin, std::int64_t end) {
  std::int64_t I, J;
  locate(p, begin, I, J);
  for (std::int64_t t = begin; t < end; ++t) {
    if (p.problem.self && I != J) {
      screen_panels<W, true, Floored>(p, I, J);
    } else {
      screen_panels<W, false, Floored>(p, I, J);
    }
    if (++J == p.b_panels()) {
      ++I;
      J = p.problem.self ? I : 0;
    }
  }
}

/// The same in bfloat16, for rows of panel I against columns of panels [J, end).
template <bool Floored>
void screen_rounded_panels(const Plan<float>& p, Block& block, std::int64_t I, std::int64_t J, std::int64_t end) {
  const Side x = side(p.x_rounded, p.a_class, p.floor), y = side(p.y_rounded, p.b_class, p.floor);
  const std::int64_t mirrored = !p.problem.self ? end : J == I ? J + 1 : J;  // the first panel whose columns count
  const std::int64_t first = mirrored * p.panel_rows(), last = panel_end(p, p.y_rounded, end - 1);
  float* column_least = p.nearest + I * p.stride;
  for (std::int64_t k = first; k < last; ++k) {
    column_least[k] = static_cast<float>(__builtin_inf());
  }
  for (std::int64_t row = I * p.panel_rows(); row < panel_end(p, p.x_rounded, I); row += kBlockRows) {
    for (std::int64_t r = 0; r < kBlockRows; ++r) {
      take_row<Floored>(x, row + r, block, r);
    }
    const std::int64_t height = smaller(kBlockRows, p.a.count - row);
    for (std::int64_t panel = J; panel < end; ++panel) {
      const std::int64_t column = panel * p.panel_rows(), stop = panel_end(p, p.y_rounded, panel);
      const bool mixed = share_a_class(p, row, height, column, smaller(stop, p.b.count) - column);
      float* nearest = p.nearest + panel * p.stride + row;
      if (panel >= mirrored) {
        screen_block<true, Floored>(block, y, column, stop, mixed, column_least, nearest);
      } else {
        screen_block<false, Floored>(block, y, column, stop, mixed, nullptr, nearest);
      }
    }
  }
  for (std::int64_t k = first; k < last; ++k) {
    column_least[k] = 2 * (column_least[k] - p.y_rounded.half[k]);
  }
}

template <bool Floored>
void screen_rounded_range(const Plan<float>& p, std::int64_t begin, std::int64_t end) {
  [[maybe_unused]] const MatrixUnit unit;
  Block block;
  std::int64_t I, J;
  locate(p, begin, I, J);
  for (std::int64_t t = begin; t < end;) {
    const std::int64_t width = smaller(end - t, p.b_panels() - J);
    screen_rounded_panels<Floored>(p, block, I, J, J + width);
    t += width;
    ++I;
    J = p.problem.self ? I : 0;
  }
}

template <class W>
void screen(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  if constexpr (sizeof(W) == 4) {
    if (p.rounded) {
      p.problem.semi_hard_negative ? screen_rounded_range<true>(p, begin, end)
                                   : screen_rounded_range<false>(p, begin, end);
      return;
    }
  }
  p.problem.semi_hard_negative ? screen_range<W, true>(p, begin, end) : screen_range<W, false>(p, begin, end);
}

// --- step 6: negatives ---------------------------------------------------------------------------------------------
//
// Nearly always the nearest negative is in the panel whose minimum is the least, and the others are ruled out once it
// is known. So anchors first go, in tiles, through their most promising panel, and what is left is done one by one.

/// Positions that are looked at together: a value in float64 for each fills a register.
constexpr std::int64_t kTogether = static_cast<std::int64_t>(lanes<double>);

template <class W>
Range negatives_of(const Plan<W>& p, std::int64_t anchor) {
  return {0, p.b.count, p.same_begin[anchor], p.same_end[anchor]};
}

/// Find the most promising panel of the positions [first, first + kTogether), and an upper bound on their nearest.
template <class W>
void choose_start(const Plan<W>& p, std::int64_t first) {
  using D = Vec<double>;
  const Reach<D> reach = reach_of_vector(p, first);
  const D none = D{} + __builtin_inf();
  const D above = load(p.bound + first) - load_double(p.a.c + first);
  D limit = none, start = D{} + static_cast<double>(p.b_panels());
  for (std::int64_t panel = 0; panel < p.b_panels(); ++panel) {
    const D value = load_double(p.nearest + panel * p.stride + first), error = panel_error(p, reach, panel);
    D at_most = value + error;
    if (p.problem.semi_hard_negative) {  // what may not be farther than the positive bounds nothing
      at_most = select(value - error > above, at_most, none);
    }
    const auto closer = at_most < limit;
    limit = select(closer, at_most, limit);
    start = select(closer, D{} + static_cast<double>(panel), start);
  }
  store(p.limit + first, limit);
  store<std::int32_t, lanes<double>>(p.start + first, convert<std::int32_t>(start));
}

/// Task: kTogether positions.
template <class W>
std::int64_t vector_tasks(const void* plan) {
  return divide_up(as_plan<W>(plan).a.count, kTogether);
}

template <class W>
void choose_starts(void* plan, std::int64_t begin, std::int64_t end) {
  for (std::int64_t t = begin; t < end; ++t) {
    choose_start(as_plan<W>(plan), t * kTogether);
  }
}

/// List the anchors of each panel: a counting sort.
template <class W>
void gather_starts(void* plan, std::int64_t, std::int64_t) {
  const Plan<W>& p = as_plan<W>(plan);
  for (std::int64_t panel = 0; panel <= p.b_panels() + 1; ++panel) {
    p.start_begin[panel] = 0;
  }
  for (std::int64_t anchor = 0; anchor < p.a.count; ++anchor) {
    ++p.start_begin[p.start[anchor] + 1];
  }
  for (std::int64_t panel = 0; panel <= p.b_panels(); ++panel) {
    p.start_begin[panel + 1] += p.start_begin[panel];
  }
  for (std::int64_t anchor = p.a.count; anchor-- > 0;) {
    p.start_anchors[--p.start_begin[p.start[anchor] + 1]] = anchor;
  }
}

template <class W>
Search<W> search_nearest(const Plan<W>& p, std::int64_t anchor) {
  Search<W> s = search(p, anchor, 1);
  s.limit = p.limit[anchor];
  s.above = p.problem.semi_hard_negative ? p.bound[anchor] : s.above;
  return s;
}

/// Search one panel for the nearest negatives of at most a tile of anchors.
template <class W>
void search_start(const Plan<W>& p, std::int64_t panel, const std::int64_t* anchors, std::int64_t count) {
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<W>);
  constexpr std::size_t row_step = static_cast<std::size_t>(kStagedRow<W>);
  alignas(64) W rows[kTileRows<W> * kStagedRow<W>];
  alignas(64) W dots[kTileRows<W> * kSliver<W>], part[kTileRows<W> * kSliver<W>];
  const std::int64_t d = p.problem.x.d, first = panel * p.panel;
  for (std::int64_t s = first; s < smaller(p.b.slivers(), first + p.panel); ++s) {
    for (std::int64_t from = 0; from < d; from += kChunk) {
      const std::int64_t length = smaller(kChunk, d - from);
      if (s == first || d > kChunk) {
        for (std::int64_t r = 0; r < count; ++r) {
          centre_row(p.x, p.centre, p.a.row(anchors[r]), from, length, rows + r * kStagedRow<W>);
        }
      }
      dot_tile<W, kTileRows<W>, kSliverVectors, false, row_step, 1>(
          rows, p.b.sliver(s, d) + from * sliver, static_cast<std::size_t>(length), from == 0 ? dots : part);
      for (std::int64_t k = 0; from > 0 && k < count * sliver; ++k) {
        dots[k] += part[k];
      }
    }
    for (std::int64_t r = 0; r < count; ++r) {
      Search<W> found = search_nearest(p, anchors[r]);
      found.best = p.best[anchors[r]];
      scan(found, s, dots + r * sliver, negatives_of(p, anchors[r]));
      p.best[anchors[r]] = found.best;
      p.limit[anchors[r]] = found.limit;
    }
  }
}

/// Task: one anchor and its panel, in the order of the panels; neighbours share a tile.
template <class W>
std::int64_t anchor_tasks(const void* plan) {
  return as_plan<W>(plan).a.count;
}

template <class W>
void search_starts(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  while (begin < end) {
    const std::int32_t panel = p.start[p.start_anchors[begin]];
    std::int64_t next = begin;
    for (; next < end && next < begin + static_cast<std::int64_t>(kTileRows<W>); ++next) {
      const std::int64_t anchor = p.start_anchors[next];
      if (p.start[anchor] != panel) {
        break;
      }
      p.best[anchor] = {};
    }
    if (panel < p.b_panels()) {
      search_start(p, panel, p.start_anchors + begin, next - begin);
    }
    begin = next;
  }
}

/// Compare the anchor with what the products with one sliver cannot rule out, except for its own label.
template <class W>
void scan_negatives(Search<W>& s, std::int64_t sliver) {
  const Plan<W>& p = s.plan;
  alignas(64) W dots[kSliver<W>];
  dot_row<W>(packed_rows(p, s.anchor), p.b.sliver(sliver, p.problem.x.d), static_cast<std::size_t>(p.problem.x.d),
             dots);
  scan(s, sliver, dots, negatives_of(p, s.anchor));
}

/// Whether the search of some of the positions [first, first + kTogether) must go on in another panel than it started
/// in.
template <class W>
bool unfinished(const Plan<W>& p, std::int64_t first) {
  using D = Vec<double>;
  const Reach<D> reach = reach_of_vector(p, first);
  const D limit = load(p.limit + first);
  const auto start = convert<std::int64_t>(load<std::int32_t, lanes<double>>(p.start + first));
  auto open = start != start;
  for (std::int64_t panel = 0; panel < p.b_panels(); ++panel) {
    const D value = load_double(p.nearest + panel * p.stride + first), error = panel_error(p, reach, panel);
    open |= ~(value - error > limit) & (start != panel);
  }
  std::int64_t any = 0;
  for (std::size_t lane = 0; lane < lanes<double>; ++lane) {
    any |= open[lane];
  }
  return any != 0;
}

/// Go on in the panels that are not ruled out.
template <class W>
void search_others(Search<W>& s) {
  const Plan<W>& p = s.plan;
  for (std::int64_t panel = 0; panel < p.b_panels(); ++panel) {
    const double value = static_cast<double>(p.nearest[panel * p.stride + s.anchor]);
    const double error = panel_error(p, reach_of(p, s.anchor), panel);
    const bool nothing = value == __builtin_inf() && error < __builtin_inf();
    if (panel == p.start[s.anchor] || nothing || value - error > s.limit) {
      continue;
    }
    for (std::int64_t sliver = panel * p.panel; sliver < smaller(p.b.slivers(), (panel + 1) * p.panel); ++sliver) {
      scan_negatives(s, sliver);
    }
  }
}

template <class W>
Search<W> search_farthest(const Plan<W>& p, std::int64_t anchor) {
  Search<W> farthest = search(p, anchor, -1);
  for (std::int64_t sliver = 0; sliver < p.b.slivers(); ++sliver) {
    scan_negatives(farthest, sliver);
  }
  return farthest;
}

template <class W>
void settle_negative(const Plan<W>& p, std::int64_t anchor, bool go_on) {
  const BatchHard& q = p.problem;
  const std::int64_t i = p.a.row(anchor);
  const std::int64_t bad = first_poisoned(p, i, false);
  if (bad >= 0) {
    settle_poisoned(i, bad, q.negative_index, q.negative_distance, q.has_negative);
    return;
  }
  if (same(p, anchor) == p.b.count) {
    return;
  }
  Search<W> s = search_nearest(p, anchor);
  s.best = p.best[anchor];
  if (go_on) {
    search_others(s);
  }
  const Search<W>& found = s.best.found ? s : search_farthest(p, anchor);
  settle(found.best, found.sign, q.metric, i, q.negative_index, q.negative_distance, q.has_negative);
}

template <class W>
void settle_negatives(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  for (std::int64_t t = begin; t < end; ++t) {
    const bool go_on = unfinished(p, t * kTogether);
    for (std::int64_t anchor = t * kTogether; anchor < smaller(p.a.count, (t + 1) * kTogether); ++anchor) {
      settle_negative(p, anchor, go_on);
    }
  }
}

// --- step 7: anchors that are themselves poisoned, and the evidence ------------------------------------------------

template <class W>
void find_for_poisoned(const Plan<W>& p, std::int64_t i) {
  const BatchHard& q = p.problem;
  for (std::int64_t j = 0; j < q.y.n && !(q.has_positive[i] && q.has_negative[i]); ++j) {
    if (!takes_part(p.y, j) || (q.self && i == j)) {
      continue;
    }
    if (q.ref_labels[j] == q.labels[i] && !q.has_positive[i]) {
      settle_poisoned(i, j, q.positive_index, q.positive_distance, q.has_positive);
    } else if (q.ref_labels[j] != q.labels[i] && !q.has_negative[i]) {
      settle_poisoned(i, j, q.negative_index, q.negative_distance, q.has_negative);
    }
  }
}

template <class W>
void finish(void* plan, std::int64_t, std::int64_t) {
  const Plan<W>& p = as_plan<W>(plan);
  for (std::int64_t k = 0; k < p.x_poisoned_count; ++k) {
    find_for_poisoned(p, p.x_poisoned[k]);
  }
  gather_evidence(p.problem, p.x, p.total, p.classes, p.x_poisoned_count, p.y_poisoned_count);
}

std::int64_t once(const void*) { return 1; }
std::int64_t few(const void*) { return 4; }

/// Tasks of `work` multiply-adds each that are worth a thread.
std::int64_t worth_a_thread(std::int64_t work) {
  return larger<std::int64_t>(1, 400000 / larger<std::int64_t>(work, 1));
}

template <class W>
std::int64_t tile_grain(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  return worth_a_thread(p.problem.x.d * static_cast<std::int64_t>(kTileRows<W> * kSliver<W>));
}

template <class W>
std::int64_t screen_grain(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  const std::int64_t work = p.problem.x.d * p.panel_rows() * p.panel_rows();
  return worth_a_thread(p.rounded && kMatrixUnit ? work / 8 : work);
}

template <class W>
std::int64_t anchor_grain(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  return worth_a_thread(4 * p.problem.x.d * p.panel * static_cast<std::int64_t>(kSliver<W>));
}

template <class W>
std::int64_t vector_grain(const void* plan) {
  return worth_a_thread(32 * as_plan<W>(plan).b_panels() * kTogether);
}

/// The tasks of a step, none of which is left where there are few pairs.
template <class W, std::int64_t (*Tasks)(const void*)>
std::int64_t unless_small(const void* plan) {
  return has_few_pairs(as_plan<W>(plan).problem) ? 0 : Tasks(plan);
}

template <class W>
constexpr Stage kStages[] = {
    {&small_tasks<W>, &once, &mine_small<W>},
    {&unless_small<W, look_tasks<W>>, &few, &look<W>},
    {&unless_small<W, once>, &once, &group<W>},
    {&unless_small<W, pack_tasks<W>>, &few, &pack<W>},
    {&unless_small<W, round_tasks<W>>, &few, &round<W>},
    {&unless_small<W, once>, &once, &measure<W>},
    {&unless_small<W, tile_tasks<W>>, &tile_grain<W>, &find_positives<W>},
    {&unless_small<W, screen_tasks<W>>, &screen_grain<W>, &screen<W>},
    {&unless_small<W, vector_tasks<W>>, &vector_grain<W>, &choose_starts<W>},
    {&unless_small<W, once>, &once, &gather_starts<W>},
    {&unless_small<W, anchor_tasks<W>>, &anchor_grain<W>, &search_starts<W>},
    {&unless_small<W, vector_tasks<W>>, &vector_grain<W>, &settle_negatives<W>},
    {&unless_small<W, once>, &once, &finish<W>},
};

template <class W>
std::size_t workspace(const BatchHard& problem) {
  Arena arena(nullptr);
  arena.take<Plan<W>>(1);
  lay_out<W>(problem, arena);
  return arena.used();
}

template <class W>
void* plan(const BatchHard& problem, void* memory) {
  Arena arena(memory);
  Plan<W>* place = arena.take<Plan<W>>(1);
  *place = lay_out<W>(problem, arena);
  if (problem.screened != nullptr) {
    *problem.screened = Screened::full;
  }
  return place;
}

}  // namespace

extern const BatchHardKernel batch_hard_float32;
extern const BatchHardKernel batch_hard_float64;
const BatchHardKernel batch_hard_float32{&workspace<float>, &plan<float>, kStages<float>,
                                         static_cast<int>(sizeof kStages<float> / sizeof *kStages<float>)};
const BatchHardKernel batch_hard_float64{&workspace<double>, &plan<double>, kStages<double>,
                                         static_cast<int>(sizeof kStages<double> / sizeof *kStages<double>)};

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
