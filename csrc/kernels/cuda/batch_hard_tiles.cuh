// Batch-hard mining of some pairs, too many to compare each directly and too few for many launches: tiles of products
// of rows as they come, each of which leaves for its anchors the best reference and how good the next one is; then a
// warp settles an anchor. Where, as nearly always, the next one is surely worse than the best of all, the tile's best
// alone is compared directly; else all candidates of the tile are.
//
// With one set, a tile serves its rows and its columns. Semi-hard negatives are searched in a second round, when the
// positives are known, together with the farthest ones.
#pragma once

#include "kernels/cuda/batch_hard_choice.cuh"

namespace fastmine::cuda::mining {

/// One pass over the pairs, and what it looks for.
template <class W>
struct Round {
  Plan<W> plan;
  bool positives, negatives;

  /// Whether all pairs of tiles are met from both sides.
  FASTMINE_HOST_DEVICE bool mirrored() const { return plan.problem.self && plan.problem.self_index == nullptr; }
  FASTMINE_HOST_DEVICE std::int64_t tasks() const {
    const std::int64_t rows = divide_up(plan.problem.x.n, kSide<W, kTileBlock>);
    return mirrored() ? rows * (rows + 1) / 2 : rows * divide_up(plan.problem.y.n, kSide<W, kTileBlock>);
  }
};

// --- what a tile leaves ----------------------------------------------------------------------------------------------

template <class W>
FASTMINE_DEVICE Found<W> nothing_found() {
  const W none = static_cast<W>(__builtin_inf());
  return {none, none, 0, kNoRow};
}

/// One reference more.
template <class W>
FASTMINE_DEVICE void meet(Found<W>& found, W value, std::int32_t row) {
  const bool better = value < found.least;
  found.second = minimum(found.second, better ? found.least : value);
  found.row = better ? row : found.row;
  found.least = better ? value : found.least;
}

/// What another part of the tile's references leaves.
template <class W>
FASTMINE_DEVICE void join(Found<W>& found, const Found<W>& other) {
  found.second = minimum(found.second, other.second);
  meet(found, other.least, other.row);
}

template <class W>
FASTMINE_DEVICE void join_across(Found<W>& found, int mask) {
  join(found, {from_across(found.least, mask), from_across(found.second, mask), 0, from_across(found.row, mask)});
}

// --- tiles -----------------------------------------------------------------------------------------------------------

/// What a block knows of the rows of its tile and, after them, of its columns; in shared memory.
template <class W>
struct Lines {
  static constexpr int kLines = kSide<W, kTileBlock>, kParts = kTileBlock / kWarp;
  std::int64_t label[2 * kLines];
  W c[2 * kLines];
  W floor[2 * kLines];            // below it a reference is surely not farther than the positive
  W radius[2][kParts];            // the largest norms of those that take part, by the warp that looked
  std::int32_t own[kLines];       // which column a row is itself, -1 for none
  std::uint8_t kind[2 * kLines];  // kSkipped where there is no row
  Found<W> of_columns[kParts][kLines];

