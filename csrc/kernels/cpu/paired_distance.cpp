#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/grain.h"
#include "kernels/cpu/packing.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {
namespace {

struct Plan {
  PairedDistance problem;
  RowSet rows;  // for cosine, the norm of every row
};

Plan lay_out(const PairedDistance& problem, Arena& arena) {
  Plan p{};
  p.problem = problem;
  p.rows.rows = problem.rows;
  p.rows.metric = problem.metric;
  const std::int64_t n = problem.metric == Metric::cosine ? problem.rows.n : 0;
  p.rows.kind = arena.take<std::uint8_t>(n);
  p.rows.norm = arena.take<double>(n);
  p.rows.squared = arena.take<double>(n);
  return p;
}

const Plan& as_plan(const void* plan) { return *static_cast<const Plan*>(plan); }

std::int64_t norm_tasks(const void* plan) {
  const PairedDistance& q = as_plan(plan).problem;
  return q.metric == Metric::cosine ? q.rows.n : 0;
}

std::int64_t pair_tasks(const void* plan) { return as_plan(plan).problem.n; }

std::int64_t row_grain(const void* plan) { return reading_worth_a_thread(as_plan(plan).problem.rows.d); }

template <class W>
void find_norms(void* plan, std::int64_t begin, std::int64_t end) {
  for (std::int64_t row = begin; row < end; ++row) {
    look_at_row<W>(as_plan(plan).rows, row);
  }
}

template <class W>
void compare(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan& p = as_plan(plan);
  const PairedDistance& q = p.problem;
  for (std::int64_t i = begin; i < end; ++i) {
    q.distance[i] = 0;
    if (q.has_first[i] && q.has_second[i]) {
      const double key = exact_key<W>(q.rows, q.first[i], p.rows.norm, q.rows, q.second[i], p.rows.norm, q.metric);
      // A zero row has cosine 0 with every other, but not with one that is not finite.
      const bool bad =
          q.metric == Metric::cosine && ((p.rows.kind[q.first[i]] | p.rows.kind[q.second[i]]) & kPoisoned) != 0;
      q.distance[i] = !bad && ::fabs(key) <= 1.7976931348623157e308 ? distance_of(key, q.metric) : __builtin_nan("");
    }
  }
}

template <class W>
constexpr Stage kStages[] = {
    {&norm_tasks, &row_grain, &find_norms<W>},
    {&pair_tasks, &row_grain, &compare<W>},
};

}  // namespace

extern const PairedDistanceKernel paired_distance_float32;
extern const PairedDistanceKernel paired_distance_float64;
const PairedDistanceKernel paired_distance_float32 = staged<PairedDistance, &lay_out>(kStages<float>);
const PairedDistanceKernel paired_distance_float64 = staged<PairedDistance, &lay_out>(kStages<double>);

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
