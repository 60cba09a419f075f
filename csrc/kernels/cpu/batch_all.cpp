#include "kernels/batch_all.h"

#include "kernels/cpu/batch_all_plan.h"
#include "kernels/cpu/dispatch.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {
namespace batch_all {
namespace {

template <class W>
Plan<W> lay_out(const BatchAll& problem, Arena& arena) {
  return lay_out_plan<W>(problem, arena, parts_of(problem, 0), false);
}

template <class W>
const Plan<W>& as_plan(const void* plan) {
  return *static_cast<const Plan<W>*>(plan);
}

/// What the negatives of an anchor add to its sum.
struct Pushed {
  double ranked;  // sum of rank x closeness
  double plain;   // sum of closeness
};

template <class W>
FASTMINE_INLINE void add_negatives(const W* row, const W* rank, std::int64_t width, bool plainly, Pushed& pushed) {
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<double>);
  Vec<double> ranked{};
  std::int64_t c = 0;
  for (; c + step <= width; c += step) {
    ranked += load_double(rank + c) * load_double(row + c);
  }
  double sum = sum_lanes(ranked);
  for (; c < width; ++c) {
    sum += static_cast<double>(rank[c]) * static_cast<double>(row[c]);
  }
  pushed.ranked += sum;
  for (c = 0; plainly && c < width; ++c) {
    pushed.plain += row[c] == kFar<W> ? 0 : static_cast<double>(row[c]);
  }
}

/// The sum over the triplets of anchor r that count, and how many do. A positive plus the margin counts once for each
/// such triplet, a negative minus once; with a leak, in all other triplets that much.
template <class W>
void write_sum(const Plan<W>& p, const Block& block, const Scratch<W>& scratch, std::int64_t r, const Pushed& pushed) {
  const double* positive = scratch.ascending + block.offset[r];
  const double* below = scratch.below + block.offset[r];
  double ranked = 0, plain = 0, active = 0;
  for (std::int64_t k = 0; k < block.positives[r]; ++k) {
    const double threshold = positive[k] + p.problem.margin;
    ranked += threshold * below[k];
    plain += threshold;
    active += below[k];
  }
  const double all =
      plain * static_cast<double>(block.negatives[r]) - pushed.plain * static_cast<double>(block.positives[r]);
  const double leak = p.problem.leak, above = ranked - pushed.ranked;
  const std::int64_t i = p.a.row(block.first + r);
  p.problem.sum[i] = leak == 0 ? above : leak * all + (1 - leak) * above;
  p.problem.active[i] = active;
}

template <class W>
void sum_block(const Plan<W>& p, std::int64_t number, const Scratch<W>& scratch) {
  alignas(64) W rank[kReferences];
  Pushed pushed[kAnchors] = {};
  const Block block = find_positives(p, number, scratch);
  for_tiles(p, block.first, scratch.tile, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = 0; r < block.height(); ++r) {
      rank_row(p, block, scratch, r, begin, end, rank);
      add_negatives(scratch.tile + r * kReferences, rank, end - begin, p.problem.leak > 0, pushed[r]);
    }
  });
  finish_counts(block, scratch);
  for (std::int64_t r = 0; r < block.height(); ++r) {
    write_sum(p, block, scratch, r, pushed[r]);
  }
}

template <class W>
std::int64_t sum_tasks(const void* plan) {
  return as_plan<W>(plan).parts();
}

template <class W>
void sum(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  for (std::int64_t part = begin; part < end; ++part) {
    for (std::int64_t number = p.first_block(part); number < p.first_block(part + 1); ++number) {
      sum_block(p, number, p.scratch[part]);
    }
  }
}

template <class W>
constexpr Stage kStages[] = {
    {&look_tasks<Plan<W>>, &few, &look<Plan<W>>},
    {&once, &once, &group<Plan<W>>},
    {&pack_tasks<Plan<W>>, &few, &pack<Plan<W>>},
    {&once, &once, &measure<Plan<W>>},
    {&sum_tasks<W>, &once, &sum<W>},
};

}  // namespace
}  // namespace batch_all

extern const BatchAllKernel batch_all_float32;
extern const BatchAllKernel batch_all_float64;
const BatchAllKernel batch_all_float32 = staged<BatchAll, batch_all::lay_out<float>>(batch_all::kStages<float>);
const BatchAllKernel batch_all_float64 = staged<BatchAll, batch_all::lay_out<double>>(batch_all::kStages<double>);

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
