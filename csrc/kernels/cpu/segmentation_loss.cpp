#include "kernels/segmentation_loss.h"

#include "kernels/cpu/arena.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/segmentation_pass.h"

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

std::int64_t sum_tasks(const void* plan) {
  const auto& p = *static_cast<const Plan*>(plan);
  return p.tasks.rows * p.tasks.runs;
}

std::int64_t sum_grain(const void* plan) { return static_cast<const Plan*>(plan)->tasks.grain; }

Asked asked_for(const SegmentationLoss& problem) {
  const auto weight = [&](SegmentationTerm term) { return problem.weights[static_cast<int>(term)]; };
  const bool entropy = weight(SegmentationTerm::bce) != 0 || weight(SegmentationTerm::ce) != 0;
  return {.pointwise = pointwise(entropy, weight(SegmentationTerm::focal) != 0, problem.focal.gamma),
          .apart = false,
          .shape = false,
          .linear = false,
          .focal = problem.focal};
}

template <class T>
void sum(void* plan, std::int64_t begin, std::int64_t end) {
  const auto& p = *static_cast<const Plan*>(plan);
  const SegmentationInputs& in = p.problem.in;
  const Asked asked = asked_for(p.problem);
  const std::int64_t size = segmentation_part_size(p.tasks);
  for (std::int64_t task = begin; task < end; ++task) {
    double* slot = p.parts + task * size;
    auto& part = *reinterpret_cast<SegmentationPart*>(slot);
    auto* groups = reinterpret_cast<SegmentationGroup*>(slot + sizeof part / sizeof *slot);
    const Run run = run_of(p.tasks, in, task);
    if (in.mode == SegmentationMode::multiclass) {
      softmax_sums<T>(in, asked, run, part, groups);
    } else {
      SegmentationGroupSums group;
      sigmoid_sums<T>(in, asked, run, part, group);
      *groups = {group.t, group.p, group.a};
    }
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

template <class T>
struct BackwardPlan {
  SegmentationLossBackward problem;
  Backward<T> pass;
};

template <class T>
BackwardPlan<T> lay_out_backward(const SegmentationLossBackward& problem, Arena& arena) {
  return {problem, lay_out_pass<T>(problem.in, problem.focal.gamma, problem.grad_logits, arena)};
}

/// The upstream gradient of a sample's loss.
double upstream(const SegmentationLossBackward& problem, std::int64_t sample) {
  double grad = 0;
  const std::int64_t offset = sample * problem.grad_stride * static_cast<std::int64_t>(size_of(problem.grad_dtype));
  read(static_cast<const char*>(problem.grad) + offset, problem.grad_dtype, 1, 1, &grad);
  return grad;
}

/// The coefficients times the gradient of the loss. Those of the entropies belong to a position of all classes of a
/// softmax, and are read at class 0.
template <class T>
void write_slopes(void* plan, std::int64_t begin, std::int64_t end) {
  const auto& [problem, pass] = *static_cast<const BackwardPlan<T>*>(plan);
  const bool softmax = problem.in.mode == SegmentationMode::multiclass;
  const Focal alpha = softmax ? Focal{1, 1, 0} : problem.focal;
  for (std::int64_t sample = begin; sample < end; ++sample) {
    const double grad = upstream(problem, sample);
    const auto scaled = [&](double value) { return static_cast<T>(value * grad); };
    const double* c = problem.coefficients + sample * problem.in.classes * 4;
    GroupSlopes<T>* groups = pass.groups + sample * problem.in.classes;
    for (std::int64_t k = 0; k < problem.in.classes; ++k) {
      const double* scales = softmax ? c : c + 4 * k;
      groups[k] = {.on_target = scaled(c[4 * k]),
                   .everywhere = scaled(c[4 * k + 1]),
                   .entropy_on = scaled(scales[2]),
                   .entropy_off = scaled(scales[2]),
                   .focal_on = scaled(scales[3] * alpha.on_target),
                   .focal_off = scaled(scales[3] * alpha.off_target)};
    }
    finish_slopes(pass, sample);
  }
}

}  // namespace

extern const SegmentationLossKernel segmentation_loss_float32;
extern const SegmentationLossKernel segmentation_loss_float64;
const SegmentationLossKernel segmentation_loss_float32 = staged<SegmentationLoss, lay_out>(kForward<float>);
const SegmentationLossKernel segmentation_loss_float64 = staged<SegmentationLoss, lay_out>(kForward<double>);

extern const SegmentationLossBackwardKernel segmentation_loss_backward_float32;
extern const SegmentationLossBackwardKernel segmentation_loss_backward_float64;
const SegmentationLossBackwardKernel segmentation_loss_backward_float32 =
    staged<SegmentationLossBackward, lay_out_backward<float>>(kBackward<float, BackwardPlan, write_slopes<float>>);
const SegmentationLossBackwardKernel segmentation_loss_backward_float64 =
    staged<SegmentationLossBackward, lay_out_backward<double>>(kBackward<double, BackwardPlan, write_slopes<double>>);

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
