// The selectively contrastive loss of mined pairs on a CUDA device: the problem of kernels/selective_terms.h, with
// every pointer in it a device pointer. Compiled for the GPU and emulated on the CPU (tests/kernels); not yet run on a
// GPU.
//
// A thread has an anchor, in the launches of triplet_loss.h. In float64. No allocation, no synchronisation, capturable.
#pragma once

#include <cstddef>

#include "kernels/cuda/runtime.h"
#include "kernels/selective_terms.h"

namespace fastmine::cuda {

/// Bytes of device memory that the formula needs, aligned to 256. Depends on the number of anchors alone.
std::size_t selective_terms_workspace(const SelectiveTerms& problem) noexcept;

cudaError_t selective_terms(const SelectiveTerms& problem, void* workspace, cudaStream_t stream) noexcept;

}  // namespace fastmine::cuda
