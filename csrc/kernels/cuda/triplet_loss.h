// The small formula of the triplet loss on a CUDA device: the problem of kernels/triplet_loss.h, with every pointer in
// it a device pointer. Compiled for the GPU and emulated on the CPU (tests/kernels); not yet run on a GPU.
//
// Two launches: blocks add up their anchors; then each adds up all blocks, in the same fixed order, and writes what its
// anchors get. Up to 256 anchors take one. In float64. No allocation, no synchronisation, capturable.
#pragma once

#include <cstddef>

#include "kernels/cuda/runtime.h"
#include "kernels/triplet_loss.h"

namespace fastmine::cuda {

/// Bytes of device memory that the formula needs, aligned to 256. Depends on the number of anchors alone.
std::size_t triplet_loss_workspace(const TripletLoss& problem) noexcept;

cudaError_t triplet_loss(const TripletLoss& problem, void* workspace, cudaStream_t stream) noexcept;

}  // namespace fastmine::cuda
