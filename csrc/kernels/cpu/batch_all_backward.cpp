#include "kernels/batch_all.h"
#include "kernels/cpu/batch_all_gather_blocks.h"
#include "kernels/cpu/batch_all_gather_tiles.h"
#include "kernels/cpu/dispatch.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {
namespace batch_all {
namespace {

FASTMINE_INLINE bool is_nan(double x) { return x != x; }

// --- rows by label, in columns too -----------------------------------------------------------------------------------

template <class W>
void group_positions(void* plan, std::int64_t, std::int64_t) {
  Gradient<W>& p = *static_cast<Gradient<W>*>(plan);
  group<Gradient<W>>(plan, 0, 1);
  p.spoiled = p.some_fixed = false;
  for (std::int64_t i = 0; i < p.problem.x.n; ++i) {
    p.x_position[i] = -1;
    p.spoiled = p.spoiled || is_nan(p.outer.weight[i]);
    p.some_fixed = p.some_fixed || p.x.norm[i] == 0;
  }
  for (std::int64_t i = 0; i < p.problem.y.n; ++i) {
    p.some_fixed = p.some_fixed || p.y.norm[i] == 0;
    p.y_position[i] = -1;
  }
  for (std::int64_t k = 0; k < p.a.count; ++k) {
    p.x_position[p.a.row(k)] = k;
  }
  for (std::int64_t k = 0; k < p.b.count; ++k) {
    p.y_position[p.b.row(k)] = k;
  }
}

template <class W>
std::int64_t column_tasks(const void* plan) {
  const Gradient<W>& p = as_gradient<W>(plan);
  return p.in_blocks() && p.blocks.digits ? 0 : p.b.count + (packs_anchors(p) ? p.a.count : 0);
}

template <class W>
void pack_columns(void* plan, std::int64_t begin, std::int64_t end) {
  const Gradient<W>& p = as_gradient<W>(plan);
  for (std::int64_t t = begin; t < end; ++t) {
    const std::int64_t k = t - p.b.count;
    k < 0 ? pack_column(p.y, p.centre, p.b.row(t), t, p.references)
          : pack_column(p.x, p.centre, p.a.row(k), k, p.anchors);
  }
}

// --- gather ----------------------------------------------------------------------------------------------------------

template <class W>
std::int64_t gather_tasks(const void* plan) {
  const Gradient<W>& p = as_gradient<W>(plan);
  if (p.in_blocks()) {
    return p.a.count == 0 ? 0 : p.blocks.x.slivers() + (p.problem.self ? 0 : p.blocks.y.slivers());
  }
  return p.tiles.parts(p.a.count);
}

template <class W>
void gather(void* plan, std::int64_t begin, std::int64_t end) {
  const Gradient<W>& p = as_gradient<W>(plan);
  [[maybe_unused]] const MatrixUnit unit;
  for (std::int64_t t = begin; t < end; ++t) {
    p.in_blocks() ? gather_blocks(p, t) : gather_part(p, t);
  }
}

// --- finish ----------------------------------------------------------------------------------------------------------

/// A row of zeros, or of NaN: of a row that may hold anything.
template <class W>
void write_constant(const RowSet& set, std::int64_t i, double value, void* out) {
  double values[kChunk];
  for (double& v : values) {
    v = value;
  }
  for (std::int64_t from = 0; from < set.rows.d; from += kChunk) {
    char* bytes =
        static_cast<char*>(out) + (i * set.rows.d + from) * static_cast<std::int64_t>(size_of(set.rows.dtype));
    write(values, static_cast<std::size_t>(smaller(kChunk, set.rows.d - from)), bytes, set.rows.dtype);
  }
}

template <class W>
void finish_x(const Gradient<W>& p, std::int64_t i) {
  const bool self = p.problem.self, anchor = p.x_position[i] >= 0, taken = self && p.y_position[i] >= 0;
  const bool nan = self ? p.spoiled && (p.x.kind[i] & kSkipped) == 0 : is_nan(p.outer.weight[i]);
  void* out = p.outer.grad_x;
  if (nan || (!anchor && !taken)) {
    write_constant<W>(p.x, i, nan ? __builtin_nan("") : 0, out);
  } else if (p.in_blocks()) {
    finish_position(p, p.blocks.x, self ? p.y_position[i] : p.x_position[i], anchor, self, p.x_sums, p.x_total, out);
  } else {
    finish_row_of_tiles(p, p.x, i, anchor, self ? p.y_position[i] : -1, p.x_sums + i * p.wide(), out);
  }
}

template <class W>
void finish_y(const Gradient<W>& p, std::int64_t j) {
  const bool nan = p.spoiled && (p.y.kind[j] & kSkipped) == 0;
  void* out = p.outer.grad_y;
  if (nan || p.y_position[j] < 0) {
    write_constant<W>(p.y, j, nan ? __builtin_nan("") : 0, out);
  } else if (p.in_blocks()) {
    finish_position(p, p.blocks.y, p.y_position[j], false, true, p.y_sums, p.y_block_total, out);
  } else {
    finish_row_of_tiles(p, p.y, j, false, p.y_position[j], p.y_sums + j * p.wide(), out);
  }
}

template <class W>
std::int64_t finish_tasks(const void* plan) {
  const Gradient<W>& p = as_gradient<W>(plan);
  return p.problem.x.n + (p.problem.self ? 0 : p.problem.y.n);
}

template <class W>
void finish(void* plan, std::int64_t begin, std::int64_t end) {
  const Gradient<W>& p = as_gradient<W>(plan);
  for (std::int64_t t = begin; t < end; ++t) {
    t < p.problem.x.n ? finish_x(p, t) : finish_y(p, t - p.problem.x.n);
  }
}

std::int64_t some_rows(const void*) { return 64; }

template <class W>
constexpr Stage kStages[] = {
    {&look_tasks<Gradient<W>>, &few, &look<Gradient<W>>},
    {&once, &once, &group_positions<W>},
    {&pack_tasks<Gradient<W>>, &few, &pack<Gradient<W>>},
    {&once, &once, &find_largest<Gradient<W>>},
    {&column_tasks<W>, &some_rows, &pack_columns<W>},
    {&measure_tasks<Gradient<W>>, &few, &measure_pulls<W>},
    {&gather_tasks<W>, &once, &gather<W>},
    {&finish_tasks<W>, &some_rows, &finish<W>},
};

}  // namespace
}  // namespace batch_all

extern const BatchAllBackwardKernel batch_all_backward_float32;
extern const BatchAllBackwardKernel batch_all_backward_float64;
const BatchAllBackwardKernel batch_all_backward_float32 =
    staged<BatchAllBackward, batch_all::lay_out<float>>(batch_all::kStages<float>);
const BatchAllBackwardKernel batch_all_backward_float64 =
    staged<BatchAllBackward, batch_all::lay_out<double>>(batch_all::kStages<double>);

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