  FASTMINE_DEVICE W widest(int which) const {
    W widest = radius[which][0];
    for (int part = 1; part < kParts; ++part) {
      widest = radius[which][part] > widest ? radius[which][part] : widest;
    }
    return widest;
  }
};

/// The rows (which = 0) or columns (1) of a tile from row `first` on, one a thread.
template <class W>
FASTMINE_DEVICE void look_at_lines(const Round<W>& s, Lines<W>& lines, int which, std::int64_t first,
                                   std::int64_t first_across) {
  constexpr int side = kSide<W, kTileBlock>;
  const RowSet& set = which == 0 ? s.plan.x : s.plan.y;
  const Packed<W>& packed = which == 0 ? s.plan.a : s.plan.b;
  const bool floored = s.negatives && s.plan.problem.semi_hard_negative && (which == 0 || s.mirrored());
  W norm = 0;
  if (thread_index() < side) {
    const std::int64_t i = first + thread_index();
    const int line = which * side + thread_index();
    const bool there = i < set.rows.n;
    const std::uint8_t kind = there ? set.kind[i] : static_cast<std::uint8_t>(kSkipped);
    lines.kind[line] = kind;
    lines.label[line] = there ? set.labels[i] : 0;
    lines.c[line] = there ? packed.c[i] : W{0};
    lines.floor[line] = there && floored ? s.plan.floor[i] : W{0};
    norm = (kind & kSkipped) == 0 ? packed.norm[i] : W{0};
    if (which == 0) {
      const std::int64_t own = there ? own_row(s.plan.problem, i) - first_across : -1;
      lines.own[thread_index()] = own >= 0 && own < side ? static_cast<std::int32_t>(own) : -1;
    }
  }
  FASTMINE_UNROLL for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const W other = from_across(norm, mask);
    norm = other > norm ? other : norm;
  }
  if (lane_index() == 0) {
    lines.radius[which][warp_index()] = norm;
  }
}

/// Bits for the products of a thread.
struct Pairs {
  std::uint64_t positive, negative, poisoned;
};

template <class W>
FASTMINE_DEVICE Pairs classify(const Lines<W>& lines) {
  using T = Full<W, kTileBlock>;
  Pairs pairs{0, 0, 0};
  FASTMINE_UNROLL for (int r = 0; r < T::kEach; ++r) {
    const int row = T::row(r);
    const std::int64_t label = lines.label[row];
    const std::int32_t own = lines.own[row];
    FASTMINE_UNROLL for (int c = 0; c < T::kEach; ++c) {
      const int column = T::kTile + T::column(c);
      const std::uint64_t bit = std::uint64_t{1} << (r * T::kEach + c);
      const int kinds = lines.kind[row] | lines.kind[column];
      const bool same = lines.label[column] == label;
      if ((kinds & kSkipped) == 0) {
        pairs.positive |= same && own != T::column(c) ? bit : 0;
        pairs.negative |= same ? 0 : bit;
        pairs.poisoned |= (kinds & kPoisoned) != 0 ? bit : 0;
      }
    }
  }
  return pairs;
}

/// What a search makes of the products of a thread: which are candidates, and in which direction it looks.
template <class W>
struct Sought {
  std::uint64_t pairs;
  W sign;

  /// Inf for what is no candidate or surely not farther than the positive. -Inf stands for NaN, which comes before all.
  template <bool kFloored>
  FASTMINE_DEVICE W value(int bit, W dot, W signed_c, W floor) const {
    const W none = static_cast<W>(__builtin_inf()), value = -2 * sign * dot + signed_c;
    const bool low = kFloored && value < floor && value > -none;
    return (pairs >> bit & 1) != 0 && !low ? value : none;
  }
};

