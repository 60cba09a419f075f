// From weights of pairs to the gradient of rows: the weights that a block of row_block.cuh holds, times the rows
// across, in register tiles, as in cpu/gradient_rows.h.
//
// With w the derivative of the loss by half the squared distance of a pair, row x gathers the sum of w (x - y), which
// of centred rows is (sum of w) x - sum of w y; but pairs that are too close for that pull by their differences. For
// dot, w is the derivative by the similarity, and x gathers w y.
#pragma once

#include "kernels/cuda/row_block.cuh"

namespace fastmine::cuda::mining {

/// What the own rows of one side gather, chunk by chunk.
struct Gathering {
  TileCut cut;
  std::int64_t positions, d;
  double* sums;  // [chunks, positions, d]: of w y over all pairs but the close ones, minus that of w (x - y) over these
  double* totals;  // [chunks kShare, positions]: the sum of w over the others
};

/// So many chunks that the sums of all stay within 64 MiB, or one.
template <class W>
Gathering lay_out_gathering(Arena& arena, std::int64_t n, std::int64_t across, std::int64_t d) {
  constexpr std::int64_t kMost = std::int64_t{64} << 20;
  const std::int64_t bytes = n * d * static_cast<std::int64_t>(sizeof(double)), chunks = bytes > 0 ? kMost / bytes : 1;
  Gathering g{};
  g.cut = cut_tiles<W>(n, across, chunks > 1 ? chunks : 1);
  g.positions = n;
  g.d = d;
  g.sums = arena.take<double>(g.cut.chunks() * n * d);
  g.totals = arena.take<double>(g.cut.chunks() * BlockShape<W>::kShare * n);
  return g;
}

/// The memory of a block: what each_block wants, and two steps of rows across.
template <class W>
struct GatherBlock {
  using Tile = Full<W>;
  using Shape = BlockShape<W>;
  static constexpr int kStep = 8, kSteps = Shape::kAcross / kStep, kStepVectors = kStep * Shape::kOwn / Tile::kPack;
  static constexpr int kSharedVectors = Shape::kVectors + 2 * kStepVectors > Shape::kSharedVectors
                                            ? Shape::kVectors + 2 * kStepVectors
                                            : Shape::kSharedVectors;
  static_assert(kSteps % 2 == 0);  // so that the next product's first step does not lie where this one's last does

