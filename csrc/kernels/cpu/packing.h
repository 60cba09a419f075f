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

/// The sum of the squares of row i.
template <class W>
FASTMINE_INLINE double sum_squares(const Rows& rows, std::int64_t i) {
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<double>);
  Vec<double> even{}, odd{};
  double tail = 0;
  W buffer[kChunk];
  for (std::int64_t begin = 0; begin < rows.d; begin += kChunk) {
    const std::int64_t count = smaller(kChunk, rows.d - begin);
    const W* x = chunk(rows, i, begin, count, buffer);
    std::int64_t k = 0;
    for (; k + 2 * step <= count; k += 2 * step) {
      const Vec<double> a = load_double(x + k), b = load_double(x + k + step);
      even += a * a;
      odd += b * b;
    }
    for (; k < count; ++k) {
      tail += static_cast<double>(x[k]) * static_cast<double>(x[k]);
    }
  }
  return sum_lanes(even + odd) + tail;
}

/// Whether row i holds nothing but finite numbers, and nothing but zeros.
template <class W>
FASTMINE_NOINLINE void examine(const Rows& rows, std::int64_t i, bool* finite, bool* zero) {
  *finite = *zero = true;
  W buffer[kChunk];
  for (std::int64_t begin = 0; begin < rows.d; begin += kChunk) {
    const std::int64_t count = smaller(kChunk, rows.d - begin);
    const W* x = chunk(rows, i, begin, count, buffer);
    for (std::int64_t k = 0; k < count; ++k) {
      *finite = *finite && ::fabs(static_cast<double>(x[k])) <= 1.7976931348623157e308;
      *zero = *zero && x[k] == 0;
    }
  }
}

/// Kind, squared norm and norm of row i.
template <class W>
FASTMINE_INLINE void look_at_row(const RowSet& set, std::int64_t i) {
  const double squared = sum_squares<W>(set.rows, i);
  bool finite = true, zero = false;
  if (!(squared > 0 && squared < __builtin_inf())) {  // float64 squares may overflow or vanish where elements do not
    examine<W>(set.rows, i, &finite, &zero);
  }
  const bool skipped = set.valid != nullptr && !set.valid[i];
  set.kind[i] = static_cast<std::uint8_t>((skipped ? kSkipped : 0) | (finite ? 0 : kPoisoned) | (zero ? kZero : 0));
  set.squared[i] = squared;
  set.norm[i] = set.metric != Metric::cosine ? 1 : ::sqrt(squared);
}

/// What brings row i to its unit vector, for cosine; a zero row stays zero.
FASTMINE_INLINE double scale_of(const RowSet& set, std::int64_t i) { return set.norm[i] == 0 ? 0 : 1 / set.norm[i]; }

/// sums[k] += the elements of the rows times their scales, four rows at a time.
template <class W>
FASTMINE_NOINLINE void add_rows(const RowSet& set, const std::int64_t* rows, const double* scale, std::int64_t count,
                                double* sums) {
  constexpr std::int64_t kTogether = 4, step = static_cast<std::int64_t>(lanes<double>);
  W buffer[kTogether][kChunk];
  for (std::int64_t from = 0; from < set.rows.d; from += kChunk) {
    const std::int64_t width = smaller(kChunk, set.rows.d - from);
    for (std::int64_t first = 0; first < count; first += kTogether) {
      const W* x[kTogether];
      double by[kTogether];
      for (std::int64_t r = 0; r < kTogether; ++r) {  // the last four are filled up with nothing of the first
        const std::int64_t at = first + r < count ? first + r : first;
        x[r] = chunk(set.rows, rows[at], from, width, buffer[r]);
        by[r] = first + r < count ? scale[at] : 0;
      }
      double* sum = sums + from;
      std::int64_t k = 0;
      for (; k + step <= width; k += step) {
        store(sum + k, load(sum + k) + ((load_double(x[0] + k) * by[0] + load_double(x[1] + k) * by[1]) +
                                        (load_double(x[2] + k) * by[2] + load_double(x[3] + k) * by[3])));
      }
      for (; k < width; ++k) {
        for (std::int64_t r = 0; r < kTogether; ++r) {
          sum[k] += static_cast<double>(x[r][k]) * by[r];
        }
      }
    }
  }
}

