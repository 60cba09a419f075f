// What the batch-all triplet loss and its gradient share: rows by label, tiles of distances, ranks among thresholds.
//
// An anchor's distances are spoken of as closeness: the distance, or minus a similarity. Positions are those of rows by
// label, in `a` (the anchors in use) and in `b` (the references that take part).
#pragma once

#include "kernels/batch_all.h"
#include "kernels/cpu/order.h"
#include "kernels/cpu/packing.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::batch_all {

inline constexpr std::int64_t kAnchors = 48;      // compared at a time: whole slivers of every type and vector width
inline constexpr std::int64_t kReferences = 192;  // with so many: a tile, in the second cache
inline constexpr std::int64_t kMostParts = 16;
inline constexpr std::int64_t kFewestParts = 4;
inline constexpr std::int64_t kBlocksOfPart = 4;  // at least, where that leaves kFewestParts; so is the next
inline constexpr std::int64_t kPartBytes = std::int64_t{64} << 20;  // of all parts at most
inline constexpr std::int64_t kFewThresholds = 40;  // up to here a distance is compared with all, else by bisection
inline constexpr double kFar =
    1.7976931348623157e308;  // what is no negative: above every threshold, and times 0 it is 0

/// Keys below this share of |x|^2 + |y|^2 are taken by direct difference.
template <class W>
inline constexpr double kNear = sizeof(W) == 8 ? 1.0 / 16 : 1.0 / 1024;

/// What one part, a run of blocks of kAnchors anchors, works in.
template <class W>
struct Scratch {
  double* positive;   // closeness of each anchor to its positives, in their order, from its Block::offset on
  double* ascending;  // the same, sorted
  double* below;      // per positive of those, the triplets it is part of
  double* tile;       // [kAnchors, kReferences]: closeness
  W* weight;          // [kAnchors, kReferences]: of the gradient; null without
};

template <class W>
struct Plan {
  using Type = W;

  BatchAll problem;
  RowSet x, y;  // with one set, y is x
  double* centre;
  std::int64_t* x_order;
  std::int64_t* y_order;
  std::int64_t* spare;
  std::int64_t* same_begin;  // per position of a: the references of its label are [begin, end) in b
  std::int64_t* same_end;
  Packed<double> a, b;
  double widest;  // the largest norm in b
  std::int64_t most_parts;
  Scratch<W> scratch[kMostParts];

  std::int64_t blocks() const { return divide_up(a.count, kAnchors); }
  std::int64_t parts() const { return smaller(most_parts, blocks()); }
  std::int64_t first_block(std::int64_t part) const { return blocks() * part / parts(); }
};

/// Room for the thresholds of a block, and for one number more for each anchor: only what is used is ever touched.
inline std::int64_t threshold_room(const BatchAll& problem) { return kAnchors * (problem.y.n + 1); }

/// The parts of a problem, each of which takes `bytes` besides its thresholds.
inline std::int64_t parts_of(const BatchAll& problem, std::int64_t bytes) {
  const std::int64_t blocks = divide_up(problem.x.n, kAnchors);
  const std::int64_t room = 3 * threshold_room(problem) * static_cast<std::int64_t>(sizeof(double)) + bytes;
  const std::int64_t wanted = smaller(divide_up(blocks, kBlocksOfPart), kPartBytes / room);
  return smaller(blocks, larger(kFewestParts, smaller(kMostParts, wanted)));
}

template <class W>
Plan<W> lay_out_plan(const BatchAll& problem, Arena& arena, std::int64_t most_parts, bool weights) {
  const std::int64_t n = problem.x.n, m = problem.y.n;
  Plan<W> p{};
  p.problem = problem;
  p.x = lay_out_rows(arena, problem.x, problem.valid, problem.metric);
  p.y = problem.self ? p.x : lay_out_rows(arena, problem.y, problem.ref_valid, problem.metric);
  p.centre = arena.take<double>(problem.x.d);
  p.x_order = arena.take<std::int64_t>(n);
  p.y_order = arena.take<std::int64_t>(m);
  p.spare = arena.take<std::int64_t>(larger(n, m));
  p.same_begin = arena.take<std::int64_t>(n);
  p.same_end = arena.take<std::int64_t>(n);
  p.a = lay_out_packed<double>(arena, n, problem.x.d);
  p.b = lay_out_packed<double>(arena, m, problem.x.d);
  p.most_parts = most_parts;
  const std::int64_t room = threshold_room(problem);
  for (std::int64_t part = 0; part < most_parts; ++part) {
    p.scratch[part] = {arena.take<double>(room), arena.take<double>(room), arena.take<double>(room),
                       arena.take<double>(kAnchors * kReferences),
                       weights ? arena.take<W>(kAnchors * kReferences) : nullptr};
  }
  return p;
}

