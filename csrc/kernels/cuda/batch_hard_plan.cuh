// What the kernels of batch-hard mining share: where everything lies, and how far screened keys may be from the truth.
#pragma once

#include "kernels/batch_hard.h"
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/tile.cuh"

namespace fastmine::cuda::mining {

/// Few enough panels that their minima take half as much memory as the rows, of 128 elements; in the emulator so few
/// that a panel holds several tiles.
#ifdef FASTMINE_EMULATE_CUDA
inline constexpr std::int64_t kMostPanels = 3, kFewPairs = 48 * 48, kSomePairs = 160 * 160, kMostBlocks = 5;
#else
inline constexpr std::int64_t kMostPanels = 64, kFewPairs = 256 * 256, kSomePairs = 2048 * 2048, kMostBlocks = 2048;
#endif
inline constexpr std::int64_t kFewProducts = 1 << 25;  // elements of all the pairs that are few

/// Up to so many references of a label are all compared directly; more are screened first.
inline constexpr int kFewPositives = 32;

/// How pairs are found: each compared directly; screened tile by tile, as rows come; or sorted by label and screened,
/// in many launches.
enum class Way : std::uint8_t { by_label, by_tiles, directly };

/// The quickest, by the number of pairs. A screen that is asked for is one by label.
inline Way way_of(const BatchHard& q) {
  const std::int64_t pairs = q.x.n * q.y.n;
  if (pairs <= kFewPairs && pairs * q.x.d <= kFewProducts) {
    return Way::directly;
  }
  return pairs <= kSomePairs && q.screen == Screen::automatic ? Way::by_tiles : Way::by_label;
}

/// What the device alone knows.
struct Counts {
  std::int32_t finite_x, finite_y, poisoned_x, poisoned_y;
  std::int32_t farthest;                  // positions that take the farthest negative
  std::uint64_t open;                     // panels that anchors had to look at again after a rounded screen
  std::int32_t first, first_other;        // the lowest row of y that takes part, and the lowest with another label
  std::int32_t poisoned, poisoned_other;  // the same among its poisoned rows
};
inline constexpr std::int32_t kNoRow = INT32_MAX;

/// Rows as the screen reads them: those that are finite, grouped by label and centred, one position each.
template <class W>
struct Packed {
  W* data;                 // [positions, depth], zeros after d and after the last position
  W* c;                    // key(i, j) = c[i] + c[j] - 2 x[i].x[j]; Inf after the last position
  W* norm;                 // at least the norm of the packed row; its square is at least c
  std::uint16_t* rounded;  // [positions, rounded_depth] in bfloat16, as Rounded::place_of says; null if unused
  W* lost;                 // at least the norm of what rounding took from the row
};

/// Evidence that is added up over the anchors.
enum class Part : int {
  admitted,
  classes,
  has_positive,
  has_negative,
  valid,
  hard,
  positive_sum,
  negative_sum,
  farthest,
  closest,
  norms,
  zero_rows,
  nonfinite_rows,
  nonfinite_refs,
  negative_labels,
  count,
};
inline constexpr int kParts = static_cast<int>(Part::count);

/// Threads of a block that has a tile of Way::by_tiles.
inline constexpr int kTileBlock = 64;

/// What a search finds of an anchor among the references of a tile: the least sign x (c[j] - 2 a.b[j]), whose it is
/// (kNoRow: there is no candidate), and the next least. A poisoned reference is at -Inf.
template <class W>
struct Found {
  W least, second;
  W radius;  // the largest norm of a reference that takes part
  std::int32_t row;
};

template <class W>
struct Plan {
  BatchHard problem;
  Way way;
  RowSet x, y;    // with one set, y is x; so it is for all pairs of names below
  bool* first;    // [n]: whether an anchor that takes part is the first of its label
  double* total;  // [d]: sum of the finite anchors that take part
  double* parts;  // [blocks of kThreads rows, kParts]

  double* keys;  // [n, m], directly; then there is nothing else

  Counts* counts;                     // by label
  double* centre;                     // [d]
  std::int64_t depth, rounded_depth;  // d, filled up to whole slices
  Packed<W> a, b;
  std::int32_t* same_begin;  // per position of a: the references of its label are [begin, end) in b
  std::int32_t* same_end;
  std::int32_t* own;  // per position of a: which of b is the anchor itself, -1 for none

  std::int64_t panel;  // tiles in a panel of references
  std::int64_t panels;
  Ordered<W>* radius;   // [panels]: the largest norm
  Ordered<W>* lost;     // [panels]: the largest of what rounding took
  Ordered<W>* nearest;  // [panels, n]: the least sign x (c[j] - 2 a.b[j]) among a panel's candidates; later the row of
                        // its best candidate, or -1
  double* limit;        // [n]: what no candidate's value may surely exceed
  W* floor;             // [n]: below it a negative is surely not farther than the positive
  double* bound;        // [n]: the key of the positive, -Inf without one
  std::int32_t* farthest;  // positions that have no negative farther than their positive

