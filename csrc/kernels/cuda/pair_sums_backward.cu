#include "kernels/cuda/pair_curve.cuh"
#include "kernels/cuda/pair_gather.cuh"
#include "kernels/cuda/pair_sums.h"

namespace fastmine::cuda {
namespace {

using namespace mining;

constexpr std::int64_t kMostPulledRows = std::int64_t{1} << 29;

/// What an anchor's pairs need of it: by how much the loss changes with its sums. Where there was nothing to sum the
/// level is Inf, so that exp(curve - level) is 0.
template <class W>
struct AnchorSlopes {
  W by_positive;  // with the sum of distances
  W by_negative;
  W pull;            // with the log-sum-exp of the positives; times the scale of the curve
  W push;            // of the negatives, through nce too; times the scale of the curve
  W nce;             // times the scale of the curve
  W positive_level;  // the log-sum-exps
  W negative_level;
  W positive_bound, negative_bound;
};

template <class W>
struct SlopesPlan {
  PairSumsBackward problem;
  Plan<W> rows;
  Gathering of_x, of_y;     // with one set, the first alone
  AnchorSlopes<W>* slopes;  // [n], by position
};

template <class W>
SlopesPlan<W> lay_out_slopes(const PairSumsBackward& q, Arena& arena) {
  SlopesPlan<W> p{};
  p.problem = q;
  p.rows = lay_out_row_blocks<W>(q, nullptr, arena);
  p.of_x = lay_out_gathering<W>(arena, q.x.n, q.y.n, q.x.d);
  if (!q.self) {
    p.of_y = lay_out_gathering<W>(arena, q.y.n, q.x.n, q.x.d);
  }
  p.slopes = arena.take<AnchorSlopes<W>>(q.x.n);
  return p;
}

/// One thread: what the loss's slopes by the sums come to for an anchor.
template <class W>
FASTMINE_KERNEL(kThreads, 1)
order_slopes(FASTMINE_PARAMETER SlopesPlan<W> p) {
  const PairSumsBackward& q = p.problem;
  const std::int64_t position = block_index() * kThreads + thread_index();
  if (position >= p.rows.counts->finite_x) {
    return;
  }
  const std::int64_t i = p.rows.x.sorted[position].row, n = q.x.n;
  const auto grad = [&](PairSum row) { return q.grad[static_cast<std::int64_t>(row) * n + i]; };
  const auto sum = [&](PairSum row) { return q.sums[static_cast<std::int64_t>(row) * n + i]; };
  const double none = -static_cast<double>(__builtin_inf()), by = q.scale == nullptr ? 1 : *q.scale;
  const auto level = [&](PairSum row) { return static_cast<W>(sum(row) == none ? -none : sum(row)); };
  const bool curved = q.form != PairForm::sum, nce = q.form == PairForm::nce;
  const double through_nce = nce ? grad(PairSum::nce) * sum(PairSum::nce_slope) : 0;
  const bool negatives = sum(PairSum::negative_lse) != none;
  AnchorSlopes<W>& slopes = p.slopes[position];
  slopes.by_positive = static_cast<W>(grad(PairSum::positive_distance));
  slopes.by_negative = static_cast<W>(grad(PairSum::negative_distance));
  slopes.pull = static_cast<W>(curved ? grad(PairSum::positive_lse) * q.positive.scale * by : 0);
  slopes.push = static_cast<W>(curved ? (grad(PairSum::negative_lse) + through_nce) * q.negative.scale * by : 0);
  slopes.nce = static_cast<W>(nce && negatives ? grad(PairSum::nce) * q.positive.scale * by : 0);
  slopes.positive_level = level(PairSum::positive_lse);
  slopes.negative_level = level(PairSum::negative_lse);
  slopes.positive_bound = bound_of<W>(q.positive_bound, true, q.metric, i);
  slopes.negative_bound = bound_of<W>(q.negative_bound, false, q.metric, i);
}

/// How the loss changes with the distance v of a pair, through the sums of one of its ends.
template <class W>
FASTMINE_DEVICE W slope_of(const PairSumsBackward& q, const Curve<W>& curve, const AnchorSlopes<W>& anchor,
                           bool positive, W v) {
  if (!admits(positive ? anchor.positive_bound : anchor.negative_bound, positive, q.metric, v)) {
    return 0;
  }
  W slope = positive ? anchor.by_positive : anchor.by_negative;
  if (q.form != PairForm::sum) {
    const W t = curve(v), level = positive ? anchor.positive_level : anchor.negative_level;
    W curved = (positive ? anchor.pull : anchor.push) * exponential(t - level);
    if (positive && q.form == PairForm::nce) {
      const W excess = anchor.negative_level - t, e = exponential(excess < 0 ? excess : -excess);
      curved -= anchor.nce * (excess < 0 ? e : W{1}) * reciprocal(1 + e);
    }
    slope += curved * curve.weight(v);
  }
  return slope;
}

/// From derivatives by distances to derivatives by half the squared distances (by the similarity, for dot).
template <class W>
FASTMINE_DEVICE W weight_of(W derivative, W distance, Metric metric) {
  switch (metric) {
    case Metric::euclidean:
      return distance == 0 ? W{0} : derivative / distance;
    case Metric::sqeuclidean:
      return 2 * derivative;
    default:
      return derivative;
  }
}

/// The weight of the pair of own position i and position j across. Both may be anchors, which is so with one set; else
/// those are own, or across.
template <class W>
FASTMINE_DEVICE W weigh_pair(const SlopesPlan<W>& p, bool anchors_own, std::int32_t i, std::int32_t j, W v) {
  const PairSumsBackward& q = p.problem;
  const std::int32_t anchor = anchors_own ? i : j, reference = anchors_own ? j : i;
  const bool positive = reference >= p.rows.same_begin[anchor] && reference < p.rows.same_end[anchor];
  if (reference == p.rows.own[anchor]) {
    return 0;
  }
  const Curve<W> curve(positive ? q.positive : q.negative, q.scale, q.form);
  W slope = slope_of(q, curve, p.slopes[anchor], positive, v);
  if (q.self) {
    slope += slope_of(q, curve, p.slopes[reference], positive, v);
  }
  return weight_of(slope, v, q.metric);
}

/// One block: a tile of rows with a chunk of those across. Euclidean weights grow without limit where rows are close.
template <class W, bool kAnchors>
FASTMINE_KERNEL(kThreads, 1)
gather_slopes(FASTMINE_PARAMETER SlopesPlan<W> p) {
  using Vector = typename Full<W>::Vector;
  FASTMINE_SHARED(Vector, shared, GatherBlock<W>::kSharedVectors);
  FASTMINE_SHARED(std::uint64_t, close, BlockShape<W>::kShare* BlockShape<W>::kOwn);
  const Side<W> own = kAnchors ? anchors_of(p.rows) : references_of(p.rows);
  const Side<W> across = kAnchors ? references_of(p.rows) : anchors_of(p.rows);
  gather_tiles(p.rows, kAnchors ? p.of_x : p.of_y, own, across, shared, close,
               [&](std::int32_t i, std::int32_t j, W v, bool& pulls) {
                 pulls = p.problem.metric == Metric::euclidean &&
                         v * v < (own.packed.c[i] + across.packed.c[j]) * kCloseShare<W>;
                 return weigh_pair(p, kAnchors, i, j, v);
               });
}

/// One warp: the gradient of a row of x or, after all of them, of y. A row has a pair at distance NaN if it is poisoned
/// itself and not alone, or if somebody across is.
template <class S>
FASTMINE_KERNEL(kThreads, 1)
write_slopes(FASTMINE_PARAMETER SlopesPlan<Working<S>> p) {
  const PairSumsBackward& q = p.problem;
  const Counts& counts = *p.rows.counts;
  const std::int64_t task = block_index() * kWarps + warp_index();
  const bool anchor = task < q.x.n;
  const std::int64_t place = anchor ? task : task - q.x.n;
  if (!anchor && (q.self || place >= q.y.n)) {
    return;
  }
  const RowSet& set = anchor ? p.rows.x : p.rows.y;
  const int finite = anchor ? counts.finite_y : counts.finite_x;
  const int poisoned = anchor ? counts.poisoned_y : counts.poisoned_x;
  const bool bad = set.sorted[place].group == kPoisonedRows;
  const bool spoiled = bad ? finite + poisoned > (q.self ? 1 : 0) : poisoned > 0;
  write_gradient<S>(p.rows, anchor ? p.of_x : p.of_y, set, place, spoiled, anchor ? q.grad_x : q.grad_y);
}

template <class S>
cudaError_t run_slopes(const PairSumsBackward& q, void* workspace, cudaStream_t stream) {
  using W = Working<S>;
  Arena arena(workspace);
  const SlopesPlan<W> p = lay_out_slopes<W>(q, arena);
  Launches launches(stream);
  group_rows<S>(launches, p.rows);
  launches(&order_slopes<W>, divide_up(q.x.n, kThreads), kThreads, p);
  launches(&gather_slopes<W, true>, p.of_x.cut.blocks(), kThreads, p);
  if (!q.self) {
    launches(&gather_slopes<W, false>, p.of_y.cut.blocks(), kThreads, p);
  }
  launches(&write_slopes<S>, divide_up(q.x.n + (q.self ? 0 : q.y.n), kWarps), kThreads, p);
  return launches.status();
}

}  // namespace

std::size_t pair_sums_backward_workspace(const PairSumsBackward& q) noexcept {
  Arena arena(nullptr);
  if (q.x.dtype == DType::float64) {
    lay_out_slopes<double>(q, arena);
  } else {
    lay_out_slopes<float>(q, arena);
  }
  return arena.used();
}

cudaError_t pair_sums_backward(const PairSumsBackward& q, void* workspace, cudaStream_t stream) noexcept {
  if (q.x.n > kMostPulledRows || q.y.n > kMostPulledRows) {
    return cudaErrorInvalidValue;
  }
  switch (q.x.dtype) {
    case DType::float32:
      return run_slopes<float>(q, workspace, stream);
    case DType::float64:
      return run_slopes<double>(q, workspace, stream);
    case DType::bfloat16:
      return run_slopes<BFloat16>(q, workspace, stream);
    case DType::float16:
      return run_slopes<Half>(q, workspace, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace fastmine::cuda
