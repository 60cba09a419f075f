// All distances between two sets of rows on a CUDA device: the problems of kernels/pairwise_distance.h, with every
// pointer in them a device pointer. Compiled for the GPU and emulated on the CPU (tests/kernels); not yet run on a GPU.
//
// Forward: one look at the rows (norms, sums), their centre, centred copies, and one kernel that multiplies tiles of
// 128 x 128 rows (64 x 64 in float64) out of shared memory. With one set, tiles left of the diagonal are written
// transposed by those right of it. What is too close for the expansion, or too large or small for a product, is taken
// again by direct difference in float64, a warp for each pair. Backward: the same rows, then one kernel for each side
// that makes weights of grad and distance and multiplies them with the rows across, 32 rows x 128 elements at a time;
// close pairs pull by their differences, in float64.
//
// Precision: as in kernels/pairwise_distance.h. Deterministic: all sums are taken in a fixed order, without atomics.
// Memory: a centred copy of the rows; backward, the gradient in float64. No allocation, no synchronisation; everything
// happens on the stream that is given, so the calls can be captured in a CUDA graph. The current device must be the one
// that owns the pointers.
#pragma once

#include <cstddef>

#include "kernels/cuda/runtime.h"
#include "kernels/pairwise_distance.h"

namespace fastmine::cuda {

/// Bytes of device memory that a pass needs, aligned to 16. Depends on shapes and types alone.
std::size_t pairwise_distance_workspace(const PairwiseDistance& problem) noexcept;
std::size_t pairwise_distance_backward_workspace(const PairwiseDistanceBackward& problem) noexcept;

cudaError_t pairwise_distance(const PairwiseDistance& problem, void* workspace, cudaStream_t stream) noexcept;

cudaError_t pairwise_distance_backward(const PairwiseDistanceBackward& problem, void* workspace,
                                       cudaStream_t stream) noexcept;

}  // namespace fastmine::cuda
