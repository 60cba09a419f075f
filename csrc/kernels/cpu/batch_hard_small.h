// Batch-hard mining of so few pairs that grouping, packing and screening would cost more than to compare every pair
// directly, in float64, and to choose.
#pragma once

#include "kernels/cpu/batch_hard_evidence.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {

/// Up to so many pairs are few. Measured with one set: both ways take the same time at about 50 rows.
inline constexpr std::int64_t kFewPairs = 48 * 48;

inline bool has_few_pairs(const BatchHard& q) { return q.x.n * q.y.n <= kFewPairs; }

struct SmallPlan {
  BatchHard problem;
  RowSet x, y;           // with one set, y is x; so it is for all pairs of names below
  double* total;         // [d]: sum of the anchors that take part and are finite
  std::int64_t depth;    // d, filled up to full registers
  double* x_wide;        // [n, depth]: the rows in float64, for cosine divided by their norms
  double* y_wide;        // [m, depth]
  std::int64_t width;    // references, filled up to full registers
  std::int64_t* number;  // [width]: 0, 1, 2, ...
  std::int64_t* label;   // [width]: of the references
  std::int64_t* open;    // [width]: -1: takes part; 0: does not
  double* keys;          // [n, width]: of every anchor against every reference
};

inline SmallPlan lay_out_small(const BatchHard& problem, const RowSet& x, const RowSet& y, double* total,
                               Arena& arena) {
  const bool few = has_few_pairs(problem);
  const std::int64_t n = few ? problem.x.n : 0, m = few ? problem.y.n : 0;
  constexpr std::int64_t vector = static_cast<std::int64_t>(lanes<double>);
  SmallPlan p{};
  p.problem = problem;
  p.x = x;
  p.y = y;
  p.total = total;
  p.depth = divide_up(problem.x.d, vector) * vector;
  p.x_wide = arena.take<double>(n * p.depth);
  p.y_wide = problem.self ? p.x_wide : arena.take<double>(m * p.depth);
  p.width = divide_up(m, vector) * vector;
  p.number = arena.take<std::int64_t>(p.width);
  p.label = arena.take<std::int64_t>(p.width);
  p.open = arena.take<std::int64_t>(p.width);
  p.keys = arena.take<double>(n * p.width);
  return p;
}

template <class W>
void widen_rows(const RowSet& set, std::int64_t depth, double* wide) {
  W buffer[kChunk];
  for (std::int64_t i = 0; i < set.rows.n; ++i) {
    for (std::int64_t from = 0; from < set.rows.d; from += kChunk) {
      const std::int64_t count = smaller(kChunk, set.rows.d - from);
      const W* x = chunk(set.rows, i, from, count, buffer);
      double* out = wide + i * depth + from;
      if (set.metric == Metric::cosine) {
        for (std::int64_t k = 0; k < count; ++k) {
          out[k] = static_cast<double>(x[k]) / set.norm[i];
        }
      } else {
        for (std::int64_t k = 0; k < count; ++k) {
          out[k] = static_cast<double>(x[k]);
        }
      }
    }
    for (std::int64_t k = set.rows.d; k < depth; ++k) {
      wide[i * depth + k] = 0;
    }
  }
}

/// The keys of all pairs; NaN where a row is poisoned.
inline void find_keys(const SmallPlan& p) {
  const BatchHard& q = p.problem;
  const std::int64_t n = q.x.n, m = q.y.n, d = p.depth;
  const bool cosine = q.metric == Metric::cosine;
  const Metric metric = cosine ? Metric::sqeuclidean : q.metric;  // of unit vectors
  const Rows x{p.x_wide, DType::float64, n, d, d}, y{p.y_wide, DType::float64, m, d, d};
  bool exceptions = false;
  for (std::int64_t i = 0; i < n; ++i) {
    double* keys = p.keys + i * p.width;
    const std::int64_t first = q.self ? i + 1 : 0;
    exact_keys<double>(x, i, nullptr, y, p.number + first, m - first, nullptr, metric, keys + first);
    for (std::int64_t j = q.self ? i : m; j < m; ++j) {
      p.keys[j * p.width + i] = i == j ? 0 : keys[j];
    }
    for (std::int64_t j = m; j < p.width; ++j) {
      keys[j] = 0;
    }
    exceptions = exceptions || (p.x.kind[i] & (kPoisoned | kZero)) != 0;
  }
  for (std::int64_t j = 0; j < m; ++j) {
    exceptions = exceptions || (p.y.kind[j] & (kPoisoned | kZero)) != 0;
  }
  for (std::int64_t i = 0; exceptions && i < n; ++i) {
    for (std::int64_t j = 0; j < m; ++j) {
      double& key = p.keys[i * p.width + j];
      key = cosine && (p.x.norm[i] == 0 || p.y.norm[j] == 0) ? 2 : key;
      key = poisoned(p.x, i) || poisoned(p.y, j) ? __builtin_nan("") : key;
    }
  }
}

