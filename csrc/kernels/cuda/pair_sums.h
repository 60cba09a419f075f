// Sums over all pairs on a CUDA device: the problems of kernels/pair_sums.h, with every pointer in them a device
// pointer. Compiled for the GPU and emulated on the CPU (tests/kernels); not yet run on a GPU.
//
// Forward, as on the CPU. Rows are grouped by label, centred and packed as for mining. A block has a tile of 128
// anchors (64 in float64) and walks a chunk of the tiles across; half a tile of distances at a time lies in shared
// memory, and every anchor has one or two threads that read its column: the largest curve, then the exponentials below
// it, in the working type; sums over half tiles in float64. What the chunks of an anchor have is put together in their
// order. For nce a second walk over the tiles that hold positives follows. Backward makes the same blocks of distances,
// turns them into weights where they lie and multiplies these with the rows across; close pairs pull by their
// differences, in float64.
//
// Cost: n m d multiply-adds forward, 2 n m d backward (4 with separate references); memory of a packed copy of the
// rows, 0.2 KB an anchor and chunk, backward also of the gradient in float64, once for every chunk: so many chunks that
// there are about a thousand blocks, but of gradients not more than 64 MiB, or one. No n x m matrix. Deterministic: no
// atomics but extremes of norms, and everything is added up in a fixed order. No allocation, no synchronisation;
// everything happens on the stream that is given, so the calls can be captured in a CUDA graph. The current device must
// be the one that owns the pointers. At most 2^29 rows.
#pragma once

#include <cstddef>

#include "kernels/cuda/runtime.h"
#include "kernels/pair_sums.h"

namespace fastmine::cuda {

/// Bytes of device memory that a pass needs, aligned to 256. Depends on shapes and options alone.
std::size_t pair_sums_workspace(const PairSums& problem) noexcept;
std::size_t pair_sums_backward_workspace(const PairSumsBackward& problem) noexcept;

cudaError_t pair_sums(const PairSums& problem, void* workspace, cudaStream_t stream) noexcept;
cudaError_t pair_sums_backward(const PairSumsBackward& problem, void* workspace, cudaStream_t stream) noexcept;

}  // namespace fastmine::cuda
