#include "kernels/cuda/batch_hard.h"
#include "kernels/cuda/rows.cuh"

namespace fastmine::cuda {
namespace {

using namespace mining;

constexpr std::int64_t kMostEdges = std::int64_t{1} << 30;

/// So few edges that every row looks through all of them sooner than they are sorted.
#ifdef FASTMINE_EMULATE_CUDA
constexpr std::int64_t kFewItems = 50;
#else
constexpr std::int64_t kFewItems = 1024;
#endif

/// The pair of an anchor and the row it mined: how much each pulls on the other.
struct Edge {
  double pull;  // times (own - other), roughly; 0: no gradient flows
  double half;  // cosine: half the squared distance of the unit vectors
};

/// The edges of an anchor lead to its positives, then to its negatives; those of all anchors stand one after another.
/// After them come those from the positive of each anchor to its negative, if these are a pair of their own.
struct Gradient {
  BatchHardBackward problem;
  RowSet x, y;     // for cosine, the norms of the rows; with one set, y is x
  Edge* edges;     // [n, positives + negatives], [n]
  Tagged* items;   // the same: the row that an edge ends in, and the edge; then those of y that an edge begins in, the
                   // number of the edge larger by n; those without a pull come last
  Tagged* spare;   // unless they are few
  Tagged* sorted;  // one of the two
};

/// Edges of one anchor, of all anchors, and with those between rows of y.
FASTMINE_HOST_DEVICE std::int64_t edges_of(const BatchHardBackward& q) { return q.positives + q.negatives; }
FASTMINE_HOST_DEVICE std::int64_t mined(const BatchHardBackward& q) { return q.x.n * edges_of(q); }
FASTMINE_HOST_DEVICE std::int64_t all_edges(const BatchHardBackward& q) { return mined(q) + (q.between ? q.x.n : 0); }
FASTMINE_HOST_DEVICE std::int64_t all_items(const BatchHardBackward& q) {
  return mined(q) + (q.between ? 2 * q.x.n : 0);
}

RowSet lay_out_norms(Arena& arena, const Rows& rows, Metric metric) {
  const std::int64_t n = metric == Metric::cosine ? rows.n : 0;
  RowSet set{};
  set.rows = rows;
  set.metric = metric;
  set.kind = arena.take<std::uint8_t>(n);
  set.norm = arena.take<double>(n);
  set.squared = arena.take<double>(n);
  return set;
}

Gradient lay_out(const BatchHardBackward& q, Arena& arena) {
  const std::int64_t items = all_items(q);
  Gradient g{};
  g.problem = q;
  g.x = lay_out_norms(arena, q.x, q.metric);
  g.y = q.self ? g.x : lay_out_norms(arena, q.y, q.metric);
  g.edges = arena.take<Edge>(all_edges(q));
  g.items = arena.take<Tagged>(items);
  if (items > kFewItems) {
    g.spare = arena.take<Tagged>(items);
    g.sorted = sorted_place(g.items, g.spare, items);
  }
  return g;
}

/// One warp: the norm of a row of x or, after all of them, of y.
template <class S>
FASTMINE_KERNEL(kThreads, 2)
find_norms(FASTMINE_PARAMETER Gradient g) {
  const std::int64_t row = block_index() * kWarps + warp_index();
  if (row < g.x.rows.n) {
    look_at_row<S>(g.x, row);
  } else if (!g.problem.self && row < g.x.rows.n + g.y.rows.n) {
    look_at_row<S>(g.y, row - g.x.rows.n);
  }
}

FASTMINE_DEVICE double grad_at(const BatchHardBackward& q, const void* grad, std::int64_t stride, std::int64_t i) {
  return q.grad_dtype == DType::float64 ? static_cast<const double*>(grad)[i * stride]
                                        : static_cast<double>(static_cast<const float*>(grad)[i * stride]);
}

/// The edge of rows i of `from` and j of y, whose key is `key`, for the gradient of their distance.
FASTMINE_DEVICE Edge edge_of(const Gradient& g, const RowSet& from, std::int64_t i, std::int64_t j, double key,
                             double grad) {
  if (key - key != 0) {
    return {static_cast<double>(__builtin_nan("")), 0};
  }
  switch (g.problem.metric) {
    case Metric::euclidean:
      return {key == 0 ? 0 : grad / sqrt(key), 0};
    case Metric::sqeuclidean:
      return {2 * grad, 0};
    case Metric::cosine:
      return {from.norm[i] == 0 || g.y.norm[j] == 0 ? 0 : grad, 0.5 * key};
    default:
      return {grad, 0};
  }
}

/// Where an edge leads, and to which of the pairs of its sign.
struct Place {
  bool positive;
  std::int64_t anchor, pair;

