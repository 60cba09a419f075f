// Rows of embeddings on the device: what one look at each tells, and the exact comparison of two, in float64, by a
// warp. The keys are those of cpu/exact.h: they order like distances.
#pragma once

#include "kernels/cuda/load.h"
#include "kernels/cuda/sort.cuh"
#include "kernels/cuda/warp.h"
#include "kernels/embeddings.h"

namespace fastmine::cuda::mining {

/// Rows whose sums one block adds up, one after the other: where there are few rows, so few that this takes no longer
/// than the rest of a launch, and still not too many blocks to be added up in turn.
inline constexpr std::int64_t kRowBlock = 128, kShortRowBlock = 16;
#ifdef FASTMINE_EMULATE_CUDA
inline constexpr std::int64_t kFewRows = 55;
#else
inline constexpr std::int64_t kFewRows = 4096;
#endif

enum Kind : std::uint8_t { kSkipped = 1, kPoisoned = 2, kZero = 4 };  // masked out; NaN or Inf; norm 0

/// In which order the rows are sorted, before their labels.
enum Group : std::int32_t { kFiniteRows, kPoisonedRows, kSkippedRows };

struct RowSet {
  Rows rows;
  const bool* valid;  // null: all
  const std::int64_t* labels;
  Metric metric;
  std::uint8_t* kind;     // [n]
  double* norm;           // [n]: for cosine the norm, 0 for a zero row; else unused
  double* squared;        // [n]: squared norm
  double* sums;           // [blocks, d]: of the finite rows that take part, for cosine divided by their norms
  double* raw_sums;       // [blocks, d]: of those rows as they are; the same memory except for cosine
  std::int32_t* counted;  // [blocks]: how many
  Tagged* items;          // [n]: one for each row, in order
  Tagged* spare;          // [n]: while they are being sorted
  Tagged* sorted;         // [n]: the same, sorted; one of the two

