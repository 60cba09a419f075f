#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/gradient_rows.h"
#include "kernels/cpu/grain.h"
#include "kernels/pairwise_distance.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kTerms = 128;     // terms summed in the working type
constexpr std::int64_t kRowsAhead = 16;  // of grad and distance, asked for before they are read

/// Pairs whose squared distance is below this share of |x|^2 + |y|^2 pull by their difference, not by a difference of
/// sums.
template <class W>
constexpr W kClose = static_cast<W>(1.0 / 16);

template <class W>
struct Plan {
  PairwiseDistanceBackward problem;
  RowSet x, y;  // with one set, y is x, here and below
  double* centre;
  Columns<W> a, b;
  double* sum_x;
  double* sum_y;
};

template <class W>
Plan<W> lay_out(const PairwiseDistanceBackward& problem, Arena& arena) {
  Plan<W> p{};
  p.problem = problem;
  p.centre = arena.take<double>(problem.x.d);
  p.x = lay_out_rows(arena, problem.x, nullptr, problem.metric);
  p.a = lay_out_columns<W>(arena, problem.x);
  p.sum_x = lay_out_sums<W>(arena, problem.x);
  p.y = problem.self ? p.x : lay_out_rows(arena, problem.y, nullptr, problem.metric);
  p.b = problem.self ? p.a : lay_out_columns<W>(arena, problem.y);
  p.sum_y = problem.self ? nullptr : lay_out_sums<W>(arena, problem.y);
  return p;
}

template <class W>
const Plan<W>& as_plan(const void* plan) {
  return *static_cast<const Plan<W>*>(plan);
}

// --- step 1: look at the rows, find their centre ---------------------------------------------------------------------

template <class W>
std::int64_t look_tasks(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  return p.x.blocks() + (p.problem.self ? 0 : p.y.blocks());
}

template <class W>
void look(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  const std::int64_t own = p.x.blocks();
  for (std::int64_t t = begin; t < end; ++t) {
    t < own ? look_at_block<W>(p.x, t) : look_at_block<W>(p.y, t - own);
  }
}

template <class W>
void centre(void* plan, std::int64_t, std::int64_t) {
  const Plan<W>& p = as_plan<W>(plan);
  find_centre(p.x, p.problem.self ? nullptr : &p.y, p.centre);
}

// --- step 2: centred rows --------------------------------------------------------------------------------------------

template <class W>
std::int64_t row_tasks(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  return p.problem.x.n + (p.problem.self ? 0 : p.problem.y.n);
}

template <class W>
void pack_rows(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  for (std::int64_t t = begin; t < end; ++t) {
    const std::int64_t own = p.problem.x.n;
    t < own ? pack_column(p.x, p.centre, t, t, p.a) : pack_column(p.y, p.centre, t - own, t - own, p.b);
  }
}

// --- step 3: gather --------------------------------------------------------------------------------------------------

/// One side of the problem: its rows, those across, and where the gradient goes.
template <class W>
struct Side {
  const RowSet& own;
  const RowSet& other;
  const Columns<W>& across;
  bool transposed;  // `own` are the columns of grad
  double* sums;
  void* out;

  std::int64_t panels() const { return slivers_of<W>(own.rows.d); }
  double* sums_of(std::int64_t sliver) const { return sums + sliver * panels() * kWidth<W> * kWidth<W>; }
};

/// Lanes 0 .. count of what is at p, and zeros.
template <class W>
FASTMINE_INLINE Vec<W> load_part(const W* p, std::int64_t count) {
  if (count >= static_cast<std::int64_t>(lanes<W>)) {
    return load(p);
  }
  Vec<W> v{};
  __builtin_memcpy(&v, p, static_cast<std::size_t>(count) * sizeof(W));
  return v;
}

/// The derivatives by half the squared distance (by the similarity, for dot) of row i with columns j .. j + count.
/// Those of close pairs are left at 0 and named in `close`. What lies `ahead` elements on is asked for: too many rows
/// are read at once for the processor to foresee the next part of each.
template <class W>
struct Weights {
  Vec<W> weight;
  Vec<W> close;
  bool any_close;
};

