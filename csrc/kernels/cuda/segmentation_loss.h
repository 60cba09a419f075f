// The segmentation losses on a CUDA device: the problems of kernels/segmentation_loss.h, with every pointer in them a
// device pointer. Compiled for the GPU and emulated on the CPU (tests/kernels); not yet run on a GPU.
//
// Forward: one pass over logits and targets in which each block adds up a run of positions of one row (sigmoid: one
// sample and class; softmax: one sample) into a slot of the workspace; one kernel that adds the runs of each row; one
// kernel of one block for the formula. Backward: one kernel, the gradient written once. The multiclass kernels read the
// logits of a position three times, of which two meet the cache where a block's positions times classes fit.
//
// Precision: float64 logits in float64 throughout; all others in float32, at most 32 elements of a thread (sigmoid)
// or 128 of a warp (softmax) to a sum, then in float64. Deterministic: runs are cut by the shape alone, and all sums
// are taken in a fixed order, without atomics. No allocation, no synchronisation; everything happens on the stream that
// is given, so the calls can be captured in a CUDA graph. The current device must be the one that owns the pointers.
#pragma once

#include <cstddef>

#include "kernels/cuda/runtime.h"
#include "kernels/segmentation_loss.h"

namespace fastmine::cuda {

/// Bytes of device memory that the forward pass needs, aligned to 8. Depends on the shape alone.
std::size_t segmentation_loss_workspace(const SegmentationInputs& in) noexcept;

cudaError_t segmentation_loss(const SegmentationLoss& problem, void* workspace, cudaStream_t stream) noexcept;

cudaError_t segmentation_loss_backward(const SegmentationLossBackward& problem, cudaStream_t stream) noexcept;

}  // namespace fastmine::cuda
