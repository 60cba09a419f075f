// From screened minima to exact pairs: which panels an anchor must look at again, the exact comparison of all that
// screening cannot rule out there, and what that settles.
#pragma once

#include "kernels/cuda/batch_hard_group.cuh"
#include "kernels/cuda/batch_hard_screen.cuh"

namespace fastmine::cuda::mining {

// --- what settles a positive or a negative -------------------------------------------------------------------------

/// The first poisoned reference of a label that is not the anchor itself; -1: none.
FASTMINE_DEVICE std::int32_t poisoned_of_label(const RowSet& y, std::int64_t label, std::int64_t own) {
  int place = begin_of_label(y, kPoisonedRows, label);
  if (holds(y, place, kPoisonedRows, label) && y.sorted[place].row == own) {
    ++place;
  }
  return holds(y, place, kPoisonedRows, label) ? y.sorted[place].row : -1;
}

/// Of the lowest row and the lowest of another label than its, the one that is not of `label`; -1: none.
FASTMINE_DEVICE std::int32_t of_other_label(const RowSet& y, std::int32_t first, std::int32_t other,
                                            std::int64_t label) {
  const std::int32_t row = first != kNoRow && y.labels[first] == label ? other : first;
  return row == kNoRow ? -1 : row;
}

FASTMINE_DEVICE void settle(const BatchHard& q, bool positive, std::int64_t i, std::int32_t row, double distance) {
  (positive ? q.positive_index : q.negative_index)[i] = row;
  (positive ? q.positive_distance : q.negative_distance)[i] = distance;
  (positive ? q.has_positive : q.has_negative)[i] = true;
}

template <class W>
FASTMINE_DEVICE double widest_norm(const Plan<W>& m) {
  double widest = 0;
  for (std::int64_t panel = 0; panel < m.panels; ++panel) {
    const auto radius = static_cast<double>(unordered(m.radius[panel]));
    widest = radius > widest ? radius : widest;
  }
  return widest;
}

/// What was found for a position that is not poisoned, by sign x key; a poisoned reference comes before it.
template <class W>
FASTMINE_DEVICE void settle_positive(const Plan<W>& m, std::int32_t position, const Best& best) {
  const BatchHard& q = m.problem;
  const std::int32_t i = m.x.sorted[position].row;
  const double key = (q.easiest_positive ? 1 : -1) * best.key;
  const std::int32_t bad = m.counts->poisoned_y == 0 ? -1 : poisoned_of_label(m.y, q.labels[i], own_row(q, i));
  if (bad >= 0) {
    settle(q, true, i, bad, static_cast<double>(__builtin_nan("")));
  } else if (best.row >= 0) {
    settle(q, true, i, best.row, distance_of(key, q.metric));
  }
  if (q.semi_hard_negative) {
    const double none = -static_cast<double>(__builtin_inf());
    const bool bounded = best.row >= 0 && bad < 0;
    const double error = key_error<W>(q.x.d, static_cast<double>(m.a.norm[position]), widest_norm(m));
    m.bound[position] = bounded ? key : none;
    m.floor[position] = static_cast<W>(bounded ? key - static_cast<double>(m.a.c[position]) - 2 * error : none);
  }
}

template <class W>
FASTMINE_DEVICE void settle_negative(const Search<W>& s, std::int32_t position, const Best& best) {
  const Plan<W>& m = s.plan;
  const BatchHard& q = m.problem;
  const std::int32_t i = m.x.sorted[position].row;
  const std::int32_t bad =
      m.counts->poisoned_y == 0 ? -1 : of_other_label(m.y, m.counts->poisoned, m.counts->poisoned_other, q.labels[i]);
  if (bad >= 0) {
    settle(q, false, i, bad, static_cast<double>(__builtin_nan("")));
  } else if (best.row >= 0) {
    settle(q, false, i, best.row, distance_of(static_cast<double>(s.sign) * best.key, q.metric));
  } else if (s.bounded && m.counts->finite_y > m.same_end[position] - m.same_begin[position]) {
    m.farthest[atomic_next(&m.counts->farthest)] = position;
  }
}

// --- positives -----------------------------------------------------------------------------------------------------

/// One warp: the positive of an anchor with few references of its label.
template <class S>
FASTMINE_KERNEL(kThreads, 2)
find_positives(FASTMINE_PARAMETER Plan<Working<S>> m) {
  constexpr int kTogether = 4;
  const std::int64_t position = block_index() * kWarps + warp_index();
  if (position >= m.counts->finite_x) {
    return;
  }
  const std::int32_t begin = m.same_begin[position], end = m.same_end[position], own = m.own[position];
  if (end - begin > kFewPositives) {
    return;
  }
  const double sign = m.problem.easiest_positive ? 1 : -1;
  const std::int32_t i = m.x.sorted[position].row;
  Best best;
  for (std::int32_t first = begin; first < end; first += kTogether) {
    std::int32_t rows[kTogether];
    double keys[kTogether];
    FASTMINE_UNROLL for (int c = 0; c < kTogether; ++c) {
      rows[c] = m.y.sorted[first + c < end ? first + c : first].row;
    }
    exact_keys<S>(m.x, i, m.y, rows, keys);
    FASTMINE_UNROLL for (int c = 0; c < kTogether; ++c) {
      if (first + c < end && first + c != own) {
        improve(best, {sign * keys[c], rows[c]});
      }
    }
  }
  if (lane_index() == 0) {
    settle_positive(m, static_cast<std::int32_t>(position), best);
  }
}

// --- which panels ----------------------------------------------------------------------------------------------------

/// What a candidate's key must surpass, less c; -Inf: nothing.
template <class W>
FASTMINE_DEVICE double bound_of(const Search<W>& s, std::int32_t position) {
  return s.bounded ? s.plan.bound[position] - static_cast<double>(s.plan.a.c[position])
                   : -static_cast<double>(__builtin_inf());
}

/// Whether an anchor must look again at a panel whose minimum is `value`.
template <bool kRounded, class W>
FASTMINE_DEVICE bool is_open(const Search<W>& s, std::int64_t k, std::int64_t panel) {
  const Plan<W>& m = s.plan;
  const std::int32_t position = s.position(static_cast<std::int32_t>(k));
  if (!s.searches(position)) {
    return false;
  }
  const double infinity = static_cast<double>(__builtin_inf());
  const auto value = static_cast<double>(unordered(m.nearest[panel * m.x.rows.n + k]));
  const double error = panel_error<kRounded>(m, position, panel);
  const bool nothing = value == infinity && error < infinity;
  return !nothing && !(value - error > m.limit[k]);
}

/// One thread: an upper bound on the least value of an anchor.
template <class W, bool kRounded>
FASTMINE_KERNEL(kThreads, 2)
find_limits(FASTMINE_PARAMETER Search<W> s) {
  const Plan<W>& m = s.plan;
  const std::int64_t k = block_index() * kThreads + thread_index();
  if (k >= s.anchors()) {
    return;
  }
  const std::int32_t position = s.position(static_cast<std::int32_t>(k));
  const double above = bound_of(s, position);
  double limit = static_cast<double>(__builtin_inf());
  for (std::int64_t panel = 0; panel < m.panels; ++panel) {
    const auto value = static_cast<double>(unordered(m.nearest[panel * m.x.rows.n + k]));
    const double error = panel_error<kRounded>(m, position, panel), most = value + error;
    // What may not be farther than the positive bounds nothing.
    limit = most < limit && (!s.bounded || value - error > above) ? most : limit;
  }
  m.limit[k] = limit;
  if constexpr (kRounded) {
    int open = 0;
    for (std::int64_t panel = 0; panel < m.panels; ++panel) {
      open += is_open<kRounded>(s, k, panel) ? 1 : 0;
    }
    atomic_count(&m.counts->open, open);
  }
}

// --- looking again -------------------------------------------------------------------------------------------------

inline constexpr std::int64_t kPieceLeast = 1024, kPieceMost = 8192;

/// Anchors whose open panels a block looks for.
inline std::int64_t piece_of(std::int64_t n) {
  const std::int64_t piece = n / 8;
  return piece < kPieceLeast ? kPieceLeast : piece < kPieceMost ? piece : kPieceMost;
}

/// What a block keeps of the anchors that it takes through a panel.
template <class T>
struct Passing {
  using W = typename T::Value;
  static constexpr int kRoom = kSide<W> + kThreads, kQueue = 4 * kThreads;
  typename T::Vector* tile;
  std::int32_t* waiting;  // [kRoom]: anchors that must look again
  std::int32_t* counter;  // [kWarps + 1]
  std::int32_t* queue;    // [kQueue]: pairs to compare, row x side + column
  W* highest;             // [side]: a value above this, or below the next, is ruled out
  W* lowest;
};

/// Compare the queued pairs directly; every warp those of its rows, whose best lane row / kWarps keeps.
template <class T>
FASTMINE_DEVICE void compare_queued(const Search<typename T::Value>& s, const Passing<T>& block, std::int32_t queued,
                                    const std::int32_t* anchors, std::int64_t column, Best& best) {
  using W = typename T::Value;
  constexpr int side = kSide<W>;
  const Plan<W>& m = s.plan;
  for (std::int32_t first = 0; first < queued; first += kWarp) {
    const std::int32_t pair = first + lane_index() < queued ? block.queue[first + lane_index()] : -1;
    for (unsigned left = ballot(pair >= 0 && pair / side % kWarps == warp_index()); left != 0; left &= left - 1) {
      const std::int32_t at = from_lane(pair, lowest_bit(left)), r = at / side;
      const std::int32_t position = s.position(anchors[r]), j = m.y.sorted[column + at % side].row;
      const double key = exact_key_of<W>(m.x, m.x.sorted[position].row, m.y, j);
      if (lane_index() == r / kWarps && (!s.bounded || key > m.bound[position])) {
        improve(best, {static_cast<double>(s.sign) * key, j});
      }
    }
  }
}

/// Take `count` anchors through a panel.
template <class T>
FASTMINE_DEVICE void pass_panel(const Search<typename T::Value>& s, const Passing<T>& block,
                                const std::int32_t* anchors, int count, std::int64_t panel) {
  using W = typename T::Value;
  constexpr int kEach = T::kEach, side = kSide<W>;
  const Plan<W>& m = s.plan;
  const std::int32_t references = m.counts->finite_y;
  for (int r = thread_index(); r < side; r += kThreads) {
    block.highest[r] = block.lowest[r] = -static_cast<W>(__builtin_inf());
    if (r < count) {
      const std::int32_t position = s.position(anchors[r]);
      const double error = panel_error<T::kRounded>(m, position, panel);
      block.highest[r] = rounded<W>(m.limit[anchors[r]] + error, 1);
      block.lowest[r] = rounded<W>(bound_of(s, position) - error, -1);
    }
  }
  const int mine = T::loaded_line();
  const std::int32_t loaded = s.position(anchors[mine < count ? mine : 0]);
  Best best;
  const std::int64_t last = (panel + 1) * m.panel * side;
  for (std::int64_t column = panel * m.panel * side; column < last && column < references; column += side) {
    W dot[kEach][kEach];
    barrier();
    T::multiply(packed_row<T>(m, m.a, loaded), packed_row<T>(m, m.b, column + mine), depth_of<T>(m), block.tile, dot);
    std::uint64_t open = 0;
    FASTMINE_UNROLL for (int r = 0; r < kEach; ++r) {
      const W highest = block.highest[T::row(r)], lowest = block.lowest[T::row(r)];
      FASTMINE_UNROLL for (int c = 0; c < kEach; ++c) {
        const W value = s.sign * (m.b.c[column + T::column(c)] - 2 * dot[r][c]);
        open |= value > highest || value < lowest ? 0 : std::uint64_t{1} << (r * kEach + c);
      }
    }
    for (;;) {
      if (thread_index() == 0) {
        *block.counter = 0;
      }
      barrier();
      for (int handed = 0; open != 0 && handed < Passing<T>::kQueue / kThreads; open &= open - 1) {
        const int bit = lowest_bit(open), row = T::row(bit / kEach), place = T::column(bit % kEach);
        const auto reference = static_cast<std::int32_t>(column) + place;
        if (row < count && reference < references && s.is_candidate(s.position(anchors[row]), reference)) {
          block.queue[atomic_next(block.counter)] = row * side + place;
          ++handed;
        }
      }
      barrier();
      const std::int32_t queued = *block.counter;
      if (queued == 0) {
        break;
      }
      compare_queued<T>(s, block, queued, anchors, column, best);
      barrier();
    }
  }
  const int row = lane_index() * kWarps + warp_index();
  if (row < count) {
    m.nearest[panel * m.x.rows.n + anchors[row]] = best.row;
  }
  barrier();
}

/// Blocks take pieces of the anchors and panels in turn: those anchors of the piece that must look again at the
/// panel. Exact comparisons beside a tile of products take more registers than two blocks could have.
template <class T>
FASTMINE_KERNEL(kThreads, 1)
look_again(FASTMINE_PARAMETER Search<typename T::Value> s) {
  using W = typename T::Value;
  using Block = Passing<T>;
  constexpr int side = kSide<W>;
  FASTMINE_SHARED(typename T::Vector, tile, T::kSharedVectors);
  FASTMINE_SHARED(std::int32_t, waiting, Block::kRoom);
  FASTMINE_SHARED(std::int32_t, counter, kWarps + 1);
  FASTMINE_SHARED(std::int32_t, queue, Block::kQueue);
  FASTMINE_SHARED(W, highest, side);
  FASTMINE_SHARED(W, lowest, side);
  const Block block{tile, waiting, counter, queue, highest, lowest};
  const Plan<W>& m = s.plan;
  const std::int64_t anchors = s.anchors(), piece = s.piece;
  const std::int64_t tasks = divide_up(anchors, piece) * m.panels;
  for (std::int64_t task = block_index(); task < tasks; task += s.blocks) {
    const std::int64_t panel = task % m.panels, begin = task / m.panels * piece;
    const std::int64_t end = begin + piece < anchors ? begin + piece : anchors;
    int count = 0;
    for (std::int64_t first = begin; first < end; first += kThreads) {
      const std::int64_t k = first + thread_index();
      const bool open = k < end && is_open<T::kRounded>(s, k, panel);
      if (k < end && !open) {
        m.nearest[panel * m.x.rows.n + k] = -1;
      }
      const unsigned lanes = ballot(open);
      if (lane_index() == 0) {
        counter[warp_index()] = count_bits(lanes);
      }
      barrier();
      int place = count, added = 0;
      for (int warp = 0; warp < kWarps; ++warp) {
        place += warp < warp_index() ? counter[warp] : 0;
        added += counter[warp];
      }
      if (open) {
        waiting[place + count_bits(lanes & ((1U << lane_index()) - 1))] = static_cast<std::int32_t>(k);
      }
      count += added;
      barrier();
      while (count >= side) {
        count -= side;
        pass_panel<T>(s, block, waiting + count, side, panel);
      }
    }
    if (count > 0) {
      pass_panel<T>(s, block, waiting, count, panel);
    }
  }
}

/// One warp: the best of what an anchor found in its panels.
template <class S>
FASTMINE_KERNEL(kThreads, 2)
choose(FASTMINE_PARAMETER Search<Working<S>> s) {
  using W = Working<S>;
  const Plan<W>& m = s.plan;
  const std::int64_t k = block_index() * kWarps + warp_index();
  if (k >= s.anchors()) {
    return;
  }
  const std::int32_t position = s.position(static_cast<std::int32_t>(k));
  if (!s.searches(position)) {
    return;
  }
  const std::int32_t i = m.x.sorted[position].row;
  Best best;
  for (std::int64_t first = 0; first < m.panels; first += kWarp) {
    const std::int64_t panel = first + lane_index();
    const auto found = static_cast<std::int32_t>(panel < m.panels ? m.nearest[panel * m.x.rows.n + k] : Ordered<W>{-1});
    for (unsigned left = ballot(found >= 0); left != 0; left &= left - 1) {
      const std::int32_t j = from_lane(found, lowest_bit(left));
      improve(best, {static_cast<double>(s.sign) * exact_key<S>(m.x, i, m.y, j), j});
    }
  }
  if (lane_index() == 0) {
    s.same ? settle_positive(m, position, best) : settle_negative(s, position, best);
  }
}

}  // namespace fastmine::cuda::mining
