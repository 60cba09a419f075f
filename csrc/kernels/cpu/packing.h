// From rows to packed slivers: what each row is like, the centre of all, and centred copies side by side.
//
// Distances do not change when all points move together, but the expansion |x|^2 + |y|^2 - 2 x.y loses as many digits
// as the points are far from the origin. Centring first, in float64, is what keeps nearly collapsed embeddings in
// order.
#pragma once

#include <cmath>

#include "kernels/cpu/arena.h"
#include "kernels/cpu/exact.h"
#include "kernels/cpu/tile.h"
#include "kernels/embeddings.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {

inline constexpr std::int64_t kRowBlock = 128;  // rows whose sums one task adds up; fixed, so sums have fixed bits

enum Kind : std::uint8_t { kSkipped = 1, kPoisoned = 2, kZero = 4 };  // masked out; NaN or Inf; norm 0

/// A set of rows and what one look at each tells.
struct RowSet {
  Rows rows;
  const bool* valid;  // null: all
  Metric metric;
  std::uint8_t* kind;     // [n]
  double* norm;           // [n]: what a row is divided by: for cosine its norm, 0 for a zero row; else 1
  double* squared;        // [n]: squared norm
  double* sums;           // [blocks, d]: of the divided rows that take part and are finite
  double* raw_sums;       // [blocks, d]: of those rows as they are; the same memory except for cosine
  std::int64_t* counted;  // [blocks]: how many

  std::int64_t blocks() const { return divide_up(rows.n, kRowBlock); }
};

inline RowSet lay_out_rows(Arena& arena, const Rows& rows, const bool* valid, Metric metric) {
  RowSet set{};
  set.rows = rows;
  set.valid = valid;
  set.metric = metric;
  set.kind = arena.take<std::uint8_t>(rows.n);
  set.norm = arena.take<double>(rows.n);
  set.squared = arena.take<double>(rows.n);
  set.sums = arena.take<double>(set.blocks() * rows.d);
  set.raw_sums = metric == Metric::cosine ? arena.take<double>(set.blocks() * rows.d) : set.sums;
  set.counted = arena.take<std::int64_t>(set.blocks());
  return set;
}

/// Kind, squared norm and norm of row i.
template <class W>
FASTMINE_INLINE void look_at_row(const RowSet& set, std::int64_t i) {
  using V = Vec<double>;
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<double>);
  const V largest = broadcast(1.7976931348623157e308);
  V squares{}, peak{};
  auto finite = peak == peak;
  double tail_squares = 0, tail_peak = 0;
  bool tail_finite = true;
  W buffer[kChunk];
  for (std::int64_t begin = 0; begin < set.rows.d; begin += kChunk) {
    const std::int64_t count = smaller(kChunk, set.rows.d - begin);
    const W* x = chunk(set.rows, i, begin, count, buffer);
    std::int64_t k = 0;
    for (; k + step <= count; k += step) {
      const V v = load_double(x + k);
      const V magnitude = select(v < 0, -v, v);
      squares += v * v;
      peak = select(magnitude > peak, magnitude, peak);
      finite &= magnitude <= largest;
    }
    for (; k < count; ++k) {
      const double v = static_cast<double>(x[k]);
      const double magnitude = ::fabs(v);
      tail_squares += v * v;
      tail_peak = larger(tail_peak, magnitude);
      tail_finite = tail_finite && magnitude <= largest[0];
    }
  }
  bool all_finite = tail_finite;
  double all_peak = tail_peak;
  for (std::size_t lane = 0; lane < lanes<double>; ++lane) {
    all_finite = all_finite && finite[lane] != 0;
    all_peak = larger(all_peak, peak[lane]);
  }
  const bool skipped = set.valid != nullptr && !set.valid[i];
  const bool zero = all_finite && all_peak == 0;
  set.kind[i] = static_cast<std::uint8_t>((skipped ? kSkipped : 0) | (all_finite ? 0 : kPoisoned) | (zero ? kZero : 0));
  set.squared[i] = sum_lanes(squares) + tail_squares;
  set.norm[i] = set.metric != Metric::cosine ? 1 : ::sqrt(set.squared[i]);
}

/// What brings row i to its unit vector, for cosine; a zero row stays zero.
FASTMINE_INLINE double scale_of(const RowSet& set, std::int64_t i) { return set.norm[i] == 0 ? 0 : 1 / set.norm[i]; }

