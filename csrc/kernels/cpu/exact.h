// Direct comparison of two rows, in float64: the truth that screening only narrows down to.
//
// Rows are compared by a key that orders like their distance: |x - y|^2 for the Euclidean metrics, twice the distance
// for cosine, minus twice the similarity for dot. It is what |x|^2 + |y|^2 - 2 x.y, or -2 x.y alone, would be.
#pragma once

#include <cmath>

#include "kernels/cpu/convert.h"
#include "kernels/cpu/isa.h"
#include "kernels/embeddings.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {

inline constexpr std::int64_t kChunk = 256;  // elements of a row read at a time when they need converting

template <class W>
inline constexpr DType kDType = sizeof(W) == 8 ? DType::float64 : DType::float32;

/// Elements k .. k + count of row i, as W: in place where they already are, else converted into `buffer`.
template <class W>
FASTMINE_INLINE const W* chunk(const Rows& rows, std::int64_t i, std::int64_t k, std::int64_t count, W* buffer) {
  const std::int64_t offset = i * rows.stride + k;
  if (rows.dtype == kDType<W>) {
    return static_cast<const W*>(rows.data) + offset;
  }
  const char* bytes = static_cast<const char*>(rows.data);
  read(bytes + offset * static_cast<std::int64_t>(size_of(rows.dtype)), rows.dtype, 1, static_cast<std::size_t>(count),
       buffer);
  return buffer;
}

FASTMINE_INLINE double sum_lanes(Vec<double> v) {
  double sum = 0;
  for (std::size_t i = 0; i < lanes<double>; ++i) {
    sum += v[i];
  }
  return sum;
}

template <class W>
FASTMINE_INLINE Vec<double> load_double(const W* p) {
  return convert<double>(load<W, lanes<double>>(p));
}

/// sum over k of f(a[k], b[k]) in float64, in a fixed order.
template <class W, class F>
FASTMINE_INLINE double sum_pairs(const Rows& x, std::int64_t i, const Rows& y, std::int64_t j, F f) {
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<double>);
  Vec<double> even{}, odd{};
  double tail = 0;
  W x_buffer[kChunk], y_buffer[kChunk];
  for (std::int64_t begin = 0; begin < x.d; begin += kChunk) {
    const std::int64_t count = x.d - begin < kChunk ? x.d - begin : kChunk;
    const W* a = chunk(x, i, begin, count, x_buffer);
    const W* b = chunk(y, j, begin, count, y_buffer);
    std::int64_t k = 0;
    for (; k + 2 * step <= count; k += 2 * step) {
      even += f(load_double(a + k), load_double(b + k));
      odd += f(load_double(a + k + step), load_double(b + k + step));
    }
    for (; k < count; ++k) {
      tail += f(static_cast<double>(a[k]), static_cast<double>(b[k]));
    }
  }
  return sum_lanes(even + odd) + tail;
}

/// The key of row i of x against row j of y. `x_norm` and `y_norm` matter for cosine alone: 0 says a zero row.
template <class W>
FASTMINE_NOINLINE double exact_key(const Rows& x, std::int64_t i, double x_norm, const Rows& y, std::int64_t j,
                                   double y_norm, Metric metric) {
  if (metric == Metric::dot) {
    return -2 * sum_pairs<W>(x, i, y, j, [](auto a, auto b) { return a * b; });
  }
  if (metric == Metric::cosine) {
    if (x_norm == 0 || y_norm == 0) {
      return 2;
    }
    return sum_pairs<W>(x, i, y, j, [=](auto a, auto b) {
      const auto difference = a / x_norm - b / y_norm;
      return difference * difference;
    });
  }
  return sum_pairs<W>(x, i, y, j, [](auto a, auto b) {
    const auto difference = a - b;
    return difference * difference;
  });
}

FASTMINE_INLINE double distance_of(double key, Metric metric) {
  switch (metric) {
    case Metric::euclidean:
      return ::sqrt(key);
    case Metric::sqeuclidean:
      return key;
    case Metric::cosine:
      return 0.5 * key;
    case Metric::dot:
      return -0.5 * key;
  }
  return key;
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