// --- rows by label ---------------------------------------------------------------------------------------------------

// The first stages, for both kernels: P is the plan of one of them.

template <class P>
std::int64_t look_tasks(const void* plan) {
  const P& p = *static_cast<const P*>(plan);
  return p.x.blocks() + (p.problem.self ? 0 : p.y.blocks());
}

template <class P>
void look(void* plan, std::int64_t begin, std::int64_t end) {
  const P& p = *static_cast<const P*>(plan);
  const std::int64_t own = p.x.blocks();
  for (std::int64_t t = begin; t < end; ++t) {
    t < own ? look_at_block<typename P::Type>(p.x, t) : look_at_block<typename P::Type>(p.y, t - own);
  }
}

inline std::int64_t sort_admitted(const RowSet& set, const std::int64_t* labels, std::int64_t* order,
                                  std::int64_t* spare) {
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < set.rows.n; ++i) {
    if ((set.kind[i] & kSkipped) == 0) {
      order[count++] = i;
    }
  }
  sort_by_label(labels, order, spare, count);
  return count;
}

/// Order both sides, match the labels, count every anchor's triplets, and keep the anchors in use. Some reference is
/// not finite only where no anchor is in use, and then no position is looked at.
template <class W>
void group_rows(Plan<W>& p) {
  const BatchAll& q = p.problem;
  find_centre(p.x, q.self ? nullptr : &p.y, p.centre);
  const std::int64_t anchors = sort_admitted(p.x, q.labels, p.x_order, p.spare);
  const std::int64_t references = sort_admitted(p.y, q.ref_labels, p.y_order, p.spare);
  for (std::int64_t i = 0; q.triplets != nullptr && i < q.x.n; ++i) {
    q.triplets[i] = q.sum[i] = q.active[i] = 0;
  }
  std::int64_t used = 0, begin = 0, end = 0;
  for (std::int64_t k = 0; k < anchors; ++k) {
    const std::int64_t i = p.x_order[k], label = q.labels[i];
    for (begin = end; begin < references && q.ref_labels[p.y_order[begin]] < label; end = ++begin) {
    }
    for (; end < references && q.ref_labels[p.y_order[end]] == label; ++end) {
    }
    for (; k < anchors && q.labels[p.x_order[k]] == label; ++k) {
      const std::int64_t row = p.x_order[k];
      if (q.triplets != nullptr) {
        q.triplets[row] =
            static_cast<double>(end - begin - (q.self ? 1 : 0)) * static_cast<double>(references - (end - begin));
      }
      if (q.use[row]) {
        p.x_order[used] = row;
        p.same_begin[used] = begin;
        p.same_end[used++] = end;
      }
    }
    --k;
  }
  p.a.count = used;
  p.a.order = p.x_order;
  p.b.count = used > 0 ? references : 0;
  p.b.order = p.y_order;
}

template <class P>
void group(void* plan, std::int64_t, std::int64_t) {
  group_rows(*static_cast<P*>(plan));
}

template <class P>
std::int64_t pack_tasks(const void* plan) {
  const P& p = *static_cast<const P*>(plan);
  return p.a.slivers() + p.b.slivers();
}

template <class P>
void pack(void* plan, std::int64_t begin, std::int64_t end) {
  const P& p = *static_cast<const P*>(plan);
  const std::int64_t own = p.a.slivers();
  for (std::int64_t t = begin; t < end; ++t) {
    t < own ? pack_sliver(p.x, p.centre, p.a, t) : pack_sliver(p.y, p.centre, p.b, t - own);
  }
}

// --- closeness -------------------------------------------------------------------------------------------------------

FASTMINE_INLINE Vec<double> root(Vec<double> x) {
  for (std::size_t lane = 0; lane < lanes<double>; ++lane) {
    x[lane] = __builtin_sqrt(x[lane]);
  }
  return x;
}

FASTMINE_INLINE Vec<double> closeness(Vec<double> key, Metric metric) {
  return metric == Metric::euclidean ? root(key) : metric == Metric::sqeuclidean ? key : key * 0.5;
}

