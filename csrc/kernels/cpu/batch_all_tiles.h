// Batch-all by tiles of 48 anchors and 192 references, for classes of any size: distances, then ranks among the
// thresholds of each anchor, which lie in the scratch memory of the part that its block belongs to.
#pragma once

#include "kernels/cpu/batch_all_plan.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::batch_all {

inline constexpr std::int64_t kAnchors = 48;      // compared at a time: whole slivers of every type and vector width
inline constexpr std::int64_t kReferences = 192;  // with so many: a tile, in the second cache
inline constexpr std::int64_t kMostParts = 16;
inline constexpr std::int64_t kFewestParts = 4;
inline constexpr std::int64_t kBlocksOfPart = 4;  // at least, where that leaves kFewestParts; so is the next
inline constexpr std::int64_t kPartBytes = std::int64_t{64} << 20;  // of all parts at most
inline constexpr std::int64_t kFewThresholds = 40;  // up to here a distance is compared with all, else by bisection

/// What is no negative: above every threshold, and times 0 it is 0.
template <class W>
inline constexpr W kFar =
    sizeof(W) == 8 ? static_cast<W>(1.7976931348623157e308) : static_cast<W>(3.4028234663852886e38);

/// What one part, a run of blocks of kAnchors anchors, works in.
template <class W>
struct Scratch {
  double* positive;   // closeness of each anchor to its positives, in their order, from its Block::offset on
  double* ascending;  // the same, sorted
  double* below;      // per positive of those, the triplets it is part of
  W* tile;            // [kAnchors, kReferences]: closeness
  W* weight;          // [kAnchors, kReferences]: of the gradient; null without
};

template <class W>
struct Tiles {
  std::int64_t most_parts;
  Scratch<W> scratch[kMostParts];

  std::int64_t parts(std::int64_t anchors) const { return smaller(most_parts, divide_up(anchors, kAnchors)); }
  std::int64_t first_block(std::int64_t anchors, std::int64_t part) const {
    return divide_up(anchors, kAnchors) * part / parts(anchors);
  }
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
Tiles<W> lay_out_tiles(const BatchAll& problem, Arena& arena, std::int64_t most_parts, bool weights) {
  Tiles<W> tiles{};
  tiles.most_parts = most_parts;
  const std::int64_t room = threshold_room(problem);
  for (std::int64_t part = 0; part < most_parts; ++part) {
    tiles.scratch[part] = {arena.take<double>(room), arena.take<double>(room), arena.take<double>(room),
                           arena.take<W>(kAnchors * kReferences),
                           weights ? arena.take<W>(kAnchors * kReferences) : nullptr};
  }
  return tiles;
}

// --- closeness -------------------------------------------------------------------------------------------------------

/// out[k] = the closeness of position i to position columns[k] by direct difference, for k < count, at most a sliver.
template <class W>
FASTMINE_INLINE void compare_columns(const Plan<W>& p, std::int64_t i, const std::int64_t* columns, std::int64_t count,
                                     double* out) {
  std::int64_t rows[kSliver<W>];
  for (std::int64_t k = 0; k < count; ++k) {
    rows[k] = p.b.row(columns[k]);
  }
  compare_directly(p, p.a.row(i), rows, count, out);
}

/// The closeness of a block of anchors, which begins at position `first`, to slivers s .. s_end of references.
template <class W>
void fill_tile(const Plan<W>& p, std::int64_t first, std::int64_t s, std::int64_t s_end, W* tile) {
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<W>), step = static_cast<std::int64_t>(lanes<W>);
  alignas(64) W block[kSliver<W> * kSliver<W>];
  const Sides<W> sides{p.x, p.y, p.a, p.b};
  const W sign = p.problem.metric == Metric::dot ? -1 : 1;
  const std::int64_t d = p.problem.x.d, end = smaller(first + kAnchors, p.a.count);
  for (std::int64_t from = first; from < end; from += sliver) {
    const std::int64_t height = smaller(sliver, end - from);
    for (std::int64_t at = s; at < s_end; ++at) {
      const std::int64_t width = smaller(sliver, p.b.count - at * sliver);
      dot_block(p.a.sliver(from / sliver, d), p.b.sliver(at, d), static_cast<std::size_t>(d),
                static_cast<std::size_t>(height), static_cast<std::size_t>(width), block);
      for (std::int64_t r = 0; r < height; ++r) {
        W* out = tile + (from - first + r) * kReferences + (at - s) * sliver;
        distances_of_row(sides, from + r, at, width, block + r * sliver);
        for (std::int64_t c = 0; c < sliver; c += step) {
          store(out + c, load(block + r * sliver + c) * sign);
        }
      }
    }
  }
}

