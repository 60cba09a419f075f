#include "kernels/segmentation_sums.h"

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/segmentation_pass.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {
namespace {

constexpr bool wants(SegmentationSumSet wanted, SegmentationSum sum) {
  return (wanted >> static_cast<int>(sum) & 1) != 0;
}

struct Plan {
  SegmentationSums problem;
  SegmentationTasks tasks;
  double* parts;
};

Plan lay_out(const SegmentationSums& problem, Arena& arena) {
  const SegmentationTasks tasks = segmentation_tasks(problem.in);
  return {problem, tasks, arena.take<double>(tasks.rows * tasks.runs * segmentation_sums_part_size(tasks))};
}

std::int64_t sum_tasks(const void* plan) {
  const auto& p = *static_cast<const Plan*>(plan);
  return p.tasks.rows * p.tasks.runs;
}

std::int64_t sum_grain(const void* plan) { return static_cast<const Plan*>(plan)->tasks.grain; }

Asked asked_for(const SegmentationSums& problem) {
  const auto any = [&](auto... sums) { return (wants(problem.wanted, sums) || ...); };
  using enum SegmentationSum;
  const bool focal = any(f1, f0);
  // At gamma 0 the focal term is the entropy, and the sums of that are read for both.
  return {.pointwise = pointwise(any(e1, e0) || focal, focal && problem.gamma != 0, problem.gamma),
          .apart = true,
          .shape = any(pp, tt, g1, g0),
          .linear = any(x, tx),
          .focal = {1, 1, problem.gamma}};
}

template <class T>
void sum(void* plan, std::int64_t begin, std::int64_t end) {
  const auto& p = *static_cast<const Plan*>(plan);
  const SegmentationInputs& in = p.problem.in;
  const Asked asked = asked_for(p.problem);
  const std::int64_t size = segmentation_sums_part_size(p.tasks);
  for (std::int64_t task = begin; task < end; ++task) {
    double* slot = p.parts + task * size;
    auto& part = *reinterpret_cast<SegmentationPart*>(slot);
    auto* groups = reinterpret_cast<SegmentationGroupSums*>(slot + sizeof part / sizeof *slot);
    const Run run = run_of(p.tasks, in, task);
    if (in.mode == SegmentationMode::multiclass) {
      softmax_sums<T>(in, asked, run, part, groups);
    } else {
      sigmoid_sums<T>(in, asked, run, part, *groups);
    }
  }
}

std::int64_t one(const void*) { return 1; }

void finish(void* plan, std::int64_t begin, std::int64_t end) {
  const auto& p = *static_cast<const Plan*>(plan);
  if (begin < end) {
    segmentation_sums(p.problem, p.tasks, p.parts);
  }
}

template <class T>
constexpr Stage kForward[] = {{&sum_tasks, &sum_grain, &sum<T>}, {&one, &one, &finish}};

template <class T>
struct BackwardPlan {
  SegmentationSumsBackward problem;
  Backward<T> pass;
};

template <class T>
BackwardPlan<T> lay_out_backward(const SegmentationSumsBackward& problem, Arena& arena) {
  return {problem, lay_out_pass<T>(problem.in, problem.gamma, problem.grad_logits, arena)};
}

/// The gradients by the sums of a group that are wanted, and that depend on its logits.
template <class T>
GroupSlopes<T> slopes_of(const SegmentationSumsBackward& problem, const double* grad) {
  const auto by = [&](SegmentationSum sum) {
    return wants(problem.wanted, sum) ? static_cast<T>(grad[static_cast<int>(sum)]) : T{0};
  };
  using enum SegmentationSum;
  return {.on_target = by(a),
          .everywhere = by(p),
          .entropy_on = by(e1),
          .entropy_off = by(e0),
          .focal_on = by(f1),
          .focal_off = by(f0),
          .squares = 2 * by(pp),
          .linear = by(x),
          .linear_on = by(tx)};
}

template <class T>
void write_slopes(void* plan, std::int64_t begin, std::int64_t end) {
  const auto& [problem, pass] = *static_cast<const BackwardPlan<T>*>(plan);
  const SegmentationInputs& in = problem.in;
  const bool softmax = in.mode == SegmentationMode::multiclass;
  for (std::int64_t sample = begin; sample < end; ++sample) {
    const std::int64_t first = sample * in.classes;
    for (std::int64_t k = 0; k < in.classes; ++k) {
      GroupSlopes<T>& slopes = pass.groups[first + k];
      slopes = slopes_of<T>(problem, problem.grad + (first + k) * kSegmentationSums);
      if (softmax) {
        slopes.entropy_off = slopes.focal_off = slopes.linear_on = 0;
      }
      if (softmax && k > 0 && in.merged != nullptr && in.merged[first + k] != 0) {  // it has no sums
        slopes = {.entropy_on = pass.groups[first].entropy_on, .focal_on = pass.groups[first].focal_on};
      }
    }
    finish_slopes(pass, sample);
  }
}

}  // namespace

extern const SegmentationSumsKernel segmentation_sums_float32;
extern const SegmentationSumsKernel segmentation_sums_float64;
const SegmentationSumsKernel segmentation_sums_float32 = staged<SegmentationSums, lay_out>(kForward<float>);
const SegmentationSumsKernel segmentation_sums_float64 = staged<SegmentationSums, lay_out>(kForward<double>);

extern const SegmentationSumsBackwardKernel segmentation_sums_backward_float32;
extern const SegmentationSumsBackwardKernel segmentation_sums_backward_float64;
const SegmentationSumsBackwardKernel segmentation_sums_backward_float32 =
    staged<SegmentationSumsBackward, lay_out_backward<float>>(kBackward<float, BackwardPlan, write_slopes<float>>);
const SegmentationSumsBackwardKernel segmentation_sums_backward_float64 =
    staged<SegmentationSumsBackward, lay_out_backward<double>>(kBackward<double, BackwardPlan, write_slopes<double>>);

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
