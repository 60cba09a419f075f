#include "kernels/pairwise_distance.h"

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/packing.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {
namespace {

/// Keys below this share of |x|^2 + |y|^2 have lost too many digits in the subtraction.
template <class W>
constexpr W kClose = static_cast<W>(1.0 / 16);

constexpr std::int64_t kPanelSlivers = 4;  // slivers of columns that stay in cache while rows pass

template <class W>
struct Plan {
  PairwiseDistance problem;
  RowSet x, y;  // with one set, y is x
  double* centre;
  Packed<W> a, b;
  std::int64_t panels;
};

template <class W>
Plan<W> lay_out(const PairwiseDistance& problem, Arena& arena) {
  Plan<W> plan{};
  plan.problem = problem;
  plan.x = lay_out_rows(arena, problem.x, nullptr, problem.metric);
  plan.y = problem.self ? plan.x : lay_out_rows(arena, problem.y, nullptr, problem.metric);
  plan.centre = arena.take<double>(problem.x.d);
  plan.a = lay_out_packed<W>(arena, problem.x.n, problem.x.d);
  plan.a.count = problem.x.n;
  plan.b = plan.a;
  if (!problem.self) {
    plan.b = lay_out_packed<W>(arena, problem.y.n, problem.y.d);
    plan.b.count = problem.y.n;
  }
  plan.panels = divide_up(plan.b.slivers(), kPanelSlivers);
  return plan;
}

template <class W>
const Plan<W>& as_plan(const void* plan) {
  return *static_cast<const Plan<W>*>(plan);
}

template <class W>
std::int64_t look_tasks(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  return p.x.blocks() + (p.problem.self ? 0 : p.y.blocks());
}

template <class W>
void look(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  for (std::int64_t t = begin; t < end; ++t) {
    const std::int64_t own = p.x.blocks();
    t < own ? look_at_block<W>(p.x, t) : look_at_block<W>(p.y, t - own);
  }
}

template <class W>
void centre(void* plan, std::int64_t, std::int64_t) {
  const Plan<W>& p = as_plan<W>(plan);
  find_centre(p.x, p.problem.self ? nullptr : &p.y, p.centre);
}

template <class W>
std::int64_t pack_tasks(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  return p.a.slivers() + (p.problem.self ? 0 : p.b.slivers());
}

template <class W>
void pack(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  for (std::int64_t t = begin; t < end; ++t) {
    const std::int64_t own = p.a.slivers();
    t < own ? pack_sliver(p.x, p.centre, p.a, t) : pack_sliver(p.y, p.centre, p.b, t - own);
  }
}

/// The distance of position i to position j by direct difference.
template <class W>
FASTMINE_NOINLINE W direct(const Plan<W>& p, std::int64_t i, std::int64_t j) {
  const double key = exact_key<W>(p.problem.x, i, p.x.norm, p.problem.y, j, p.y.norm, p.problem.metric);
  return static_cast<W>(distance_of(key, p.problem.metric));
}

FASTMINE_INLINE float root(float x) { return __builtin_sqrtf(x); }
FASTMINE_INLINE double root(double x) { return __builtin_sqrt(x); }

/// Whether products of rows of these norms may overflow, or fall among the subnormal numbers and lose digits.
template <class W>
bool extreme(W a, W b) {
  constexpr double huge = sizeof(W) == 8 ? 0x1p1000 : 0x1p120, tiny = sizeof(W) == 8 ? 0x1p-900 : 0x1p-80;
  const double scale =
      (static_cast<double>(a) + static_cast<double>(b)) * (static_cast<double>(a) + static_cast<double>(b));
  return !(scale > tiny && scale < huge);
}

/// Distances of position i to the rows of sliver s, from their dot products.
template <class W>
FASTMINE_INLINE void distances_of_row(const Plan<W>& p, std::int64_t i, std::int64_t s, const W* dots, W* out) {
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<W>);
  const Metric metric = p.problem.metric;
  const W own = p.a.c[i];  // a NaN marks a poisoned row, here and in `other`
  const W* other = p.b.c + s * sliver;
  const std::int64_t width = smaller(sliver, p.b.count - s * sliver);
  if (extreme(p.a.norm[i], p.b.radius[s])) {
    for (std::int64_t c = 0; c < width; ++c) {
      const bool sound = own == own && other[c] == other[c];
      out[c] = sound ? direct(p, i, s * sliver + c) : static_cast<W>(__builtin_nan(""));
    }
    return;
  }
  if (metric == Metric::dot) {
    for (std::int64_t c = 0; c < width; ++c) {
      out[c] = dots[c] + (own + other[c]);  // 0, or NaN
    }
    return;
  }
  const W factor = metric == Metric::cosine ? static_cast<W>(0.5) : 1;
  bool close = false;
  for (std::int64_t c = 0; c < sliver; ++c) {
    const W sum = own + other[c];
    const W key = sum - 2 * dots[c];
    close |= key <= sum * kClose<W>;
    out[c] = factor * (key < 0 ? 0 : key);
  }
  if (metric == Metric::euclidean) {
    for (std::int64_t c = 0; c < sliver; ++c) {
      out[c] = root(out[c]);
    }
  }
  for (std::int64_t c = 0; close && c < width; ++c) {
    const W sum = own + other[c];
    if (sum - 2 * dots[c] <= sum * kClose<W>) {
      out[c] = direct(p, i, s * sliver + c);
    }
  }
}

/// Distances of sliver `rows` against sliver s, written out, and once more transposed with one set.
template <class W>
void fill_block(const Plan<W>& p, std::int64_t rows, std::int64_t s) {
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<W>);
  constexpr std::int64_t tile_rows = static_cast<std::int64_t>(kTileRows<W>);
  alignas(64) W dots[kTileRows<W> * kSliver<W>];
  alignas(64) W block[kSliver<W> * kSliver<W>];
  const std::int64_t d = p.problem.x.d, m = p.problem.y.n;
  const std::int64_t height = smaller(sliver, p.a.count - rows * sliver);
  const std::int64_t width = smaller(sliver, p.b.count - s * sliver);
  for (std::int64_t first = 0; first < height; first += tile_rows) {
    dot_tile<W, kTileRows<W>>(p.a.sliver(rows, d) + first, p.b.sliver(s, d), static_cast<std::size_t>(d), dots);
    for (std::int64_t r = 0; r < smaller(tile_rows, height - first); ++r) {
      distances_of_row(p, rows * sliver + first + r, s, dots + r * sliver, block + (first + r) * sliver);
    }
  }
  if (p.problem.self && s == rows && p.problem.metric != Metric::dot) {
    for (std::int64_t r = 0; r < height; ++r) {  // to itself: 0, of a zero vector's cosine too; a NaN stays
      W& own = block[r * sliver + r];
      own = own == own ? 0 : own;
    }
  }
  W* out = static_cast<W*>(p.problem.distance);
  for (std::int64_t r = 0; r < height; ++r) {
    __builtin_memcpy(out + (rows * sliver + r) * m + s * sliver, block + r * sliver,
                     static_cast<std::size_t>(width) * sizeof(W));
  }
  if (p.problem.self && s != rows) {
    for (std::int64_t c = 0; c < width; ++c) {
      for (std::int64_t r = 0; r < height; ++r) {
        out[(s * sliver + c) * m + rows * sliver + r] = block[r * sliver + c];
      }
    }
  }
}

