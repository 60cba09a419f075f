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
    return packed.rounded + position * m.rounded_depth;
  } else {
    return packed.data + position * m.depth;
  }
}

template <class T>
FASTMINE_DEVICE std::int64_t depth_of(const Plan<typename T::Value>& m) {
  return T::kRounded ? m.rounded_depth : m.depth;
}

/// The shared memory of a block that screens.
template <class T>
struct ScreenMemory {
  using W = typename T::Value;
  typename T::Vector* tile;  // [T::kSharedVectors]
  W* of_rows;                // [T::kRowParts, side]
  W* of_columns;             // [T::kColumnParts, side]
};

/// Rows of tile I of the anchors against tile J of the references.
template <class T, bool kFloored>
FASTMINE_DEVICE void screen_tile(const Search<typename T::Value>& s, std::int64_t I, std::int64_t J,
                                 const ScreenMemory<T>& memory) {
  using W = typename T::Value;
  constexpr int kEach = T::kEach, side = kSide<W>;
  const W none = static_cast<W>(__builtin_inf());
  const Plan<W>& m = s.plan;
  const std::int32_t anchors = s.anchors(), references = m.counts->finite_y;
  const auto row = static_cast<std::int32_t>(I * side), column = static_cast<std::int32_t>(J * side);
  const bool mirror = s.mirrored() && I != J;
  const auto position = [&](int r) { return row + r < anchors ? s.position(row + r) : -1; };

  const std::int32_t mine = position(T::loaded_line());
  W dot[kEach][kEach];
  T::multiply(packed_row<T>(m, m.a, mine < 0 ? 0 : mine), packed_row<T>(m, m.b, column + T::loaded_line()),
              depth_of<T>(m), memory.tile, dot);

  // A pair that does not count gets a product that makes it infinitely bad, from both sides.
  const std::int32_t last = (row + side < anchors ? row + side : anchors) - 1;
  const bool mixed = s.same || s.listed || (m.same_begin[row] < column + side && m.same_end[last] > column);
  if (mixed) {
    FASTMINE_UNROLL for (int r = 0; r < kEach; ++r) {
      const std::int32_t p = position(T::row(r));
      const bool searches = p >= 0 && s.searches(p);
      FASTMINE_UNROLL for (int c = 0; c < kEach; ++c) {
        const std::int32_t reference = column + T::column(c);
        if (!searches || reference >= references || !s.is_candidate(p, reference)) {
          dot[r][c] = -s.sign * none;
        }
      }
    }
  }

  const W factor = -2 * s.sign;
  FASTMINE_UNROLL for (int r = 0; r < kEach; ++r) {
    const std::int32_t p = position(T::row(r));
    const W floor = kFloored && p >= 0 ? m.floor[p] : -none;
    W least = none;
    FASTMINE_UNROLL for (int c = 0; c < kEach; ++c) {
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
    FASTMINE_UNROLL for (int c = 0; c < kEach; ++c) {
      const std::int32_t p = column + T::column(c);
      const W floor = kFloored && p < references ? m.floor[p] : -none;
      W least = none;
      FASTMINE_UNROLL for (int r = 0; r < kEach; ++r) {
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

/// The pair of tiles that is task `task` of those on and above the diagonal of `tiles` tiles, row after row.
FASTMINE_DEVICE void above_diagonal(std::int64_t task, std::int64_t tiles, std::int64_t& I, std::int64_t& J) {
  const auto tasks_before = [tiles](std::int64_t row) { return row * tiles - row * (row - 1) / 2; };
  const double b = 2 * static_cast<double>(tiles) + 1;
  I = static_cast<std::int64_t>((b - sqrt(b * b - 8 * static_cast<double>(task))) / 2);
  I = I < 0 ? 0 : I < tiles ? I : tiles - 1;
  while (I > 0 && tasks_before(I) > task) {
    --I;
  }
  while (tasks_before(I + 1) <= task) {
    ++I;
  }
  J = I + (task - tasks_before(I));
}

#define FASTMINE_SCREEN_MEMORY(T, memory)                              \
  FASTMINE_SHARED(typename T::Vector, shared_tile, T::kSharedVectors); \
  FASTMINE_SHARED(W, shared_rows, kSide<W>* T::kRowParts);             \
  FASTMINE_SHARED(W, shared_columns, kSide<W>* T::kColumnParts);       \
  const ScreenMemory<T> memory { shared_tile, shared_rows, shared_columns }

/// Blocks take pairs of tiles in turn.
template <class T, bool kFloored>
FASTMINE_KERNEL(kThreads, 2)
screen_negatives(FASTMINE_PARAMETER Search<typename T::Value> s) {
  using W = typename T::Value;
  FASTMINE_SCREEN_MEMORY(T, memory);
  const std::int64_t rows = divide_up(s.anchors(), kSide<W>), columns = divide_up(s.plan.counts->finite_y, kSide<W>);
  const std::int64_t tasks = s.mirrored() ? rows * (rows + 1) / 2 : rows * columns;
  for (std::int64_t task = block_index(); task < tasks; task += s.blocks) {
    std::int64_t I = task / columns, J = task % columns;
    if (s.mirrored()) {
      above_diagonal(task, rows, I, J);
    }
    screen_tile<T, kFloored>(s, I, J, memory);
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
      screen_tile<T, false>(s, I, J, memory);
    }
  }
}

}  // namespace fastmine::cuda::mining
