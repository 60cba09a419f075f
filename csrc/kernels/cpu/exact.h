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
  return fold(v, [](auto a, auto b) { return a + b; });
}

template <class W>
FASTMINE_INLINE Vec<double> load_double(const W* p) {
  return convert<double>(load<W, lanes<double>>(p));
}

/// The first `count` of a vector of float64, zeros after them.
template <class W>
FASTMINE_INLINE Vec<double> load_first(const W* p, std::int64_t count) {
  double values[lanes<double>] = {};
  for (std::int64_t k = 0; k < count; ++k) {
    values[k] = static_cast<double>(p[k]);
  }
  return load(values);
}

/// totals[c] += the sum over k < count of f(c, a[k], b[c][k]), where f of zeros is 0. Each sum has its own order, the
/// same for every C: its lanes, also those of the last few elements, never depend on how the compiler sees the loop.
/// Not inlined, so that the sums stay in registers.
template <class W, int C, class F>
FASTMINE_NOINLINE void add_pairs(const W* a, const W* const* b, std::int64_t count, F f, double* totals) {
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<double>);
  Vec<double> even[C] = {}, odd[C] = {};
  const W* other[C];
  for (int c = 0; c < C; ++c) {
    other[c] = b[c];
  }
  std::int64_t k = 0;
  for (; k + 2 * step <= count; k += 2 * step) {
    const Vec<double> first = load_double(a + k), second = load_double(a + k + step);
    for (int c = 0; c < C; ++c) {
      even[c] += f(c, first, load_double(other[c] + k));
      odd[c] += f(c, second, load_double(other[c] + k + step));
    }
  }
  if (k + step <= count) {
    const Vec<double> first = load_double(a + k);
    for (int c = 0; c < C; ++c) {
      even[c] += f(c, first, load_double(other[c] + k));
    }
    k += step;
  }
  if (k < count) {
    const std::int64_t rest = count - k;
    const Vec<double> last = load_first(a + k, rest);
    for (int c = 0; c < C; ++c) {
      even[c] += f(c, last, load_first(other[c] + k, rest));
    }
  }
  for (int c = 0; c < C; ++c) {
    totals[c] += sum_lanes(even[c] + odd[c]);
  }
}

/// totals[c] = sum over k of f(c, a[k], b[c][k]) in float64, for row i of x as a and C rows of y as b.
template <class W, int C, class F>
FASTMINE_INLINE void sum_pairs(const Rows& x, std::int64_t i, const Rows& y, const std::int64_t* rows, F f,
                               double* totals) {
  const W* b[C];
  for (int c = 0; c < C; ++c) {
    totals[c] = 0;
    b[c] = static_cast<const W*>(y.data) + rows[c] * y.stride;
  }
  if (x.dtype == kDType<W>) {
    return add_pairs<W, C>(static_cast<const W*>(x.data) + i * x.stride, b, x.d, f, totals);
  }
  W x_buffer[kChunk], y_buffer[C][kChunk];
  for (std::int64_t begin = 0; begin < x.d; begin += kChunk) {
    const std::int64_t count = x.d - begin < kChunk ? x.d - begin : kChunk;
    for (int c = 0; c < C; ++c) {
      b[c] = chunk(y, rows[c], begin, count, y_buffer[c]);
    }
    add_pairs<W, C>(chunk(x, i, begin, count, x_buffer), b, count, f, totals);
  }
}

/// keys[c] = the key of row i of x against row rows[c] of y. Norms matter for cosine alone: 0 says a zero row.
template <class W, int C>
FASTMINE_NOINLINE void exact_keys(const Rows& x, std::int64_t i, const double* x_norm, const Rows& y,
                                  const std::int64_t* rows, const double* y_norm, Metric metric, double* keys) {
  if (metric == Metric::dot) {
    sum_pairs<W, C>(x, i, y, rows, [](int, auto a, auto b) { return a * b; }, keys);
    for (int c = 0; c < C; ++c) {
      keys[c] *= -2;
    }
  } else if (metric == Metric::cosine) {
    const auto squared_difference = [=](int c, auto a, auto b) {
      // Divided, not multiplied by 1 / norm: a product would be fused into the subtraction, which then would not be
      // symmetric.
      const auto difference = a / x_norm[i] - b / y_norm[rows[c]];
      return difference * difference;
    };
    sum_pairs<W, C>(x, i, y, rows, squared_difference, keys);
    for (int c = 0; c < C; ++c) {
      keys[c] = x_norm[i] == 0 || y_norm[rows[c]] == 0 ? 2 : keys[c];
    }
  } else {
    const auto squared_difference = [](int, auto a, auto b) {
      const auto difference = a - b;
      return difference * difference;
    };
    sum_pairs<W, C>(x, i, y, rows, squared_difference, keys);
  }
}

/// The key of row i of x against row j of y.
template <class W>
FASTMINE_INLINE double exact_key(const Rows& x, std::int64_t i, const double* x_norm, const Rows& y, std::int64_t j,
                                 const double* y_norm, Metric metric) {
  double key;
  exact_keys<W, 1>(x, i, x_norm, y, &j, y_norm, metric, &key);
  return key;
}

/// keys[k] = the key of row i of x against row rows[k] of y, for k < count; together they share the work on row i.
template <class W>
FASTMINE_INLINE void exact_keys(const Rows& x, std::int64_t i, const double* x_norm, const Rows& y,
                                const std::int64_t* rows, std::int64_t count, const double* y_norm, Metric metric,
                                double* keys) {
  std::int64_t k = 0;
  for (; k + 4 <= count; k += 4) {
    exact_keys<W, 4>(x, i, x_norm, y, rows + k, y_norm, metric, keys + k);
  }
  switch (count - k) {
    case 3:
      return exact_keys<W, 3>(x, i, x_norm, y, rows + k, y_norm, metric, keys + k);
    case 2:
      return exact_keys<W, 2>(x, i, x_norm, y, rows + k, y_norm, metric, keys + k);
    case 1:
      return exact_keys<W, 1>(x, i, x_norm, y, rows + k, y_norm, metric, keys + k);
    default:
      return;
  }
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
