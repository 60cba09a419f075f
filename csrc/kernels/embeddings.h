// What the kernels on embeddings have in common: rows, and how far apart two of them are.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace fastmine {

/// euclidean |x - y|; sqeuclidean |x - y|^2; cosine 1 - cos(x, y), 1 where either is zero; dot x . y, a similarity.
enum class Metric : std::uint8_t { euclidean, sqeuclidean, cosine, dot };

/// n rows of d elements. The elements of a row lie next to each other; `stride` elements lie between two rows.
struct Rows {
  const void* data;
  DType dtype;  // float32, float64, bfloat16 or float16
  std::int64_t n;
  std::int64_t d;
  std::int64_t stride;
};

}  // namespace fastmine
