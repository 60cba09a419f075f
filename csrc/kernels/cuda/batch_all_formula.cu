// The formula around the sums of the batch-all triplet loss: that of cpu/batch_all_formula.cpp, a thread for an anchor.
#include "kernels/cuda/arena.h"
#include "kernels/cuda/batch_all.h"
#include "kernels/cuda/warp.h"

namespace fastmine::cuda {
namespace {

using namespace mining;

FASTMINE_DEVICE bool has_both(const BatchAllFormula& p, std::int64_t i) {
  return p.has_positive[i] && p.has_negative[i];
}

/// Whether the anchor has a NaN or an Inf, or a candidate that has: mining finds those first.
FASTMINE_DEVICE bool sees_nan(const BatchAllFormula& p, std::int64_t i) {
  const double both = p.positive_distance[i] + p.negative_distance[i];
  return has_both(p, i) && both != both;
}

FASTMINE_DEVICE double weight_of_anchor(const BatchAllFormula& p, std::int64_t i) {
  return p.weight == nullptr ? 1 : p.weight[i];
}

/// One thread: whether an anchor is looked at.
FASTMINE_KERNEL(kThreads, 2)
mark_use(FASTMINE_PARAMETER BatchAllFormula p) {
  const std::int64_t i = block_index() * kThreads + thread_index();
  if (i < p.n) {
    const double sign = p.metric == Metric::dot ? -1 : 1, margin = p.kind == Triplets::hard ? 0 : p.margin;
    const bool above = sign * p.positive_distance[i] + margin > sign * p.negative_distance[i];
    p.use[i] = has_both(p, i) && !sees_nan(p, i) && (p.leak > 0 || above);
  }
}

/// What is added up over the anchors.
enum class Sum : int { total, counted, triplets, active, valid, count };
constexpr int kSumsOfAnchors = static_cast<int>(Sum::count);

struct FormulaWork {
  BatchAllFormula problem;
  double* sums;  // [kSumsOfAnchors]
};

/// One block: the sums.
FASTMINE_KERNEL(kThreads, 2)
add_anchors(FASTMINE_PARAMETER FormulaWork work) {
  FASTMINE_SHARED(double, shared, kWarps* kSumsOfAnchors);
  const BatchAllFormula& p = work.problem;
  double sums[kSumsOfAnchors] = {};
  const auto add = [&sums](Sum which, double more) { sums[static_cast<int>(which)] += more; };
  for (std::int64_t i = thread_index(); i < p.n; i += kThreads) {
    if (has_both(p, i)) {
      const double weight = weight_of_anchor(p, i);
      add(Sum::total, sees_nan(p, i) ? static_cast<double>(__builtin_nan("")) : weight * p.sum[i]);
      add(Sum::counted, weight * (p.of_active && p.leak == 0 ? p.active[i] : p.triplets[i]));
      add(Sum::triplets, p.triplets[i]);
      add(Sum::active, p.active[i]);
      add(Sum::valid, 1);
    }
  }
  sum_columns(sums, shared, work.sums);
}

FASTMINE_DEVICE void write_loss(const BatchAllFormula& p, std::int64_t i, double value) {
  if (p.loss_dtype == DType::float64) {
    static_cast<double*>(p.loss)[i] = value;
  } else {
    static_cast<float*>(p.loss)[i] = static_cast<float>(value);
  }
}

/// One thread: an anchor; the first also the loss and the evidence.
FASTMINE_KERNEL(kThreads, 2)
apply_formula(FASTMINE_PARAMETER FormulaWork work) {
  const BatchAllFormula& p = work.problem;
  const std::int64_t i = block_index() * kThreads + thread_index();
  const double* const sums = work.sums;
  const auto sum = [sums](Sum which) { return sums[static_cast<int>(which)]; };
  const bool empty = sum(Sum::valid) == 0;
  const double scale = p.reduction == Reduction::mean && sum(Sum::counted) > 0 ? 1 / sum(Sum::counted) : 1;
  if (i == 0) {
    *p.all_triplets = sum(Sum::triplets);
    *p.all_active = sum(Sum::active);
    if (!empty && p.reduction != Reduction::none) {
      write_loss(p, 0, sum(Sum::total) * scale);
    }
  }
  if (i >= p.n) {
    return;
  }
  const bool nan = sees_nan(p, i);
  const double none = static_cast<double>(__builtin_nan(""));
  p.scale[i] = empty ? 0 : nan ? none : p.use[i] ? scale * weight_of_anchor(p, i) : 0;
  if (!empty) {
    p.slopes[i] = p.slopes[p.n + i] = 0;
    if (p.reduction == Reduction::none) {
      write_loss(p, i, nan ? none : has_both(p, i) ? weight_of_anchor(p, i) * p.sum[i] : 0);
    }
  }
}

struct Weighing {
  const void* grad;
  DType grad_dtype;
  std::int64_t stride;
  const double* scale;
  std::int64_t n;
  double* weight;
  bool* use;
  std::int32_t* any;
};

/// One block: the weights of all anchors.
FASTMINE_KERNEL(kThreads, 2)
weigh_all(FASTMINE_PARAMETER Weighing w) {
  if (thread_index() == 0) {
    *w.any = 0;
  }
  barrier();
  for (std::int64_t i = thread_index(); i < w.n; i += kThreads) {
    const double upstream = w.grad_dtype == DType::float64
                                ? static_cast<const double*>(w.grad)[i * w.stride]
                                : static_cast<double>(static_cast<const float*>(w.grad)[i * w.stride]);
    const double weight = w.scale[i] == 0 ? 0 : upstream * w.scale[i];
    w.weight[i] = weight;
    w.use[i] = weight != 0 && weight == weight;
    if (weight != 0) {
      atomic_maximum(w.any, 1);
    }
  }
}

}  // namespace

cudaError_t use_of_anchors(const BatchAllFormula& problem, cudaStream_t stream) noexcept {
  Launches launches(stream);
  launches(&mark_use, divide_up(problem.n, kThreads), kThreads, problem);
  return launches.status();
}

cudaError_t batch_all_formula(const BatchAllFormula& problem, void* workspace, cudaStream_t stream) noexcept {
  static_assert(kSumsOfAnchors * sizeof(double) <= kFormulaWorkspace);
  const FormulaWork work{problem, static_cast<double*>(workspace)};
  Launches launches(stream);
  launches(&add_anchors, 1, kThreads, work);
  launches(&apply_formula, divide_up(problem.n > 0 ? problem.n : 1, kThreads), kThreads, work);
  return launches.status();
}

cudaError_t weigh_anchors(const void* grad, DType grad_dtype, std::int64_t stride, const double* scale, std::int64_t n,
                          double* weight, bool* use, std::int32_t* any, cudaStream_t stream) noexcept {
  Launches launches(stream);
  launches(&weigh_all, 1, kThreads, Weighing{grad, grad_dtype, stride, scale, n, weight, use, any});
  return launches.status();
}

}  // namespace fastmine::cuda
