#include "kernels/batch_hard.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/grain.h"
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
  RowSet x, y;                // for cosine, the norm of every row; with one set, y is x
  std::int64_t to_positives;  // edges: those to positives, [n, positives], come first,
  std::int64_t mined, count;  // then those to negatives, and those from positives to negatives
  Edge* edges;                // [count]
  std::int64_t* begin;        // [m + 1]: edges at row j are at_row[begin[j]] .. at_row[begin[j + 1]]
  std::int64_t* at_row;       // those that end in it, and ~e for those between rows of y that begin in it; for each row
                              // in the order of the anchors
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
  p.to_positives = n * problem.positives;
  p.mined = p.to_positives + n * problem.negatives;
  p.count = p.mined + (problem.between ? n : 0);
  p.edges = arena.take<Edge>(p.count);
  p.begin = arena.take<std::int64_t>(m + 1);
  p.at_row = arena.take<std::int64_t>(p.count + (p.count - p.mined));
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

/// The edge of rows i of `from` and j of y, whose key is `key`, for the gradient of their distance.
template <class W>
Edge edge_of(const Plan<W>& p, const RowSet& from, std::int64_t i, std::int64_t j, double key, double grad) {
  const Metric metric = p.problem.metric;
  if (!(::fabs(key) <= 1.7976931348623157e308)) {
    return {__builtin_nan(""), 0};
  }
  switch (metric) {
    case Metric::euclidean:
      return {key == 0 ? 0 : grad / ::sqrt(key), 0};
    case Metric::sqeuclidean:
      return {2 * grad, 0};
    case Metric::cosine:
      return {from.norm[i] == 0 || p.y.norm[j] == 0 ? 0 : grad, 0.5 * key};
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

/// Pairs of one sign: those of anchor i are [i k, (i + 1) k).
struct Sign {
  std::int64_t k;
  const std::int64_t* index;
  const bool* exists;
  const void* grad;
  std::int64_t grad_stride;
  const double* slopes;  // of each pair of an anchor's gradient, or null: the gradient is of each pair
};

template <bool positive>
Sign sign_of(const BatchHardBackward& q) {
  return positive
             ? Sign{q.positives, q.positive_index, q.has_positive, q.grad_positive, q.grad_positive_stride, q.slopes}
             : Sign{q.negatives,
                    q.negative_index,
                    q.has_negative,
                    q.grad_negative,
                    q.grad_negative_stride,
                    q.slopes == nullptr ? nullptr : q.slopes + q.x.n * q.positives};
}

inline constexpr std::int64_t kKeys = 8;  // pairs of an anchor that are compared in one go

/// The edges of anchor i of one sign.
template <class W>
void find_edges_of(const Plan<W>& p, std::int64_t i, const Sign& sign, Edge* edges) {
  const BatchHardBackward& q = p.problem;
  std::int64_t pairs[kKeys], rows[kKeys], count = 0;
  double keys[kKeys];
  for (std::int64_t e = i * sign.k; e < (i + 1) * sign.k; ++e) {
    edges[e] = {0, 0};
    if (sign.exists[e]) {
      pairs[count] = e;
      rows[count++] = sign.index[e];
    }
    if (count == kKeys || e + 1 == (i + 1) * sign.k) {
      exact_keys<W>(q.x, i, p.x.norm, q.y, rows, count, p.y.norm, q.metric, keys);
      for (std::int64_t c = 0; c < count; ++c) {
        const double grad = sign.slopes == nullptr ? grad_at(q, sign.grad, sign.grad_stride, pairs[c])
                                                   : sign.slopes[pairs[c]] * grad_at(q, sign.grad, sign.grad_stride, i);
        edges[pairs[c]] = edge_of(p, p.x, i, rows[c], keys[c], grad);
      }
      count = 0;
    }
  }
}

/// The edge from the positive of anchor i to its negative.
template <class W>
Edge edge_between(const Plan<W>& p, std::int64_t i) {
  const BatchHardBackward& q = p.problem;
  const double slope = q.slopes[p.mined + i];
  if (!q.has_positive[i] || !q.has_negative[i] || slope == 0) {
    return {0, 0};
  }
  const std::int64_t from = q.positive_index[i], to = q.negative_index[i];
  const double key = exact_key<W>(q.y, from, p.y.norm, q.y, to, p.y.norm, q.metric);
  return edge_of(p, p.y, from, to, key, slope * grad_at(q, q.grad_negative, q.grad_negative_stride, i));
}

template <class W>
void find_edges(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  const Sign positive = sign_of<true>(p.problem), negative = sign_of<false>(p.problem);
  for (std::int64_t i = begin; i < end; ++i) {
    find_edges_of(p, i, positive, p.edges);
    find_edges_of(p, i, negative, p.edges + p.to_positives);
    if (p.problem.between) {
      p.edges[p.mined + i] = edge_between(p, i);
    }
  }
}

/// The row that edge e ends in, and the row that it begins in: an anchor or, past the mined ones, a positive.
template <class W>
FASTMINE_INLINE std::int64_t end_of(const Plan<W>& p, std::int64_t e) {
  return e < p.to_positives ? p.problem.positive_index[e]
                            : p.problem.negative_index[e - (e < p.mined ? p.to_positives : p.mined)];
}
template <class W>
FASTMINE_INLINE std::int64_t begin_of(const Plan<W>& p, std::int64_t e) {
  if (e >= p.mined) {
    return p.problem.positive_index[e - p.mined];
  }
  const std::int64_t k = e < p.to_positives ? p.problem.positives : p.problem.negatives;
  const std::int64_t pair = e < p.to_positives ? e : e - p.to_positives;
  return k == 1 ? pair : pair / k;
}

/// f(e) for the edges of anchor i: to its positives, then to its negatives.
template <class W, class F>
FASTMINE_INLINE void each_edge(const Plan<W>& p, std::int64_t i, F f) {
  for (std::int64_t k = 0; k < p.problem.positives; ++k) {
    f(i * p.problem.positives + k);
  }
  for (std::int64_t k = 0; k < p.problem.negatives; ++k) {
    f(p.to_positives + i * p.problem.negatives + k);
  }
}

/// f(row, item) for every item of the lists of edges at rows.
template <class W, class F>
FASTMINE_INLINE void each_item(const Plan<W>& p, F f) {
  for (std::int64_t i = 0; i < p.problem.x.n; ++i) {
    each_edge(p, i, [&](std::int64_t e) {
      if (p.edges[e].pull != 0) {
        f(end_of(p, e), e);
      }
    });
    const std::int64_t between = p.mined + i;
    if (p.problem.between && p.edges[between].pull != 0) {
      f(begin_of(p, between), ~between);
      f(end_of(p, between), between);
    }
  }
}

/// List for every row of y the edges that chose it: a counting sort.
template <class W>
void invert(void* plan, std::int64_t, std::int64_t) {
  const Plan<W>& p = as_plan<W>(plan);
  const BatchHardBackward& q = p.problem;
  for (std::int64_t j = 0; j <= q.y.n; ++j) {
    p.begin[j] = 0;
  }
  each_item(p, [&](std::int64_t row, std::int64_t) { ++p.begin[row]; });
  std::int64_t total = 0;
  for (std::int64_t j = 0; j <= q.y.n; ++j) {
    const std::int64_t own = p.begin[j];
    p.begin[j] = total;
    total += own;
  }
  each_item(p, [&](std::int64_t row, std::int64_t item) { p.at_row[p.begin[row]++] = item; });
  for (std::int64_t j = q.y.n; j > 0; --j) {  // each begin has moved to its end
    p.begin[j] = p.begin[j - 1];
  }
  p.begin[0] = 0;
}

constexpr int kTogether = 4;  // edges of a row whose pulls are added up in one go

/// Edges from one row, whose elements `own` are at hand in float64 (for cosine, those of its unit vector).
template <class W>
struct Pulls {
  int count;
  const W* other[kTogether];  // elements of the other ends
  double pull[kTogether];
  double half[kTogether];       // as in Edge
  double norm[kTogether];       // cosine: of the other end; divided by, since a product would be fused with the
                                // subtraction, and equal rows would then not cancel
  W buffer[kTogether][kChunk];  // the other ends where they have to be converted
};

/// sum[k] += sum over c of f(c, own[k], other[c][k]).
template <class W, int C, class F>
FASTMINE_NOINLINE void add_terms(const Pulls<W>& p, const double* own, std::int64_t count, F f, double* sum) {
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<double>);
  std::int64_t k = 0;
  for (; k + step <= count; k += step) {
    const Vec<double> a = load(own + k);
    Vec<double> total = load(sum + k);
    for (int c = 0; c < C; ++c) {
      total += f(c, a, load_double(p.other[c] + k));
    }
    store(sum + k, total);
  }
  for (; k < count; ++k) {
    for (int c = 0; c < C; ++c) {
      sum[k] += f(c, own[k], static_cast<double>(p.other[c][k]));
    }
  }
}

template <class W, int C>
FASTMINE_INLINE void add_pulls(const Pulls<W>& p, Metric metric, const double* own, std::int64_t count, double* sum) {
  if (metric == Metric::dot) {
    add_terms<W, C>(p, own, count, [&p](int c, auto, auto b) { return p.pull[c] * b; }, sum);
  } else if (metric == Metric::cosine) {
    const auto term = [&p](int c, auto u, auto b) { return p.pull[c] * ((u - b / p.norm[c]) - p.half[c] * u); };
    add_terms<W, C>(p, own, count, term, sum);
  } else {
    add_terms<W, C>(p, own, count, [&p](int c, auto a, auto b) { return p.pull[c] * (a - b); }, sum);
  }
}

/// Add what has been collected, and forget it.
template <class W>
void flush(Pulls<W>& p, Metric metric, const double* own, std::int64_t count, double* sum) {
  switch (p.count) {
    case 4:
      add_pulls<W, 4>(p, metric, own, count, sum);
      break;
    case 3:
      add_pulls<W, 3>(p, metric, own, count, sum);
      break;
    case 2:
      add_pulls<W, 2>(p, metric, own, count, sum);
      break;
    case 1:
      add_pulls<W, 1>(p, metric, own, count, sum);
      break;
    default:
      break;
  }
  p.count = 0;
}

/// The gradient of row `row` of `own`: as an anchor, with the pairs it mined, and as a candidate, with the anchors that
/// mined it.
template <class W>
void gather_row(const Plan<W>& p, const RowSet& own, std::int64_t row, bool anchor, bool candidate, void* out) {
  const BatchHardBackward& q = p.problem;
  const bool cosine = q.metric == Metric::cosine;
  const double own_norm = cosine ? own.norm[row] : 1;
  double sum[kChunk], elements[kChunk];
  W buffer[kChunk];
  Pulls<W> pulls;
  for (std::int64_t from = 0; from < q.x.d; from += kChunk) {
    const std::int64_t count = smaller(kChunk, q.x.d - from);
    const W* a = chunk(own.rows, row, from, count, buffer);
    for (std::int64_t k = 0; k < count; ++k) {
      elements[k] = static_cast<double>(a[k]);
      sum[k] = 0;
    }
    for (std::int64_t k = 0; cosine && k < count; ++k) {
      elements[k] /= own_norm;
    }
    pulls.count = 0;
    const auto collect = [&](std::int64_t e, const RowSet& others, std::int64_t other) {
      const int c = pulls.count;
      pulls.other[c] = chunk(others.rows, other, from, count, pulls.buffer[c]);
      pulls.pull[c] = p.edges[e].pull / own_norm;
      pulls.half[c] = p.edges[e].half;
      pulls.norm[c] = cosine ? others.norm[other] : 1;
      if (++pulls.count == kTogether) {
        flush(pulls, q.metric, elements, count, sum);
      }
    };
    if (anchor) {
      each_edge(p, row, [&](std::int64_t e) {
        if (p.edges[e].pull != 0) {
          collect(e, p.y, end_of(p, e));
        }
      });
    }
    for (std::int64_t k = candidate ? p.begin[row] : 0; candidate && k < p.begin[row + 1]; ++k) {
      const std::int64_t item = p.at_row[k], e = item < 0 ? ~item : item;
      collect(e, e < p.mined ? p.x : p.y, item < 0 ? end_of(p, e) : begin_of(p, e));
    }
    flush(pulls, q.metric, elements, count, sum);
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
  return reading_worth_a_thread(as_plan<W>(plan).problem.x.d);
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
