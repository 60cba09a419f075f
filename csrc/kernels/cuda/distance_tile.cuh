// Tiles of the matrix of all distances: products out of shared memory and registers, then what the products become.
#pragma once

#include "kernels/cuda/centred_rows.cuh"
#include "kernels/pairwise_distance.h"

namespace fastmine::cuda {

/// 8 warps, 4 down and 2 across; in a warp 4 lanes down and 8 across, each with 2 x 2 squares of kVec x kVec products.
template <class W>
struct TileShape {
  static constexpr int kThreads = 256, kStep = kRowStep;
  static constexpr int kVec = 16 / sizeof(W);  // what one load takes
  static constexpr int kPacks = 32, kEdge = kPacks * kVec;
  static constexpr int kPitch = kPacks + 1;  // packs from one step to the next: no two writes meet in a bank
};

template <class W>
struct DistanceWork {
  RowsWork<W> rows;
  W* distance;
  std::int64_t tiles_down, tiles_across;

  std::int64_t tiles() const { return rows.one_set ? tiles_down * (tiles_down + 1) / 2 : tiles_down * tiles_across; }
};

/// First row and first column of a tile.
struct TilePlace {
  std::int64_t row, column;
};

/// With one set, only the tiles at and right of the diagonal: the triangle as a rectangle, row r of `tiles` - r tiles
/// and after it row `tiles` - 1 - r.
template <class W>
FASTMINE_DEVICE TilePlace tile_place(const DistanceWork<W>& work) {
  const bool triangle = work.rows.one_set;
  const std::int64_t across = work.tiles_across + (triangle ? 1 : 0);
  std::int64_t down = block_index() / across, place = block_index() % across;
  if (triangle) {
    const std::int64_t length = work.tiles_across - down;
    const bool second = place >= length;
    down = second ? length - 1 : down;
    place = down + place - (second ? length : 0);
  }
  return {down * TileShape<W>::kEdge, place * TileShape<W>::kEdge};
}

/// The products of one thread, and where in the tile they lie.
template <class W>
struct TileProducts {
  static constexpr int kVec = TileShape<W>::kVec;
  W sum[2][kVec][2][kVec] = {};

  FASTMINE_DEVICE static int row_pack(int group) {
    return thread_index() / 64 * 8 + group * 4 + thread_index() % kWarp / 8;
  }
  FASTMINE_DEVICE static int column_pack(int group) {
    return thread_index() / kWarp % 2 * 16 + group * 8 + thread_index() % 8;
  }

  FASTMINE_DEVICE void add(const Pack<W, kVec>* a, const Pack<W, kVec>* b) {
    Pack<W, kVec> x[2], y[2];
    FASTMINE_UNROLL for (int group = 0; group < 2; ++group) {
      x[group] = a[row_pack(group)];
      y[group] = b[column_pack(group)];
    }
    each([&](int gr, int r, int gc, int c) { sum[gr][r][gc][c] += x[gr].item[r] * y[gc].item[c]; });
  }

  /// f(group of rows, row in it, group of columns, column in it) for each product.
  template <class F>
  FASTMINE_DEVICE static void each(F f) {
    FASTMINE_UNROLL for (int gr = 0; gr < 2; ++gr) {
      FASTMINE_UNROLL for (int r = 0; r < kVec; ++r) {
        FASTMINE_UNROLL for (int gc = 0; gc < 2; ++gc) {
          FASTMINE_UNROLL for (int c = 0; c < kVec; ++c) { f(gr, r, gc, c); }
        }
      }
    }
  }
};

/// A few elements of a row of one side of the tile, from global to shared memory: each thread brings one pack a step.
template <class W>
struct TileLoad {
  using Shape = TileShape<W>;
  static constexpr int kPerRow = Shape::kStep / Shape::kVec;
  static_assert(Shape::kEdge * kPerRow == Shape::kThreads);

  const W* from;  // null past the last row
  Pack<W, Shape::kVec> pack{};

