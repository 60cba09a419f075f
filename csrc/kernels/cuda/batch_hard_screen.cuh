// The screen: for every anchor and panel of references the least sign x (c[j] - 2 a.b[j]) among the candidates.
//
// With one set, a tile of products serves its rows and its columns: only the pairs of tiles from the diagonal on are
// multiplied. Tiles that hold no pair of one label, nearly all, skip the mask.
#pragma once

#include "kernels/cuda/batch_hard_plan.cuh"

namespace fastmine::cuda::mining {

/// One thread: one place of `nearest`.
template <class W>
FASTMINE_KERNEL(kThreads, 2)
clear_nearest(FASTMINE_PARAMETER Search<W> s) {
  if (s.anchors() == 0) {  // or the step is not wanted
    return;
  }
  const std::int64_t places = s.plan.panels * s.plan.x.rows.n;
  for (std::int64_t at = block_index() * kThreads + thread_index(); at < places; at += s.blocks * kThreads) {
    s.plan.nearest[at] = ordered(static_cast<W>(__builtin_inf()));
  }
}

template <class W>
FASTMINE_DEVICE void place_least(const Search<W>& s, std::int64_t panel, std::int64_t k, W least) {
  if (least < static_cast<W>(__builtin_inf())) {
    atomic_minimum(s.plan.nearest + panel * s.plan.x.rows.n + k, ordered(least));
  }
}

/// A row of packed rows as T reads it.
template <class T>
FASTMINE_DEVICE const typename T::Element* packed_row(const Plan<typename T::Value>& m,
                                                      const Packed<typename T::Value>& packed, std::int64_t position) {
  if constexpr (T::kRounded) {
    return packed.rounded + Rounded::place_of(m.rounded_depth, position, 0);
  } else {
    return packed.data + position * m.depth;
  }
}

template <class T>
FASTMINE_DEVICE int depth_of(const Plan<typename T::Value>& m) {
  return static_cast<int>(T::kRounded ? m.rounded_depth : m.depth);
}

/// The shared memory of a block that screens.
template <class T>
struct ScreenMemory {
  using W = typename T::Value;
  typename T::Vector* tile;  // [T::kSharedVectors]; of Grouped, elsewhere
  W* of_rows;                // [T::kRowParts, side]
  W* of_columns;             // [T::kColumnParts, side]
  std::int32_t* pair;        // [2]: the tiles at hand; here, since products take all registers
};

/// The products of tile pair[0] of the anchors with tile pair[1] of the references.
template <class T>
FASTMINE_DEVICE void multiply_tiles(const Search<typename T::Value>& s, const ScreenMemory<T>& memory,
                                    typename T::Value (&dot)[T::kEach][T::kEach]) {
  constexpr int side = kSide<typename T::Value>;
  const std::int32_t k = memory.pair[0] * side + T::loaded_line();
  const std::int32_t position = k < s.anchors() ? s.position(k) : 0;  // what comes of the others is left out
  T::multiply(packed_row<T>(s.plan, s.plan.a, position),
              packed_row<T>(s.plan, s.plan.b, memory.pair[1] * side + T::loaded_line()), depth_of<T>(s.plan),
              memory.tile, dot);
}

/// Bring these products into the minima of the tiles' rows and, with mirrors, columns.
template <class T, bool kFloored>
FASTMINE_DEVICE void reduce_tiles(const Search<typename T::Value>& s, const ScreenMemory<T>& memory,
                                  typename T::Value (&dot)[T::kRows][T::kColumns]) {
  using W = typename T::Value;
  constexpr int side = kSide<W>;
  const W none = static_cast<W>(__builtin_inf());
  const Plan<W>& m = s.plan;
  const std::int32_t anchors = s.anchors(), references = m.counts->finite_y;
  const std::int32_t I = memory.pair[0], J = memory.pair[1], row = I * side, column = J * side;
  const bool mirror = s.mirrored() && I != J;
  const auto position = [&](int r) { return row + r < anchors ? s.position(row + r) : -1; };

  // A pair that does not count gets a product that makes it infinitely bad, from both sides.
  const std::int32_t last = (row + side < anchors ? row + side : anchors) - 1;
  const bool mixed = s.same || s.listed || (m.same_begin[row] < column + side && m.same_end[last] > column);
  if (mixed) {
    FASTMINE_UNROLL for (int r = 0; r < T::kRows; ++r) {
      const std::int32_t p = position(T::row(r));
      const bool searches = p >= 0 && s.searches(p);
      const std::int32_t begin = searches ? m.same_begin[p] : 0, end = searches ? m.same_end[p] : 0;
      const std::int32_t own = s.same && searches ? m.own[p] : -1;
      FASTMINE_UNROLL for (int c = 0; c < T::kColumns; ++c) {
        const std::int32_t reference = column + T::column(c);
        const bool within = reference >= begin && reference < end && reference != own;
        if (!searches || reference >= references || within != s.same) {
          dot[r][c] = -s.sign * none;
        }
      }
    }
  }

  const W factor = -2 * s.sign;
  FASTMINE_UNROLL for (int r = 0; r < T::kRows; ++r) {
    const std::int32_t p = position(T::row(r));
    const W floor = kFloored && p >= 0 ? m.floor[p] : -none;
    W least = none;
    FASTMINE_UNROLL for (int c = 0; c < T::kColumns; ++c) {
      const W value = factor * dot[r][c] + s.sign * m.b.c[column + T::column(c)];
      least = minimum(least, kFloored && value < floor ? none : value);
    }
    FASTMINE_UNROLL for (int mask = 1; mask < T::kRowLanes; mask *= 2) {
      least = minimum(least, from_across(least, mask));
    }
    if (lane_index() % T::kRowLanes == 0) {
      memory.of_rows[T::row_part() * side + T::row(r)] = least;
    }
  }
  if (mirror) {
    FASTMINE_UNROLL for (int c = 0; c < T::kColumns; ++c) {
      const std::int32_t p = column + T::column(c);
      const W floor = kFloored && p < references ? m.floor[p] : -none;
      W least = none;
      FASTMINE_UNROLL for (int r = 0; r < T::kRows; ++r) {
        const W value = factor * dot[r][c] + s.sign * m.a.c[row + T::row(r)];
        least = minimum(least, kFloored && value < floor ? none : value);
      }
      FASTMINE_UNROLL for (int mask = T::kRowLanes; mask < kWarp; mask *= 2) {
        least = minimum(least, from_across(least, mask));
      }
      if (lane_index() < T::kRowLanes) {
        memory.of_columns[T::column_part() * side + T::column(c)] = least;
      }
    }
  }
  barrier();
  const int line = thread_index();
  if (line < side && row + line < anchors) {
    W least = memory.of_rows[line];
    for (int part = 1; part < T::kRowParts; ++part) {
      least = minimum(least, memory.of_rows[part * side + line]);
    }
    place_least(s, J / m.panel, row + line, least);
  }
  if (mirror && line < side && column + line < references) {
    W least = memory.of_columns[line];
    for (int part = 1; part < T::kColumnParts; ++part) {
      least = minimum(least, memory.of_columns[part * side + line]);
    }
    place_least(s, I / m.panel, column + line, least);
  }
  barrier();
}

template <class W>
FASTMINE_DEVICE std::int64_t screen_tasks(const Search<W>& s) {
  const std::int64_t rows = divide_up(s.anchors(), kSide<W>);
  return s.mirrored() ? rows * (rows + 1) / 2 : rows * divide_up(s.plan.counts->finite_y, kSide<W>);
}

/// The pair of tiles that is task `task`, of so many across: with mirrors, of those on and above the diagonal, row
/// after row.
FASTMINE_DEVICE void locate(bool mirrored, std::int64_t tiles, std::int64_t task, std::int32_t& I, std::int32_t& J) {
  std::int64_t row = task / tiles, before = row * tiles;
  if (mirrored) {
    const auto tasks_before = [tiles](std::int64_t i) { return i * tiles - i * (i - 1) / 2; };
    const double b = 2 * static_cast<double>(tiles) + 1;
    row = static_cast<std::int64_t>((b - sqrt(b * b - 8 * static_cast<double>(task))) / 2);
    row = row < 0 ? 0 : row < tiles ? row : tiles - 1;
    while (row > 0 && tasks_before(row) > task) {
      --row;
    }
    while (tasks_before(row + 1) <= task) {
      ++row;
    }
    before = tasks_before(row) - row;
  }
  I = static_cast<std::int32_t>(row);
  J = static_cast<std::int32_t>(task - before);
}

template <class W>
FASTMINE_DEVICE void locate(const Search<W>& s, std::int64_t task, std::int32_t& I, std::int32_t& J) {
  locate(s.mirrored(), divide_up(s.plan.counts->finite_y, kSide<W>), task, I, J);
}

#define FASTMINE_SCREEN_MEMORY(T, memory)                              \
  FASTMINE_SHARED(typename T::Vector, shared_tile, T::kSharedVectors); \
  FASTMINE_SHARED(W, shared_rows, kSide<W>* T::kRowParts);             \
  FASTMINE_SHARED(W, shared_columns, kSide<W>* T::kColumnParts);       \
  FASTMINE_SHARED(std::int32_t, shared_pair, 2);                       \
  const ScreenMemory<T> memory { shared_tile, shared_rows, shared_columns, shared_pair }

/// Blocks take pairs of tiles in turn.
template <class T, bool kFloored>
FASTMINE_KERNEL(kThreads, 2)
screen_negatives(FASTMINE_PARAMETER Search<typename T::Value> s) {
  using W = typename T::Value;
  FASTMINE_SCREEN_MEMORY(T, memory);
  for (std::int64_t task = block_index(); task < screen_tasks(s); task += s.blocks) {
    if (thread_index() == 0) {
      locate(s, task, memory.pair[0], memory.pair[1]);
    }
    barrier();
    W dot[T::kEach][T::kEach];
    multiply_tiles(s, memory, dot);
    reduce_tiles<T, kFloored>(s, memory, dot);
  }
}

/// Blocks take tiles of anchors in turn, each with the tiles that hold references of their labels.
template <class W>
FASTMINE_KERNEL(kThreads, 2)
screen_positives(FASTMINE_PARAMETER Search<W> s) {
  using T = Full<W>;
  FASTMINE_SCREEN_MEMORY(T, memory);
  FASTMINE_SHARED(std::int32_t, range, 2);
  const std::int32_t anchors = s.anchors();
  for (std::int64_t I = block_index(); I < divide_up(anchors, kSide<W>); I += s.blocks) {
    if (thread_index() == 0) {
      range[0] = INT32_MAX;
      range[1] = 0;
    }
    barrier();
    const std::int64_t p = I * kSide<W> + thread_index();
    if (thread_index() < kSide<W> && p < anchors && s.searches(static_cast<std::int32_t>(p))) {
      atomic_minimum(&range[0], s.plan.same_begin[p]);
      atomic_maximum(&range[1], s.plan.same_end[p]);
    }
    barrier();
    const std::int64_t begin = range[0] / kSide<W>, end = divide_up(range[1], kSide<W>);
    barrier();
    for (std::int64_t J = begin; J < end; ++J) {
      if (thread_index() == 0) {
        memory.pair[0] = static_cast<std::int32_t>(I);
        memory.pair[1] = static_cast<std::int32_t>(J);
      }
      barrier();
      W dot[T::kEach][T::kEach];
      multiply_tiles(s, memory, dot);
      reduce_tiles<T, false>(s, memory, dot);
    }
  }
}

}  // namespace fastmine::cuda::mining
