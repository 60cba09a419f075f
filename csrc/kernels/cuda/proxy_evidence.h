// The evidence of a loss against class vectors on a CUDA device: the problem of kernels/proxy_evidence.h, with every
// pointer in it a device pointer. Compiled for the GPU and emulated on the CPU (tests/kernels); not yet run on a GPU.
//
// Four launches: one clears a counter for each class; blocks look at 128 rows each; a thread for each row and each
// class vector counts it, and blocks add up; one block adds up the blocks, in a fixed order. The same bits on every
// run. No allocation, no synchronisation, capturable.
#pragma once

#include <cstddef>

#include "kernels/cuda/runtime.h"
#include "kernels/proxy_evidence.h"

namespace fastmine::cuda {

/// Bytes of device memory, aligned to 256, that the launcher needs. Depends on the sizes of the problem alone.
std::size_t proxy_evidence_workspace(const ProxyEvidence& problem) noexcept;

/// float32, float64, bfloat16 and float16 rows.
cudaError_t proxy_evidence(const ProxyEvidence& problem, void* workspace, cudaStream_t stream) noexcept;

}  // namespace fastmine::cuda
