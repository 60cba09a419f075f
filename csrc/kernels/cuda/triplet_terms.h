// The triplet loss of several mined pairs, and the distances of pairs of rows, on a CUDA device: the problems of
// kernels/triplet_terms.h, with every pointer in them a device pointer. Compiled for the GPU and emulated on the CPU
// (tests/kernels); not yet run on a GPU.
//
// A thread has an anchor and all its triplets. Two launches, as for triplet_loss.h: blocks add up their anchors; then
// each adds up all blocks, in the same fixed order, and writes what its anchors get. For an active fraction the
// triplets are sorted by how far they are from the kink before (sort.cuh). The same bits on every run. No allocation,
// no synchronisation, capturable.
#pragma once

#include <cstddef>

#include "kernels/cuda/runtime.h"
#include "kernels/triplet_terms.h"

namespace fastmine::cuda {

/// Bytes of device memory, aligned to 256, that the launchers need. They depend on the sizes of a problem alone.
std::size_t triplet_terms_workspace(const TripletTerms& problem) noexcept;
std::size_t paired_distance_workspace(const PairedDistance& problem) noexcept;

/// `violations` is not used. cudaErrorInvalidValue for an active fraction of 2^30 triplets or more.
cudaError_t triplet_terms(const TripletTerms& problem, void* workspace, cudaStream_t stream) noexcept;

/// A warp for each pair. float32, float64, bfloat16 and float16 rows.
cudaError_t paired_distance(const PairedDistance& problem, void* workspace, cudaStream_t stream) noexcept;

}  // namespace fastmine::cuda
