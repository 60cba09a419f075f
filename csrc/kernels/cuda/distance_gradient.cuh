// From the gradient of all distances to that of the rows. With w the derivative of the loss by half the squared
// distance of a pair, row x gathers the sum of w (x - y), which of centred rows is (sum of w) x - sum of w y. For dot,
// w is the derivative by the similarity, and x gathers w y.
#pragma once

#include "kernels/cuda/distance_tile.cuh"

namespace fastmine::cuda {

/// A block gathers kOwn rows x kElements: 8 warps, 4 down and 2 across; in a warp 2 lanes down and 16 across, each with
/// 4 x 4 sums.
struct GatherShape {
  static constexpr int kThreads = 256, kOwn = 32, kElements = 128, kStep = 8, kSquare = 4;
  static constexpr int kTerms = 128;  // summed in the working type before float64 takes over
};

/// One side of the problem: its own rows, those across, and what it gathers.
template <class W>
struct GatherWork {
  RowSet<W> own, other;
  Metric metric;
  bool one_set;     // own and other are the same rows, and gather both sides
  bool transposed;  // the own rows are the columns of grad
  const W* grad;
  const W* distance;
  std::int64_t columns;  // of both
  const double* centre;
  double* sums;    // [own rows, d]: the sum of w (x - y) over the close pairs, minus that of w y over the others
  double* totals;  // [own rows]: the sum of w over the others
  void* out;

  FASTMINE_HOST_DEVICE std::int64_t panels() const {
    const std::int64_t panels = (own.rows.d + GatherShape::kElements - 1) / GatherShape::kElements;
    return panels > 1 ? panels : 1;
  }
};

/// The weight of a pair, and the same where it is so close that it pulls by its difference.
template <class W>
struct Weight {
  W apart = 0, close = 0;
};

/// Of own row i with row j across, as `transposed` says.
template <class W>
FASTMINE_DEVICE Weight<W> weight_of(const GatherWork<W>& work, std::int64_t i, std::int64_t j, bool transposed) {
  constexpr W kTiny = sizeof(W) == 8 ? static_cast<W>(0x1p-900) : static_cast<W>(0x1p-100);  // squares that lost digits
  const std::int64_t at = transposed ? j * work.columns + i : i * work.columns + j;
  const W grad = work.grad[at];
  if (work.metric == Metric::dot) {
    return {grad, 0};
  }
  const W distance = work.distance[at];
  W weight = grad, key = 2 * distance;
  if (work.metric == Metric::euclidean) {
    weight = distance == 0 ? W{0} : grad / distance;
    key = distance * distance;
  } else if (work.metric == Metric::sqeuclidean) {
    weight = 2 * grad;
    key = distance;
  }
  if (!(key < (work.own.squared[i] + work.other.squared[j]) * kClose<W> + kTiny)) {
    return {weight, 0};
  }
  // Of cosine, a zero vector has no direction to turn, and to itself a row stays at distance 0.
  const bool fixed =
      work.metric == Metric::cosine && ((work.one_set && i == j) || work.own.norm[i] == 0 || work.other.norm[j] == 0);
  return {0, fixed ? W{0} : weight};
}

/// The weights of some own rows with the next rows across, one for each thread, on their way to shared memory.
template <class W>
struct WeightLoad {
  using Shape = GatherShape;
  static_assert(Shape::kOwn * Shape::kStep == Shape::kThreads);

  int own, step;  // which of them; neighbouring threads read neighbours
  Weight<W> weight;

  FASTMINE_DEVICE explicit WeightLoad(bool transposed)
      : own(transposed ? thread_index() % Shape::kOwn : thread_index() / Shape::kStep),
        step(transposed ? thread_index() / Shape::kOwn : thread_index() % Shape::kStep) {}