/// Look at the rows of one block, and add up those that count.
template <class W>
void look_at_block(const RowSet& set, std::int64_t block) {
  const std::int64_t d = set.rows.d;
  double* sums = set.sums + block * d;
  double* raw_sums = set.raw_sums + block * d;
  for (std::int64_t k = 0; k < d; ++k) {
    sums[k] = raw_sums[k] = 0;
  }
  std::int64_t counted = 0;
  W buffer[kChunk];
  const std::int64_t end = smaller(set.rows.n, (block + 1) * kRowBlock);
  for (std::int64_t i = block * kRowBlock; i < end; ++i) {
    look_at_row<W>(set, i);
    if ((set.kind[i] & (kSkipped | kPoisoned)) != 0) {
      continue;
    }
    ++counted;
    for (std::int64_t begin = 0; begin < d; begin += kChunk) {
      const std::int64_t count = smaller(kChunk, d - begin);
      const W* x = chunk(set.rows, i, begin, count, buffer);
      for (std::int64_t k = 0; k < count; ++k) {
        raw_sums[begin + k] += static_cast<double>(x[k]);
      }
      if (sums != raw_sums) {
        for (std::int64_t k = 0; k < count; ++k) {
          sums[begin + k] += static_cast<double>(x[k]) * scale_of(set, i);
        }
      }
    }
  }
  set.counted[block] = counted;
}

/// total[k] = the sum over blocks of sums[block, k], in the order of the blocks; returns how many rows that is.
inline std::int64_t add_blocks(const RowSet& set, const double* sums, double* total) {
  std::int64_t counted = 0;
  for (std::int64_t block = 0; block < set.blocks(); ++block) {
    counted += set.counted[block];
    for (std::int64_t k = 0; k < set.rows.d; ++k) {
      total[k] += sums[block * set.rows.d + k];
    }
  }
  return counted;
}

/// The mean of the rows of one or two sets that count (their unit vectors, for cosine); 0 for dot, which is not
/// translation invariant.
inline void find_centre(const RowSet& x, const RowSet* y, double* centre) {
  for (std::int64_t k = 0; k < x.rows.d; ++k) {
    centre[k] = 0;
  }
  if (x.metric == Metric::dot) {
    return;
  }
  std::int64_t counted = add_blocks(x, x.sums, centre);
  if (y != nullptr) {
    counted += add_blocks(*y, y->sums, centre);
  }
  for (std::int64_t k = 0; k < x.rows.d; ++k) {
    centre[k] /= static_cast<double>(larger<std::int64_t>(counted, 1));
  }
}

/// Centred rows in slivers, and for each position c with key(i, j) = c[i] + c[j] - 2 x[i].x[j].
template <class W>
struct Packed {
  std::int64_t count;         // positions in use; the rest of the last sliver is padding
  const std::int64_t* order;  // position -> row; null: the same
  W* data;
  W* c;       // Inf for padding, NaN for a poisoned row
  W* norm;    // at least the norm of the packed row
  W* radius;  // per sliver, the largest norm in it

  std::int64_t slivers() const { return divide_up(count, kSliver<W>); }
  const W* sliver(std::int64_t s, std::int64_t d) const { return data + s * d * static_cast<std::int64_t>(kSliver<W>); }
  std::int64_t row(std::int64_t position) const { return order == nullptr ? position : order[position]; }
};

template <class W>
Packed<W> lay_out_packed(Arena& arena, std::int64_t most, std::int64_t d) {
  const std::int64_t padded = divide_up(most, kSliver<W>) * static_cast<std::int64_t>(kSliver<W>);
  Packed<W> packed{};
  packed.data = arena.take<W>(padded * d);
  packed.c = arena.take<W>(padded);
  packed.norm = arena.take<W>(padded);
  packed.radius = arena.take<W>(divide_up(most, kSliver<W>));
  return packed;
}

/// Elements begin .. begin + count of row i, divided by its norm and centred; 0 up to the next whole vector.
template <class W>
FASTMINE_INLINE void centre_row(const RowSet& set, const double* centre, std::int64_t i, std::int64_t begin,
                                std::int64_t count, W* out) {
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<double>);
  W buffer[kChunk];
  const W* x = chunk(set.rows, i, begin, count, buffer);
  const double scale = scale_of(set, i);
  centre += begin;
  std::int64_t k = 0;
  for (; k + step <= count; k += step) {
    store<W, lanes<double>>(out + k, convert<W>(load_double(x + k) * broadcast(scale) - load(centre + k)));
  }
  for (; k < count; ++k) {
    out[k] = static_cast<W>(static_cast<double>(x[k]) * scale - centre[k]);
  }
  for (; k % static_cast<std::int64_t>(lanes<W>) != 0; ++k) {
    out[k] = 0;
  }
}