/// Leave what a search finds of the rows and, with mirrors, of the columns of a pair of tiles.
template <bool kFloored, class W>
FASTMINE_DEVICE void reduce_pair(const Round<W>& s, Lines<W>& lines, std::int32_t I, std::int32_t J,
                                 const Sought<W>& sought, bool floored, std::uint64_t poisoned, Found<W>* found,
                                 W (&dot)[Full<W, kTileBlock>::kEach][Full<W, kTileBlock>::kEach]) {
  using T = Full<W, kTileBlock>;
  constexpr int kEach = T::kEach, side = T::kTile;
  const W infinity = static_cast<W>(__builtin_inf());
  const std::int64_t n = s.plan.problem.x.n;
  const std::int32_t row = I * side, column = J * side;
  if (poisoned != 0) {
    FASTMINE_UNROLL for (int bit = 0; bit < kEach * kEach; ++bit) {
      W& product = dot[bit / kEach][bit % kEach];
      product = (poisoned >> bit & 1) != 0 ? sought.sign * infinity : product;
    }
  }
  const bool any = ballot(sought.pairs != 0) != 0;  // with labels in order, few warps have a positive pair
  const auto leave_row = [&](int r, Found<W> best) {
    if (lane_index() % T::kRowLanes == 0 && row + r < n) {
      best.radius = lines.widest(1);
      best.row += best.row == kNoRow ? 0 : column;
      found[J * n + row + r] = best;
    }
  };
  W c_of[kEach];
  if (any) {
    FASTMINE_UNROLL for (int c = 0; c < kEach; ++c) { c_of[c] = sought.sign * lines.c[side + T::column(c)]; }
    FASTMINE_UNROLL for (int r = 0; r < kEach; ++r) {
      const W floor = floored ? lines.floor[T::row(r)] : -infinity;
      Found<W> best = nothing_found<W>();
      FASTMINE_UNROLL for (int c = 0; c < kEach; ++c) {
        meet(best, sought.template value<kFloored>(r * kEach + c, dot[r][c], c_of[c], floor), T::column(c));
      }
      FASTMINE_UNROLL for (int mask = 1; mask < T::kRowLanes; mask *= 2) { join_across(best, mask); }
      leave_row(T::row(r), best);
    }
  } else {
    FASTMINE_ROLL for (int r = 0; r < kEach; ++r) { leave_row(T::row(r), nothing_found<W>()); }
  }
  if (!s.mirrored() || I == J) {
    return;
  }
  const auto leave_column = [&](int c, const Found<W>& best) {
    if (lane_index() < T::kRowLanes) {
      lines.of_columns[T::column_part()][c] = best;
    }
  };
  if (any) {
    FASTMINE_UNROLL for (int r = 0; r < kEach; ++r) { c_of[r] = sought.sign * lines.c[T::row(r)]; }
    FASTMINE_UNROLL for (int c = 0; c < kEach; ++c) {
      const W floor = floored ? lines.floor[side + T::column(c)] : -infinity;
      Found<W> best = nothing_found<W>();
      FASTMINE_UNROLL for (int r = 0; r < kEach; ++r) {
        meet(best, sought.template value<kFloored>(r * kEach + c, dot[r][c], c_of[r], floor), T::row(r));
      }
      FASTMINE_UNROLL for (int mask = T::kRowLanes; mask < kWarp; mask *= 2) { join_across(best, mask); }
      leave_column(T::column(c), best);
    }
  } else {
    FASTMINE_ROLL for (int c = 0; c < kEach; ++c) { leave_column(T::column(c), nothing_found<W>()); }
  }
  barrier();
  const int line = thread_index();
  if (line < side && column + line < n) {
    Found<W> best = lines.of_columns[0][line];
    for (int part = 1; part < T::kColumnParts; ++part) {
      join(best, lines.of_columns[part][line]);
    }
    best.radius = lines.widest(0);
    best.row += best.row == kNoRow ? 0 : row;
    found[I * n + column + line] = best;
  }
  barrier();
}

/// One block: a pair of tiles. Floored: for semi-hard negatives, and the farthest; with 168 registers it would spill.
template <class W, bool kFloored>
FASTMINE_KERNEL(kTileBlock, (kFloored ? 4 : 6))
screen_tiles(FASTMINE_PARAMETER Round<W> s) {
  using T = Full<W, kTileBlock>;
  FASTMINE_SHARED(typename T::Vector, tile, T::kSharedVectors);
  FASTMINE_SHARED(Lines<W>, shared_lines, 1);
  Lines<W>& lines = *shared_lines;
  const Plan<W>& m = s.plan;
  const BatchHard& q = m.problem;
  std::int32_t I, J;
  locate(s.mirrored(), divide_up(q.y.n, T::kTile), block_index(), I, J);
  const std::int64_t row = std::int64_t{I} * T::kTile, column = std::int64_t{J} * T::kTile;
  look_at_lines(s, lines, 0, row, column);
  look_at_lines(s, lines, 1, column, 0);
  W dot[T::kEach][T::kEach];
  const std::int64_t i = row + T::loaded_line(), j = column + T::loaded_line();  // what is not there is left out
  T::multiply(m.a.data + (i < q.x.n ? i : 0) * m.depth, m.b.data + (j < q.y.n ? j : 0) * m.depth,
              static_cast<int>(m.depth), tile, dot);
  barrier();
  const Pairs pairs = classify(lines);
  const W sign = s.positives && q.easiest_positive ? W{1} : W{-1};
  FASTMINE_ROLL for (int search = 0; search < 2; ++search) {
    const bool first = search == 0;
    if (first ? s.positives || kFloored : s.negatives) {
      const Sought<W> sought{first && s.positives ? pairs.positive : pairs.negative, first ? sign : W{1}};
      reduce_pair<kFloored>(s, lines, I, J, sought, kFloored && !first, pairs.poisoned, m.found[search], dot);
    }
  }
}