/// out[columns[k]] = the closeness of position i to position first + columns[k] by direct difference, for k < count,
/// at most a sliver of them.
template <class W>
FASTMINE_NOINLINE void take_directly(const Plan<W>& p, std::int64_t i, std::int64_t first, const std::int64_t* columns,
                                     std::int64_t count, double* out) {
  std::int64_t rows[kSliver<double>];
  double keys[kSliver<double>];
  const Metric metric = p.problem.metric;
  for (std::int64_t k = 0; k < count; ++k) {
    rows[k] = p.b.row(first + columns[k]);
  }
  exact_keys<W>(p.problem.x, p.a.row(i), p.x.norm, p.problem.y, rows, count, p.y.norm, metric, keys);
  for (std::int64_t k = 0; k < count; ++k) {
    out[columns[k]] = metric == Metric::dot ? 0.5 * keys[k] : distance_of(keys[k], metric);
  }
}

/// Whether products of rows of these norms may overflow, or fall among the subnormal numbers and lose digits.
inline bool extreme(double a, double b) {
  const double scale = (a + b) * (a + b);
  return scale != 0 && !(scale > 0x1p-900 && scale < 0x1p1000);
}

/// Closeness of position i to sliver s, from their products, to `out`.
template <class W>
FASTMINE_INLINE void closeness_of_row(const Plan<W>& p, std::int64_t i, std::int64_t s, const double* products,
                                      double* out) {
  using V = Vec<double>;
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<double>);
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<double>);
  const Metric metric = p.problem.metric;
  const std::int64_t width = smaller(sliver, p.b.count - s * sliver);
  const double own = p.a.c[i];
  const double* other = p.b.c + s * sliver;
  const bool all = extreme(p.a.norm[i], p.b.radius[s]);
  std::int64_t again[kSliver<double>];
  std::int64_t count = 0;
  auto near = V{} != V{};
  for (std::int64_t c = 0; c < sliver; c += step) {
    const V sum = own + load(other + c);
    const V key = sum - 2 * load(products + c);
    if (metric == Metric::dot) {
      store(out + c, key * 0.5);
      continue;
    }
    near |= key < sum * kNear<W>;
    store(out + c, closeness(select(key < 0, V{}, key), metric));
  }
  if (all || any(near)) {
    for (std::int64_t c = 0; c < width; ++c) {
      const double sum = own + other[c];
      again[count] = c;
      count += all || sum - 2 * products[c] < sum * kNear<W> ? 1 : 0;
    }
    take_directly(p, i, s * sliver, again, count, out);
  }
}

/// The closeness of a block of anchors, which begins at position `first`, to slivers s .. s_end of references.
template <class W>
void fill_tile(const Plan<W>& p, std::int64_t first, std::int64_t s, std::int64_t s_end, double* tile) {
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<double>);
  alignas(64) double products[kSliver<double> * kSliver<double>];
  const std::int64_t d = p.problem.x.d, end = smaller(first + kAnchors, p.a.count);
  for (std::int64_t from = first; from < end; from += sliver) {
    const std::int64_t height = smaller(sliver, end - from);
    for (std::int64_t at = s; at < s_end; ++at) {
      dot_block(p.a.sliver(from / sliver, d), p.b.sliver(at, d), static_cast<std::size_t>(d),
                static_cast<std::size_t>(height), kSliver<double>, products);
      double* out = tile + (from - first) * kReferences + (at - s) * sliver;
      for (std::int64_t r = 0; r < height; ++r) {
        closeness_of_row(p, from + r, at, products + r * sliver, out + r * kReferences);
      }
    }
  }
}

/// f(begin, end) for each tile of references, at positions begin .. end, once it is filled.
template <class W, class F>
void for_tiles(const Plan<W>& p, std::int64_t first, double* tile, F f) {
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<double>);
  constexpr std::int64_t across = kReferences / sliver;
  const std::int64_t last = p.b.slivers();
  for (std::int64_t s = 0; s < last; s += across) {
    const std::int64_t s_end = smaller(s + across, last);
    fill_tile(p, first, s, s_end, tile);
    f(s * sliver, s_end * sliver);
  }
}

// --- positives and ranks --------------------------------------------------------------------------------------------

/// A block of anchors, at positions first .. end, and how many candidates each has.
struct Block {
  std::int64_t first, end;
  std::int64_t offset[kAnchors];  // of its thresholds
  std::int64_t positives[kAnchors];
  std::int64_t negatives[kAnchors];

  std::int64_t height() const { return end - first; }
};

