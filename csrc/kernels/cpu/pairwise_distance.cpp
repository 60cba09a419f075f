#include "kernels/pairwise_distance.h"

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/distance_row.h"
#include "kernels/cpu/grain.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kPanelSlivers = 4;  // slivers of rows and of columns that one task compares, from the cache
constexpr std::int64_t kFewestPanels = 8;  // of either side, where there are as many slivers: enough tasks for threads

template <class W>
struct Plan {
  PairwiseDistance problem;
  RowSet x, y;  // with one set, y is x
  double* centre;
  Packed<W> a, b;
  std::int64_t panel;  // slivers on either side of a task

  std::int64_t row_panels() const { return divide_up(a.slivers(), panel); }
  std::int64_t column_panels() const { return divide_up(b.slivers(), panel); }
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
  plan.panel =
      larger<std::int64_t>(1, smaller(kPanelSlivers, smaller(plan.a.slivers(), plan.b.slivers()) / kFewestPanels));
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

/// The first `count` lanes of v, all of them where it has no more.
template <class W>
FASTMINE_INLINE void write_part(Vec<W> v, std::int64_t count, W* out) {
  if (count >= static_cast<std::int64_t>(lanes<W>)) {
    store(out, v);
  } else {
    __builtin_memcpy(out, &v, static_cast<std::size_t>(count) * sizeof(W));
  }
}

/// out[c] = row[c], for c < width.
template <class W>
FASTMINE_INLINE void write_row(const W* row, std::int64_t width, W* out) {
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<W>);
  std::int64_t c = 0;
  for (; c + step <= width; c += step) {
    store(out + c, load(row + c));
  }
  if (c < width) {
    write_part(load(row + c), width - c, out + c);
  }
}

/// out[c][r] = block[r][c], for `height` x `width` elements; rows of out lie `stride` apart.
template <class W>
FASTMINE_INLINE void write_transposed(const W* block, std::int64_t height, std::int64_t width, W* out,
                                      std::int64_t stride) {
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<W>);
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<W>);
  for (std::int64_t c = 0; c < width; c += step) {
    for (std::int64_t r = 0; r < height; r += step) {
      Vec<W> v[lanes<W>];
      for (std::int64_t k = 0; k < step; ++k) {
        v[k] = load(block + (r + k) * sliver + c);
      }
      transpose(v);
      for (std::int64_t k = 0; k < smaller(step, width - c); ++k) {
        write_part(v[k], smaller(step, height - r), out + (c + k) * stride + r);
      }
    }
  }
}

/// Ask for a block of the result before it is computed: its rows are too short for the processor to foresee the next.
template <class W>
FASTMINE_INLINE void prefetch_block(const W* out, std::int64_t height, std::int64_t width, std::int64_t stride) {
  for (std::int64_t r = 0; r < height; ++r) {
    for (std::int64_t c = 0; c < width; c += 64 / static_cast<std::int64_t>(sizeof(W))) {
      __builtin_prefetch(out + r * stride + c, 1, 2);
    }
  }
}

/// Distances of sliver `rows` against sliver s, written out, and once more transposed with one set.
template <class W>
void fill_block(const Plan<W>& p, std::int64_t rows, std::int64_t s) {
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<W>);
  alignas(64) W block[kSliver<W> * kSliver<W>];
  const std::int64_t d = p.problem.x.d, m = p.problem.y.n;
  const std::int64_t height = smaller(sliver, p.a.count - rows * sliver);
  const std::int64_t width = smaller(sliver, p.b.count - s * sliver);
  W* out = static_cast<W*>(p.problem.distance) + rows * sliver * m + s * sliver;
  W* mirrored =
      p.problem.self && s != rows ? static_cast<W*>(p.problem.distance) + s * sliver * m + rows * sliver : nullptr;
  prefetch_block(out, height, width, m);
  if (mirrored != nullptr) {
    prefetch_block(mirrored, width, height, m);
  }
  const Sides<W> sides{p.x, p.y, p.a, p.b};
  dot_block(p.a.sliver(rows, d), p.b.sliver(s, d), static_cast<std::size_t>(d), static_cast<std::size_t>(height),
            static_cast<std::size_t>(width), block);
  for (std::int64_t r = 0; r < height; ++r) {
    distances_of_row(sides, rows * sliver + r, s, width, block + r * sliver);
  }
  if (p.problem.self && s == rows && p.problem.metric != Metric::dot) {
    for (std::int64_t r = 0; r < height; ++r) {  // to itself: 0, of a zero vector's cosine too; a NaN stays
      W& own = block[r * sliver + r];
      own = own == own ? 0 : own;
    }
  }
  for (std::int64_t r = 0; r < height; ++r) {
    write_row(block + r * sliver, width, out + r * m);
  }
  if (mirrored != nullptr) {
    write_transposed(block, height, width, mirrored, m);
  }
}

/// One task: a panel of rows against a panel of columns. With one set, only the panels at and right of the diagonal.
template <class W>
std::int64_t fill_tasks(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  const std::int64_t rows = p.row_panels();
  return p.problem.self ? rows * (rows + 1) / 2 : rows * p.column_panels();
}

template <class W>
void fill(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  const std::int64_t panels = p.column_panels(), across = p.problem.self ? panels + 1 : panels;
  for (std::int64_t t = begin; t < end; ++t) {
    std::int64_t row = t / across, column = t % across;
    if (p.problem.self) {  // the triangle as a rectangle: row r, of panels - r panels, and after it row panels - 1 - r
      const std::int64_t length = panels - row;
      const bool second = column >= length;
      row = second ? length - 1 : row;
      column = row + column - (second ? length : 0);
    }
    const std::int64_t row_end = smaller(p.a.slivers(), (row + 1) * p.panel);
    const std::int64_t column_end = smaller(p.b.slivers(), (column + 1) * p.panel);
    for (std::int64_t r = row * p.panel; r < row_end; ++r) {
      const std::int64_t first = column * p.panel;
      for (std::int64_t s = p.problem.self ? larger(first, r) : first; s < column_end; ++s) {
        fill_block(p, r, s);
      }
    }
  }
}

std::int64_t once(const void*) { return 1; }

template <class W>
std::int64_t fill_grain(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  const std::int64_t side = p.panel * static_cast<std::int64_t>(kSliver<W>);
  return worth_a_thread(side * side * p.problem.x.d);
}

template <class W, std::int64_t Rows>
std::int64_t row_grain(const void* plan) {
  return reading_worth_a_thread(as_plan<W>(plan).problem.x.d * Rows);
}

template <class W>
constexpr Stage kStages[] = {
    {&look_tasks<W>, &row_grain<W, kRowBlock>, &look<W>},
    {&once, &once, &centre<W>},
    {&pack_tasks<W>, &row_grain<W, kSliver<W>>, &pack<W>},
    {&fill_tasks<W>, &fill_grain<W>, &fill<W>},
};

}  // namespace

extern const PairwiseDistanceKernel pairwise_distance_float32;
extern const PairwiseDistanceKernel pairwise_distance_float64;
const PairwiseDistanceKernel pairwise_distance_float32 = staged<PairwiseDistance, lay_out<float>>(kStages<float>);
const PairwiseDistanceKernel pairwise_distance_float64 = staged<PairwiseDistance, lay_out<double>>(kStages<double>);

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