/// f(begin, end) for each tile of references, at positions begin .. end, once it is filled.
template <class W, class F>
void for_tiles(const Plan<W>& p, std::int64_t first, W* tile, F f) {
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<W>);
  constexpr std::int64_t across = kReferences / sliver;
  const std::int64_t last = p.b.slivers();
  for (std::int64_t s = 0; s < last; s += across) {
    const std::int64_t s_end = smaller(s + across, last);
    fill_tile(p, first, s, s_end, tile);
    f(s * sliver, s_end * sliver);
  }
}

// --- positives -------------------------------------------------------------------------------------------------------

/// A block of anchors, at positions first .. end, and how many candidates each has.
struct Block {
  std::int64_t first, end;
  std::int64_t offset[kAnchors];  // of its positives
  std::int64_t positives[kAnchors];
  std::int64_t negatives[kAnchors];

  std::int64_t height() const { return end - first; }
};

/// The positives of an anchor among positions begin .. end: all of its label but itself.
template <class W, class F>
FASTMINE_INLINE void for_positives(const Plan<W>& p, std::int64_t i, std::int64_t begin, std::int64_t end, F f) {
  const std::int64_t own = itself(p.problem, p.a.row(i));
  for (std::int64_t j = larger(begin, p.same_begin[i]); j < smaller(end, p.same_end[i]); ++j) {
    if (p.b.row(j) != own) {
      f(j);
    }
  }
}

