#include "kernels/batch_hard.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/packing.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {
namespace {

/// The pair of an anchor and the row it mined: how much each pulls on the other.
struct Edge {
  double pull;  // times (own - other), roughly; 0: no gradient flows
  double half;  // cosine: half the squared distance of the unit vectors
};

template <class W>
struct Plan {
  BatchHardBackward problem;
  RowSet x, y;           // for cosine, the norm of every row; with one set, y is x
  Edge* edges;           // [2, n]: to the positive, to the negative
  std::int64_t* begin;   // [m + 1]: edges that chose row j are chosen[begin[j]] .. chosen[begin[j + 1]]
  std::int64_t* chosen;  // [2 n], for each row in the order of the anchors
};

template <class W>
Plan<W> lay_out(const BatchHardBackward& problem, Arena& arena) {
  const std::int64_t n = problem.x.n, m = problem.y.n;
  const auto norms = [&](const Rows& rows) {
    RowSet set{};
    set.rows = rows;
    set.metric = problem.metric;
    set.kind = arena.take<std::uint8_t>(rows.n);
    set.norm = arena.take<double>(rows.n);
    set.squared = arena.take<double>(rows.n);
    return set;
  };
  Plan<W> p{};
  p.problem = problem;
  p.x = norms(problem.x);
  p.y = problem.self ? p.x : norms(problem.y);
  p.edges = arena.take<Edge>(2 * n);
  p.begin = arena.take<std::int64_t>(m + 1);
  p.chosen = arena.take<std::int64_t>(2 * n);
  return p;
}

template <class W>
const Plan<W>& as_plan(const void* plan) {
  return *static_cast<const Plan<W>*>(plan);
}

template <class W>
std::int64_t row_tasks(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  return p.problem.x.n + (p.problem.self ? 0 : p.problem.y.n);
}

template <class W>
std::int64_t norm_tasks(const void* plan) {
  return as_plan<W>(plan).problem.metric == Metric::cosine ? row_tasks<W>(plan) : 0;
}

template <class W>
void find_norms(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  for (std::int64_t t = begin; t < end; ++t) {
    t < p.problem.x.n ? look_at_row<W>(p.x, t) : look_at_row<W>(p.y, t - p.problem.x.n);
  }
}

template <class W>
Edge edge_of(const Plan<W>& p, std::int64_t i, std::int64_t j, double grad) {
  const Metric metric = p.problem.metric;
  const double norm_i = metric == Metric::cosine ? p.x.norm[i] : 1;
  const double norm_j = metric == Metric::cosine ? p.y.norm[j] : 1;
  const double key = exact_key<W>(p.problem.x, i, p.x.norm, p.problem.y, j, p.y.norm, metric);
  if (!(::fabs(key) <= 1.7976931348623157e308)) {
    return {__builtin_nan(""), 0};
  }
  switch (metric) {
    case Metric::euclidean:
      return {key == 0 ? 0 : grad / ::sqrt(key), 0};
    case Metric::sqeuclidean:
      return {2 * grad, 0};
    case Metric::cosine:
      return {norm_i == 0 || norm_j == 0 ? 0 : grad, 0.5 * key};
    case Metric::dot:
      return {grad, 0};
  }
  return {0, 0};
}

double grad_at(const BatchHardBackward& q, const void* grad, std::int64_t stride, std::int64_t i) {
  return q.grad_dtype == DType::float64 ? static_cast<const double*>(grad)[i * stride]
                                        : static_cast<double>(static_cast<const float*>(grad)[i * stride]);
}

template <class W>
std::int64_t anchor_tasks(const void* plan) {
  return as_plan<W>(plan).problem.x.n;
}

template <class W>
void find_edges(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  const BatchHardBackward& q = p.problem;
  for (std::int64_t i = begin; i < end; ++i) {
    const double grad_p = grad_at(q, q.grad_positive, q.grad_positive_stride, i);
    const double grad_n = grad_at(q, q.grad_negative, q.grad_negative_stride, i);
    p.edges[i] = q.has_positive[i] ? edge_of(p, i, q.positive_index[i], grad_p) : Edge{0, 0};
    p.edges[q.x.n + i] = q.has_negative[i] ? edge_of(p, i, q.negative_index[i], grad_n) : Edge{0, 0};
  }
}

/// The row that edge e ends in.
std::int64_t end_of(const BatchHardBackward& q, std::int64_t e) {
  return e < q.x.n ? q.positive_index[e] : q.negative_index[e - q.x.n];
}

/// List for every row the edges that end in it: a counting sort.
template <class W>
void invert(void* plan, std::int64_t, std::int64_t) {
  const Plan<W>& p = as_plan<W>(plan);
  const BatchHardBackward& q = p.problem;
  for (std::int64_t j = 0; j <= q.y.n; ++j) {
    p.begin[j] = 0;
  }
  for (std::int64_t e = 0; e < 2 * q.x.n; ++e) {
    if (p.edges[e].pull != 0) {
      ++p.begin[end_of(q, e)];
    }
  }
  std::int64_t total = 0;
  for (std::int64_t j = 0; j <= q.y.n; ++j) {
    total += p.begin[j];
    p.begin[j] = total;
  }
  for (std::int64_t i = q.x.n - 1; i >= 0; --i) {  // backwards, so that a row's edges stand in the order of anchors
    const std::int64_t own[] = {q.x.n + i, i};
    for (const std::int64_t e : own) {
      if (p.edges[e].pull != 0) {
        p.chosen[--p.begin[end_of(q, e)]] = e;
      }
    }
  }
}

/// Add the pull of one edge on its end `own` to sum[k] for elements from .. from + count.
template <class W>
FASTMINE_INLINE void add_edge(const Edge& edge, Metric metric, const W* own, double own_norm, const Rows& others,
                              std::int64_t other, double other_norm, std::int64_t from, std::int64_t count,
                              double* sum) {
  W buffer[kChunk];
  const W* b = chunk(others, other, from, count, buffer);
  const double pull = edge.pull;
  if (metric == Metric::dot) {
    for (std::int64_t k = 0; k < count; ++k) {
      sum[k] += pull * static_cast<double>(b[k]);
    }
  } else if (metric == Metric::cosine) {
    for (std::int64_t k = 0; k < count; ++k) {
      const double u = static_cast<double>(own[k]) / own_norm;
      const double v = static_cast<double>(b[k]) / other_norm;
      sum[k] += pull / own_norm * ((u - v) - edge.half * u);
    }
  } else {
    for (std::int64_t k = 0; k < count; ++k) {
      sum[k] += pull * (static_cast<double>(own[k]) - static_cast<double>(b[k]));
    }
  }
}

/// The gradient of row `row` of `own`: as an anchor, with the pairs it mined, and as a candidate, with the anchors that
/// mined it.
template <class W>
void gather_row(const Plan<W>& p, const RowSet& own, std::int64_t row, bool anchor, bool candidate, void* out) {
  const BatchHardBackward& q = p.problem;
  const bool cosine = q.metric == Metric::cosine;
  const double own_norm = cosine ? own.norm[row] : 1;
  double sum[kChunk];
  W buffer[kChunk];
  for (std::int64_t from = 0; from < q.x.d; from += kChunk) {
    const std::int64_t count = smaller(kChunk, q.x.d - from);
    const W* a = chunk(own.rows, row, from, count, buffer);
    for (std::int64_t k = 0; k < count; ++k) {
      sum[k] = 0;
    }
    if (anchor) {
      const std::int64_t mined[] = {row, q.x.n + row};
      for (const std::int64_t e : mined) {
        if (p.edges[e].pull != 0) {
          const std::int64_t j = end_of(q, e);
          add_edge(p.edges[e], q.metric, a, own_norm, q.y, j, cosine ? p.y.norm[j] : 1, from, count, sum);
        }
      }
    }
    if (candidate) {
      for (std::int64_t k = p.begin[row]; k < p.begin[row + 1]; ++k) {
        const std::int64_t e = p.chosen[k], i = e < q.x.n ? e : e - q.x.n;
        add_edge(p.edges[e], q.metric, a, own_norm, q.x, i, cosine ? p.x.norm[i] : 1, from, count, sum);
      }
    }
    char* bytes = static_cast<char*>(out);
    write(sum, static_cast<std::size_t>(count),
          bytes + (row * q.x.d + from) * static_cast<std::int64_t>(size_of(own.rows.dtype)), own.rows.dtype);
  }
}

template <class W>
void gather(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  for (std::int64_t t = begin; t < end; ++t) {
    if (t < p.problem.x.n) {
      gather_row(p, p.x, t, true, p.problem.self, p.problem.grad_x);
    } else {
      gather_row(p, p.y, t - p.problem.x.n, false, true, p.problem.grad_y);
    }
  }
}

std::int64_t once(const void*) { return 1; }

template <class W>
std::int64_t row_grain(const void* plan) {
  return larger<std::int64_t>(1, 100000 / as_plan<W>(plan).problem.x.d);
}

template <class W>
constexpr Stage kStages[] = {
    {&norm_tasks<W>, &row_grain<W>, &find_norms<W>},
    {&anchor_tasks<W>, &row_grain<W>, &find_edges<W>},
    {&once, &once, &invert<W>},
    {&row_tasks<W>, &row_grain<W>, &gather<W>},
};

template <class W>
std::size_t workspace(const BatchHardBackward& problem) {
  Arena arena(nullptr);
  arena.take<Plan<W>>(1);
  lay_out<W>(problem, arena);
  return arena.used();
}

template <class W>
void* plan(const BatchHardBackward& problem, void* memory) {
  Arena arena(memory);
  Plan<W>* place = arena.take<Plan<W>>(1);
  *place = lay_out<W>(problem, arena);
  return place;
}

}  // namespace

extern const BatchHardBackwardKernel batch_hard_backward_float32;
extern const BatchHardBackwardKernel batch_hard_backward_float64;
const BatchHardBackwardKernel batch_hard_backward_float32{&workspace<float>, &plan<float>, kStages<float>, 4};
const BatchHardBackwardKernel batch_hard_backward_float64{&workspace<double>, &plan<double>, kStages<double>, 4};

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
