// Mining by rank on a CUDA device: the problems of kernels/mined_pairs.h, with every pointer in them a device pointer.
// Compiled for the GPU and emulated on the CPU (tests/kernels); not yet run on a GPU.
//
// A block has an anchor at a time, and walks the references as many at a time as it has threads. A thread asks of one
// whether it is a pair; those that are, a warp compares each by direct difference in float64; those that come before
// the last of the anchor's list so far are put where they belong, each finding its place by counting who comes before
// it. Once the list is full, a difference in float32 with a bound on its roundings rules out most pairs before, where
// distance is what they are ranked by and rows are not of float64. So the pairs are those of the float64 distances,
// equal ones in the order of their indices.
//
// Cost: n m d differences over the pairs of either sign that are in question, in float32 or, of random orders, float64
// rows and a few more, in float64; memory of 48 bytes a rank for each of the blocks at work, and some 100 bytes a row.
// No n x m matrix. Deterministic: atomics count, deal out places and take extremes, so no result depends on their
// order. No allocation, no synchronisation; everything happens on the stream that is given, so the call can be captured
// in a CUDA graph. The current device must be the one that owns the pointers. At most 2^29 rows. Backward is
// batch_hard_backward.
#pragma once

#include <cstddef>

#include "kernels/cuda/runtime.h"
#include "kernels/mined_pairs.h"

namespace fastmine::cuda {

/// Bytes of device memory that mining needs, aligned to 256. Depends on shapes and options alone.
std::size_t mined_pairs_workspace(const MinedPairs& problem) noexcept;

cudaError_t mined_pairs(const MinedPairs& problem, void* workspace, cudaStream_t stream) noexcept;

}  // namespace fastmine::cuda