/// The positives of an anchor among positions begin .. end: all of its label but itself.
template <class W, class F>
FASTMINE_INLINE void for_positives(const Plan<W>& p, std::int64_t i, std::int64_t begin, std::int64_t end, F f) {
  for (std::int64_t j = larger(begin, p.same_begin[i]); j < smaller(end, p.same_end[i]); ++j) {
    if (!p.problem.self || p.b.row(j) != p.a.row(i)) {
      f(j);
    }
  }
}

/// The closeness of anchor i to its positives, by direct difference; returns how many there are.
template <class W>
std::int64_t measure_positives(const Plan<W>& p, std::int64_t i, double* out) {
  constexpr std::int64_t most = static_cast<std::int64_t>(kSliver<double>);
  std::int64_t found = 0, columns[kSliver<double>];
  double closeness[kSliver<double>];
  for (std::int64_t begin = p.same_begin[i]; begin < p.same_end[i]; begin += most) {
    std::int64_t count = 0;
    for_positives(p, i, begin, begin + most, [&](std::int64_t j) { columns[count++] = j - begin; });
    take_directly(p, i, begin, columns, count, closeness);
    for (std::int64_t k = 0; k < count; ++k) {
      out[found++] = closeness[columns[k]];
    }
  }
  return found;
}

/// The positives of each anchor of a block, and no triplet counted yet.
template <class W>
Block find_positives(const Plan<W>& p, std::int64_t number, const Scratch<W>& scratch) {
  Block block{};
  block.first = number * kAnchors;
  block.end = smaller(block.first + kAnchors, p.a.count);
  std::int64_t offset = 0;
  for (std::int64_t r = 0; r < block.height(); ++r) {
    const std::int64_t i = block.first + r;
    double* positive = scratch.positive + offset;
    const std::int64_t count = measure_positives(p, i, positive);
    for (std::int64_t k = 0; k < count; ++k) {
      scratch.ascending[offset + k] = positive[k];
    }
    sort_values(scratch.ascending + offset, count);
    for (std::int64_t k = 0; k <= count; ++k) {
      scratch.below[offset + k] = 0;
    }
    block.offset[r] = offset;
    block.positives[r] = count;
    block.negatives[r] = p.b.count - (p.same_end[i] - p.same_begin[i]);
    offset += count + 1;
  }
  return block;
}

/// Put kFar where row r of a tile that begins at position `begin` holds no negative.
template <class W>
FASTMINE_INLINE void keep_negatives(const Plan<W>& p, const Block& block, std::int64_t r, std::int64_t begin,
                                    std::int64_t end, double* row) {
  const std::int64_t i = block.first + r;
  for (std::int64_t j = larger(begin, p.same_begin[i]); j < smaller(end, p.same_end[i]); ++j) {
    row[j - begin] = kFar;
  }
  for (std::int64_t j = p.b.count; j < end; ++j) {
    row[j - begin] = kFar;
  }
}

/// How far a tile's closeness may be from a direct difference: `share` of itself, or for similarities `fixed`.
struct Slack {
  double share, fixed;

  FASTMINE_INLINE double at(double threshold) const { return share * ::fabs(threshold) + fixed; }
};

/// What is no near key has an error of (d + 16) roundings of twice |x|^2 + |y|^2, hence of at most 2^10 times the key.
template <class W>
FASTMINE_INLINE Slack slack_of(const Plan<W>& p, std::int64_t i) {
  const double roundings = static_cast<double>(p.problem.x.d) + 16;
  return p.problem.metric == Metric::dot ? Slack{0, roundings * 0x1p-52 * p.a.norm[i] * p.widest}
                                         : Slack{roundings * 0x1p-42, 0};
}

/// What negatives are compared with: `margin` beyond each positive, ascending.
struct Thresholds {
  const double* positive;
  std::int64_t count;
  double margin;
  Slack slack;

  FASTMINE_INLINE double at(std::int64_t k) const { return positive[k] + margin; }
  FASTMINE_INLINE bool is_near(double value, std::int64_t k) const { return ::fabs(value - at(k)) <= slack.at(at(k)); }
};

