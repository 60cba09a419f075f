// The margin softmax on a CUDA device: the problem of kernels/margin_softmax.h, with every pointer in it a device
// pointer. Compiled for the GPU and emulated on the CPU (tests/kernels); not yet run on a GPU.
//
// A warp has a piece of a row, 8 KiB that it keeps in registers. Three launches, for a mean over many rows one more
// before them, which adds up their weights: the largest logit and the sum of exponentials of each piece; the formula of
// each row; the slopes, from logits that are read once more, and beside them the loss. Numbers are added in a fixed
// order: the same bits on every run. No allocation, no synchronisation, capturable.
//
// Cost: 12 bytes of memory for each logit of float32, 24 of float64; 8 and 16 as long as all stay in the L2 cache.
#pragma once

#include <cstddef>

#include "kernels/cuda/runtime.h"
#include "kernels/margin_softmax.h"

namespace fastmine::cuda {

/// Bytes of device memory, aligned to 256, that the launcher needs. Depends on the sizes of the problem alone.
std::size_t margin_softmax_workspace(const MarginSoftmax& problem) noexcept;

/// float32 and float64.
cudaError_t margin_softmax(const MarginSoftmax& problem, void* workspace, cudaStream_t stream) noexcept;

}  // namespace fastmine::cuda