template <class W>
FASTMINE_INLINE Weights<W> weights(const Plan<W>& p, std::int64_t i, std::int64_t j, std::int64_t count,
                                   std::int64_t ahead) {
  using V = Vec<W>;
  constexpr W tiny = sizeof(W) == 8 ? 0x1p-900 : 0x1p-100;  // squares below have lost digits
  const std::int64_t at = i * p.problem.y.n + j;
  __builtin_prefetch(static_cast<const W*>(p.problem.grad) + at + ahead);
  __builtin_prefetch(static_cast<const W*>(p.problem.distance) + at + ahead);
  const V grad = load_part(static_cast<const W*>(p.problem.grad) + at, count);
  const Metric metric = p.problem.metric;
  if (metric == Metric::dot) {
    return {grad, V{}, false};
  }
  const V distance = load_part(static_cast<const W*>(p.problem.distance) + at, count);
  V weight = grad, key = 2 * distance;
  if (metric == Metric::euclidean) {
    weight = select(distance == 0, V{}, grad / distance);
    key = distance * distance;
  } else if (metric == Metric::sqeuclidean) {
    weight = 2 * grad;
    key = distance;
  }
  const V limit = (p.a.squared[i] + load_part(p.b.squared + j, count)) * kClose<W> + tiny;
  const auto close = key < limit;
  const V apart = select(close, V{}, weight);
  return {apart, select(close, weight, V{}), any(close)};
}

/// What one task carries: weights[c][r] of row r of its sliver with row c across, and their sums over all rows across.
template <class W>
struct Gathering {
  alignas(64) W weights[kTerms * kWidth<W>];
  double total[kWidth<W>];
};

/// The close pairs among row i and columns j .. of grad.
template <class W>
void pull_close(const Plan<W>& p, const Side<W>& side, std::int64_t i, std::int64_t j, Vec<W> close, std::int64_t first,
                double* sums) {
  for (std::int64_t lane = 0; lane < static_cast<std::int64_t>(lanes<W>); ++lane) {
    const double w = static_cast<double>(close[static_cast<std::size_t>(lane)]);
    const std::int64_t own = side.transposed ? j + lane : i, across = side.transposed ? i : j + lane;
    // Of cosine, a zero vector has no direction to turn, and to itself a row stays at distance 0.
    const bool fixed = p.problem.metric == Metric::cosine &&
                       ((p.problem.self && own == across) || side.own.norm[own] == 0 || side.other.norm[across] == 0);
    if (w != 0 && !fixed) {
      pull<W>(side.own, own, side.other, across, w, sums + (own - first) * kWidth<W>);
    }
  }
}

/// Weights of rows first .. first + rows with rows begin .. begin + count across, where grad has the latter as columns:
/// read along its rows and written transposed.
template <class W>
void weigh_rows(const Plan<W>& p, const Side<W>& side, std::int64_t first, std::int64_t rows, std::int64_t begin,
                std::int64_t count, double* sums, W* out) {
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<W>);
  alignas(64) W staged[lanes<W> * kTerms];
  for (std::int64_t r = 0; r < kWidth<W>; r += step) {
    for (std::int64_t k = 0; k < step; ++k) {
      for (std::int64_t c = 0; c < count; c += step) {
        const std::int64_t i = first + r + k, j = begin + c;
        const Weights<W> found = r + k < rows ? weights(p, i, j, smaller(step, count - c), kTerms) : Weights<W>{};
        store(staged + k * kTerms + c, found.weight);
        if (found.any_close) {
          pull_close(p, side, i, j, found.close, first, sums);
        }
      }
    }
    for (std::int64_t c = 0; c < count; c += step) {
      Vec<W> v[lanes<W>];
      for (std::int64_t k = 0; k < step; ++k) {
        v[k] = load(staged + k * kTerms + c);
      }
      transpose(v);
      for (std::int64_t k = 0; k < step; ++k) {
        store(out + (c + k) * kWidth<W> + r, v[k]);
      }
    }
  }
}

/// The same where grad has the rows across as rows; added with `Add`.
template <class W, bool Add>
void weigh_columns(const Plan<W>& p, const Side<W>& side, std::int64_t first, std::int64_t rows, std::int64_t begin,
                   std::int64_t count, double* sums, W* out) {
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<W>);
  const Side<W> turned{side.own, side.other, side.across, true, side.sums, side.out};
  for (std::int64_t c = 0; c < count; ++c) {
    for (std::int64_t r = 0; r < kWidth<W>; r += step) {
      W* to = out + c * kWidth<W> + r;
      const std::int64_t here = smaller(step, rows - r);
      const Weights<W> found =
          here > 0 ? weights(p, begin + c, first + r, here, kRowsAhead * p.problem.y.n) : Weights<W>{};
      if (found.any_close) {
        pull_close(p, turned, begin + c, first + r, found.close, first, sums);
      }
      store(to, Add ? load(to) + found.weight : found.weight);
    }
  }
}