  FASTMINE_DEVICE std::int64_t end(const BatchHardBackward& q) const {
    return (positive ? q.positive_index : q.negative_index)[pair];
  }
};

FASTMINE_DEVICE Place place_of(const BatchHardBackward& q, std::int64_t e) {
  const std::int64_t anchor = e / edges_of(q), k = e % edges_of(q);
  const bool positive = k < q.positives;
  return {positive, anchor, positive ? anchor * q.positives + k : anchor * q.negatives + k - q.positives};
}

/// One warp: the edge between the positive of anchor i and its negative.
template <class S>
FASTMINE_DEVICE void find_edge_between(const Gradient& g, std::int64_t i) {
  const BatchHardBackward& q = g.problem;
  const std::int64_t e = mined(q) + i;
  Edge edge{0, 0};
  std::int32_t from = 0, end = 0;
  if (q.has_positive[i] && q.has_negative[i] && q.slopes[e] != 0) {
    from = static_cast<std::int32_t>(q.positive_index[i]);
    end = static_cast<std::int32_t>(q.negative_index[i]);
    const double grad = grad_at(q, q.grad_negative, q.grad_negative_stride, i);
    edge = edge_of(g, g.y, from, end, exact_key<S>(g.y, from, g.y, end), q.slopes[e] * grad);
  }
  if (lane_index() == 0) {
    const std::int32_t last = edge.pull == 0 ? 1 : 0;
    g.edges[e] = edge;
    g.items[e] = {end, last, static_cast<std::int32_t>(e)};
    g.items[e + q.x.n] = {from, last, static_cast<std::int32_t>(e + q.x.n)};
  }
}

/// One warp: an edge.
template <class S>
FASTMINE_KERNEL(kThreads, 2)
find_edges(FASTMINE_PARAMETER Gradient g) {
  const BatchHardBackward& q = g.problem;
  const std::int64_t e = block_index() * kWarps + warp_index();
  if (e >= mined(q)) {
    if (e < all_edges(q)) {
      find_edge_between<S>(g, e - mined(q));
    }
    return;
  }
  const Place place = place_of(q, e);
  const std::int64_t i = place.anchor, pair = place.pair;
  const bool has = (place.positive ? q.has_positive : q.has_negative)[pair];
  Edge edge{0, 0};
  std::int32_t end = 0;
  if (has) {  // else there may not be a row for an index to name
    end = static_cast<std::int32_t>(place.end(q));
    const bool of_anchor = q.slopes != nullptr;
    const double slope = of_anchor ? q.slopes[place.positive ? pair : q.x.n * q.positives + pair] : 1;
    const double grad = place.positive ? grad_at(q, q.grad_positive, q.grad_positive_stride, of_anchor ? i : pair)
                                       : grad_at(q, q.grad_negative, q.grad_negative_stride, of_anchor ? i : pair);
    edge = edge_of(g, g.x, i, end, exact_key<S>(g.x, i, g.y, end), slope * grad);
  }
  if (lane_index() == 0) {
    g.edges[e] = edge;
    g.items[e] = {end, edge.pull == 0 ? 1 : 0, static_cast<std::int32_t>(e)};
  }
}

/// Elements of a row that a warp gathers.
constexpr int kEachLane = 4, kChunk = kEachLane * kWarp;

/// Some elements of a row, and what its edges add to them.
template <class S>
struct Gathered {
  Metric metric;
  std::int64_t from, d;
  double norm;  // cosine: of the row
  double own[kEachLane], sum[kEachLane];

