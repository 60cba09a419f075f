#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/packing.h"
#include "kernels/pairwise_distance.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kRows = 8;     // rows whose sums one task carries, so that a row of the other side is read once
constexpr std::int64_t kTerms = 128;  // terms summed in the working type
constexpr std::int64_t kSumVectors = 2;  // of a row, carried in registers at a time

template <class W>
struct Plan {
  PairwiseDistanceBackward problem;
  RowSet x, y;  // with one set, y is x, here and below
  double* centre;
  W* a;  // [n, d]: the rows in the working type; for cosine unit vectors, centred so that rounding spares their
         // differences
  W* b;
};

template <class W>
Plan<W> lay_out(const PairwiseDistanceBackward& problem, Arena& arena) {
  Plan<W> p{};
  p.problem = problem;
  p.centre = arena.take<double>(problem.x.d);
  p.x = lay_out_rows(arena, problem.x, nullptr, problem.metric);
  p.a = arena.take<W>(problem.x.n * problem.x.d);
  p.y = problem.self ? p.x : lay_out_rows(arena, problem.y, nullptr, problem.metric);
  p.b = problem.self ? p.a : arena.take<W>(problem.y.n * problem.y.d);
  return p;
}

template <class W>
const Plan<W>& as_plan(const void* plan) {
  return *static_cast<const Plan<W>*>(plan);
}

// --- step 1: look at the rows, find their centre
// ----------------------------------------------------------------------

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
  for (std::int64_t k = 0; p.problem.metric != Metric::cosine && k < p.problem.x.d; ++k) {
    p.centre[k] = 0;  // rows that are not divided keep all their digits as they are
  }
}

// --- step 2: rows in the working type --------------------------------------------------------------------------------

template <class W>
std::int64_t row_tasks(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  return p.problem.x.n + (p.problem.self ? 0 : p.problem.y.n);
}

template <class W>
void convert_row(const RowSet& set, const double* centre, std::int64_t i, W* out) {
  const double scale = scale_of(set, i);
  W buffer[kChunk];
  for (std::int64_t begin = 0; begin < set.rows.d; begin += kChunk) {
    const std::int64_t count = smaller(kChunk, set.rows.d - begin);
    const W* x = chunk(set.rows, i, begin, count, buffer);
    for (std::int64_t k = 0; k < count; ++k) {
      out[i * set.rows.d + begin + k] = static_cast<W>(static_cast<double>(x[k]) * scale - centre[begin + k]);
    }
  }
}

template <class W>
void convert_rows(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  for (std::int64_t t = begin; t < end; ++t) {
    t < p.problem.x.n ? convert_row(p.x, p.centre, t, p.a) : convert_row(p.y, p.centre, t - p.problem.x.n, p.b);
  }
}

// --- step 3: gather --------------------------------------------------------------------------------------------------

/// The derivative by half the squared distance (by the similarity, for dot) of the pair (i, j).
template <class W>
FASTMINE_INLINE W weight(const Plan<W>& p, std::int64_t i, std::int64_t j) {
  const std::int64_t at = i * p.problem.y.n + j;
  const W grad = static_cast<const W*>(p.problem.grad)[at];
  switch (p.problem.metric) {
    case Metric::euclidean: {
      const W d = static_cast<const W*>(p.problem.distance)[at];
      return d == 0 ? 0 : grad / d;
    }
    case Metric::sqeuclidean:
      return 2 * grad;
    case Metric::cosine: {  // a zero vector has no direction to turn; to itself a row stays at distance 0
      const bool fixed = (p.problem.self && i == j) || p.x.norm[i] == 0 || p.y.norm[j] == 0;
      return fixed ? 0 : grad;
    }
    case Metric::dot:
      return grad;
  }
  return 0;
}

/// One side of the problem: its rows, those across, and where the gradient goes.
template <class W>
struct Side {
  const RowSet& own;
  const RowSet& other;
  const W* rows;
  const W* across;
  bool transposed;  // `own` are the columns of grad
  void* out;
};

