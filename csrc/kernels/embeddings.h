// What the kernels on embeddings have in common: rows, and how far apart two of them are.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace fastmine {

/// euclidean |x - y|; sqeuclidean |x - y|^2; cosine 1 - cos(x, y), 1 where either is zero; dot x . y, a similarity.
enum class Metric : std::uint8_t { euclidean, sqeuclidean, cosine, dot };

/// What multiplies rows, forward and backward alike. Results differ by roundings.
enum class Products : int {
  automatic,  // whichever should be faster
  floats,     // in the working type
  digits,     // float32 in whole numbers (cpu/digits.h), however small the problem and whatever the CPU
};

/// n rows of d elements. The elements of a row lie next to each other; `stride` elements lie between two rows.
struct Rows {
  const void* data;
  DType dtype;  // float32, float64, bfloat16 or float16
  std::int64_t n;
  std::int64_t d;
  std::int64_t stride;
};

/// The reference that is anchor i of a problem itself, -1 for none. Always inlined: a weak copy compiled for one
/// instruction set could serve all others.
template <class P>
[[gnu::always_inline]] inline std::int64_t itself(const P& problem, std::int64_t i) {
  return problem.self_index != nullptr ? problem.self_index[i] : problem.self ? i : -1;
}

}  // namespace fastmine
