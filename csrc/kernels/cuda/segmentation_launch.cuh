// Starting the pass that the fused loss and the sums share: which kernel, how many blocks, how much memory.
#pragma once

#include "kernels/cuda/segmentation_few_backward.cuh"
#include "kernels/cuda/segmentation_finish.cuh"
#include "kernels/cuda/segmentation_sigmoid.cuh"

namespace fastmine::cuda {

inline constexpr std::int64_t kMostBlocks = INT32_MAX;

template <class Work>
using Kernel = void (*)(const Work);

/// The kernel for the type of the logits; null if there is none.
template <class Group>
Kernel<ForwardWork> sums_kernel(DType logits, bool softmax) {
  switch (logits) {
    case DType::float32:
      return softmax ? &softmax_sums<float, Group> : &sigmoid_sums<float, Group>;
    case DType::float64:
      return softmax ? &softmax_sums<double, Group> : &sigmoid_sums<double, Group>;
    case DType::bfloat16:
      return softmax ? &softmax_sums<BFloat16, Group> : &sigmoid_sums<BFloat16, Group>;
    case DType::float16:
      return softmax ? &softmax_sums<Half, Group> : &sigmoid_sums<Half, Group>;
    default:
      return nullptr;
  }
}

/// A kernel and the shared memory that it asks for; none where there is no kernel.
template <class Work>
struct Choice {
  Kernel<Work> kernel = nullptr;
  std::size_t shared = 0;
};

/// The kernels for few classes, forward and backward, where there are some for the type of the logits.
struct FewKernels {
  Choice<ForwardWork> sums;
  Choice<BackwardWork<SegmentationLossBackward>> gradient;
};

template <class S>
FewKernels few_kernels_of(std::int64_t classes) {
  return {{&few_softmax_sums<S>, few_sums_bytes<S>(classes)},
          {&few_softmax_gradient<S>, few_gradient_bytes<S>(classes)}};
}

inline FewKernels few_kernels(const SegmentationInputs& in) {
  if (!segmentation::is_softmax(in) || in.classes > kFewClasses) {
    return {};
  }
  switch (in.logits.dtype) {
    case DType::float32:
      return few_kernels_of<float>(in.classes);
    case DType::bfloat16:
      return few_kernels_of<BFloat16>(in.classes);
    case DType::float16:
      return few_kernels_of<Half>(in.classes);
    default:
      return {};
  }
}

template <class Problem>
Kernel<BackwardWork<Problem>> gradient_kernel(DType logits, bool softmax) {
  switch (logits) {
    case DType::float32:
      return softmax ? &softmax_gradient<float, Problem> : &sigmoid_gradient<float, Problem>;
    case DType::float64:
      return softmax ? &softmax_gradient<double, Problem> : &sigmoid_gradient<double, Problem>;
    case DType::bfloat16:
      return softmax ? &softmax_gradient<BFloat16, Problem> : &sigmoid_gradient<BFloat16, Problem>;
    case DType::float16:
      return softmax ? &softmax_gradient<Half, Problem> : &sigmoid_gradient<Half, Problem>;
    default:
      return nullptr;
  }
}

inline int threads_of(bool softmax) { return softmax ? SoftmaxShape::kThreads : SigmoidShape::kThreads; }

/// Doubles of the workspace: the parts, the rows (which are the parts where each row is one run), the samples.
struct Layout {
  std::int64_t rows, samples, end;
};

inline Layout layout_of(const Cut& c, const SegmentationInputs& in) {
  const std::int64_t rows = c.runs > 1 ? c.rows * c.runs * c.columns : 0;
  const std::int64_t samples = rows + c.rows * c.columns;
  return {rows, samples, samples + in.samples * kSummaryColumns};
}

template <class Group>
std::size_t forward_workspace(const SegmentationInputs& in) {
  return static_cast<std::size_t>(layout_of(cut(in, kGroupColumns<Group>), in).end) * sizeof(double);
}

/// The pass, its rows, and `finish` on them.
template <class Group, class Problem>
cudaError_t run_forward(const Problem& problem, const Asked& asked, Kernel<FinishWork<Problem>> finish, void* workspace,
                        cudaStream_t stream) {
  const SegmentationInputs& in = problem.in;
  const Cut c = cut(in, kGroupColumns<Group>);
  const Layout layout = layout_of(c, in);
  const std::int64_t tiles = (c.columns + kWarp - 1) / kWarp;
  auto* memory = static_cast<double*>(workspace);
  const ForwardWork work{in, asked, c, memory, memory + layout.rows};
  const bool softmax = segmentation::is_softmax(in);
  Choice<ForwardWork> chosen;
  if constexpr (!kAllSums<Group>) {
    chosen = few_kernels(in).sums;
  }
  const Kernel<ForwardWork> kernel =
      chosen.kernel != nullptr ? chosen.kernel : sums_kernel<Group>(in.logits.dtype, softmax);
  if (kernel == nullptr || c.rows * c.runs > kMostBlocks || c.rows * tiles > kMostBlocks) {
    return cudaErrorInvalidValue;
  }
  if (c.rows > 0) {
    if (const cudaError_t error = launch(kernel, c.rows * c.runs, threads_of(softmax), stream, work, chosen.shared)) {
      return error;
    }
  }
  if (c.rows > 0 && c.runs > 1) {
    if (const cudaError_t error = launch(&add_runs, c.rows * tiles, kRowThreads, stream, work)) {
      return error;
    }
  }
  const FinishWork<Problem> rest{problem, c, work.rows, memory + layout.samples};
  return launch(finish, 1, kFormulaThreads, stream, rest);
}

template <class Problem>
cudaError_t run_backward(const Problem& problem, cudaStream_t stream) {
  const SegmentationInputs& in = problem.in;
  const BackwardWork<Problem> work{problem, cut(in, 0)};
  const bool softmax = segmentation::is_softmax(in);
  Choice<BackwardWork<Problem>> chosen;
  if constexpr (!Slopes<Problem>::kAll) {
    chosen = few_kernels(in).gradient;
  }
  const Kernel<BackwardWork<Problem>> kernel =
      chosen.kernel != nullptr ? chosen.kernel : gradient_kernel<Problem>(in.logits.dtype, softmax);
  const std::int64_t blocks = work.cut.rows * work.cut.runs;
  if (kernel == nullptr || blocks > kMostBlocks) {
    return cudaErrorInvalidValue;
  }
  return blocks == 0 || in.positions == 0 ? cudaSuccess
                                          : launch(kernel, blocks, threads_of(softmax), stream, work, chosen.shared);
}

}  // namespace fastmine::cuda