/// Columns of `rows` ([lanes, kChunk]) as rows of `out` ([count, kSliver]); squared[r] += the squares of row r.
template <class W>
FASTMINE_INLINE void interleave(const W* rows, std::int64_t count, W* out, Vec<double>* squared) {
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<W>);
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<W>);
  for (std::int64_t begin = 0; begin < count; begin += step) {
    Vec<W> v[lanes<W>];
    for (std::int64_t r = 0; r < step; ++r) {
      v[r] = load(rows + r * kChunk + begin);
    }
    transpose(v);
    for (std::int64_t k = 0; k < smaller(step, count - begin); ++k) {
      W* to = out + (begin + k) * sliver;
      store(to, v[k]);
      for (std::size_t part = 0; part < lanes<W> / lanes<double>; ++part) {
        const Vec<double> x = load_double(to + part * lanes<double>);
        squared[part] += x * x;
      }
    }
  }
}

/// What there is to know of the row at a position, besides its elements.
template <class W>
FASTMINE_INLINE void describe(const RowSet& set, const Packed<W>& packed, std::int64_t position, double squared) {
  const bool padding = position >= packed.count;
  const std::uint8_t kind = padding ? std::uint8_t{0} : set.kind[packed.row(position)];
  // A zero vector has cosine 0 with everything: as if it were a unit vector orthogonal to all others.
  const double extra = set.metric == Metric::cosine && (kind & kZero) != 0 ? 1 : 0;
  packed.c[position] = padding                     ? static_cast<W>(__builtin_inf())
                       : (kind & kPoisoned) != 0   ? static_cast<W>(__builtin_nan(""))
                       : set.metric == Metric::dot ? 0
                                                   : static_cast<W>(squared + extra);
  packed.norm[position] = static_cast<W>(::sqrt(squared) * 1.000001);
}

/// Pack the rows of sliver s: as many as a vector has lanes at a time. Padding and poisoned rows are packed as zeros.
template <class W>
void pack_sliver(const RowSet& set, const double* centre, const Packed<W>& packed, std::int64_t s) {
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<W>);
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<W>);
  const std::int64_t d = set.rows.d;
  alignas(64) W rows[lanes<W> * kChunk];
  W radius = 0;
  for (std::int64_t first = s * sliver; first < (s + 1) * sliver; first += step) {
    Vec<double> squared[lanes<W> / lanes<double>] = {};
    for (std::int64_t begin = 0; begin < d; begin += kChunk) {
      const std::int64_t count = smaller(kChunk, d - begin);
      for (std::int64_t r = 0; r < step; ++r) {
        const std::int64_t i = first + r < packed.count ? packed.row(first + r) : -1;
        if (i < 0 || (set.kind[i] & kPoisoned) != 0) {
          __builtin_memset(rows + r * kChunk, 0, sizeof(W) * static_cast<std::size_t>(kChunk));
        } else {
          centre_row(set, centre, i, begin, count, rows + r * kChunk);
        }
      }
      interleave(rows, count, packed.data + (s * d + begin) * sliver + first % sliver, squared);
    }
    for (std::int64_t r = 0; r < step; ++r) {
      const std::size_t lane = static_cast<std::size_t>(r);
      describe(set, packed, first + r, squared[lane / lanes<double>][lane % lanes<double>]);
      radius = larger(radius, packed.norm[first + r]);
    }
  }
  packed.radius[s] = radius;
}

/// An upper bound on how far c[i] + c[j] - 2 x[i].x[j], in W, is from the key, for norms of at most `a` and `b`:
/// rounding of the packed rows, of the sum of d products, of c and of the final additions; and underflow. Inf where
/// they may overflow.
template <class W>
FASTMINE_INLINE double key_error(std::int64_t d, double a, double b) {
  constexpr double unit = sizeof(W) == 8 ? 0x1p-53 : 0x1p-24;
  constexpr double tiny = sizeof(W) == 8 ? 0x1p-1000 : 0x1p-120;
  constexpr double huge = sizeof(W) == 8 ? 0x1p1000 : 0x1p120;
  const double scale = (a + b) * (a + b);
  if (!(scale < huge)) {
    return __builtin_inf();  // the products may overflow: nothing is certain
  }
  return (static_cast<double>(d) + 16) * (unit * scale + tiny) * (1 + static_cast<double>(d) * unit * 2);
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
