// The formula of every segmentation term on a CUDA device: the problem of kernels/segmentation_terms.h, with every
// pointer in it a device pointer, and its text (kernels/segmentation_terms_formula.h). Compiled for the GPU and
// emulated on the CPU; not yet run on a GPU.
//
// One kernel of one block: there is nothing here but the sums of a few hundred groups. Totals are taken in a fixed
// order. Streams and devices as in segmentation_loss.h.
#pragma once

#include <cstddef>

#include "kernels/cuda/runtime.h"
#include "kernels/segmentation_terms.h"

namespace fastmine::cuda {

/// Bytes of device memory, aligned to 8. `room` is part of it, and is not read from the problem.
std::size_t segmentation_terms_workspace(const SegmentationTerms& problem) noexcept;

cudaError_t segmentation_terms(const SegmentationTerms& problem, void* workspace, cudaStream_t stream) noexcept;

/// kept[k] for each of `count` classes: whether it is one of the n of that list, which is on the host.
cudaError_t mark_kept(const std::int64_t* classes, std::int64_t n, std::uint8_t* kept, std::int64_t count,
                      cudaStream_t stream) noexcept;

}  // namespace fastmine::cuda
