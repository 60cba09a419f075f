#include "kernels/segmentation_loss.h"

#include "kernels/cpu/arena.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/segmentation_block.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {
namespace {

struct Plan {
  SegmentationLoss problem;
  SegmentationTasks tasks;
  double* parts;
};

Plan lay_out(const SegmentationLoss& problem, Arena& arena) {
  Plan plan{problem, segmentation_tasks(problem.in), nullptr};
  const SegmentationTasks& tasks = plan.tasks;
  plan.parts = arena.take<double>(tasks.rows * tasks.runs * segmentation_part_size(tasks));
  double* sums = arena.take<double>(problem.in.samples * problem.in.classes * 4);
  double* entropies = arena.take<double>(problem.in.samples * 2);
  if (problem.sums == nullptr) {
    plan.problem.sums = sums;
  }
  if (problem.entropies == nullptr) {
    plan.problem.entropies = entropies;
  }
  return plan;
}

std::size_t workspace(const SegmentationLoss& problem) {
  Arena arena(nullptr);
  arena.take<Plan>(1);
  lay_out(problem, arena);
  return arena.used();
}

void* plan(const SegmentationLoss& problem, void* memory) {
  Arena arena(memory);
  Plan* place = arena.take<Plan>(1);
  *place = lay_out(problem, arena);
  return place;
}

std::int64_t sum_tasks(const void* plan) {
  const auto& p = *static_cast<const Plan*>(plan);
  return p.tasks.rows * p.tasks.runs;
}

std::int64_t sum_grain(const void* plan) { return static_cast<const Plan*>(plan)->tasks.grain; }

template <class T>
void sum(void* plan, std::int64_t begin, std::int64_t end) {
  const auto& p = *static_cast<const Plan*>(plan);
  const std::int64_t size = segmentation_part_size(p.tasks);
  const bool softmax = p.problem.in.mode == SegmentationMode::multiclass;
  for (std::int64_t task = begin; task < end; ++task) {
    double* slot = p.parts + task * size;
    (softmax ? softmax_sums<T>
             : sigmoid_sums<T>)(p.problem, run_of(p.tasks, p.problem.in, task),
                                *reinterpret_cast<SegmentationPart*>(slot),
                                reinterpret_cast<SegmentationGroup*>(slot + sizeof(SegmentationPart) / sizeof(double)));
  }
}

std::int64_t one(const void*) { return 1; }

void finish(void* plan, std::int64_t begin, std::int64_t end) {
  const auto& p = *static_cast<const Plan*>(plan);
  if (begin < end) {
    segmentation_formula(p.problem, p.tasks, p.parts);
  }
}

template <class T>
constexpr Stage kForward[] = {{&sum_tasks, &sum_grain, &sum<T>}, {&one, &one, &finish}};

struct BackwardPlan {
  SegmentationLossBackward problem;
  SegmentationTasks tasks;
};

std::size_t backward_workspace(const SegmentationLossBackward&) { return sizeof(BackwardPlan); }

void* backward_plan(const SegmentationLossBackward& problem, void* memory) {
  auto* place = static_cast<BackwardPlan*>(memory);
  *place = {problem, segmentation_tasks(problem.in)};
  return place;
}

std::int64_t backward_tasks(const void* plan) {
  const auto& p = *static_cast<const BackwardPlan*>(plan);
  return p.tasks.rows * p.tasks.runs;
}

std::int64_t backward_grain(const void* plan) { return static_cast<const BackwardPlan*>(plan)->tasks.grain; }

template <class T>
void backward(void* plan, std::int64_t begin, std::int64_t end) {
  const auto& p = *static_cast<const BackwardPlan*>(plan);
  const bool softmax = p.problem.in.mode == SegmentationMode::multiclass;
  for (std::int64_t task = begin; task < end; ++task) {
    (softmax ? softmax_gradient<T> : sigmoid_gradient<T>)(p.problem, run_of(p.tasks, p.problem.in, task));
  }
  stream_end();
}

template <class T>
constexpr Stage kBackward[] = {{&backward_tasks, &backward_grain, &backward<T>}};

}  // namespace

extern const SegmentationLossKernel segmentation_loss_float32;
extern const SegmentationLossKernel segmentation_loss_float64;
const SegmentationLossKernel segmentation_loss_float32{&workspace, &plan, kForward<float>, 2};
const SegmentationLossKernel segmentation_loss_float64{&workspace, &plan, kForward<double>, 2};

extern const SegmentationLossBackwardKernel segmentation_loss_backward_float32;
extern const SegmentationLossBackwardKernel segmentation_loss_backward_float64;
const SegmentationLossBackwardKernel segmentation_loss_backward_float32{&backward_workspace, &backward_plan,
                                                                        kBackward<float>, 1};
const SegmentationLossBackwardKernel segmentation_loss_backward_float64{&backward_workspace, &backward_plan,
                                                                        kBackward<double>, 1};

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