// --- anchors ---------------------------------------------------------------------------------------------------------

/// A search for one anchor, by a warp, in what the tiles left.
template <class S>
struct Settling {
  using W = Working<S>;
  const Plan<W>& plan;
  std::int64_t i;
  const Found<W>* found;  // [tiles across, n]
  bool same;              // candidates have the anchor's label; else another
  double sign;            // 1: the nearest, -1: the farthest
  double bound;           // only those with a larger key; -Inf: all

  FASTMINE_DEVICE std::int64_t tiles() const { return divide_up(plan.problem.y.n, kSide<W, kTileBlock>); }
  FASTMINE_DEVICE Found<W> of_tile(std::int64_t tile) const {
    return tile < tiles() ? found[tile * plan.problem.x.n + i] : nothing_found<W>();
  }
  FASTMINE_DEVICE double error(const Found<W>& f) const {
    return key_error<W>(plan.problem.x.d, static_cast<double>(plan.a.norm[i]), static_cast<double>(f.radius));
  }
  FASTMINE_DEVICE void offer(Best& best, double key, std::int32_t j) const {
    const bool nan = poisoned(plan.x, i) || poisoned(plan.y, j);
    if (nan || !(key <= bound)) {
      improve(best, {nan ? static_cast<double>(__builtin_nan("")) : sign * key, j});
    }
  }

  /// An upper bound on the least value of all that surely count.
  FASTMINE_DEVICE double limit() const {
    const double above = bound - static_cast<double>(plan.a.c[i]);
    double limit = static_cast<double>(__builtin_inf());
    for (std::int64_t first = 0; first < tiles(); first += kWarp) {
      const Found<W> f = of_tile(first + lane_index());
      const auto value = static_cast<double>(f.least);
      const double most = value + error(f);
      // What may not be farther than the positive bounds nothing.
      limit = most < limit && !(value - error(f) <= above) ? most : limit;
    }
    FASTMINE_UNROLL for (int mask = kWarp / 2; mask > 0; mask /= 2) {
      limit = minimum(limit, from_across(limit, mask));
    }
    return limit;
  }

  /// Compare all candidates of a tile.
  FASTMINE_DEVICE void scan(std::int64_t tile, Best& best) const {
    constexpr int kTogether = 4, side = kSide<W, kTileBlock>;
    const BatchHard& q = plan.problem;
    const std::int64_t label = q.labels[i], own = own_row(q, i);
    const std::int64_t end = (tile + 1) * side < q.y.n ? (tile + 1) * side : q.y.n;
    for (std::int64_t first = tile * side; first < end; first += kTogether) {
      std::int32_t rows[kTogether];
      double keys[kTogether];
      FASTMINE_UNROLL for (int c = 0; c < kTogether; ++c) {
        rows[c] = static_cast<std::int32_t>(first + c < end ? first + c : first);
      }
      exact_keys<S>(plan.x, i, plan.y, rows, keys);
      FASTMINE_UNROLL for (int c = 0; c < kTogether; ++c) {
        const std::int32_t j = rows[c];
        if (takes_part(plan.y, j) && (q.ref_labels[j] == label) == same && !(same && j == own)) {
          offer(best, keys[c], j);
        }
      }
    }
  }

