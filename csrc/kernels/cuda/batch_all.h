// The batch-all triplet loss on a CUDA device: the problems of kernels/batch_all.h, with every pointer in them a device
// pointer. Compiled for the GPU and emulated on the CPU (tests/kernels); not yet run on a GPU.
//
// A block has an anchor at a time. It compares the positives directly, in float64, and sorts them; then it compares the
// negatives, as many at a time as it has threads, and finds for each by bisection how many thresholds are above it. A
// difference in float32 is enough where a bound on its rounding leaves no doubt about that (but not for similarities,
// which cancel); else float64 decides. So counts are those of float64. Backward does so for a wave of anchors, whose
// weights of all pairs lie in memory, and then every row gathers what its pairs pull, by direct differences in float64:
// the anchors of the wave at once, the references wave by wave.
//
// Cost: u m d differences in float32 (float64 for float64 rows and `dot`) forward, and back, where float64 has 2 u m d,
// for u anchors in use; memory of 40 bytes a reference for each block at work, of which there are as many as 256 MiB
// allow, but 132 at least; backward also of the gradient in float64. No n x m matrix. Deterministic: atomics only
// count. No allocation, no synchronisation; everything happens on the stream that is given, so the calls can be
// captured in a CUDA graph. The current device must be the one that owns the pointers. At most 2^29 rows.
#pragma once

#include <cstddef>

#include "kernels/batch_all.h"
#include "kernels/cuda/runtime.h"

namespace fastmine::cuda {

/// Bytes of device memory that a pass needs, aligned to 256. Depends on shapes and options alone.
std::size_t batch_all_workspace(const BatchAll& problem) noexcept;
std::size_t batch_all_backward_workspace(const BatchAllBackward& problem) noexcept;

cudaError_t batch_all(const BatchAll& problem, void* workspace, cudaStream_t stream) noexcept;

/// Where `wanted` is given and *wanted is 0 the gradients are left as they are.
cudaError_t batch_all_backward(const BatchAllBackward& problem, const std::int32_t* wanted, void* workspace,
                               cudaStream_t stream) noexcept;

/// What kernels/batch_all.h has for the CPU: before the kernel runs, and after it, with kFormulaWorkspace bytes.
inline constexpr std::size_t kFormulaWorkspace = 256;
cudaError_t use_of_anchors(const BatchAllFormula& problem, cudaStream_t stream) noexcept;
cudaError_t batch_all_formula(const BatchAllFormula& problem, void* workspace, cudaStream_t stream) noexcept;

/// For the backward pass: weights of the anchors and whether each is in use; *any becomes 1 if a weight is not 0, else
/// 0.
cudaError_t weigh_anchors(const void* grad, DType grad_dtype, std::int64_t stride, const double* scale, std::int64_t n,
                          double* weight, bool* use, std::int32_t* any, cudaStream_t stream) noexcept;

}  // namespace fastmine::cuda
