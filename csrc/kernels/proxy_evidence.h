// What a loss against class vectors says of its batch, in one look at the rows; their own vectors were compared before.
//
// python/fastmine/reference/proxies.py says what the fields mean. Cost: O(n d + classes), all in float64. Deterministic
// at any number of threads.
#pragma once

#include "kernels/embeddings.h"
#include "kernels/stage.h"

namespace fastmine {

/// The fields, in order.
enum class Proxy : int {
  anchors,
  admitted,
  has_positive,
  has_negative,
  valid,
  hard,
  active,
  zero_rows,
  nonfinite_rows,
  negative_labels,
  out_of_range,
  weight_sum,
  positive_distance_sum,
  negative_distance_sum,
  norm_squared_sum,
  sum_norm_squared,
  positive_distance_max,
  negative_distance_min,
  classes,
  nonfinite_refs,
  zero_refs,
  count,
};

struct ProxyEvidence {
  Rows x;
  const std::int64_t* labels;  // [x.n]
  const bool* valid;           // [x.n], or null: all
  std::int64_t classes;
  const double* vector_norm;  // [vectors], of all class vectors
  std::int64_t vectors;
  const void* cosine;         // [x.n] each, of type `dtype`: to the own class,
  const void* nearest_other;  // to the nearest other one,
  const void* weight;         // and 0 where there is no class; or null: all are 1
  DType dtype;                // float32 or float64
  const bool* active;         // [x.n]: rows whose loss is above 0

  double* evidence;  // out, [Proxy::count]
};

using ProxyEvidenceKernel = StagedKernel<ProxyEvidence>;

}  // namespace fastmine