  FASTMINE_DEVICE Best best() const {
    const double infinity = static_cast<double>(__builtin_inf()), most = limit();
    Best best;
    for (std::int64_t first = 0; first < tiles(); first += kWarp) {
      const Found<W> f = of_tile(first + lane_index());
      const auto least = static_cast<double>(f.least), second = static_cast<double>(f.second), off = error(f);
      const bool nothing = first + lane_index() >= tiles() || (f.row == kNoRow && off < infinity);
      const unsigned alone = ballot(second - off > most);
      for (unsigned left = ballot(!nothing && !(least - off > most)); left != 0; left &= left - 1) {
        const int lane = lowest_bit(left);
        const std::int32_t j = from_lane(f.row, lane);
        if ((alone >> lane & 1) == 0) {
          scan(first + lane, best);
        } else {
          offer(best, exact_key<S>(plan.x, i, plan.y, j), j);
        }
      }
    }
    return best;
  }
};

/// What bounds the semi-hard negative of an anchor: the key of its positive, if there is one.
template <class S>
FASTMINE_DEVICE void bound_negative(const Settling<S>& search, const Best& positive) {
  using W = Working<S>;
  const Plan<W>& m = search.plan;
  Found<W> widest = nothing_found<W>();
  for (std::int64_t tile = 0; tile < search.tiles(); ++tile) {
    const W radius = search.of_tile(tile).radius;
    widest.radius = radius > widest.radius ? radius : widest.radius;
  }
  const double key = search.sign * positive.key, none = -static_cast<double>(__builtin_inf());
  const bool bounded = positive.row >= 0 && key == key;
  const double least = key - static_cast<double>(m.a.c[search.i]) - 2 * search.error(widest);
  m.bound[search.i] = bounded ? key : none;
  m.floor[search.i] = static_cast<W>(bounded ? least : none);
}

/// Whether no anchor before this one that takes part has its label.
template <class W>
FASTMINE_DEVICE bool is_first_of_label(const Plan<W>& m, std::int64_t i) {
  bool again = false;
  for (std::int64_t j = lane_index(); j < i; j += kWarp) {
    again = again || (m.problem.labels[j] == m.problem.labels[i] && takes_part(m.x, j));
  }
  return ballot(again) == 0;
}

/// One warp: an anchor.
template <class S>
FASTMINE_KERNEL(kThreads, 2)
settle_anchors(FASTMINE_PARAMETER Round<Working<S>> s) {
  const Plan<Working<S>>& m = s.plan;
  const BatchHard& q = m.problem;
  const std::int64_t i = block_index() * kWarps + warp_index();
  if (i >= q.x.n || !takes_part(m.x, i)) {
    return;
  }
  const double unbounded = -static_cast<double>(__builtin_inf());
  if (s.positives) {
    const Settling<S> search{m, i, m.found[0], true, q.easiest_positive ? 1.0 : -1.0, unbounded};
    const Best best = search.best();
    if (lane_index() == 0 && best.row >= 0) {
      settle(q, true, i, best.row, distance_of(search.sign * best.key, q.metric));
    }
    if (lane_index() == 0 && q.semi_hard_negative) {
      bound_negative(search, best);
    }
  }
  if (s.negatives) {
    const double bound = q.semi_hard_negative ? m.bound[i] : unbounded;
    double sign = 1;
    Best best = Settling<S>{m, i, m.found[1], false, sign, bound}.best();
    if (best.row < 0 && bound > unbounded) {
      sign = -1;
      best = Settling<S>{m, i, m.found[0], false, sign, unbounded}.best();
    }
    const bool first = is_first_of_label(m, i);
    if (lane_index() == 0) {
      if (best.row >= 0) {
        settle(q, false, i, best.row, distance_of(sign * best.key, q.metric));
      }
      m.first[i] = first;
    }
  }
}

}  // namespace fastmine::cuda::mining