/// Look at the rows of one block, and add up those that count.
template <class W>
void look_at_block(const RowSet& set, std::int64_t block) {
  const std::int64_t d = set.rows.d;
  double* sums = set.sums + block * d;
  double* raw_sums = set.raw_sums + block * d;
  for (std::int64_t k = 0; k < d; ++k) {
    sums[k] = raw_sums[k] = 0;
  }
  std::int64_t rows[kRowBlock], counted = 0;
  double one[kRowBlock], scale[kRowBlock];
  const std::int64_t end = smaller(set.rows.n, (block + 1) * kRowBlock);
  for (std::int64_t i = block * kRowBlock; i < end; ++i) {
    look_at_row<W>(set, i);
    if ((set.kind[i] & (kSkipped | kPoisoned)) == 0) {
      one[counted] = 1;
      scale[counted] = scale_of(set, i);
      rows[counted++] = i;
    }
  }
  add_rows<W>(set, rows, one, counted, raw_sums);
  if (sums != raw_sums) {
    add_rows<W>(set, rows, scale, counted, sums);
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
  W* norm;    // at least the norm of the packed row; its square is at least c
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

/// Elements from .. from + count of row i, scaled and centred, to `out`; returns the sum of their squares.
template <class W>
FASTMINE_INLINE double centre_row(const RowSet& set, const double* centre, std::int64_t i, std::int64_t from,
                                  std::int64_t count, W* out) {
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<double>);
  W buffer[kChunk];
  const W* x = chunk(set.rows, i, from, count, buffer);
  const double scale = scale_of(set, i);
  Vec<double> squares{};
  double tail = 0;
  std::int64_t k = 0;
  for (; k + step <= count; k += step) {
    const Vec<double> centred = load_double(x + k) * scale - load(centre + from + k);
    squares += centred * centred;
    store<W, lanes<double>>(out + k, convert<W>(centred));
  }
  for (; k < count; ++k) {
    const double centred = static_cast<double>(x[k]) * scale - centre[from + k];
    tail += centred * centred;
    out[k] = static_cast<W>(centred);
  }
  return sum_lanes(squares) + tail;
}

/// From one row to the next where rows are staged a chunk at a time: not a power of two, which would crowd few cache
/// sets.
template <class W>
inline constexpr std::int64_t kStagedRow = kChunk + static_cast<std::int64_t>(lanes<W>);

/// Write elements 0 .. count of as many rows as a vector has lanes side by side: out[k * kSliver + row] =
/// rows[row * kStagedRow + k].
template <class W>
FASTMINE_NOINLINE void interleave(const W* rows, std::int64_t count, W* out) {
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<W>), width = static_cast<std::int64_t>(lanes<W>);
  for (std::int64_t k = 0; k < count; k += width) {
    Vec<W> block[lanes<W>];
    for (std::int64_t r = 0; r < width; ++r) {
      block[r] = load(rows + r * kStagedRow<W> + k);
    }
    transpose(block);
    if (k + width <= count) {
      for (std::int64_t c = 0; c < width; ++c) {
        store(out + (k + c) * sliver, block[c]);
      }
    } else {
      for (std::int64_t c = 0; c < count - k; ++c) {
        store(out + (k + c) * sliver, block[c]);
      }
    }
  }
}

/// What the screen knows of a packed row besides its elements, from the sum of their squares.
template <class W>
FASTMINE_INLINE void describe(const RowSet& set, const Packed<W>& packed, std::int64_t position, double squared) {
  if (position >= packed.count) {
    packed.c[position] = static_cast<W>(__builtin_inf());
    packed.norm[position] = 0;
    return;
  }
  const std::uint8_t kind = set.kind[packed.row(position)];
  // A zero vector has cosine 0 with everything: as if it were a unit vector orthogonal to all others.
  const double extra = set.metric == Metric::cosine && (kind & kZero) != 0 ? 1 : 0;
  packed.c[position] = (kind & kPoisoned) != 0     ? static_cast<W>(__builtin_nan(""))
                       : set.metric == Metric::dot ? 0
                                                   : static_cast<W>(squared + extra);
  packed.norm[position] = static_cast<W>(::sqrt(squared + extra) * 1.000001);
}

/// Pack the rows of sliver s, a vector of rows at a time: each centred where it is read, then all side by side.
template <class W>
void pack_sliver(const RowSet& set, const double* centre, const Packed<W>& packed, std::int64_t s) {
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<W>), width = static_cast<std::int64_t>(lanes<W>);
  const std::int64_t d = set.rows.d;
  alignas(64) W staged[lanes<W> * kStagedRow<W>];
  W radius = 0;
  for (std::int64_t first = s * sliver; first < (s + 1) * sliver; first += width) {
    double squared[lanes<W>] = {};
    for (std::int64_t from = 0; from < d; from += kChunk) {
      const std::int64_t count = smaller(kChunk, d - from);
      for (std::int64_t r = 0; r < width; ++r) {
        const std::int64_t i = first + r < packed.count ? packed.row(first + r) : -1;
        if (i >= 0 && (set.kind[i] & kPoisoned) == 0) {
          squared[r] += centre_row(set, centre, i, from, count, staged + r * kStagedRow<W>);
        } else {
          __builtin_memset(staged + r * kStagedRow<W>, 0, static_cast<std::size_t>(count) * sizeof(W));
        }
      }
      interleave(staged, count, packed.data + (s * d + from) * sliver + first % sliver);
    }
    for (std::int64_t r = 0; r < width; ++r) {
      describe(set, packed, first + r, squared[r]);
      radius = larger(radius, packed.norm[first + r]);
    }
  }
  packed.radius[s] = radius;
}

/// An upper bound on how far c[i] + c[j] - 2 x[i].x[j], in W, is from the key, for norms of at most `a` and `b`:
/// rounding of the packed rows, of the sum of d products, of c and of the final additions; and underflow. Inf where
/// they may overflow. D is double, or a vector of them.
template <class W, class D>
FASTMINE_INLINE D key_error(std::int64_t d, D a, double b) {
  constexpr double unit = sizeof(W) == 8 ? 0x1p-53 : 0x1p-24;
  constexpr double tiny = sizeof(W) == 8 ? 0x1p-1000 : 0x1p-120;
  constexpr double huge = sizeof(W) == 8 ? 0x1p1000 : 0x1p120;
  const D scale = (a + b) * (a + b);
  const D error = (static_cast<double>(d) + 16) * (unit * scale + tiny) * (1 + static_cast<double>(d) * unit * 2);
  return select(scale < huge, error, D{} + __builtin_inf());  // else the products may overflow: nothing is certain
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