/// total[r] += the weights of row r.
template <class W>
void add_weights(const W* weights, std::int64_t count, double* total) {
  for (std::size_t v = 0; v < kSliverVectors; ++v) {
    Vec<W> sum{};
    for (std::int64_t c = 0; c < count; ++c) {
      sum += load(weights + c * kWidth<W> + v * lanes<W>);
    }
    for (std::size_t lane = 0; lane < lanes<W>; ++lane) {
      total[v * lanes<W> + lane] += static_cast<double>(sum[lane]);
    }
  }
}

template <class W>
void gather_sliver(const Plan<W>& p, const Side<W>& side, std::int64_t sliver) {
  const std::int64_t first = sliver * kWidth<W>, rows = smaller(kWidth<W>, side.own.rows.n - first);
  Gathering<W> own;
  double* sums = side.sums_of(sliver);
  for (std::int64_t k = 0; k < side.panels() * kWidth<W> * kWidth<W>; ++k) {
    sums[k] = 0;
  }
  for (double& total : own.total) {
    total = 0;
  }
  for (std::int64_t begin = 0; begin < side.other.rows.n; begin += kTerms) {
    const std::int64_t count = smaller(kTerms, side.other.rows.n - begin);
    if (side.transposed) {
      weigh_columns<W, false>(p, side, first, rows, begin, count, sums, own.weights);
    } else {
      weigh_rows(p, side, first, rows, begin, count, sums, own.weights);
      if (p.problem.self) {
        weigh_columns<W, true>(p, side, first, rows, begin, count, sums, own.weights);
      }
    }
    add_weights(own.weights, count, own.total);
    add_products(side.across, p.problem.metric, side.own.rows.d, own.weights, rows, begin, count, sums);
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    write_gradient<W>(side.own, p.centre, first + r, own.total[r], sums + r * kWidth<W>, side.out);
  }
}

template <class W>
std::int64_t gather_tasks(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  return slivers_of<W>(p.problem.x.n) + (p.problem.self ? 0 : slivers_of<W>(p.problem.y.n));
}

template <class W>
void gather(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  const std::int64_t own = slivers_of<W>(p.problem.x.n);
  const Side<W> of_x{p.x, p.y, p.b, false, p.sum_x, p.problem.grad_x};
  const Side<W> of_y{p.y, p.x, p.a, true, p.sum_y, p.problem.grad_y};
  for (std::int64_t t = begin; t < end; ++t) {
    t < own ? gather_sliver(p, of_x, t) : gather_sliver(p, of_y, t - own);
  }
}

std::int64_t once(const void*) { return 1; }

template <class W, std::int64_t Rows>
std::int64_t row_grain(const void* plan) {
  return reading_worth_a_thread(as_plan<W>(plan).problem.x.d * Rows);
}

template <class W>
std::int64_t gather_grain(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  const std::int64_t terms = smaller(p.problem.x.n, p.problem.y.n) * p.problem.x.d;
  return worth_a_thread(terms * kWidth<W>);
}

template <class W>
constexpr Stage kStages[] = {
    {&look_tasks<W>, &row_grain<W, kRowBlock>, &look<W>},
    {&once, &once, &centre<W>},
    {&row_tasks<W>, &row_grain<W, 1>, &pack_rows<W>},
    {&gather_tasks<W>, &gather_grain<W>, &gather<W>},
};

}  // namespace

extern const PairwiseDistanceBackwardKernel pairwise_distance_backward_float32;
extern const PairwiseDistanceBackwardKernel pairwise_distance_backward_float64;
const PairwiseDistanceBackwardKernel pairwise_distance_backward_float32 =
    staged<PairwiseDistanceBackward, lay_out<float>>(kStages<float>);
const PairwiseDistanceBackwardKernel pairwise_distance_backward_float64 =
    staged<PairwiseDistanceBackward, lay_out<double>>(kStages<double>);

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