  /// Start to copy kStep rows across, from `element` on; past the end are zeros.
  FASTMINE_DEVICE static void fetch(const W* rows, std::int64_t depth, int step, std::int64_t element, W* to) {
    constexpr int kRow = Shape::kOwn / Tile::kPack;
    for (int at = thread_index(); at < kStepVectors; at += kThreads) {
      const int q = step * kStep + at / kRow;
      const std::int64_t from = element + at % kRow * Tile::kPack;
      W* const place = to + at * Tile::kPack;
      if (from < depth) {
        start_copy<16>(place, rows + Shape::position(q) * depth + from);
      } else {
        FASTMINE_UNROLL for (int v = 0; v < Tile::kPack; ++v) { place[v] = 0; }
      }
    }
  }
};

/// sums[k] -= w (x[i] - y[j])[k] by a warp, from the rows as they were given: pairs are close of Euclidean distances
/// alone, whose weights grow without limit.
template <class S>
FASTMINE_DEVICE void pull_pair(const RowSet& x, std::int64_t i, const RowSet& y, std::int64_t j, double w,
                               double* sums) {
  const S* const a = row_of<S>(x.rows, i);
  const S* const b = row_of<S>(y.rows, j);
  for (std::int64_t k = lane_index(); k < x.rows.d; k += kWarp) {
    sums[k] -= w * (value_of<double>(a[k]) - value_of<double>(b[k]));
  }
}

/// The same where the type of the rows is known only when the kernel runs, but for that of the products.
template <class W>
FASTMINE_DEVICE void pull_pair_of(const RowSet& x, std::int64_t i, const RowSet& y, std::int64_t j, double w,
                                  double* sums) {
  if constexpr (sizeof(W) == 8) {
    pull_pair<double>(x, i, y, j, w, sums);
  } else {
    switch (x.rows.dtype) {
      case DType::bfloat16:
        return pull_pair<BFloat16>(x, i, y, j, w, sums);
      case DType::float16:
        return pull_pair<Half>(x, i, y, j, w, sums);
      default:
        return pull_pair<float>(x, i, y, j, w, sums);
    }
  }
}

/// sums[r, k] -= w (x[r] - y[q]) for the pairs of a block whose bits are set in close[r]; their weights in the block
/// become 0. A warp takes the rows of which its threads have products.
template <class W>
FASTMINE_DEVICE void pull_close(const Side<W>& own, std::int32_t row, const Side<W>& across, std::int32_t first,
                                const std::uint64_t* close, W* block, double* sums) {
  using Tile = Full<W>;
  using Shape = BlockShape<W>;
  constexpr int kRows = kWarp / Tile::kAcross * Tile::kEach;
  for (int at = 0; at < kRows * Shape::kShare; ++at) {
    const int of_warp = at / Shape::kShare;
    const int r = Tile::line(warp_index() * (kWarp / Tile::kAcross) + of_warp / Tile::kEach, of_warp % Tile::kEach);
    const int share = at % Shape::kShare;
    for (std::uint64_t bits = close[share * Shape::kOwn + r]; bits != 0; bits &= bits - 1) {
      const int q = share + lowest_bit(bits) * Shape::kShare;
      const auto w = static_cast<double>(block[q * Shape::kPitch + r]);
      pull_pair_of<W>(own.rows, own.rows.sorted[row + r].row, across.rows,
                      across.rows.sorted[first + Shape::position(q)].row, w, sums + r * own.rows.rows.d);
    }
  }
}

/// Add to the sums of a tile what the weights in a block make of the rows across: of w y.
template <class W>
FASTMINE_DEVICE void add_products(const Plan<W>& m, const Side<W>& own, std::int32_t row, const Side<W>& across,
                                  std::int32_t first, typename Full<W>::Vector* shared, double* sums) {
  using Tile = Full<W>;
  using Shape = BlockShape<W>;
  using Step = GatherBlock<W>;
  const W* const block = &shared[0].item[0];
  W* const steps = &shared[Shape::kVectors].item[0];
  const W* const rows = across.packed.data + first * m.depth;
  const std::int64_t d = own.rows.rows.d;
  for (std::int64_t element = 0; element < d; element += Shape::kOwn) {
    W sum[Tile::kEach][Tile::kEach];
    FASTMINE_UNROLL for (int r = 0; r < Tile::kEach; ++r) {
      FASTMINE_UNROLL for (int c = 0; c < Tile::kEach; ++c) { sum[r][c] = 0; }
    }
    Step::fetch(rows, m.depth, 0, element, steps);
    FASTMINE_ROLL for (int step = 0; step < Step::kSteps; ++step) {
      W* const now = steps + step % 2 * Step::kStep * Shape::kOwn;
      wait_for_copies();
      barrier();  // this step is there, and the one before it is no longer read
      if (step + 1 < Step::kSteps) {
        Step::fetch(rows, m.depth, step + 1, element, steps + (step + 1) % 2 * Step::kStep * Shape::kOwn);
      }
      FASTMINE_UNROLL for (int q = 0; q < Step::kStep; ++q) {
        W weights[Tile::kEach], elements[Tile::kEach];
        Tile::take(block + (step * Step::kStep + q) * Shape::kPitch, thread_index() / Tile::kAcross, weights);
        Tile::take(now + q * Shape::kOwn, thread_index() % Tile::kAcross, elements);
        FASTMINE_UNROLL for (int r = 0; r < Tile::kEach; ++r) {
          FASTMINE_UNROLL for (int c = 0; c < Tile::kEach; ++c) { sum[r][c] += weights[r] * elements[c]; }
        }
      }
    }
    const std::int32_t rows_left = own.count - row - Tile::row(0);
    const std::int32_t elements_left = static_cast<std::int32_t>(d - element) - Tile::column(0);
    double* const corner = sums + Tile::row(0) * d + element + Tile::column(0);
    FASTMINE_UNROLL for (int r = 0; r < Tile::kEach; ++r) {
      double* const line = corner + Tile::step(r) * d;
      FASTMINE_UNROLL for (int c = 0; c < Tile::kEach; ++c) {
        if (Tile::step(r) < rows_left && Tile::step(c) < elements_left) {
          line[Tile::step(c)] += static_cast<double>(sum[r][c]);
        }
      }
    }
  }
}

/// weigh(first, q, distance, close) = the weight of the own row of this thread with row q of the half tile across that
/// begins at `first`; it says whether the pair is close. All blocks of one side: for each, weigh all pairs and gather.
template <class W, class F>
FASTMINE_DEVICE void gather_tiles(const Plan<W>& m, const Gathering& g, const Side<W>& own, const Side<W>& across,
                                  typename Full<W>::Vector* shared, std::uint64_t* close, F weigh) {
  using Shape = BlockShape<W>;
  const TileRange range = tile_range(g.cut, Shape::kOwn);
  if (range.row >= own.count) {
    return;
  }
  const std::int32_t position = range.row + Shape::own();
  double* const sums = g.sums + (range.chunk * g.positions + range.row) * g.d;
  const std::int64_t rest = own.count - range.row, rows = rest < Shape::kOwn ? rest : Shape::kOwn;
  for (std::int64_t at = thread_index(); at < rows * g.d; at += kThreads) {
    sums[at] = 0;
  }
  double total = 0;
  for (std::int32_t tile = range.begin; tile < range.end && tile * Shape::kOwn < across.count; ++tile) {
    each_block(m, own, range.row, across, tile * Shape::kOwn, shared, [&](std::int32_t first, W* block) {
      W apart = 0;
      std::uint64_t bits = 0;
      FASTMINE_ROLL for (int q = Shape::first(), bit = 0; q < Shape::kAcross; q += Shape::kShare, ++bit) {
        W& place = block[q * Shape::kPitch + Shape::own()];
        const std::int32_t other = first + Shape::position(q);
        bool pulls = false;
        const W weight = position < own.count && other < across.count ? weigh(position, other, place, pulls) : W{0};
        place = weight;
        apart += pulls ? W{0} : weight;
        bits |= std::uint64_t{pulls && weight != 0} << bit;
      }
      total += static_cast<double>(apart);
      close[Shape::first() * Shape::kOwn + Shape::own()] = bits;
      barrier();
      pull_close(own, range.row, across, first, close, block, sums);
      barrier();
      for (int bit = 0; bits != 0; ++bit, bits >>= 1) {
        if ((bits & 1) != 0) {
          block[(Shape::first() + bit * Shape::kShare) * Shape::kPitch + Shape::own()] = 0;
        }
      }
      add_products(m, own, range.row, across, first, shared, sums);
    });
  }
  if (position < own.count) {
    g.totals[(range.chunk * Shape::kShare + Shape::first()) * g.positions + position] = total;
  }
}

/// One warp: the gradient of the row at place `place` of a sorted side, from what it gathered: of cosine the part along
/// the row is taken off. 0 for a row that takes no part; NaN for one that `spoiled` says has a pair at distance NaN.
template <class S>
FASTMINE_DEVICE void write_gradient(const Plan<Working<S>>& m, const Gathering& g, const RowSet& set,
                                    std::int64_t place, bool spoiled, void* out_rows) {
  const Tagged item = set.sorted[place];
  const std::int64_t i = item.row, d = g.d;
  const S* const x = row_of<S>(set.rows, i);
  S* const out = static_cast<S*>(out_rows) + i * d;
  const bool cosine = set.metric == Metric::cosine, skipped = item.group == kSkippedRows;
  if (skipped || spoiled || item.group == kPoisonedRows) {
    const double value = spoiled && !skipped ? static_cast<double>(__builtin_nan("")) : 0;
    for (std::int64_t k = lane_index(); k < d; k += kWarp) {
      assign(out[k], static_cast<Working<S>>(value));
    }
    return;
  }
  const double scale = !cosine ? 1 : set.norm[i] == 0 ? 0 : 1 / set.norm[i];
  double total = 0;
  for (std::int64_t slot = 0; slot < g.cut.chunks() * BlockShape<Working<S>>::kShare; ++slot) {
    total += g.totals[slot * g.positions + place];
  }
  const auto gathered = [&](std::int64_t k) {
    double sum = 0;
    for (std::int64_t chunk = 0; chunk < g.cut.chunks(); ++chunk) {
      sum += g.sums[(chunk * g.positions + place) * d + k];
    }
    return set.metric == Metric::dot ? sum : total * (value_of<double>(x[k]) * scale - m.centre[k]) - sum;
  };
  double along = 0;
  for (std::int64_t k = lane_index(); cosine && k < d; k += kWarp) {
    along += gathered(k) * (value_of<double>(x[k]) * scale);
  }
  along = cosine ? add_lanes(along) : 0;
  for (std::int64_t k = lane_index(); k < d; k += kWarp) {
    double gradient = gathered(k);
    if (cosine) {
      gradient = (gradient - along * (value_of<double>(x[k]) * scale)) * scale;
    }
    assign(out[k], static_cast<Working<S>>(gradient));
  }
}

}  // namespace fastmine::cuda::mining
