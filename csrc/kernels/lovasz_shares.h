// By how much each error raises the Jaccard loss of its group when they are made in the order of their size: the slopes
// of the Lovasz extension (arXiv:1705.08790). python/fastmine/reference/lovasz.py is the specification.
//
// The errors of a group are sorted, largest first, ties by position; an error that is NaN comes first. With I of the
// target left and U the union after an error at a position of target t, its share is
// (t U + (1 - t) I) / (U (U - (1 - t))): the difference of two Jaccard losses without its cancellation. The first error
// of a group without target has all of it, 1. What is not valid has none.
//
// Precision: counts and sums in float64, one rounding to the type of the errors.
//
// Cost: a radix sort, 3 passes (float32) or 6 (float64) over pairs of error and position, of which those are left out
// where all errors agree; one pass in the order of the errors. Memory: 16 bytes (32) for each position of up to 8
// groups.
//
// Deterministic: a group is the work of one thread.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/host_device.h"
#include "kernels/stage.h"

namespace fastmine {

struct LovaszShares {
  std::int64_t samples, classes, positions;  // at most 2^32 - 1 positions
  DType dtype;                               // of errors, target and shares: float32 or float64
  const void* errors;                        // [samples, classes, positions], contiguous; at least 0
  const void* target;                        // the same
  const std::uint8_t* valid;                 // bool, or null where all is
  std::int64_t valid_stride[3];

  void* shares;  // out: as errors
};

/// The share of an error at a position of target t, the so-many-th, with `left` of the target after it.
FASTMINE_HOST_DEVICE inline double lovasz_share(double t, double left, std::int64_t place) {
  const double all = left + static_cast<double>(place), before = all - (1 - t);
  return before == 0 ? 1 : (t * all + (1 - t) * left) / (all * before);
}

namespace cpu {

/// Compiled once, for every CPU.
extern const StagedKernel<LovaszShares> lovasz_shares;

}  // namespace cpu
}  // namespace fastmine