  FASTMINE_DEVICE void add(const Edge& edge, const RowSet& others, std::int64_t other) {
    const S* const row = row_of<S>(others.rows, other);
    const bool cosine = metric == Metric::cosine;
    const double other_norm = cosine ? others.norm[other] : 1, pull = edge.pull / norm;
    FASTMINE_UNROLL for (int e = 0; e < kEachLane; ++e) {
      const std::int64_t k = from + lane_index() + e * kWarp;
      if (k < d) {
        const double b = value_of<double>(row[k]);
        if (metric == Metric::dot) {
          sum[e] += pull * b;
        } else if (cosine) {  // divided, not multiplied: equal rows cancel
          sum[e] += pull * ((own[e] - b / other_norm) - edge.half * own[e]);
        } else {
          sum[e] += pull * (own[e] - b);
        }
      }
    }
  }
};

/// Add what item e of a row of y says.
template <class S>
FASTMINE_DEVICE void add_item(const Gradient& g, std::int64_t e, Gathered<S>& gathered) {
  const BatchHardBackward& q = g.problem;
  if (e < mined(q)) {
    gathered.add(g.edges[e], g.x, e / edges_of(q));
  } else {
    const std::int64_t i = (e - mined(q)) % q.x.n;
    const bool ends = e < mined(q) + q.x.n;
    gathered.add(g.edges[mined(q) + i], g.y, (ends ? q.positive_index : q.negative_index)[i]);
  }
}

/// use(e) for each item of a row of y, in order, by a warp.
template <class F>
FASTMINE_DEVICE void each_item(const Gradient& g, std::int64_t row, F use) {
  const auto items = static_cast<int>(all_items(g.problem));
  const auto of_row = [row](const Tagged& item) { return item.group == 0 && item.label == row; };
  if (items > kFewItems) {
    for (int at = rank_of({row, 0, 0}, g.sorted, items); at < items && of_row(g.sorted[at]); ++at) {
      use(g.sorted[at].row);
    }
    return;
  }
  for (int first = 0; first < items; first += kWarp) {
    const int e = first + lane_index();
    for (unsigned left = ballot(e < items && of_row(g.items[e])); left != 0; left &= left - 1) {
      use(first + lowest_bit(left));
    }
  }
}

/// One warp: kChunk elements of the gradient of a row of x or, after all of them, of y.
template <class S>
FASTMINE_KERNEL(kThreads, 2)
gather(FASTMINE_PARAMETER Gradient g) {
  const BatchHardBackward& q = g.problem;
  const std::int64_t chunks = divide_up(q.x.d, kChunk), task = block_index() * kWarps + warp_index();
  const std::int64_t line = task / chunks;
  const bool anchor = line < q.x.n;
  const std::int64_t row = anchor ? line : line - q.x.n;
  if (!anchor && (q.self || row >= q.y.n)) {
    return;
  }
  const RowSet& set = anchor ? g.x : g.y;
  const bool cosine = q.metric == Metric::cosine;
  Gathered<S> gathered{q.metric, task % chunks * kChunk, q.x.d, cosine ? set.norm[row] : 1, {}, {}};
  FASTMINE_UNROLL for (int e = 0; e < kEachLane; ++e) {
    const std::int64_t k = gathered.from + lane_index() + e * kWarp;
    gathered.own[e] = k < q.x.d ? value_of<double>(row_of<S>(set.rows, row)[k]) / gathered.norm : 0;
  }
  if (anchor) {
    for (std::int64_t e = row * edges_of(q); e < (row + 1) * edges_of(q); ++e) {
      if (g.edges[e].pull != 0) {
        gathered.add(g.edges[e], g.y, place_of(q, e).end(q));
      }
    }
  }
  if (q.self || !anchor) {
    each_item(g, row, [&](std::int64_t e) { add_item(g, e, gathered); });
  }
  S* const out = static_cast<S*>(anchor ? q.grad_x : q.grad_y) + row * q.x.d;
  FASTMINE_UNROLL for (int e = 0; e < kEachLane; ++e) {
    const std::int64_t k = gathered.from + lane_index() + e * kWarp;
    if (k < q.x.d) {
      assign(out[k], static_cast<Working<S>>(gathered.sum[e]));
    }
  }
}

template <class S>
cudaError_t run_backward(const BatchHardBackward& q, void* workspace, cudaStream_t stream) {
  Arena arena(workspace);
  const Gradient g = lay_out(q, arena);
  const std::int64_t rows = q.x.n + (q.self ? 0 : q.y.n);
  Launches launches(stream);
  if (q.metric == Metric::cosine) {
    launches(&find_norms<S>, divide_up(rows, kWarps), kThreads, g);
  }
  launches(&find_edges<S>, divide_up(all_edges(q), kWarps), kThreads, g);
  if (all_items(q) > kFewItems) {
    sort(launches, g.items, g.spare, all_items(q));
  }
  launches(&gather<S>, divide_up(rows * divide_up(q.x.d, kChunk), kWarps), kThreads, g);
  return launches.status();
}

}  // namespace

std::size_t batch_hard_backward_workspace(const BatchHardBackward& q) noexcept {
  Arena arena(nullptr);
  lay_out(q, arena);
  return arena.used();
}

cudaError_t batch_hard_backward(const BatchHardBackward& q, void* workspace, cudaStream_t stream) noexcept {
  if (all_items(q) > kMostEdges || q.y.n > kMostEdges) {
    return cudaErrorInvalidValue;
  }
  switch (q.x.dtype) {
    case DType::float32:
      return run_backward<float>(q, workspace, stream);
    case DType::float64:
      return run_backward<double>(q, workspace, stream);
    case DType::bfloat16:
      return run_backward<BFloat16>(q, workspace, stream);
    case DType::float16:
      return run_backward<Half>(q, workspace, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace fastmine::cuda