/// The closeness of anchor i to its positives, by direct difference; returns how many there are.
template <class W>
std::int64_t compare_positives(const Plan<W>& p, std::int64_t i, double* out) {
  constexpr std::int64_t most = static_cast<std::int64_t>(kSliver<W>);
  std::int64_t found = 0, columns[kSliver<W>];
  for (std::int64_t begin = p.same_begin[i]; begin < p.same_end[i]; begin += most) {
    std::int64_t count = 0;
    for_positives(p, i, begin, begin + most, [&](std::int64_t j) { columns[count++] = j; });
    compare_columns(p, i, columns, count, out + found);
    found += count;
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
    const std::int64_t count = compare_positives(p, i, positive);
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

// --- ranks -----------------------------------------------------------------------------------------------------------

/// What the negatives of an anchor are compared with: its positives, ascending, plus a margin. Where their closeness
/// is W's, one that is nearer a threshold than its `room` might be on the other side: `error` bounds that of its key.
template <class W>
struct Thresholds {
  const double* positive;
  std::int64_t count;
  double margin;
  double error;
  Metric metric;

  FASTMINE_INLINE double at(std::int64_t k) const { return positive[k] + margin; }
  FASTMINE_INLINE double room(double threshold) const { return room_at<W>(threshold, error, metric); }
  FASTMINE_INLINE bool is_near(W value, std::int64_t k) const {
    const double threshold = at(k);
    return ::fabs(static_cast<double>(value) - threshold) <= room(threshold);
  }
  /// How many thresholds a closeness has met, so that they are not above it; T is that of the closeness.
  template <class T>
  FASTMINE_INLINE std::int64_t met(T value) const {
    std::int64_t found = 0;
    for (std::int64_t left = count; left > 1; left -= left / 2) {
      found = static_cast<T>(at(found + left / 2 - 1)) <= value ? found + left / 2 : found;
    }
    return found + (static_cast<T>(at(found)) <= value ? 1 : 0);
  }
};

/// rank[c] += `by` for each of the thresholds above row[c], below[k] += `by` for each of the row below threshold k.
/// Returns whether any is so near a threshold that it might be on the other side.
template <class W>
FASTMINE_NOINLINE bool rank_among_few(const W* row, std::int64_t width, const Thresholds<W>& thresholds, W by, W* rank,
                                      double* below) {
  using V = Vec<W>;
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<W>);
  const V one = broadcast(by);
  auto near = V{} != V{};
  for (std::int64_t k = 0; k < thresholds.count; ++k) {
    const double threshold = thresholds.at(k), room = thresholds.room(threshold);
    const V t = broadcast(static_cast<W>(threshold)), low = broadcast(static_cast<W>(threshold - room)),
            high = broadcast(static_cast<W>(threshold + room));
    V found{};
    for (std::int64_t c = 0; c < width; c += step) {
      const V value = load(row + c);
      const V is_below = select(value < t, one, V{});
      near |= (value >= low) & (value <= high);
      store(rank + c, load(rank + c) + is_below);
      found += is_below;
    }
    below[k] += static_cast<double>(fold(found, [](auto a, auto b) { return a + b; }));
  }
  return any(near);
}

/// The same by bisection, but that below[k] counts those of the row that have met exactly k thresholds.
template <class W>
FASTMINE_NOINLINE bool rank_among_many(const W* row, std::int64_t width, const Thresholds<W>& thresholds, W by, W* rank,
                                       double* below) {
  const std::int64_t count = thresholds.count;
  bool near = false;
  for (std::int64_t c = 0; c < width; ++c) {
    const std::int64_t met = thresholds.met(row[c]);
    near |= thresholds.is_near(row[c], larger<std::int64_t>(met - 1, 0)) ||
            thresholds.is_near(row[c], smaller(met, count - 1));
    rank[c] += by * static_cast<W>(count - met);
    below[met] += static_cast<double>(by);
  }
  return near;
}

/// One negative more, or less: what it adds to the counts, wherever its closeness is from. Returns its rank.
template <class W, class T>
FASTMINE_INLINE W count_one(const Thresholds<W>& thresholds, T value, W by, double* below) {
  const std::int64_t met = thresholds.met(value);
  if (thresholds.count > kFewThresholds) {
    below[met] += static_cast<double>(by);
  }
  for (std::int64_t k = met; thresholds.count <= kFewThresholds && k < thresholds.count; ++k) {
    below[k] += static_cast<double>(by);
  }
  return by * static_cast<W>(thresholds.count - met);
}

/// Rank again, by direct difference, every negative of a row that is near a threshold; the positives are such already.
template <class W>
FASTMINE_NOINLINE void settle_ties(const Plan<W>& p, std::int64_t i, std::int64_t begin, std::int64_t width,
                                   const Thresholds<W>& thresholds, const W* row, W by, W* rank, double* below) {
  for (std::int64_t c = 0; c < width; ++c) {
    if (row[c] == kFar<W>) {
      continue;
    }
    const std::int64_t met = thresholds.met(row[c]), column = begin + c;
    if (thresholds.is_near(row[c], larger<std::int64_t>(met - 1, 0)) ||
        thresholds.is_near(row[c], smaller(met, thresholds.count - 1))) {
      double exact;
      compare_columns(p, i, &column, 1, &exact);
      rank[c] += count_one<W, W>(thresholds, row[c], -by, below) + count_one<W, double>(thresholds, exact, by, below);
    }
  }
}

/// Put kFar where row r of a tile that begins at position `begin` holds no negative.
template <class W>
FASTMINE_INLINE void keep_negatives(const Plan<W>& p, std::int64_t i, std::int64_t begin, std::int64_t end, W* row) {
  for (std::int64_t j = larger(begin, p.same_begin[i]); j < smaller(end, p.same_end[i]); ++j) {
    row[j - begin] = kFar<W>;
  }
  for (std::int64_t j = p.b.count; j < end; ++j) {
    row[j - begin] = kFar<W>;
  }
}

/// rank[c] = how many triplets of anchor r of the block have the negative at column c of the tile, 0 for what is none:
/// the thresholds above it for all triplets, the positives themselves for hard ones, the difference for semi-hard ones.
template <class W>
FASTMINE_INLINE void rank_row(const Plan<W>& p, const Block& block, const Scratch<W>& scratch, std::int64_t r,
                              std::int64_t begin, std::int64_t end, W* rank) {
  const std::int64_t i = block.first + r, width = end - begin;
  W* row = scratch.tile + r * kReferences;
  double* below = scratch.below + block.offset[r];
  keep_negatives(p, i, begin, end, row);
  for (std::int64_t c = 0; c < width; ++c) {
    rank[c] = 0;
  }
  const double error = closeness_error(p, static_cast<double>(p.a.norm[i]), p.problem.x.d, 0);
  const auto count = [&](double margin, W by) {
    const Thresholds<W> thresholds{scratch.ascending + block.offset[r], block.positives[r], margin, error,
                                   p.problem.metric};
    const auto ranked = thresholds.count <= kFewThresholds ? &rank_among_few<W> : &rank_among_many<W>;
    if (ranked(row, width, thresholds, by, rank, below)) {
      settle_ties(p, i, begin, width, thresholds, row, by, rank, below);
    }
  };
  count(outer_margin(p.problem), 1);
  if (p.problem.kind == Triplets::semi_hard) {
    count(0, -1);
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

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::batch_all
