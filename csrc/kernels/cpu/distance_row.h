// Dot products of centred rows made into distances: a row of a block at a time, exact where the expansion is not.
#pragma once

#include "kernels/cpu/packing.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {

/// Two sets of rows and their packed copies: rows of a block are positions of `a`, its columns positions of `b`.
template <class W>
struct Sides {
  const RowSet& x;
  const RowSet& y;
  const Packed<W>& a;
  const Packed<W>& b;
};

/// Keys below this share of |x|^2 + |y|^2 have lost too many digits in the subtraction.
template <class W>
constexpr W kClose = static_cast<W>(1.0 / 16);

/// row[columns[k]] = the distance of position i to position first + columns[k] by direct difference, for k < count.
template <class W>
FASTMINE_NOINLINE void take_directly(const Sides<W>& p, std::int64_t i, std::int64_t first, const std::int64_t* columns,
                                     std::int64_t count, W* row) {
  std::int64_t rows[kSliver<W>];
  double keys[kSliver<W>];
  for (std::int64_t k = 0; k < count; ++k) {
    rows[k] = p.b.row(first + columns[k]);
  }
  exact_keys<W>(p.x.rows, p.a.row(i), p.x.norm, p.y.rows, rows, count, p.y.norm, p.x.metric, keys);
  for (std::int64_t k = 0; k < count; ++k) {
    row[columns[k]] = static_cast<W>(distance_of(keys[k], p.x.metric));
  }
}

FASTMINE_INLINE float root(float x) { return __builtin_sqrtf(x); }
FASTMINE_INLINE double root(double x) { return __builtin_sqrt(x); }

/// Lane by lane; one instruction, which GCC finds in this loop.
template <class V>
FASTMINE_INLINE V root(V x) {
  for (std::size_t lane = 0; lane < size<V>; ++lane) {
    x[lane] = root(x[lane]);
  }
  return x;
}

/// Whether products of rows of these norms may overflow, or fall among the subnormal numbers and lose digits.
template <class W>
bool extreme(W a, W b) {
  constexpr double huge = sizeof(W) == 8 ? 0x1p1000 : 0x1p120, tiny = sizeof(W) == 8 ? 0x1p-900 : 0x1p-80;
  const double scale =
      (static_cast<double>(a) + static_cast<double>(b)) * (static_cast<double>(a) + static_cast<double>(b));
  return !(scale > tiny && scale < huge);
}

/// Distances of position i to the first `width` rows of sliver s, in place of their dot products; up to whole vectors
/// more are overwritten. At column `itself` is the same row, if anywhere: nobody asks for that distance, and it is not
/// taken directly.
template <class W>
FASTMINE_INLINE void distances_of_row(const Sides<W>& p, std::int64_t i, std::int64_t s, std::int64_t width, W* row,
                                      std::int64_t itself = -1) {
  using V = Vec<W>;
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<W>);
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<W>);
  const Metric metric = p.x.metric;
  const W own = p.a.c[i];  // a NaN marks a poisoned row, here and in `other`
  const W* other = p.b.c + s * sliver;
  std::int64_t again[kSliver<W>];  // columns to be taken directly
  std::int64_t count = 0;
  if (extreme(p.a.norm[i], p.b.radius[s])) {
    for (std::int64_t c = 0; c < width; ++c) {
      row[c] = static_cast<W>(__builtin_nan(""));
      again[count] = c;
      count += own == own && other[c] == other[c] ? 1 : 0;
    }
    return take_directly(p, i, s * sliver, again, count, row);
  }
  if (metric == Metric::dot) {
    for (std::int64_t c = 0; c < width; c += step) {
      store(row + c, load(row + c) + (own + load(other + c)));  // plus 0, or NaN
    }
    return;
  }
  auto close = V{} != V{};
  for (std::int64_t c = 0; c < width; c += step) {
    const V sum = own + load(other + c);
    const V key = sum - 2 * load(row + c);
    close |= key < sum * kClose<W>;  // never where both are 0, or both Inf for padding
    store(row + c, select(key < 0, V{}, key));
  }
  for (std::int64_t c = 0; any(close) && c < width; ++c) {
    again[count] = c;
    count += c != itself && row[c] < (own + other[c]) * kClose<W> ? 1 : 0;
  }
  if (metric == Metric::cosine) {
    for (std::int64_t c = 0; c < width; c += step) {
      store(row + c, load(row + c) * static_cast<W>(0.5));
    }
  }
  if (metric == Metric::euclidean) {
    for (std::int64_t c = 0; c < width; c += step) {
      store(row + c, root(load(row + c)));
    }
  }
  if (count > 0) {
    take_directly(p, i, s * sliver, again, count, row);
  }
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
