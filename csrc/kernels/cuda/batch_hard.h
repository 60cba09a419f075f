// Batch-hard mining on a CUDA device: the problems of kernels/batch_hard.h, with every pointer in them a device
// pointer. Compiled for the GPU and emulated on the CPU (tests/kernels); not yet run on a GPU.
//
// Forward, as on the CPU. Rows are looked at, sorted by label, centred and packed. Positives are compared directly
// where a label has few references. Everything else is a search. A screen multiplies tiles of rows in registers and
// keeps per anchor and panel of references the least value; the least of these plus a rigorous rounding bound limits
// what can win; panels whose least value, less the bound, is within the limit are multiplied again, those anchors
// together that look at the same panel, and every candidate within the bound is compared by direct difference in
// float64. So the pairs are those of the float64 distances, ties going to the lowest original index. Semi-hard
// negatives are searched above the key of the positive; anchors that find none search once more, for the farthest.
//
// That takes some 20 launches. Up to 2,048 x 2,048 pairs take few: tiles screen the rows as they come, labels compared
// pair by pair, and a warp settles an anchor (batch_hard_tiles.cuh): five launches, or seven for semi-hard negatives.
// Up to 256 x 256 of up to 512 elements are all compared directly: three.
//
// The screen is in float32 (float64 for float64 rows) or, for the hardest negatives of 2,048 rows and more of 32
// elements and more, in bfloat16 by the matrix unit (on Hopper, if asked for, by warpgroups), with a bound of its own.
// Where that leaves more panels open than a sixteenth of them and one an anchor, the device itself gives up and screens
// in float32: same result, later. See Screen.
//
// Numbers that only the device knows (rows admitted, poisoned, without a semi-hard negative; whether rounding was given
// up) stay there: grids follow from the shapes, and blocks without work end at once.
//
// Cost: n m d / 2 multiply-adds with one set, in tiles of 128 x 128 (float64: 64 x 64); memory of one packed copy of
// the rows, half of one more in bfloat16, minima of at most 64 panels, and some 100 bytes a row. Deterministic: atomics
// only take extremes, count, and deal out places, so no result depends on their order. No allocation, no
// synchronisation; everything happens on the stream that is given, so the calls can be captured in a CUDA graph. The
// current device must be the one that owns the pointers. At most 2^29 rows.
//
// Backward, O((n + m) d): edges from anchors to the rows that they mined are sorted by these rows, unless they are few;
// then every row gathers its own edges and those that end in it, in the order of the anchors, in float64.
#pragma once

#include <cstddef>

#include "kernels/batch_hard.h"
#include "kernels/cuda/runtime.h"

namespace fastmine::cuda {

/// Bytes of device memory that mining needs, aligned to 256. Depends on shapes and options alone.
std::size_t batch_hard_workspace(const BatchHard& problem) noexcept;

/// What multiplies bfloat16: warps on every device; warpgroups (batch_hard_warpgroup.cuh) on one of compute capability
/// 9.0 whose own code, sm_90a, was compiled, for rows of up to 736 elements. The same pairs either way.
enum class MatrixUnit { by_warp, by_warpgroup };

cudaError_t batch_hard(const BatchHard& problem, void* workspace, cudaStream_t stream, MatrixUnit unit) noexcept;

inline cudaError_t batch_hard(const BatchHard& problem, void* workspace, cudaStream_t stream) noexcept {
  return batch_hard(problem, workspace, stream, MatrixUnit::by_warp);
}

std::size_t batch_hard_backward_workspace(const BatchHardBackward& problem) noexcept;

cudaError_t batch_hard_backward(const BatchHardBackward& problem, void* workspace, cudaStream_t stream) noexcept;

}  // namespace fastmine::cuda