  Found<W>* found[2];  // [tiles across, n], by tiles: of two searches
};

template <class W>
Packed<W> lay_out_packed(Arena& arena, std::int64_t n, std::int64_t depth, std::int64_t rounded_depth) {
  const std::int64_t positions = round_up(n, kSide<W>);
  Packed<W> packed{};
  packed.data = arena.take<W>(positions * depth);
  packed.c = arena.take<W>(positions);
  packed.norm = arena.take<W>(positions);
  if (rounded_depth > 0) {
    packed.rounded = arena.take<std::uint16_t>(positions * rounded_depth);
    packed.lost = arena.take<W>(positions);
  }
  return packed;
}

template <class W>
void lay_out_tiles(Plan<W>& m, Arena& arena) {
  const BatchHard& q = m.problem;
  m.depth = round_up(q.x.d, Full<W, kTileBlock>::kDepth);
  m.a = lay_out_packed<W>(arena, q.x.n, m.depth, 0);
  m.b = q.self ? m.a : lay_out_packed<W>(arena, q.y.n, m.depth, 0);
  for (Found<W>*& found : m.found) {
    found = arena.take<Found<W>>(divide_up(q.y.n, kSide<W, kTileBlock>) * q.x.n);
  }
  if (q.semi_hard_negative) {
    m.bound = arena.take<double>(q.x.n);
    m.floor = arena.take<W>(q.x.n);
  }
}

/// Whether to screen the negatives in bfloat16 first. Not for semi-hard ones: every panel holds candidates that
/// bfloat16 cannot tell from the positive.
template <class W>
bool may_round(const BatchHard& q) {
  if (sizeof(W) == 8 || q.semi_hard_negative || q.screen == Screen::full) {
    return false;
  }
  return q.screen != Screen::automatic || (q.x.n >= 2048 && q.y.n >= 2048 && q.x.d >= 32);
}

template <class W>
Plan<W> lay_out(const BatchHard& q, Arena& arena) {
  Plan<W> m{};
  const std::int64_t n = q.x.n, d = q.x.d;
  m.problem = q;
  m.way = way_of(q);
  m.x = lay_out_rows(arena, q.x, q.valid, q.labels, q.metric);
  m.y = q.self ? m.x : lay_out_rows(arena, q.y, q.ref_valid, q.ref_labels, q.metric);
  m.first = arena.take<bool>(n);
  m.total = arena.take<double>(d);
  m.parts = arena.take<double>(divide_up(n > q.y.n ? n : q.y.n, kThreads) * kParts);
  if (m.way == Way::directly) {
    m.keys = arena.take<double>(n * q.y.n);
    return m;
  }
  if (m.way == Way::by_tiles) {
    lay_out_tiles(m, arena);
    return m;
  }
  m.counts = arena.take<Counts>(1);
  m.centre = arena.take<double>(d);
  m.depth = round_up(d, Full<W>::kDepth);
  m.rounded_depth = may_round<W>(q) ? round_up(d, Rounded::kDepth) : 0;
  m.a = lay_out_packed<W>(arena, n, m.depth, m.rounded_depth);
  m.b = q.self ? m.a : lay_out_packed<W>(arena, q.y.n, m.depth, m.rounded_depth);
  m.same_begin = arena.take<std::int32_t>(n);
  m.same_end = arena.take<std::int32_t>(n);
  m.own = arena.take<std::int32_t>(n);
  const std::int64_t tiles = divide_up(q.y.n, kSide<W>);
  const std::int64_t share = d < 16 ? 16 : d, most = share < kMostPanels ? share : kMostPanels;
  m.panel = divide_up(tiles > 0 ? tiles : 1, most);
  m.panels = divide_up(tiles, m.panel);
  m.radius = arena.take<Ordered<W>>(m.panels);
  m.lost = arena.take<Ordered<W>>(m.panels);
  m.nearest = arena.take<Ordered<W>>(m.panels * n);
  m.limit = arena.take<double>(n);
  m.floor = arena.take<W>(q.semi_hard_negative ? n : 0);
  m.bound = arena.take<double>(q.semi_hard_negative ? n : 0);
  m.farthest = arena.take<std::int32_t>(q.semi_hard_negative ? n : 0);
  return m;
}

/// Whether a rounded screen left too many panels open: then the exact comparisons would take longer than a full screen.
template <class W>
FASTMINE_DEVICE bool given_up(const Plan<W>& m) {
  const auto anchors = static_cast<std::uint64_t>(m.counts->finite_x);
  return m.problem.screen != Screen::rounded_always &&
         m.counts->open > anchors + anchors * static_cast<std::uint64_t>(m.panels) / 16;
}

/// A rounded screen that rules out too little is given up: what follows it runs only if it was, or only if it was not.
enum class When : std::uint8_t { always, if_kept, if_given_up };

/// A pass over the references: which of them are candidates, and for which anchors.
template <class W>
struct Search {
  Plan<W> plan;
  bool same;     // candidates are the references of the anchor's label, if these are many; else those of other labels
  bool bounded;  // only those farther than the positive
  bool listed;   // for the positions in `farthest` alone
  When when;
  W sign;                      // 1: the nearest, -1: the farthest
  std::int64_t blocks, piece;  // of the grid; anchors of which a block looks again at a panel

