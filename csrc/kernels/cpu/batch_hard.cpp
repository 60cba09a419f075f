#include "kernels/batch_hard.h"

#include "kernels/cpu/batch_hard_group.h"
#include "kernels/cpu/batch_hard_negatives.h"
#include "kernels/cpu/batch_hard_positives.h"
#include "kernels/cpu/batch_hard_screen.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/grain.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {
namespace {

using namespace mining;

template <class W>
std::int64_t small_tasks(const void* plan) {
  return has_few_pairs(as_plan<W>(plan).problem) ? 1 : 0;
}

template <class W>
void mine_small(void* plan, std::int64_t, std::int64_t) {
  mine_few_pairs<W>(as_plan<W>(plan).small);
}

// --- anchors that are themselves poisoned, and the evidence --------------------------------------------------------

template <class W>
void find_for_poisoned(const Plan<W>& p, std::int64_t i) {
  const BatchHard& q = p.problem;
  for (std::int64_t j = 0; j < q.y.n && !(q.has_positive[i] && q.has_negative[i]); ++j) {
    if (!takes_part(p.y, j)) {
      continue;
    }
    if (q.ref_labels[j] == q.labels[i] && !q.has_positive[i] && j != itself(q, i)) {
      settle_poisoned(i, j, q.positive_index, q.positive_distance, q.has_positive);
    } else if (q.ref_labels[j] != q.labels[i] && !q.has_negative[i]) {
      settle_poisoned(i, j, q.negative_index, q.negative_distance, q.has_negative);
    }
  }
}

template <class W>
void finish(void* plan, std::int64_t, std::int64_t) {
  const Plan<W>& p = as_plan<W>(plan);
  for (std::int64_t k = 0; k < p.x_poisoned_count; ++k) {
    find_for_poisoned(p, p.x_poisoned()[k]);
  }
  gather_evidence(p.problem, p.x, p.total, p.classes, p.x_poisoned_count, p.y_poisoned_count);
}

std::int64_t once(const void*) { return 1; }

template <class W, std::int64_t Rows>
std::int64_t row_grain(const void* plan) {
  return reading_worth_a_thread(as_plan<W>(plan).problem.x.d * Rows);
}

template <class W>
std::int64_t tile_grain(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  return worth_a_thread(p.problem.x.d * static_cast<std::int64_t>(kTileRows<W> * kSliver<W>));
}

template <class W>
std::int64_t screen_grain(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  const std::int64_t work = p.problem.x.d * p.panel_rows() * p.panel_rows();
  return worth_a_thread(p.rounded && kMatrixUnit ? work / 8 : work);
}

/// Few enough anchors that many threads take part, enough that some share a panel.
template <class W>
std::int64_t negative_grain(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  return larger(4 * p.b_panels() / kTogether, worth_a_thread(p.problem.x.d * p.panel_rows() * kTogether));
}

/// The tasks of a step, none of which is left where there are few pairs.
template <class W, std::int64_t (*Tasks)(const void*)>
std::int64_t unless_small(const void* plan) {
  return has_few_pairs(as_plan<W>(plan).problem) ? 0 : Tasks(plan);
}

template <class W>
constexpr Stage kStages[] = {
    {&small_tasks<W>, &once, &mine_small<W>},
    {&unless_small<W, look_tasks<W>>, &row_grain<W, kRowBlock>, &look<W>},
    {&unless_small<W, once>, &once, &group<W>},
    {&unless_small<W, pack_tasks<W>>, &row_grain<W, kSliver<W>>, &pack<W>},
    {&unless_small<W, round_tasks<W>>, &row_grain<W, kBlockRows>, &round<W>},
    {&unless_small<W, once>, &once, &measure<W>},
    {&unless_small<W, tile_tasks<W>>, &tile_grain<W>, &find_positives<W>},
    {&unless_small<W, screen_tasks<W>>, &screen_grain<W>, &screen<W>},
    {&unless_small<W, negative_tasks<W>>, &negative_grain<W>, &find_negatives<W>},
    {&unless_small<W, once>, &once, &finish<W>},
};

template <class W>
std::size_t workspace(const BatchHard& problem) {
  Arena arena(nullptr);
  arena.take<Plan<W>>(1);
  lay_out<W>(problem, arena);
  return arena.used();
}

template <class W>
void* plan(const BatchHard& problem, void* memory) {
  Arena arena(memory);
  Plan<W>* place = arena.take<Plan<W>>(1);
  *place = lay_out<W>(problem, arena);
  if (problem.screened != nullptr) {
    *problem.screened = Screened::full;
  }
  return place;
}

}  // namespace

extern const BatchHardKernel batch_hard_float32;
extern const BatchHardKernel batch_hard_float64;
const BatchHardKernel batch_hard_float32{&workspace<float>, &plan<float>, kStages<float>,
                                         static_cast<int>(sizeof kStages<float> / sizeof *kStages<float>)};
const BatchHardKernel batch_hard_float64{&workspace<double>, &plan<double>, kStages<double>,
                                         static_cast<int>(sizeof kStages<double> / sizeof *kStages<double>)};

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