template <class W>
struct Terms {
  W weight[kRows][kTerms];
  double turn[kRows];  // cosine: the sum of weight x distance, what of the pull is along the row itself
};

/// The weights of rows first .. first + rows with kTerms rows across, from `begin` on.
template <class W>
void weigh(const Plan<W>& p, const Side<W>& side, std::int64_t first, std::int64_t rows, std::int64_t begin,
           std::int64_t count, Terms<W>& terms) {
  const W* distance = static_cast<const W*>(p.problem.distance);
  const bool cosine = p.problem.metric == Metric::cosine;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < count; ++c) {
      const std::int64_t i = side.transposed ? begin + c : first + r, j = side.transposed ? first + r : begin + c;
      W w = weight(p, i, j);
      if (p.problem.self) {
        w += weight(p, j, i);
      }
      terms.weight[r][c] = w;
      if (cosine && w != 0) {
        terms.turn[r] += static_cast<double>(w) * static_cast<double>(distance[i * p.problem.y.n + j]);
      }
    }
  }
}

/// sums[r, k] += sum over c of weight[r, c] (own[r, k] - across[c, k]), or of weight[r, c] across[c, k] for dot, over
/// `Vectors` vectors of k.
template <class W, bool Difference, std::int64_t Vectors>
FASTMINE_NOINLINE void add_terms(const W* own, const W* across, std::int64_t d, std::int64_t count,
                                 const Terms<W>& terms, std::int64_t rows, double* sums) {
  using V = Vec<W>;
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<W>);
  for (std::int64_t r = 0; r < rows; ++r) {
    V x[Vectors], sum[Vectors] = {};
    for (std::int64_t v = 0; v < Vectors; ++v) {
      x[v] = load(own + r * d + v * step);
    }
    for (std::int64_t c = 0; c < count; ++c) {
      const V w = broadcast(terms.weight[r][c]);
      for (std::int64_t v = 0; v < Vectors; ++v) {
        const V y = load(across + c * d + v * step);
        sum[v] += Difference ? w * (x[v] - y) : w * y;
      }
    }
    for (std::int64_t v = 0; v < Vectors; ++v) {
      for (std::int64_t k = 0; k < step; ++k) {
        sums[r * kChunk + v * step + k] += static_cast<double>(sum[v][static_cast<std::size_t>(k)]);
      }
    }
  }
}

/// The same for the last elements of a row, fewer than a vector.
template <class W, bool Difference>
void add_tail(const W* own, const W* across, std::int64_t d, std::int64_t width, std::int64_t count,
              const Terms<W>& terms, std::int64_t rows, double* sums) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t k = 0; k < width; ++k) {
      W sum = 0;
      for (std::int64_t c = 0; c < count; ++c) {
        const W y = across[c * d + k];
        sum += terms.weight[r][c] * (Difference ? own[r * d + k] - y : y);
      }
      sums[r * kChunk + k] += static_cast<double>(sum);
    }
  }
}

template <class W, bool Difference>
void add_block(const W* own, const W* across, std::int64_t d, std::int64_t width, std::int64_t count,
               const Terms<W>& terms, std::int64_t rows, double* sums) {
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<W>);
  std::int64_t k = 0;
  for (; k + kSumVectors * step <= width; k += kSumVectors * step) {
    add_terms<W, Difference, kSumVectors>(own + k, across + k, d, count, terms, rows, sums + k);
  }
  for (; k + step <= width; k += step) {
    add_terms<W, Difference, 1>(own + k, across + k, d, count, terms, rows, sums + k);
  }
  add_tail<W, Difference>(own + k, across + k, d, width - k, count, terms, rows, sums + k);
}

