// All distances between two sets of rows.
//
// Precision: rows are centred about their mean in float64 and rounded to the working type (float64 for float64 inputs,
// else float32), in which products are summed; an entry whose expansion |x|^2 + |y|^2 - 2 x.y cancels to less than 1/64
// of |x|^2 + |y|^2 is taken again by direct difference in float64. With one set the result is exactly symmetric and,
// but for `dot`, has an exactly zero diagonal. A row with a NaN or an Inf is at distance NaN from everything.
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

}  // namespace fastmine
