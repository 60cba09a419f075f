#include "kernels/cuda/segmentation_loss.h"

#include "kernels/cuda/segmentation_finish.cuh"
#include "kernels/cuda/segmentation_sigmoid.cuh"
#include "kernels/cuda/segmentation_softmax.cuh"

namespace fastmine::cuda {
namespace {

constexpr std::int64_t kMostBlocks = INT32_MAX;

/// The kernel for the type of the logits; null if there is none.
template <class W>
using Kernel = void (*)(const W);

Kernel<ForwardWork> sums_kernel(DType logits, bool softmax) {
  switch (logits) {
    case DType::float32:
      return softmax ? &softmax_sums<float> : &sigmoid_sums<float>;
    case DType::float64:
      return softmax ? &softmax_sums<double> : &sigmoid_sums<double>;
    case DType::bfloat16:
      return softmax ? &softmax_sums<BFloat16> : &sigmoid_sums<BFloat16>;
    case DType::float16:
      return softmax ? &softmax_sums<Half> : &sigmoid_sums<Half>;
    default:
      return nullptr;
  }
}

Kernel<BackwardWork> gradient_kernel(DType logits, bool softmax) {
  switch (logits) {
    case DType::float32:
      return softmax ? &softmax_gradient<float> : &sigmoid_gradient<float>;
    case DType::float64:
      return softmax ? &softmax_gradient<double> : &sigmoid_gradient<double>;
    case DType::bfloat16:
      return softmax ? &softmax_gradient<BFloat16> : &sigmoid_gradient<BFloat16>;
    case DType::float16:
      return softmax ? &softmax_gradient<Half> : &sigmoid_gradient<Half>;
    default:
      return nullptr;
  }
}

int threads_of(bool softmax) { return softmax ? SoftmaxShape::kThreads : SigmoidShape::kThreads; }

std::int64_t tiles_of(const Cut& c) { return (c.columns + kWarp - 1) / kWarp; }

/// Doubles of the workspace: the parts, the rows (which are the parts where each row is one run), the samples.
struct Layout {
  std::int64_t rows, samples, end;
};

Layout layout_of(const Cut& c, const SegmentationInputs& in) {
  const std::int64_t rows = c.runs > 1 ? c.rows * c.runs * c.columns : 0;
  const std::int64_t samples = rows + c.rows * c.columns;
  return {rows, samples, samples + in.samples * kSummaryColumns};
}

}  // namespace

std::size_t segmentation_loss_workspace(const SegmentationInputs& in) noexcept {
  return static_cast<std::size_t>(layout_of(cut(in), in).end) * sizeof(double);
}

cudaError_t segmentation_loss(const SegmentationLoss& problem, void* workspace, cudaStream_t stream) noexcept {
  const SegmentationInputs& in = problem.in;
  const Cut c = cut(in);
  const Layout layout = layout_of(c, in);
  auto* memory = static_cast<double*>(workspace);
  const ForwardWork work{problem, c, memory, memory + layout.rows, memory + layout.samples};
  const bool softmax = segmentation::is_softmax(in);
  const Kernel<ForwardWork> kernel = sums_kernel(in.logits.dtype, softmax);
  if (kernel == nullptr || c.rows * c.runs > kMostBlocks || c.rows * tiles_of(c) > kMostBlocks) {
    return cudaErrorInvalidValue;
  }
  if (c.rows > 0) {
    if (const cudaError_t error = launch(kernel, c.rows * c.runs, threads_of(softmax), stream, work)) {
      return error;
    }
  }
  if (c.rows > 0 && c.runs > 1) {
    if (const cudaError_t error = launch(&add_runs, c.rows * tiles_of(c), kRowThreads, stream, work)) {
      return error;
    }
  }
  return launch(&segmentation_formula, 1, kFormulaThreads, stream, work);
}

cudaError_t segmentation_loss_backward(const SegmentationLossBackward& problem, cudaStream_t stream) noexcept {
  const SegmentationInputs& in = problem.in;
  const BackwardWork work{problem, cut(in)};
  const bool softmax = segmentation::is_softmax(in);
  const Kernel<BackwardWork> kernel = gradient_kernel(in.logits.dtype, softmax);
  const std::int64_t blocks = work.cut.rows * work.cut.runs;
  if (kernel == nullptr || blocks > kMostBlocks) {
    return cudaErrorInvalidValue;
  }
  return blocks == 0 || in.positions == 0 ? cudaSuccess : launch(kernel, blocks, threads_of(softmax), stream, work);
}

}  // namespace fastmine::cuda
