// What carries a gradient from pairs to rows: weights of pairs times the rows across, in register tiles.
//
// With w the derivative of the loss by half the squared distance of a pair, row x gathers the sum of w (x - y), which
// of centred rows is (sum of w) x - sum of w y. For dot, w is the derivative by the similarity, and x gathers w y.
#pragma once

#include "kernels/cpu/digits.h"
#include "kernels/cpu/packing.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {

template <class W>
constexpr std::int64_t kWidth = static_cast<std::int64_t>(kSliver<W>);

template <class W>
std::int64_t slivers_of(std::int64_t n) {
  return divide_up(n, kWidth<W>);
}

/// Rows divided by their norms and centred, in panels of kSliver elements of all `count` rows: element k of place i is
/// at data[((k / kSliver) count + i) kSliver + k % kSliver].
template <class W>
struct Columns {
  W* data;
  W* squared;  // [count]: squared norms; Inf for a zero row of cosine, which is thereby close to all
  std::int64_t count;
};

template <class W>
Columns<W> lay_out_columns(Arena& arena, const Rows& rows) {
  return {arena.take<W>(slivers_of<W>(rows.d) * rows.n * kWidth<W>), arena.take<W>(rows.n), rows.n};
}

/// [slivers, panels, kSliver, kSliver]: what the rows of a sliver have gathered of a panel.
template <class W>
double* lay_out_sums(Arena& arena, const Rows& rows) {
  return arena.take<double>(slivers_of<W>(rows.n) * slivers_of<W>(rows.d) * kWidth<W> * kWidth<W>);
}

/// Row i, to a place of the columns.
template <class W>
void pack_column(const RowSet& set, const double* centre, std::int64_t i, std::int64_t place,
                 const Columns<W>& columns) {
  alignas(64) W row[kSliver<W>];
  double squared = 0;
  for (std::int64_t from = 0; from < set.rows.d; from += kWidth<W>) {
    const std::int64_t count = smaller(kWidth<W>, set.rows.d - from);
    for (std::int64_t k = count; k < kWidth<W>; ++k) {
      row[k] = 0;
    }
    squared += centre_row(set, centre, i, from, count, row);
    for (std::size_t v = 0; v < kSliverVectors; ++v) {
      store(columns.data + from * columns.count + place * kWidth<W> + v * lanes<W>, load(row + v * lanes<W>));
    }
  }
  columns.squared[place] = static_cast<W>(set.norm[i] == 0 ? __builtin_inf() : squared);
}

/// sums[r, k] += sign times the sum over c < count of weights[c][r] across[begin + c, k], for a sliver's first `rows`.
template <class W>
void add_products(const Columns<W>& across, Metric metric, std::int64_t d, const W* weights, std::int64_t rows,
                  std::int64_t begin, std::int64_t count, double* sums) {
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<double>);
  const double sign = metric == Metric::dot ? 1 : -1;
  alignas(64) W block[kSliver<W> * kSliver<W>];
  for (std::int64_t from = 0; from < d; from += kWidth<W>, sums += kWidth<W> * kWidth<W>) {
    const std::int64_t width = smaller(kWidth<W>, d - from);
    const W* columns = across.data + from * across.count + begin * kWidth<W>;
    dot_block(weights, columns, static_cast<std::size_t>(count), static_cast<std::size_t>(rows),
              static_cast<std::size_t>(width), block);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t k = 0; k < width; k += step) {  // up to the end of a vector, which the block fills
        double* sum = sums + r * kWidth<W> + k;
        store(sum, load(sum) + sign * load_double(block + r * kWidth<W> + k));
      }
    }
  }
}

/// total[r] += the weights[c][r] of all c < count.
template <class W>
void add_weights(const W* weights, std::int64_t count, double* total) {
  Vec<W> sum[kSliverVectors] = {};
  for (std::int64_t c = 0; c < count; ++c) {
    for (std::size_t v = 0; v < kSliverVectors; ++v) {
      sum[v] += load(weights + c * kWidth<W> + v * lanes<W>);
    }
  }
  for (std::size_t r = 0; r < kSliver<W>; ++r) {
    total[r] += static_cast<double>(sum[r / lanes<W>][r % lanes<W>]);
  }
}

/// Rows across whose weights become digits together: as many as stay in the first cache with a sliver's.
inline constexpr std::int64_t kDigitRows = 4 * kWidth<float>;

/// Row r of `sums` += column r of a tile of products times its unit, for r < height.
FASTMINE_INLINE void add_turned(const Sums& products, Vec<float> unit, std::int64_t height, double* sums) {
  Vec<float> block[kTile];
  for (std::int64_t k = 0; k < kTile; ++k) {
    block[k] = product(products, k) * unit;
  }
  transpose(block);
  for (std::int64_t r = 0; r < height; ++r, sums += kWidth<float>) {
    for (std::int64_t k = 0; k < kTile; k += static_cast<std::int64_t>(lanes<double>)) {
      store(sums + k, load(sums + k) + load_double(reinterpret_cast<const float*>(block + r) + k));
    }
  }
}