  FASTMINE_DEVICE TileLoad(const RowSet<W>& set, std::int64_t first) {
    const std::int64_t i = first + thread_index() / kPerRow;
    from = i < set.rows.n ? set.centred + i * set.width + thread_index() % kPerRow * Shape::kVec : nullptr;
  }
  FASTMINE_DEVICE void fetch(std::int64_t step) {
    if (from != nullptr) {
      pack = load_pack<W, Shape::kVec>(from + step * Shape::kStep);
    }
  }
  FASTMINE_DEVICE void store(Pack<W, Shape::kVec>* to) const {
    FASTMINE_UNROLL for (int v = 0; v < Shape::kVec; ++v) {
      auto* const elements = reinterpret_cast<W*>(to + (thread_index() % kPerRow * Shape::kVec + v) * Shape::kPitch);
      elements[thread_index() / kPerRow] = pack.item[v];
    }
  }
};

/// All products of a tile. `a` and `b` hold two steps each: one is read while the next is written.
template <class W>
FASTMINE_DEVICE void multiply_tile(const RowsWork<W>& rows, const TilePlace& place, Pack<W, TileShape<W>::kVec>* a,
                                   Pack<W, TileShape<W>::kVec>* b, TileProducts<W>& products) {
  using Shape = TileShape<W>;
  constexpr int kHalf = Shape::kStep * Shape::kPitch;
  TileLoad<W> left(rows.x, place.row), right(rows.y, place.column);
  const std::int64_t steps = rows.x.width / Shape::kStep;
  if (steps == 0) {
    return;
  }
  left.fetch(0);
  right.fetch(0);
  left.store(a);
  right.store(b);
  for (std::int64_t step = 0; step < steps; ++step) {
    const int half = static_cast<int>(step % 2) * kHalf, next = kHalf - half;
    barrier();
    if (step + 1 < steps) {
      left.fetch(step + 1);
      right.fetch(step + 1);
    }
    FASTMINE_UNROLL for (int k = 0; k < Shape::kStep; ++k) {
      products.add(a + half + k * Shape::kPitch, b + half + k * Shape::kPitch);
    }
    if (step + 1 < steps) {
      left.store(a + next);
      right.store(b + next);
    }
  }
}

/// Rows i of x and j of y by direct difference, in float64, the whole warp at one pair; every lane has the answer.
template <class S>
FASTMINE_DEVICE double direct_distance(const RowsWork<Working<S>>& work, std::int64_t i, std::int64_t j) {
  const S *const x = row<S>(work.x.rows, i), *const y = row<S>(work.y.rows, j);
  const double own = work.x.norm[i], other = work.y.norm[j];
  double sum[1] = {};
  for (std::int64_t k = thread_index() % kWarp; k < work.x.rows.d; k += kWarp) {
    const auto a = value_of<double>(x[k]), b = value_of<double>(y[k]);
    if (work.metric == Metric::dot) {
      sum[0] += a * b;
    } else {
      // Divided, not multiplied by 1 / norm: a product would be fused into the subtraction, which then would not be
      // symmetric.
      const double difference = work.metric == Metric::cosine ? a / own - b / other : a - b;
      sum[0] += difference * difference;
    }
  }
  add_lanes(sum);
  switch (work.metric) {
    case Metric::euclidean:
      return root(sum[0]);
    case Metric::cosine:
      return own == 0 || other == 0 ? 1 : 0.5 * sum[0];
    default:
      return sum[0];
  }
}

/// Keys below this share of |x|^2 + |y|^2 have lost too many digits in the subtraction.
template <class W>
inline constexpr W kClose = static_cast<W>(1.0 / 16);

/// Whether products of rows whose squared norms add up to this, added up, may overflow, or fall among the subnormal
/// numbers and lose digits.
template <class W>
FASTMINE_DEVICE bool extreme(W squares) {
  constexpr W kTiny = sizeof(W) == 8 ? static_cast<W>(0x1p-900) : static_cast<W>(0x1p-80);
  constexpr W kHuge = sizeof(W) == 8 ? static_cast<W>(0x1p1000) : static_cast<W>(0x1p120);
  return !(squares > kTiny && squares < kHuge);
}

/// The distance that follows from a product; whether it must be taken directly instead.
template <class W>
struct Distance {
  W value;
  bool close;
};

template <class W>
FASTMINE_DEVICE Distance<W> distance_of(const RowsWork<W>& work, std::int64_t i, std::int64_t j, W product) {
  const W both = work.x.squared[i] + work.y.squared[j];
  if (both != both) {
    return {both, false};
  }
  if (work.one_set && i == j && work.metric != Metric::dot) {
    return {0, false};
  }
  if (extreme(both)) {
    return {0, true};
  }
  if (work.metric == Metric::dot) {
    return {product, false};
  }
  const W key = both - 2 * product, positive = key < 0 ? W{0} : key;
  const bool close = key < both * kClose<W>;
  return {work.metric == Metric::euclidean ? root(positive)
          : work.metric == Metric::cosine  ? positive * static_cast<W>(0.5)
                                           : positive,
          close};
}

/// First row and first column of a thread's squares, in the matrix.
template <class W>
FASTMINE_DEVICE std::int64_t row_of(const TilePlace& place, int group) {
  return place.row + TileProducts<W>::row_pack(group) * TileShape<W>::kVec;
}
template <class W>
FASTMINE_DEVICE std::int64_t column_of(const TilePlace& place, int group) {
  return place.column + TileProducts<W>::column_pack(group) * TileShape<W>::kVec;
}

/// The first n of a pack; `whole` where it is aligned and all of it is to be written.
template <class W, int N>
FASTMINE_DEVICE void put(const Pack<W, N>& pack, W* p, std::int64_t n, bool whole) {
  if (whole) {
    store_pack<W, N>(pack, p);
    return;
  }
  FASTMINE_UNROLL for (int i = 0; i < N; ++i) {
    if (i < n) {
      p[i] = pack.item[i];
    }
  }
}

/// A thread's squares, and once more transposed where they are mirrored.
template <class W>
FASTMINE_DEVICE void write_squares(const DistanceWork<W>& work, const TilePlace& place, bool mirrored,
                                   const TileProducts<W>& products) {
  constexpr int kVec = TileShape<W>::kVec;
  using VPack = Pack<W, kVec>;
  const std::int64_t n = work.rows.x.rows.n, m = work.rows.y.rows.n;
  const bool whole = m % kVec == 0 && reinterpret_cast<std::uintptr_t>(work.distance) % alignof(VPack) == 0;
  FASTMINE_UNROLL for (int gr = 0; gr < 2; ++gr) {
    FASTMINE_UNROLL for (int gc = 0; gc < 2; ++gc) {
      const std::int64_t i = row_of<W>(place, gr), j = column_of<W>(place, gc);
      FASTMINE_UNROLL for (int r = 0; r < kVec; ++r) {
        VPack pack;
        FASTMINE_UNROLL for (int c = 0; c < kVec; ++c) { pack.item[c] = products.sum[gr][r][gc][c]; }
        if (i + r < n && j < m) {
          put(pack, work.distance + (i + r) * m + j, m - j, whole);
        }
      }
      FASTMINE_UNROLL for (int c = 0; c < kVec; ++c) {
        VPack pack;
        FASTMINE_UNROLL for (int r = 0; r < kVec; ++r) { pack.item[r] = products.sum[gr][r][gc][c]; }
        if (mirrored && i < n && j + c < m) {
          put(pack, work.distance + (j + c) * n + i, n - i, whole);
        }
      }
    }
  }
}

/// The pairs of the warp's squares that `again` names, in the order of TileProducts::each, by direct difference.
template <class S>
FASTMINE_DEVICE void take_directly(const DistanceWork<Working<S>>& work, const TilePlace& place, bool mirrored,
                                   std::uint64_t again) {
  using W = Working<S>;
  constexpr int kVec = TileShape<W>::kVec;
  const std::int64_t n = work.rows.x.rows.n, m = work.rows.y.rows.n;
  warp_barrier();  // what follows writes over what other lanes wrote
  for (unsigned lanes = ballot(again != 0); lanes != 0; lanes &= lanes - 1) {
    const int source = lowest_bit(lanes);
    const std::int64_t row = from_lane(row_of<W>(place, 0), source);
    const std::int64_t column = from_lane(column_of<W>(place, 0), source);
    for (std::uint64_t pairs = from_lane(again, source); pairs != 0; pairs &= pairs - 1) {
      const int pair = lowest_bit(pairs), r = pair / (2 * kVec), c = pair % (2 * kVec);
      const std::int64_t i = row + r / kVec * 4 * kVec + r % kVec, j = column + c / kVec * 8 * kVec + c % kVec;
      const W value = static_cast<W>(direct_distance<S>(work.rows, i, j));
      if (thread_index() % kWarp == 0) {
        work.distance[i * m + j] = value;
        if (mirrored) {
          work.distance[j * n + i] = value;
        }
      }
    }
  }
}

/// One block: a tile of distances.
template <class S>
FASTMINE_KERNEL(TileShape<Working<S>>::kThreads, sizeof(Working<S>) == 8 ? 2 : 1)
fill_distances(FASTMINE_PARAMETER DistanceWork<Working<S>> work) {
  using W = Working<S>;
  using Shape = TileShape<W>;
  using VPack = Pack<W, Shape::kVec>;
  FASTMINE_SHARED(VPack, a, 2 * Shape::kStep * Shape::kPitch);
  FASTMINE_SHARED(VPack, b, 2 * Shape::kStep * Shape::kPitch);
  const TilePlace place = tile_place(work);
  TileProducts<W> products;
  multiply_tile(work.rows, place, a, b, products);

  const std::int64_t n = work.rows.x.rows.n, m = work.rows.y.rows.n;
  std::uint64_t again = 0;  // products that do not do
  int bit = 0;
  products.each([&](int gr, int r, int gc, int c) {
    const std::int64_t i = row_of<W>(place, gr) + r, j = column_of<W>(place, gc) + c;
    if (i < n && j < m) {
      const Distance<W> found = distance_of(work.rows, i, j, products.sum[gr][r][gc][c]);
      products.sum[gr][r][gc][c] = found.value;
      again |= std::uint64_t{found.close} << bit;
    }
    ++bit;
  });
  const bool mirrored = work.rows.one_set && place.row != place.column;
  write_squares(work, place, mirrored, products);
  take_directly<S>(work, place, mirrored, again);
}

}  // namespace fastmine::cuda