  /// Anchors to be searched for; none where this step is not wanted.
  FASTMINE_DEVICE std::int32_t anchors() const {
    if (when != When::always && given_up(plan) != (when == When::if_given_up)) {
      return 0;
    }
    return listed ? plan.counts->farthest : plan.counts->finite_x;
  }
  FASTMINE_DEVICE std::int32_t position(std::int32_t k) const { return listed ? plan.farthest[k] : k; }
  /// Whether all pairs of tiles are met from both sides.
  FASTMINE_DEVICE bool mirrored() const { return plan.problem.self && !same && !listed; }
  FASTMINE_DEVICE bool searches(std::int32_t position) const {
    return !same || plan.same_end[position] - plan.same_begin[position] > kFewPositives;
  }
  FASTMINE_DEVICE bool is_candidate(std::int32_t position, std::int32_t reference) const {
    const bool within = reference >= plan.same_begin[position] && reference < plan.same_end[position];
    return same ? within && reference != plan.own[position] : !within;
  }
};

/// The reference that is anchor i itself, -1 for none.
FASTMINE_DEVICE std::int64_t own_row(const BatchHard& q, std::int64_t i) {
  return q.self_index != nullptr ? q.self_index[i] : q.self ? i : -1;
}

/// An upper bound on how far c[i] + c[j] - 2 x[i].x[j], in W, is from the key, for norms of at most `a` and `b`:
/// rounding of the packed rows, of the sum of d products in any order, of c and of the final additions; and underflow.
/// Inf where they may overflow.
template <class W>
FASTMINE_DEVICE double key_error(std::int64_t d, double a, double b) {
  constexpr double kUnit = sizeof(W) == 8 ? 0x1p-53 : 0x1p-24;
  constexpr double kTiny = sizeof(W) == 8 ? 0x1p-1000 : 0x1p-120;
  constexpr double kHuge = sizeof(W) == 8 ? 0x1p1000 : 0x1p120;
  const double scale = (a + b) * (a + b), terms = static_cast<double>(d);
  const double error = (terms + 16) * (kUnit * scale + kTiny) * (1 + terms * kUnit * 2);
  return scale < kHuge ? error : static_cast<double>(__builtin_inf());
}

/// The same for a rounded screen, of rows from which rounding took vectors of norms at most `a_lost` and `b_lost`.
///
/// With x = x' + u and y = y' + v, x' and y' in bfloat16: x.y - x'.y' = u.y + x'.v, at most |u| |y| + (|x| + |u|) |v|,
/// and the key holds it twice. Products of two bfloat16 are exact in float32. How a matrix unit adds them up is taken
/// to be unknown: in any order, aligned to the largest and cut off, subnormal numbers flushed to zero. Each of at most
/// `depth` additions then loses at most 2^-23 of 2 sum |x'[k] y'[k]| <= (|x'| + |y'|)^2, twice what key_error allows
/// for, so it is asked for twice the depth; what is flushed is below its allowance for underflow.
///
/// So it covers mma.sync and wgmma alike, which both take 16 products at a time. One such step aligns 17 terms to the
/// largest and may cut each off at 2^-23 of it, and its result once more: 18 losses of at most 2^-23 of all magnitudes,
/// 9 / 8 of one an element. The sum of magnitudes is at most |x'| |y'|, a quarter of (|x'| + |y'|)^2, and the key holds
/// it twice: 9 / 16 of what is allowed for. Sums of less than 24 bits, as of 8-bit floats on sm_90, it would not cover.
FASTMINE_DEVICE double rounded_key_error(std::int64_t depth, double a, double a_lost, double b, double b_lost) {
  return 2 * (a_lost * b + (a + a_lost) * b_lost) + key_error<float>(2 * depth, a + a_lost, b + b_lost);
}

/// How far a screened value of an anchor may be off in a panel.
template <bool kRounded, class W>
FASTMINE_DEVICE double panel_error(const Plan<W>& m, std::int32_t position, std::int64_t panel) {
  const auto norm = static_cast<double>(m.a.norm[position]), radius = static_cast<double>(unordered(m.radius[panel]));
  if constexpr (kRounded) {
    return rounded_key_error(m.rounded_depth, norm, static_cast<double>(m.a.lost[position]), radius,
                             static_cast<double>(unordered(m.lost[panel])));
  } else {
    return key_error<W>(m.problem.x.d, norm, radius);
  }
}

/// What values in W may be above (below) `value` for theirs in float64 not to be: `value`, rounded up (down).
template <class W>
FASTMINE_DEVICE W rounded(double value, double up) {
  return static_cast<W>(value + up * 2 * key_error<W>(1, sqrt(fabs(value)), 0));
}

}  // namespace fastmine::cuda::mining