  FASTMINE_HOST_DEVICE std::int64_t block() const { return rows.n <= kFewRows ? kShortRowBlock : kRowBlock; }
  FASTMINE_HOST_DEVICE std::int64_t blocks() const { return divide_up(rows.n, block()); }
};

inline RowSet lay_out_rows(Arena& arena, const Rows& rows, const bool* valid, const std::int64_t* labels,
                           Metric metric) {
  RowSet set{};
  set.rows = rows;
  set.valid = valid;
  set.labels = labels;
  set.metric = metric;
  set.kind = arena.take<std::uint8_t>(rows.n);
  set.norm = arena.take<double>(rows.n);
  set.squared = arena.take<double>(rows.n);
  set.sums = arena.take<double>(set.blocks() * rows.d);
  set.raw_sums = metric == Metric::cosine ? arena.take<double>(set.blocks() * rows.d) : set.sums;
  set.counted = arena.take<std::int32_t>(set.blocks());
  set.items = arena.take<Tagged>(rows.n);
  set.spare = arena.take<Tagged>(rows.n);
  set.sorted = sorted_place(set.items, set.spare, rows.n);
  return set;
}

template <class S>
FASTMINE_DEVICE const S* row_of(const Rows& rows, std::int64_t i) {
  return static_cast<const S*>(rows.data) + i * rows.stride;
}

FASTMINE_DEVICE bool takes_part(const RowSet& set, std::int64_t i) { return (set.kind[i] & kSkipped) == 0; }
FASTMINE_DEVICE bool poisoned(const RowSet& set, std::int64_t i) { return (set.kind[i] & kPoisoned) != 0; }

/// keys[c] = the key of row i of x against row j[c] of y, in all lanes. Every key is summed in the same order, whoever
/// asks for it: equal rows have equal keys.
template <class S, int C>
FASTMINE_DEVICE void exact_keys(const RowSet& x, std::int64_t i, const RowSet& y, const std::int32_t (&j)[C],
                                double (&keys)[C]) {
  const S* const a = row_of<S>(x.rows, i);
  const S* b[C];
  double sum[C];
  FASTMINE_UNROLL for (int c = 0; c < C; ++c) {
    b[c] = row_of<S>(y.rows, j[c]);
    sum[c] = 0;
  }
  const std::int64_t d = x.rows.d;
  if (x.metric == Metric::dot) {
    for (std::int64_t k = lane_index(); k < d; k += kWarp) {
      const double own = value_of<double>(a[k]);
      FASTMINE_UNROLL for (int c = 0; c < C; ++c) { sum[c] += own * value_of<double>(b[c][k]); }
    }
  } else if (x.metric == Metric::cosine) {
    const double own_norm = x.norm[i];
    double norm[C];
    FASTMINE_UNROLL for (int c = 0; c < C; ++c) { norm[c] = y.norm[j[c]]; }
    for (std::int64_t k = lane_index(); k < d; k += kWarp) {
      const double own = value_of<double>(a[k]) / own_norm;
      FASTMINE_UNROLL for (int c = 0; c < C; ++c) {
        const double difference = own - value_of<double>(b[c][k]) / norm[c];
        sum[c] += difference * difference;
      }
    }
  } else {
    for (std::int64_t k = lane_index(); k < d; k += kWarp) {
      const double own = value_of<double>(a[k]);
      FASTMINE_UNROLL for (int c = 0; c < C; ++c) {
        const double difference = own - value_of<double>(b[c][k]);
        sum[c] += difference * difference;
      }
    }
  }
  FASTMINE_UNROLL for (int c = 0; c < C; ++c) {
    keys[c] = add_lanes(sum[c]);
    if (x.metric == Metric::dot) {
      keys[c] *= -2;
    } else if (x.metric == Metric::cosine && (x.norm[i] == 0 || y.norm[j[c]] == 0)) {
      keys[c] = 2;
    }
  }
}

template <class S>
FASTMINE_DEVICE double exact_key(const RowSet& x, std::int64_t i, const RowSet& y, std::int32_t j) {
  const std::int32_t other[] = {j};
  double key[1];
  exact_keys<S>(x, i, y, other, key);
  return key[0];
}

/// The same where the type of the rows is known only when the kernel runs, but for that of the screen.
template <class W>
FASTMINE_DEVICE double exact_key_of(const RowSet& x, std::int64_t i, const RowSet& y, std::int32_t j) {
  if constexpr (sizeof(W) == 8) {
    return exact_key<double>(x, i, y, j);
  } else {
    switch (x.rows.dtype) {
      case DType::bfloat16:
        return exact_key<BFloat16>(x, i, y, j);
      case DType::float16:
        return exact_key<Half>(x, i, y, j);
      default:
        return exact_key<float>(x, i, y, j);
    }
  }
}

FASTMINE_DEVICE double distance_of(double key, Metric metric) {
  switch (metric) {
    case Metric::euclidean:
      return sqrt(key);
    case Metric::sqeuclidean:
      return key;
    case Metric::cosine:
      return 0.5 * key;
    default:
      return -0.5 * key;
  }
}

/// A candidate and its key, the smaller the better; row -1: none. One at distance NaN comes before all, of equals the
/// one with the lowest row.
struct Best {
  double key = 0;
  std::int32_t row = -1;
};

FASTMINE_DEVICE bool better(const Best& a, const Best& b) {
  if (a.row < 0 || b.row < 0) {
    return a.row >= 0 && b.row < 0;
  }
  const bool a_nan = a.key != a.key, b_nan = b.key != b.key;
  if (a_nan != b_nan) {
    return a_nan;
  }
  return a.key < b.key || ((a_nan || a.key == b.key) && a.row < b.row);
}

FASTMINE_DEVICE void improve(Best& best, const Best& candidate) { best = better(candidate, best) ? candidate : best; }

/// The best of a warp, in all its lanes.
FASTMINE_DEVICE Best best_of_lanes(Best best) {
  FASTMINE_UNROLL for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    improve(best, {from_across(best.key, mask), from_across(best.row, mask)});
  }
  return best;
}

/// Kind, norm and squared norm of row i, by a warp; its label goes among the items to be sorted.
template <class S>
FASTMINE_DEVICE void look_at_row(const RowSet& set, std::int64_t i) {
  const S* const row = row_of<S>(set.rows, i);
  double sum = 0;
  bool finite = true, zero = true;
  for (std::int64_t k = lane_index(); k < set.rows.d; k += kWarp) {
    const double x = value_of<double>(row[k]);
    sum += x * x;
    finite = finite && x - x == 0;
    zero = zero && x == 0;
  }
  sum = add_lanes(sum);
  finite = ballot(finite) == ~0U;
  zero = ballot(zero) == ~0U;
  if (lane_index() == 0) {
    const bool skipped = set.valid != nullptr && !set.valid[i];
    set.kind[i] = static_cast<std::uint8_t>((skipped ? kSkipped : 0) | (finite ? 0 : kPoisoned) | (zero ? kZero : 0));
    set.squared[i] = sum;
    set.norm[i] = sqrt(sum);
    if (set.items != nullptr) {
      set.items[i] = {set.labels[i],
                      skipped  ? kSkippedRows
                      : finite ? kFiniteRows
                               : kPoisonedRows,
                      static_cast<std::int32_t>(i)};
    }
  }
}

}  // namespace fastmine::cuda::mining