/// The same by digits, for at most kDigitRows rows across, from a multiple of them on.
inline void add_products(const DigitRows& across, Metric metric, std::int64_t d, const float* weights,
                         std::int64_t rows, std::int64_t begin, std::int64_t count, double* sums) {
  constexpr std::int64_t width = kWidth<float>, steps = kDigitRows / kTileDepth;
  static_assert(kDigitRows % kTileDepth == 0 && width % kTile == 0);
  Digits columns[kSliverVectors][steps];
  Vec<float> unit[kSliverVectors];
  for (std::int64_t v = 0; v * kTile < rows; ++v) {
    unit[v] = split_columns(weights + v * kTile, across.unit + begin, count, columns[v]);
    unit[v] = metric == Metric::dot ? unit[v] : -unit[v];
  }
  Sums products[2];
  for (std::int64_t from = 0; from < d; from += 2 * kTile) {
    const Digits* elements = across.elements + from / kTile * across.row_steps + begin / kTileDepth;
    for (std::int64_t v = 0; v * kTile < rows; ++v) {
      multiply_digits(elements, across.row_steps, columns[v], divide_up(count, kTileDepth), products);
      for (std::int64_t k = from; k < smaller(from + 2 * kTile, d); k += kTile) {
        add_turned(products[(k - from) / kTile], unit[v], smaller(kTile, rows - v * kTile),
                   sums + (k / width * width + v * kTile) * width + k % width);
      }
    }
  }
}

/// sums += w (x[i] - y[j]), for dot w y[j], from the rows as they were given.
template <class W>
FASTMINE_NOINLINE void pull(const RowSet& own, std::int64_t i, const RowSet& other, std::int64_t j, double w,
                            double* sums) {
  const bool dot = own.metric == Metric::dot;
  const double own_scale = dot ? 0 : scale_of(own, i), other_scale = dot ? -1 : scale_of(other, j);
  W own_buffer[kWidth<W>], other_buffer[kWidth<W>];
  for (std::int64_t from = 0; from < own.rows.d; from += kWidth<W>, sums += kWidth<W> * kWidth<W>) {
    const std::int64_t count = smaller(kWidth<W>, own.rows.d - from);
    const W* x = chunk(own.rows, i, from, count, own_buffer);
    const W* y = chunk(other.rows, j, from, count, other_buffer);
    for (std::int64_t k = 0; k < count; ++k) {
      sums[k] += w * (static_cast<double>(x[k]) * own_scale - static_cast<double>(y[k]) * other_scale);
    }
  }
}

/// sums[k] += total (x[k] - centre[k]), with x divided by its norm.
template <class W>
FASTMINE_INLINE void add_own(const W* x, double scale, const double* centre, double total, std::int64_t count,
                             double* sums) {
  for (std::int64_t k = 0; k < count; ++k) {
    sums[k] += total * (static_cast<double>(x[k]) * scale - centre[k]);
  }
}

/// The sum over k of sums[k] x[k].
template <class W>
FASTMINE_INLINE double project(const W* x, std::int64_t count, const double* sums) {
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<double>);
  Vec<double> along{};
  double tail = 0;
  std::int64_t k = 0;
  for (; k + step <= count; k += step) {
    along += load_double(x + k) * load(sums + k);
  }
  for (; k < count; ++k) {
    tail += static_cast<double>(x[k]) * sums[k];
  }
  return sum_lanes(along) + tail;
}

/// The gradient of row i from its sums, which are overwritten, to row i of `out`: out of total x[i] - sum of w y, and
/// for cosine the part along the row taken off.
template <class W>
void write_gradient(const RowSet& own, const double* centre, std::int64_t i, double total, double* sums, void* out) {
  const std::int64_t d = own.rows.d;
  const double scale = scale_of(own, i);
  W buffer[kWidth<W>];
  double along = 0;
  for (std::int64_t from = 0; own.metric != Metric::dot && from < d; from += kWidth<W>) {
    const std::int64_t count = smaller(kWidth<W>, d - from);
    const W* x = chunk(own.rows, i, from, count, buffer);
    add_own(x, scale, centre + from, total, count, sums + from * kWidth<W>);
    along += scale * project(x, count, sums + from * kWidth<W>);
  }
  char* bytes = static_cast<char*>(out);
  const DType type = own.rows.dtype;
  for (std::int64_t from = 0; from < d; from += kWidth<W>) {
    const std::int64_t count = smaller(kWidth<W>, d - from);
    double* sum = sums + from * kWidth<W>;
    if (own.metric == Metric::cosine) {
      const W* x = chunk(own.rows, i, from, count, buffer);
      for (std::int64_t k = 0; k < count; ++k) {
        sum[k] = (sum[k] - along * (static_cast<double>(x[k]) * scale)) * scale;
      }
    }
    write(sum, static_cast<std::size_t>(count), bytes + (i * d + from) * static_cast<std::int64_t>(size_of(type)),
          type);
  }
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