/// One task: a sliver of rows against a panel of columns. With one set, only the slivers at and right of the diagonal.
template <class W>
std::int64_t fill_tasks(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  return p.a.slivers() * p.panels;
}

template <class W>
void fill(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  for (std::int64_t t = begin; t < end; ++t) {
    const std::int64_t rows = t / p.panels, panel = t % p.panels;
    const std::int64_t first = panel * kPanelSlivers;
    for (std::int64_t s = p.problem.self ? larger(first, rows) : first;
         s < smaller(p.b.slivers(), first + kPanelSlivers); ++s) {
      fill_block(p, rows, s);
    }
  }
}

std::int64_t once(const void*) { return 1; }

template <class W>
std::int64_t fill_grain(const void* plan) {
  const std::int64_t work = as_plan<W>(plan).problem.x.d * kPanelSlivers * static_cast<std::int64_t>(kSliver<W>);
  return larger<std::int64_t>(1, 40000 / work);
}

std::int64_t few(const void*) { return 4; }

template <class W>
constexpr Stage kStages[] = {
    {&look_tasks<W>, &few, &look<W>},
    {&once, &once, &centre<W>},
    {&pack_tasks<W>, &few, &pack<W>},
    {&fill_tasks<W>, &fill_grain<W>, &fill<W>},
};

template <class W>
std::size_t workspace(const PairwiseDistance& problem) {
  Arena arena(nullptr);
  arena.take<Plan<W>>(1);
  lay_out<W>(problem, arena);
  return arena.used();
}

template <class W>
void* plan(const PairwiseDistance& problem, void* memory) {
  Arena arena(memory);
  Plan<W>* place = arena.take<Plan<W>>(1);
  *place = lay_out<W>(problem, arena);
  return place;
}

}  // namespace

extern const PairwiseDistanceKernel pairwise_distance_float32;
extern const PairwiseDistanceKernel pairwise_distance_float64;
const PairwiseDistanceKernel pairwise_distance_float32{&workspace<float>, &plan<float>, kStages<float>, 4};
const PairwiseDistanceKernel pairwise_distance_float64{&workspace<double>, &plan<double>, kStages<double>, 4};

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