/// The reference of anchor i whose sign x key is the least, the first of several, among those of its label (or of
/// others) whose key is above a bound; one at distance NaN before all. -1: none.
FASTMINE_INLINE std::int64_t choose(const SmallPlan& p, std::int64_t i, bool same, double sign, double above) {
  using V = Vec<double>;
  using I = Vec<std::int64_t>;
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<double>);
  const I label = broadcast(p.problem.labels[i]), own = broadcast(same ? itself(p.problem, i) : std::int64_t{-1});
  const I flip = broadcast(static_cast<std::int64_t>(same ? 0 : -1));
  const double* keys = p.keys + i * p.width;
  const auto candidates = [&](std::int64_t j) {
    const I here = load(p.number + j);
    return load(p.open + j) & ((load(p.label + j) == label) ^ flip) & (here != own) & ~(load(keys + j) <= above);
  };
  const V none = broadcast(__builtin_inf());
  V least = none;
  I any{}, nan{};
  for (std::int64_t j = 0; j < p.width; j += step) {
    const V key = load(keys + j);
    const I in = candidates(j);
    const V value = select(in, sign * key, none);
    least = select(value < least, value, least);
    any |= in;
    nan |= in & (key != key);
  }
  const auto either = [](auto a, auto b) { return a | b; };
  if (fold(any, either) == 0) {
    return -1;
  }
  const bool take_nan = fold(nan, either) != 0;
  const V best = broadcast(least_of(least));
  I first = broadcast(p.width);
  for (std::int64_t j = 0; j < p.width; j += step) {
    const V key = load(keys + j);
    const I wins = candidates(j) & (take_nan ? key != key : sign * key == best);
    const I place = select(wins, load(p.number + j), broadcast(p.width));
    first = select(place < first, place, first);
  }
  return least_of(first);
}

inline void settle_choice(const SmallPlan& p, std::int64_t i, std::int64_t j, std::int64_t* index, double* distance,
                          bool* found) {
  if (j >= 0) {
    index[i] = j;
    distance[i] = distance_of(p.keys[i * p.width + j], p.problem.metric);
    found[i] = true;
  }
}

inline void choose_pairs(const SmallPlan& p, std::int64_t i) {
  const BatchHard& q = p.problem;
  const double unbounded = -__builtin_inf();
  const std::int64_t positive = choose(p, i, true, q.easiest_positive ? 1 : -1, unbounded);
  settle_choice(p, i, positive, q.positive_index, q.positive_distance, q.has_positive);
  const double key = positive >= 0 ? p.keys[i * p.width + positive] : unbounded;
  std::int64_t negative = choose(p, i, false, 1, q.semi_hard_negative && key == key ? key : unbounded);
  if (negative < 0 && q.semi_hard_negative) {
    negative = choose(p, i, false, -1, unbounded);
  }
  settle_choice(p, i, negative, q.negative_index, q.negative_distance, q.has_negative);
}

/// The whole of mining, as one task.
template <class W>
void mine_few_pairs(const SmallPlan& p) {
  const BatchHard& q = p.problem;
  for (std::int64_t block = 0; block < p.x.blocks(); ++block) {
    look_at_block<W>(p.x, block);
  }
  for (std::int64_t block = 0; !q.self && block < p.y.blocks(); ++block) {
    look_at_block<W>(p.y, block);
  }
  for (std::int64_t k = 0; k < q.x.d; ++k) {
    p.total[k] = 0;
  }
  add_blocks(p.x, p.x.raw_sums, p.total);
  std::int64_t nonfinite_refs = 0;
  for (std::int64_t j = 0; j < p.width; ++j) {
    const bool in = j < q.y.n && takes_part(p.y, j);
    p.number[j] = j;
    p.label[j] = j < q.y.n ? q.ref_labels[j] : 0;
    p.open[j] = in ? -1 : 0;
    nonfinite_refs += in && poisoned(p.y, j);
  }
  widen_rows<W>(p.x, p.depth, p.x_wide);
  if (!q.self) {
    widen_rows<W>(p.y, p.depth, p.y_wide);
  }
  find_keys(p);
  clear_pairs(q);
  std::int64_t classes = 0, nonfinite_rows = 0;
  for (std::int64_t i = 0; i < q.x.n; ++i) {
    if (!takes_part(p.x, i)) {
      continue;
    }
    choose_pairs(p, i);
    nonfinite_rows += poisoned(p.x, i);
    bool seen = false;
    for (std::int64_t j = 0; j < i; ++j) {
      seen |= takes_part(p.x, j) && q.labels[j] == q.labels[i];
    }
    classes += !seen;
  }
  gather_evidence(q, p.x, p.total, classes, nonfinite_rows, nonfinite_refs);
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
