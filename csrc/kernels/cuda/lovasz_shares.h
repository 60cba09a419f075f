// The shares of the errors in the Jaccard loss on a CUDA device: the problem of kernels/lovasz_shares.h, with every
// pointer in it a device pointer. Compiled for the GPU and emulated on the CPU; not yet run on a GPU.
//
// All groups are sorted at once by the merge sort of sort.cuh, log2(positions / 1024) passes; then two more give each
// error its share. Memory: 32 bytes for each position of all groups. Sums of the target are taken in another order than
// on the CPU, which tells for soft targets alone, in the last digits of float64. Streams, devices and determinism as in
// segmentation_loss.h.
#pragma once

#include <cstddef>

#include "kernels/cuda/runtime.h"
#include "kernels/lovasz_shares.h"

namespace fastmine::cuda {

/// Bytes of device memory, aligned to 8. Depends on the shape alone.
std::size_t lovasz_shares_workspace(const LovaszShares& problem) noexcept;

/// At most 2^31 - 1 positions.
cudaError_t lovasz_shares(const LovaszShares& problem, void* workspace, cudaStream_t stream) noexcept;

}  // namespace fastmine::cuda
