#include "kernels/cuda/batch_all.h"
#include "kernels/cuda/batch_all_plan.cuh"

namespace fastmine::cuda {
namespace {

using namespace mining;

constexpr std::int64_t kMostWeighedRows = std::int64_t{1} << 29;

template <class W>
struct WavePlan {
  BatchAllBackward outer;
  Plan<W> rows;
  Workers workers;        // one for each anchor of a wave
  double* weights;        // [anchors of a wave, y.n]: the derivative of the loss by half the squared distance
  double* x_sums;         // [x.n, d]: what the rows gather, as anchors and as references
  double* y_sums;         // [y.n, d]
  std::int32_t* spoiled;  // [1]: whether some anchor sees a NaN
  const std::int32_t* wanted;
  std::int64_t first;  // the first anchor of the wave

  FASTMINE_HOST_DEVICE std::int64_t end() const {
    const std::int64_t n = outer.problem.x.n;
    return first + workers.count < n ? first + workers.count : n;
  }
};

template <class W>
WavePlan<W> lay_out_waves(const BatchAllBackward& outer, Arena& arena) {
  const BatchAll& q = outer.problem;
  WavePlan<W> p{};
  p.outer = outer;
  p.rows = lay_out_labelled<W>(q, q.self_index, arena);
  p.rows.way = Way::directly;
  p.workers = lay_out_workers(arena, q.x.n, q.y.n);
  p.weights = arena.take<double>(p.workers.count * q.y.n);
  p.x_sums = arena.take<double>(q.x.n * q.x.d);
  p.y_sums = arena.take<double>(q.y.n * q.x.d);
  p.spoiled = arena.take<std::int32_t>(1);
  return p;
}

/// One block: whether some anchor sees a NaN.
template <class W>
FASTMINE_KERNEL(kThreads, 2)
find_spoiled(FASTMINE_PARAMETER WavePlan<W> p) {
  if (thread_index() == 0) {
    *p.spoiled = 0;
  }
  barrier();
  for (std::int64_t i = thread_index(); i < p.outer.problem.x.n; i += kThreads) {
    if (p.outer.weight[i] != p.outer.weight[i]) {
      atomic_maximum(p.spoiled, 1);
    }
  }
}

/// From the derivative by closeness to that by half the squared distance (by the similarity, for dot).
FASTMINE_DEVICE double weight_of_closeness(double slope, double closeness, Metric metric) {
  switch (metric) {
    case Metric::euclidean:
      return closeness == 0 ? 0 : slope / closeness;
    case Metric::sqeuclidean:
      return 2 * slope;
    case Metric::dot:
      return -slope;
    default:
      return slope;
  }
}

/// One block: the weights of the pairs of an anchor of the wave.
template <class S>
FASTMINE_KERNEL(kThreads, 2)
weigh_triplets(FASTMINE_PARAMETER WavePlan<Working<S>> p) {
  FASTMINE_SHARED(std::int32_t, rows, kThreads);
  FASTMINE_SHARED(double, keys, kThreads);
  FASTMINE_SHARED(std::int32_t, counts, kWarps);
  FASTMINE_SHARED(std::int32_t, places, kThreads);
  FASTMINE_SHARED(std::int32_t, open, 1);
  FASTMINE_SHARED(std::int32_t, found, 1);
  FASTMINE_SHARED(std::uint64_t, sums, kThreads);
  const BatchAll& q = p.outer.problem;
  const std::int64_t i = p.first + block_index(), references = q.y.n;
  double* const weights = p.weights + block_index() * references;
  for (std::int64_t j = thread_index(); j < references; j += kThreads) {
    weights[j] = 0;
  }
  if (!q.use[i]) {
    return;
  }
  const RankMemory at{rows, keys, counts, places, open};
  std::uint64_t* const changes = p.workers.changes + block_index() * (p.workers.references + 1);
  const Ranked anchor = find_positives<S>(p.rows, p.workers, block_index(), i, found, at);
  const double weight = p.outer.weight[i], part = 1 - q.leak;
  std::int32_t negatives = 0;
  each_negative<S>(p.rows, q, anchor, at, [&](std::int32_t row, double closeness) {
    const auto rank = static_cast<double>(rank_negative(q, anchor, changes, closeness));
    const double slope = -weight * (part * rank + q.leak * static_cast<double>(anchor.count));
    weights[row] = weight_of_closeness(slope, closeness, q.metric);
    ++negatives;
  });
  sums[thread_index()] = static_cast<std::uint64_t>(negatives);
  barrier();
  double all = 0;
  for (int thread = 0; thread < kThreads; ++thread) {
    all += static_cast<double>(sums[thread]);
  }
  barrier();
  each_positive(anchor, changes, sums, [&](std::int64_t k, std::int64_t below) {
    const Near& near = anchor.positives[k];
    const double slope = weight * (part * static_cast<double>(below) + q.leak * all);
    weights[near.row] = weight_of_closeness(slope, near.closeness, q.metric);
  });
}

/// Elements of a row that a block gathers.
constexpr int kLaneElements = 4, kWaveChunk = kLaneElements * kWarp;

/// One block: kWaveChunk elements of what an anchor of the wave gathers from its pairs or, for references, of what a
/// reference gathers from the anchors of the wave; each warp has every kWarps-th of them.
template <class S, bool kAnchors>
FASTMINE_KERNEL(kThreads, 2)
gather_wave(FASTMINE_PARAMETER WavePlan<Working<S>> p) {
  FASTMINE_SHARED(double, shared, kWarps* kWaveChunk);
  const BatchAll& q = p.outer.problem;
  const std::int64_t d = q.x.d, chunks = divide_up(d, kWaveChunk), line = block_index() / chunks;
  const std::int64_t from = block_index() % chunks * kWaveChunk, row = kAnchors ? p.first + line : line;
  const RowSet &set = kAnchors ? p.rows.x : p.rows.y, &across = kAnchors ? p.rows.y : p.rows.x;
  const bool cosine = q.metric == Metric::cosine, dot = q.metric == Metric::dot;
  const auto norm = [cosine](const RowSet& of, std::int64_t i) { return cosine && of.norm[i] != 0 ? of.norm[i] : 1; };
  double own[kLaneElements], sum[kLaneElements];
  FASTMINE_UNROLL for (int e = 0; e < kLaneElements; ++e) {
    const std::int64_t k = from + lane_index() + e * kWarp;
    own[e] = k < d && takes_part(set, row) ? value_of<double>(row_of<S>(set.rows, row)[k]) / norm(set, row) : 0;
    sum[e] = 0;
  }
  const std::int64_t others = kAnchors ? q.y.n : p.end() - p.first;
  for (std::int64_t other = warp_index(); other < others; other += kWarps) {
    const double w = kAnchors ? p.weights[line * q.y.n + other] : p.weights[other * q.y.n + row];
    if (w == 0) {
      continue;
    }
    const std::int64_t j = kAnchors ? other : p.first + other;
    const S* const y = row_of<S>(across.rows, j);
    const double other_norm = norm(across, j);
    FASTMINE_UNROLL for (int e = 0; e < kLaneElements; ++e) {
      const std::int64_t k = from + lane_index() + e * kWarp;
      if (k < d) {
        const double value = value_of<double>(y[k]) / other_norm;
        sum[e] += w * (dot ? value : own[e] - value);
      }
    }
  }
  FASTMINE_UNROLL for (int e = 0; e < kLaneElements; ++e) {
    shared[warp_index() * kWaveChunk + e * kWarp + lane_index()] = sum[e];
  }
  barrier();
  double* const sums = (kAnchors ? p.x_sums : p.y_sums) + row * d;
  for (std::int64_t k = thread_index(); k < kWaveChunk && from + k < d; k += kThreads) {
    double total = kAnchors || p.first == 0 ? 0 : sums[from + k];
    for (int warp = 0; warp < kWarps; ++warp) {
      total += shared[warp * kWaveChunk + k];
    }
    sums[from + k] = total;
  }
}

/// One warp: the gradient of a row of x or, after all of them, of y, from what it gathered; of cosine the part along
/// the row is taken off.
template <class S>
FASTMINE_KERNEL(kThreads, 2)
write_triplets(FASTMINE_PARAMETER WavePlan<Working<S>> p) {
  const BatchAll& q = p.outer.problem;
  const std::int64_t task = block_index() * kWarps + warp_index(), d = q.x.d;
  const bool anchor = task < q.x.n;
  const std::int64_t i = anchor ? task : task - q.x.n;
  if ((p.wanted != nullptr && *p.wanted == 0) || (!anchor && (q.self || i >= q.y.n))) {
    return;
  }
  const RowSet& set = anchor ? p.rows.x : p.rows.y;
  const S* const x = row_of<S>(set.rows, i);
  S* const out = static_cast<S*>(anchor ? p.outer.grad_x : p.outer.grad_y) + i * d;
  const bool seen = *p.spoiled != 0 && takes_part(set, i), there = takes_part(set, i) && !poisoned(set, i);
  const bool nan = anchor && !q.self ? p.outer.weight[i] != p.outer.weight[i] : seen;
  const bool cosine = q.metric == Metric::cosine;
  const double norm = cosine ? set.norm[i] : 1, scale = norm == 0 ? 0 : 1 / norm;
  const auto gathered = [&](std::int64_t k) {
    return (anchor ? p.x_sums[i * d + k] : 0) + (q.self || !anchor ? p.y_sums[i * d + k] : 0);
  };
  double along = 0;
  for (std::int64_t k = lane_index(); cosine && there && k < d; k += kWarp) {
    along += gathered(k) * (value_of<double>(x[k]) * scale);
  }
  along = add_lanes(along);
  for (std::int64_t k = lane_index(); k < d; k += kWarp) {
    double gradient = nan ? static_cast<double>(__builtin_nan("")) : there ? gathered(k) : 0;
    if (cosine && there) {
      gradient = (gradient - along * (value_of<double>(x[k]) * scale)) * scale;
    }
    assign(out[k], static_cast<Working<S>>(gradient));
  }
}

template <class S>
cudaError_t run_waves(const BatchAllBackward& outer, const std::int32_t* wanted, void* workspace, cudaStream_t stream) {
  using W = Working<S>;
  const BatchAll& q = outer.problem;
  Arena arena(workspace);
  WavePlan<W> p = lay_out_waves<W>(outer, arena);
  p.wanted = wanted;
  const std::int64_t chunks = divide_up(q.x.d, kWaveChunk), wave = p.workers.count > 0 ? p.workers.count : 1;
  Launches launches(stream);
  label_rows<S>(launches, p.rows);
  launches(&find_spoiled<W>, 1, kThreads, p);
  for (p.first = 0; p.first == 0 || p.first < q.x.n; p.first += wave) {  // the first says what the rest adds to
    const std::int64_t anchors = p.end() - p.first;
    launches(&weigh_triplets<S>, anchors, kThreads, p);
    launches(&gather_wave<S, true>, anchors * chunks, kThreads, p);
    launches(&gather_wave<S, false>, q.y.n * chunks, kThreads, p);
  }
  launches(&write_triplets<S>, divide_up(q.x.n + (q.self ? 0 : q.y.n), kWarps), kThreads, p);
  return launches.status();
}

}  // namespace

std::size_t batch_all_backward_workspace(const BatchAllBackward& q) noexcept {
  Arena arena(nullptr);
  if (q.problem.x.dtype == DType::float64) {
    lay_out_waves<double>(q, arena);
  } else {
    lay_out_waves<float>(q, arena);
  }
  return arena.used();
}

cudaError_t batch_all_backward(const BatchAllBackward& q, const std::int32_t* wanted, void* workspace,
                               cudaStream_t stream) noexcept {
  if (q.problem.x.n > kMostWeighedRows || q.problem.y.n > kMostWeighedRows) {
    return cudaErrorInvalidValue;
  }
  switch (q.problem.x.dtype) {
    case DType::float32:
      return run_waves<float>(q, wanted, workspace, stream);
    case DType::float64:
      return run_waves<double>(q, wanted, workspace, stream);
    case DType::bfloat16:
      return run_waves<BFloat16>(q, wanted, workspace, stream);
    case DType::float16:
      return run_waves<Half>(q, wanted, workspace, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace fastmine::cuda
