// All distances between two sets of rows.
//
// Precision: rows are centred about their mean in float64 and rounded to the working type (float64 for float64 inputs,
// else float32), in which products are summed; an entry whose expansion |x|^2 + |y|^2 - 2 x.y cancels to less than 1/16
// of |x|^2 + |y|^2, or whose products could overflow or underflow, is taken again by direct difference in float64. So
// float32 distances are right to about 1e-5 of themselves, and similarities to about 1e-6 of the product of the norms.
// With one set the result is exactly symmetric and, but for `dot`, has an exactly zero diagonal. A row with a NaN or an
// Inf is at distance NaN from everything.
//
// Cost: n m d multiply-adds (half of them with one set), one write of the result, one packed copy of the rows.
// Deterministic: every entry is computed by one task, always in the same order.
#pragma once

#include "kernels/embeddings.h"
#include "kernels/stage.h"

namespace fastmine {

struct PairwiseDistance {
  Rows x;
  Rows y;
  bool self;  // y is x
  Metric metric;
  void* distance;  // [x.n, y.n], contiguous: float64 for float64 rows, else float32
};

using PairwiseDistanceKernel = StagedKernel<PairwiseDistance>;

/// The gradient of all distances. With w[i, j] the derivative of the loss by half the squared distance, grad_x[i] = sum
/// over j of w[i, j] (x[i] - y[j]): of centred rows, (sum of w) x[i] - (sum of w y[j]), in register tiles, but for
/// pairs whose squared distance is below 1/16 of |x|^2 + |y|^2, whose differences are taken one by one in float64. So
/// it keeps its digits when rows are close. Sums run over j in the working type for 128 terms at a time, those in
/// float64, always in the same order. Coincident rows contribute nothing. Cost: 2 n m d multiply-adds (half of them
/// with one set), one reading of grad and distance per side, 3 d more for each close pair; a packed copy of the rows,
/// and the gradient in float64.
struct PairwiseDistanceBackward {
  Rows x;
  Rows y;
  bool self;  // y is x: grad_x gathers both sides, grad_y is unused
  Metric metric;
  const void* grad;      // [x.n, y.n], contiguous, of the type of distance
  const void* distance;  // [x.n, y.n], contiguous: float64 for float64 rows, else float32

  // Out, contiguous, of the rows' type.
  void* grad_x;
  void* grad_y;
};

using PairwiseDistanceBackwardKernel = StagedKernel<PairwiseDistanceBackward>;

}  // namespace fastmine
