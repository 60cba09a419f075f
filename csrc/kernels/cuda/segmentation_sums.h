// The sums of the segmentation losses on a CUDA device: the problems of kernels/segmentation_sums.h, with every pointer
// in them a device pointer. The pass over the logits is that of segmentation_loss.h, asked for more, and so are
// precision, determinism, streams and devices. Compiled for the GPU and emulated on the CPU; not yet run on a GPU.
#pragma once

#include <cstddef>

#include "kernels/cuda/runtime.h"
#include "kernels/segmentation_sums.h"

namespace fastmine::cuda {

/// Bytes of device memory that the forward pass needs, aligned to 8. Depends on the shape alone.
std::size_t segmentation_sums_workspace(const SegmentationInputs& in) noexcept;

cudaError_t segmentation_sums(const SegmentationSums& problem, void* workspace, cudaStream_t stream) noexcept;

cudaError_t segmentation_sums_backward(const SegmentationSumsBackward& problem, cudaStream_t stream) noexcept;

}  // namespace fastmine::cuda