  FASTMINE_DEVICE void fetch(const GatherWork<W>& work, std::int64_t first, std::int64_t begin) {
    const std::int64_t i = first + own, j = begin + step;
    weight = {};
    if (i < work.own.rows.n && j < work.other.rows.n) {
      weight = weight_of(work, i, j, work.transposed);
      if (work.one_set) {
        const Weight<W> turned = weight_of(work, i, j, true);
        weight.apart += turned.apart;
        weight.close += turned.close;
      }
    }
  }
};

/// What one step needs in shared memory.
template <class W>
struct GatherStep {
  Pack<W, 4> elements[GatherShape::kStep][GatherShape::kElements / 4];
  Pack<W, 4> apart[GatherShape::kStep][GatherShape::kOwn / 4];
  W close[GatherShape::kStep][GatherShape::kOwn];
  std::uint8_t any_close[GatherShape::kOwn][GatherShape::kStep];
};

/// One block: what some own rows gather of some elements.
template <class S>
FASTMINE_KERNEL(GatherShape::kThreads, sizeof(Working<S>) == 8 ? 1 : 2)
gather_pairs(FASTMINE_PARAMETER GatherWork<Working<S>> work) {
  using W = Working<S>;
  using Shape = GatherShape;
  using Step = GatherStep<W>;
  constexpr int kSquare = Shape::kSquare;
  FASTMINE_SHARED(Step, steps, 2);
  FASTMINE_SHARED(double, totals, Shape::kThreads);
  const std::int64_t panels = work.panels(), d = work.own.rows.d;
  const std::int64_t first = block_index() / panels * Shape::kOwn, from = block_index() % panels * Shape::kElements;
  const int lane = thread_index() % kWarp, warp = thread_index() / kWarp;
  const int down = warp / 2 * 2 + lane / 16, across = warp % 2 * 16 + lane % 16;  // this thread's square
  // Which pack of the rows across this thread brings.
  const int row_in_step = thread_index() / 32, pack_in_row = thread_index() % 32;
  const std::int64_t element = from + pack_in_row * 4;

  WeightLoad<W> weights(work.transposed);
  Pack<W, 4> pack{};
  const auto fetch = [&](std::int64_t begin) {
    weights.fetch(work, first, begin);
    const std::int64_t j = begin + row_in_step;
    pack = {};
    if (j < work.other.rows.n && element < work.other.width) {
      pack = load_pack<W, 4>(work.other.centred + j * work.other.width + element);
    }
  };
  const auto put = [&](Step& step) {
    step.elements[row_in_step][pack_in_row] = pack;
    reinterpret_cast<W*>(step.apart[weights.step])[weights.own] = weights.weight.apart;
    step.close[weights.step][weights.own] = weights.weight.close;
    step.any_close[weights.own][weights.step] = weights.weight.close == 0 ? 0 : 1;
  };

  W partial[kSquare][kSquare] = {};
  double sum[kSquare][kSquare] = {}, total = 0;
  const double sign = work.metric == Metric::dot ? 1 : -1;
  const auto flush = [&] {
    FASTMINE_UNROLL for (int r = 0; r < kSquare; ++r) {
      FASTMINE_UNROLL for (int c = 0; c < kSquare; ++c) {
        sum[r][c] += sign * static_cast<double>(partial[r][c]);
        partial[r][c] = 0;
      }
    }
  };
  /// The close pairs of one step: w (x - y), from the rows as they were given.
  const auto pull = [&](const Step& step, std::int64_t begin) {
    FASTMINE_UNROLL for (int r = 0; r < kSquare; ++r) {
      const int own = down * kSquare + r;
      std::uint64_t any = 0;
      memcpy(&any, step.any_close[own], sizeof any);
      for (; any != 0; any &= any - 1) {
        const int k = lowest_bit(any) / 8;
        const std::int64_t i = first + own, j = begin + k;
        const double w = static_cast<double>(step.close[k][own]);
        const double own_scale = scale_of(work.own.norm[i]), other_scale = scale_of(work.other.norm[j]);
        FASTMINE_UNROLL for (int c = 0; c < kSquare; ++c) {
          const std::int64_t at = from + across * kSquare + c;
          if (at < d) {
            sum[r][c] += w * (value_of<double>(row<S>(work.own.rows, i)[at]) * own_scale -
                              value_of<double>(row<S>(work.other.rows, j)[at]) * other_scale);
          }
        }
      }
    }
  };

  const std::int64_t count = (work.other.rows.n + Shape::kStep - 1) / Shape::kStep;
  if (count > 0) {
    fetch(0);
    put(steps[0]);
  }
  for (std::int64_t s = 0; s < count; ++s) {
    barrier();
    total += static_cast<double>(weights.weight.apart);
    if (s + 1 < count) {
      fetch((s + 1) * Shape::kStep);
    }
    const Step& step = steps[s % 2];
    FASTMINE_UNROLL for (int k = 0; k < Shape::kStep; ++k) {
      const Pack<W, 4> a = step.apart[k][down], b = step.elements[k][across];
      FASTMINE_UNROLL for (int r = 0; r < kSquare; ++r) {
        FASTMINE_UNROLL for (int c = 0; c < kSquare; ++c) { partial[r][c] += a.item[r] * b.item[c]; }
      }
    }
    pull(step, s * Shape::kStep);
    if ((s + 1) % (Shape::kTerms / Shape::kStep) == 0) {
      flush();
    }
    if (s + 1 < count) {
      put(steps[(s + 1) % 2]);
    }
  }
  flush();

  totals[weights.own * Shape::kStep + weights.step] = total;
  barrier();
  if (thread_index() < Shape::kOwn && first + thread_index() < work.own.rows.n && from == 0) {
    double whole = 0;
    for (int k = 0; k < Shape::kStep; ++k) {
      whole += totals[thread_index() * Shape::kStep + k];
    }
    work.totals[first + thread_index()] = whole;
  }
  FASTMINE_UNROLL for (int r = 0; r < kSquare; ++r) {
    FASTMINE_UNROLL for (int c = 0; c < kSquare; ++c) {
      const std::int64_t i = first + down * kSquare + r, at = from + across * kSquare + c;
      if (i < work.own.rows.n && at < d) {
        work.sums[i * d + at] = sum[r][c];
      }
    }
  }
}

/// One block: the gradient of a few rows, a warp for each, from what they gathered; of cosine the part along the row is
/// taken off.
template <class S>
FASTMINE_KERNEL(kRowsThreads, 2)
write_gradient(FASTMINE_PARAMETER GatherWork<Working<S>> work) {
  const std::int64_t i = block_index() * kRowWarps + thread_index() / kWarp, d = work.own.rows.d;
  if (i >= work.own.rows.n) {
    return;
  }
  const S* const x = row<S>(work.own.rows, i);
  const double scale = scale_of(work.own.norm[i]), total = work.totals[i];
  const auto gathered = [&](std::int64_t k) {
    const double pulled = work.sums[i * d + k];
    return work.metric == Metric::dot ? pulled : pulled + total * (value_of<double>(x[k]) * scale - work.centre[k]);
  };
  double along[1] = {};
  if (work.metric == Metric::cosine) {
    for (std::int64_t k = thread_index() % kWarp; k < d; k += kWarp) {
      along[0] += gathered(k) * (value_of<double>(x[k]) * scale);
    }
    add_lanes(along);
  }
  S* const out = static_cast<S*>(work.out) + i * d;
  for (std::int64_t k = thread_index() % kWarp; k < d; k += kWarp) {
    double gradient = gathered(k);
    if (work.metric == Metric::cosine) {
      gradient = (gradient - along[0] * (value_of<double>(x[k]) * scale)) * scale;
    }
    assign(out[k], static_cast<Working<S>>(gradient));
  }
}

}  // namespace fastmine::cuda