/// rank[c] += `by` for each of the thresholds above row[c], below[k] += `by` for each of the row below threshold k.
/// Returns whether any is so near a threshold that it might be on the other side.
FASTMINE_NOINLINE inline bool rank_among_few(const double* row, std::int64_t width, const Thresholds& thresholds,
                                             double by, double* rank, double* below) {
  using V = Vec<double>;
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<double>);
  const V one = broadcast(by);
  auto near = V{} != V{};
  for (std::int64_t k = 0; k < thresholds.count; ++k) {
    const double threshold = thresholds.at(k), room = thresholds.slack.at(threshold);
    const V t = broadcast(threshold), low = broadcast(threshold - room), high = broadcast(threshold + room);
    V found{};
    for (std::int64_t c = 0; c < width; c += step) {
      const V value = load(row + c);
      const V is_below = select(value < t, one, V{});
      near |= (value >= low) & (value <= high);
      store(rank + c, load(rank + c) + is_below);
      found += is_below;
    }
    below[k] += sum_lanes(found);
  }
  return any(near);
}

/// The same by bisection, but that below[k] counts those of the row with exactly k thresholds not above them.
FASTMINE_NOINLINE inline bool rank_among_many(const double* row, std::int64_t width, const Thresholds& thresholds,
                                              double by, double* rank, double* below) {
  const std::int64_t count = thresholds.count;
  bool near = false;
  for (std::int64_t c = 0; c < width; ++c) {
    const double value = row[c];
    std::int64_t met = 0;
    for (std::int64_t left = count; left > 1; left -= left / 2) {
      met = thresholds.at(met + left / 2 - 1) <= value ? met + left / 2 : met;
    }
    met += thresholds.at(met) <= value ? 1 : 0;
    near |= thresholds.is_near(value, larger<std::int64_t>(met - 1, 0)) ||
            thresholds.is_near(value, smaller(met, count - 1));
    rank[c] += by * static_cast<double>(count - met);
    below[met] += by;
  }
  return near;
}

/// Take every negative of a row by direct difference that is near a threshold; the positives are such already.
template <class W>
FASTMINE_NOINLINE void settle_ties(const Plan<W>& p, std::int64_t i, std::int64_t begin, std::int64_t width,
                                   const Thresholds& thresholds, double* row) {
  for (std::int64_t c = 0; c < width; ++c) {
    bool near = false;
    for (std::int64_t k = 0; k < thresholds.count && row[c] != kFar; ++k) {
      near = near || thresholds.is_near(row[c], k);
    }
    if (near) {
      take_directly(p, i, begin, &c, 1, row);
    }
  }
}

/// rank[c] = how many triplets of anchor r of the block have the negative at column c of the tile, 0 for what is none:
/// the thresholds above it for all triplets, the positives themselves for hard ones, the difference for semi-hard ones.
template <class W>
FASTMINE_INLINE void rank_row(const Plan<W>& p, const Block& block, const Scratch<W>& scratch, std::int64_t r,
                              std::int64_t begin, std::int64_t end, double* rank) {
  const std::int64_t i = block.first + r, width = end - begin;
  double* row = scratch.tile + r * kReferences;
  keep_negatives(p, block, r, begin, end, row);
  const Thresholds hard{scratch.ascending + block.offset[r], block.positives[r], 0, slack_of(p, i)};
  const Thresholds all{hard.positive, hard.count, p.problem.margin, hard.slack};
  const Triplets kind = p.problem.kind;
  const auto count = [&](double by) {
    const auto ranked = hard.count <= kFewThresholds ? &rank_among_few : &rank_among_many;
    double* below = scratch.below + block.offset[r];
    const bool near = ranked(row, width, kind == Triplets::hard ? hard : all, by, rank, below);
    return kind == Triplets::semi_hard ? ranked(row, width, hard, -by, rank, below) || near : near;
  };
  for (std::int64_t c = 0; c < width; ++c) {
    rank[c] = 0;
  }
  if (count(1)) {
    count(-1);
    settle_ties(p, i, begin, width, hard, row);
    settle_ties(p, i, begin, width, all, row);
    count(1);
  }
}

/// After all tiles: below[k] = the triplets of positive k, however they were counted.
template <class W>
void finish_counts(const Block& block, const Scratch<W>& scratch) {
  for (std::int64_t r = 0; r < block.height(); ++r) {
    double* below = scratch.below + block.offset[r];
    for (std::int64_t k = 1; block.positives[r] > kFewThresholds && k < block.positives[r]; ++k) {
      below[k] += below[k - 1];
    }
  }
}

template <class P>
void measure(void* plan, std::int64_t, std::int64_t) {
  P& p = *static_cast<P*>(plan);
  p.widest = 0;
  for (std::int64_t s = 0; s < p.b.slivers(); ++s) {
    p.widest = larger(p.widest, p.b.radius[s]);
  }
}

inline std::int64_t once(const void*) { return 1; }
inline std::int64_t few(const void*) { return 4; }

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::batch_all