template <class W>
void write_row(const Plan<W>& p, const Side<W>& side, std::int64_t row, std::int64_t from, std::int64_t count,
               double turn, double* sum) {
  if (p.problem.metric == Metric::cosine) {
    const double norm = side.own.norm[row];
    W buffer[kChunk];
    const W* x = chunk(side.own.rows, row, from, count, buffer);
    for (std::int64_t k = 0; k < count; ++k) {
      sum[k] = norm == 0 ? 0 : (sum[k] - turn * (static_cast<double>(x[k]) / norm)) / norm;
    }
  }
  char* bytes = static_cast<char*>(side.out);
  const DType type = side.own.rows.dtype;
  write(sum, static_cast<std::size_t>(count),
        bytes + (row * side.own.rows.d + from) * static_cast<std::int64_t>(size_of(type)), type);
}

template <class W>
void gather_rows(const Plan<W>& p, const Side<W>& side, std::int64_t first) {
  const std::int64_t d = side.own.rows.d, m = side.other.rows.n;
  const std::int64_t rows = smaller(kRows, side.own.rows.n - first);
  Terms<W> terms;
  double sums[kRows * kChunk];
  for (std::int64_t from = 0; from < d; from += kChunk) {
    const std::int64_t width = smaller(kChunk, d - from);
    for (double& sum : sums) {
      sum = 0;
    }
    for (double& turn : terms.turn) {
      turn = 0;
    }
    for (std::int64_t begin = 0; begin < m; begin += kTerms) {
      const std::int64_t count = smaller(kTerms, m - begin);
      weigh(p, side, first, rows, begin, count, terms);
      const W* own = side.rows + first * d + from;
      const W* across = side.across + begin * d + from;
      if (p.problem.metric == Metric::dot) {
        add_block<W, false>(own, across, d, width, count, terms, rows, sums);
      } else {
        add_block<W, true>(own, across, d, width, count, terms, rows, sums);
      }
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      write_row(p, side, first + r, from, width, terms.turn[r], sums + r * kChunk);
    }
  }
}

template <class W>
std::int64_t gather_tasks(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  return divide_up(p.problem.x.n, kRows) + (p.problem.self ? 0 : divide_up(p.problem.y.n, kRows));
}

template <class W>
void gather(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  const std::int64_t own = divide_up(p.problem.x.n, kRows);
  const Side<W> of_x{p.x, p.y, p.a, p.b, false, p.problem.grad_x};
  const Side<W> of_y{p.y, p.x, p.b, p.a, true, p.problem.grad_y};
  for (std::int64_t t = begin; t < end; ++t) {
    t < own ? gather_rows(p, of_x, t * kRows) : gather_rows(p, of_y, (t - own) * kRows);
  }
}

std::int64_t once(const void*) { return 1; }
std::int64_t few(const void*) { return 4; }
std::int64_t row_grain(const void*) { return 64; }
std::int64_t gather_grain(const void*) { return 4; }

template <class W>
constexpr Stage kStages[] = {
    {&look_tasks<W>, &few, &look<W>},
    {&once, &once, &centre<W>},
    {&row_tasks<W>, &row_grain, &convert_rows<W>},
    {&gather_tasks<W>, &gather_grain, &gather<W>},
};

template <class W>
std::size_t workspace(const PairwiseDistanceBackward& problem) {
  Arena arena(nullptr);
  arena.take<Plan<W>>(1);
  lay_out<W>(problem, arena);
  return arena.used();
}

template <class W>
void* plan(const PairwiseDistanceBackward& problem, void* memory) {
  Arena arena(memory);
  Plan<W>* place = arena.take<Plan<W>>(1);
  *place = lay_out<W>(problem, arena);
  return place;
}

}  // namespace

extern const PairwiseDistanceBackwardKernel pairwise_distance_backward_float32;
extern const PairwiseDistanceBackwardKernel pairwise_distance_backward_float64;
const PairwiseDistanceBackwardKernel pairwise_distance_backward_float32{&workspace<float>, &plan<float>, kStages<float>,
                                                                        4};
const PairwiseDistanceBackwardKernel pairwise_distance_backward_float64{&workspace<double>, &plan<double>,
                                                                        kStages<double>, 4};

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
