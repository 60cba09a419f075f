// The first kernels of batch-hard mining: look at every row, group them by label, centre and pack them.
#pragma once

#include "kernels/cuda/batch_hard_plan.cuh"

namespace fastmine::cuda::mining {

/// Say of an anchor that it has neither a positive nor a negative.
FASTMINE_DEVICE void clear_pair(const BatchHard& q, std::int64_t i) {
  q.positive_index[i] = q.negative_index[i] = 0;
  q.positive_distance[i] = q.negative_distance[i] = 0;
  q.has_positive[i] = q.has_negative[i] = false;
}

template <class W>
FASTMINE_DEVICE void clear_counts(const Plan<W>& m) {
  for (std::int64_t panel = thread_index(); panel < m.panels; panel += kThreads) {
    m.radius[panel] = m.lost[panel] = ordered(W{0});
  }
  if (thread_index() == 0 && m.way == Way::by_label) {
    m.counts->farthest = 0;
    m.counts->open = 0;
  }
}

// --- pack ----------------------------------------------------------------------------------------------------------

/// Write row i of a set, less centre(k), to position p.
template <class S, class F>
FASTMINE_DEVICE void pack_row(const Plan<Working<S>>& m, const RowSet& set, const Packed<Working<S>>& packed,
                              std::int64_t i, std::int64_t p, F centre) {
  using W = Working<S>;
  W* const out = packed.data + p * m.depth;
  const S* const row = row_of<S>(set.rows, i);
  const bool cosine = set.metric == Metric::cosine, zero = cosine && set.norm[i] == 0;
  const double scale = !cosine ? 1 : zero ? 0 : 1 / set.norm[i];
  const std::int64_t depth = m.depth > m.rounded_depth ? m.depth : m.rounded_depth;
  double squared = 0, lost = 0;
  for (std::int64_t k = lane_index(); k < depth; k += kWarp) {
    const double centred = k < set.rows.d ? value_of<double>(row[k]) * scale - centre(k) : 0;
    squared += centred * centred;
    if (k < m.depth) {
      out[k] = static_cast<W>(centred);
    }
    if (k < m.rounded_depth) {
      BFloat16 rounded;
      assign(rounded, static_cast<float>(centred));
      packed.rounded[Rounded::place_of(m.rounded_depth, p, k)] = rounded.bits;
      const double rest = centred - value_of<double>(rounded);
      lost += rest * rest;
    }
  }
  // A zero vector has cosine 0 with everything: as if it were a unit vector orthogonal to all others.
  squared = add_lanes(squared) + (zero ? 1 : 0);
  lost = add_lanes(lost);
  if (lane_index() == 0) {
    packed.c[p] = set.metric == Metric::dot ? W{0} : static_cast<W>(squared);
    packed.norm[p] = static_cast<W>(sqrt(squared) * 1.000001);
    if (m.rounded_depth > 0) {
      packed.lost[p] = static_cast<W>(sqrt(lost) * 1.000001 + 0x1p-120);
    }
  }
}

/// Zeros.
template <class W>
FASTMINE_DEVICE void pack_nothing(const Plan<W>& m, const Packed<W>& packed, std::int64_t p, W c) {
  for (std::int64_t k = lane_index(); k < m.depth; k += kWarp) {
    packed.data[p * m.depth + k] = 0;
  }
  for (std::int64_t k = lane_index(); k < m.rounded_depth; k += kWarp) {
    packed.rounded[Rounded::place_of(m.rounded_depth, p, k)] = 0;
  }
  if (lane_index() == 0) {
    packed.c[p] = c;
    packed.norm[p] = 0;
  }
}

/// What all rows are centred by before anything is known of the others: the first row of y, if it takes part and is
/// finite. Any vector will do, one amidst the rows leaves the least to compare exactly.
template <class S>
struct Pivot {
  const S* row = nullptr;
  double scale = 0;

  FASTMINE_DEVICE double operator()(std::int64_t k) const { return scale == 0 ? 0 : value_of<double>(row[k]) * scale; }
};

template <class S>
FASTMINE_DEVICE Pivot<S> find_pivot(const RowSet& y) {
  Pivot<S> pivot{row_of<S>(y.rows, 0), 0};
  if (y.metric == Metric::dot || (y.valid != nullptr && !y.valid[0])) {
    return pivot;
  }
  double sum = 0;
  for (std::int64_t k = lane_index(); k < y.rows.d; k += kWarp) {
    const double x = value_of<double>(pivot.row[k]);
    sum += x * x;
  }
  sum = add_lanes(sum);
  if (sum - sum == 0 && sum > 0) {
    pivot.scale = y.metric == Metric::cosine ? 1 / sqrt(sum) : 1;
  }
  return pivot;
}

// --- look ----------------------------------------------------------------------------------------------------------

/// One block: some rows of x or, after all of them, of y. Where tiles follow, they are packed, each to its own place.
template <class S>
FASTMINE_KERNEL(kThreads, 2)
look_at_rows(FASTMINE_PARAMETER Plan<Working<S>> m) {
  FASTMINE_SHARED(double, scale, kRowBlock);  // 0: the row does not count
  FASTMINE_SHARED(double, raw_scale, kRowBlock);
  const bool anchors = block_index() < m.x.blocks();
  const RowSet& set = anchors ? m.x : m.y;
  const std::int64_t block = anchors ? block_index() : block_index() - m.x.blocks();
  const std::int64_t first = block * set.block(), d = set.rows.d;
  const std::int64_t rest = set.rows.n - first, rows = rest < set.block() ? rest : set.block();
  if (block_index() == 0) {
    clear_counts(m);
  }
  for (std::int64_t r = warp_index(); r < rows; r += kWarps) {
    look_at_row<S>(set, first + r);
  }
  if (m.way == Way::by_tiles) {
    const Pivot<S> pivot = find_pivot<S>(m.y);
    const Packed<Working<S>>& packed = anchors ? m.a : m.b;
    warp_barrier();  // norms
    for (std::int64_t i = first + warp_index(); i < first + rows; i += kWarps) {
      if (poisoned(set, i)) {
        pack_nothing(m, packed, i, Working<S>{0});
      } else {
        pack_row<S>(m, set, packed, i, i, pivot);
      }
    }
  }
  barrier();
  for (std::int64_t r = thread_index(); r < rows; r += kThreads) {
    const std::int64_t i = first + r;
    const bool counts = (set.kind[i] & (kSkipped | kPoisoned)) == 0;
    raw_scale[r] = counts ? 1 : 0;
    scale[r] = !counts ? 0 : set.metric != Metric::cosine ? 1 : set.norm[i] == 0 ? 0 : 1 / set.norm[i];
    if (anchors) {
      clear_pair(m.problem, i);
    }
  }
  barrier();
  for (std::int64_t k = thread_index(); k < d; k += kThreads) {
    double sum = 0, raw_sum = 0;
    for (std::int64_t r = 0; r < rows; ++r) {
      if (raw_scale[r] != 0) {  // what does not count may be NaN
        const double x = value_of<double>(row_of<S>(set.rows, first + r)[k]);
        sum += x * scale[r];
        raw_sum += x;
      }
    }
    set.raw_sums[block * d + k] = raw_sum;
    set.sums[block * d + k] = sum;
  }
  if (thread_index() == 0) {
    std::int32_t counted = 0;
    for (std::int64_t r = 0; r < rows; ++r) {
      counted += raw_scale[r] != 0 ? 1 : 0;
    }
    set.counted[block] = counted;
  }
}

// --- group by label ------------------------------------------------------------------------------------------------

FASTMINE_DEVICE int end_of_group(const RowSet& set, Group group) {
  return rank_of({INT64_MAX, group, kNoRow}, set.sorted, static_cast<int>(set.rows.n));
}

FASTMINE_DEVICE bool holds(const RowSet& set, int place, Group group, std::int64_t label) {
  return place < set.rows.n && set.sorted[place].group == group && set.sorted[place].label == label;
}

/// Where the rows of a label begin among those of a group.
FASTMINE_DEVICE int begin_of_label(const RowSet& set, Group group, std::int64_t label) {
  return rank_of({label, group, 0}, set.sorted, static_cast<int>(set.rows.n));
}

/// One thread: the references of the label of one anchor, and whether it is the first of its label.
template <class W>
FASTMINE_KERNEL(kThreads, 2)
match_labels(FASTMINE_PARAMETER Plan<W> m) {
  const std::int64_t k = block_index() * kThreads + thread_index();
  if (k == 0) {
    Counts& counts = *m.counts;
    counts.finite_x = end_of_group(m.x, kFiniteRows);
    counts.poisoned_x = end_of_group(m.x, kPoisonedRows) - counts.finite_x;
    counts.finite_y = end_of_group(m.y, kFiniteRows);
    counts.poisoned_y = end_of_group(m.y, kPoisonedRows) - counts.finite_y;
  }
  if (k >= m.x.rows.n) {
    return;
  }
  const Tagged item = m.x.sorted[k];
  const auto group = static_cast<Group>(item.group);
  m.first[item.row] =
      (k == 0 || !holds(m.x, static_cast<int>(k) - 1, group, item.label)) &&
      (group == kFiniteRows || !holds(m.x, begin_of_label(m.x, kFiniteRows, item.label), kFiniteRows, item.label));
  if (group == kFiniteRows) {
    const int references = static_cast<int>(m.y.rows.n);
    m.same_begin[k] = begin_of_label(m.y, kFiniteRows, item.label);
    m.same_end[k] = rank_of({item.label, kFiniteRows, kNoRow}, m.y.sorted, references);
    const std::int64_t self = own_row(m.problem, item.row);
    m.own[k] = -1;
    if (self >= 0) {
      const int place = rank_of({item.label, kFiniteRows, static_cast<std::int32_t>(self)}, m.y.sorted, references);
      m.own[k] = holds(m.y, place, kFiniteRows, item.label) && m.y.sorted[place].row == self ? place : -1;
    }
  }
}

// --- centre --------------------------------------------------------------------------------------------------------

inline constexpr int kColumnThreads = 2 * kThreads;

/// The sum over the threads that stand `kWarp` apart, in a fixed order, in the first kWarp of them.
FASTMINE_DEVICE double add_columns(double value, double* shared) {
  shared[thread_index()] = value;
  barrier();
  if (thread_index() < kWarp) {
    for (int other = kWarp; other < kColumnThreads; other += kWarp) {
      value += shared[thread_index() + other];
    }
  }
  barrier();
  return value;
}

FASTMINE_DEVICE double sum_of_column(const RowSet& set, const double* sums, std::int64_t k) {
  double sum = 0;
  for (std::int64_t block = warp_index(); k < set.rows.d && block < set.blocks(); block += kColumnThreads / kWarp) {
    sum += sums[block * set.rows.d + k];
  }
  return sum;
}

FASTMINE_DEVICE double count_rows(const RowSet& set) {
  double counted = 0;
  for (std::int64_t block = warp_index(); block < set.blocks(); block += kColumnThreads / kWarp) {
    counted += set.counted[block];
  }
  return counted;
}

/// One block: the lowest row of y for which take(j) holds.
template <class F>
FASTMINE_DEVICE std::int32_t lowest_row(const RowSet& y, std::int32_t* shared, F take) {
  if (thread_index() == 0) {
    *shared = kNoRow;
  }
  barrier();
  for (std::int64_t j = thread_index(); j < y.rows.n; j += kColumnThreads) {
    if (take(j)) {
      atomic_minimum(shared, static_cast<std::int32_t>(j));
      break;
    }
  }
  barrier();
  const std::int32_t lowest = *shared;
  barrier();
  return lowest;
}

/// Who is taken where a distance is NaN: the lowest row, among all that take part and among the poisoned; and the
/// lowest of another label than its.
FASTMINE_DEVICE void find_first_rows(const RowSet& y, Counts* counts, std::int32_t* shared) {
  if (counts->poisoned_x == 0 && counts->poisoned_y == 0) {
    return;
  }
  const auto poisonous = [&y](std::int64_t j) { return takes_part(y, j) && poisoned(y, j); };
  const std::int32_t first = lowest_row(y, shared, [&y](std::int64_t j) { return takes_part(y, j); });
  const std::int32_t bad = lowest_row(y, shared, poisonous);
  const std::int64_t label = first == kNoRow ? 0 : y.labels[first], bad_label = bad == kNoRow ? 0 : y.labels[bad];
  const std::int32_t other =
      lowest_row(y, shared, [&](std::int64_t j) { return takes_part(y, j) && y.labels[j] != label; });
  const std::int32_t bad_other =
      lowest_row(y, shared, [&](std::int64_t j) { return poisonous(j) && y.labels[j] != bad_label; });
  if (thread_index() == 0) {
    counts->first = first;
    counts->first_other = other;
    counts->poisoned = bad;
    counts->poisoned_other = bad_other;
  }
}

/// Blocks: 32 columns of the centre each, and one for the first rows.
///
/// The centre is the mean of all rows that count (their unit vectors, for cosine); 0 for dot, which is not translation
/// invariant.
template <class W>
FASTMINE_KERNEL(kColumnThreads, 2)
find_centre(FASTMINE_PARAMETER Plan<W> m) {
  FASTMINE_SHARED(double, shared, kColumnThreads);
  FASTMINE_SHARED(std::int32_t, lowest, 1);
  const std::int64_t d = m.problem.x.d, k = block_index() * kWarp + lane_index();
  if (block_index() == divide_up(d, kWarp)) {
    find_first_rows(m.y, m.counts, lowest);
    return;
  }
  const bool self = m.problem.self;
  const double total = add_columns(sum_of_column(m.x, m.x.raw_sums, k), shared);
  const double sum =
      add_columns(sum_of_column(m.x, m.x.sums, k) + (self ? 0 : sum_of_column(m.y, m.y.sums, k)), shared);
  const double counted = add_columns(count_rows(m.x) + (self ? 0 : count_rows(m.y)), shared);
  if (warp_index() == 0 && k < d) {
    m.total[k] = total;
    m.centre[k] = m.problem.metric == Metric::dot || counted == 0 ? 0 : sum / counted;
  }
}

// --- pack what is centred --------------------------------------------------------------------------------------------

/// One warp: one position of a or, after all of them, of b.
template <class S>
FASTMINE_KERNEL(kThreads, 2)
pack_rows(FASTMINE_PARAMETER Plan<Working<S>> m) {
  using W = Working<S>;
  const std::int64_t padded = round_up(m.x.rows.n, kSide<W>);
  const std::int64_t task = block_index() * kWarps + warp_index();
  const bool anchors = task < padded;
  const RowSet& set = anchors ? m.x : m.y;
  const Packed<W>& packed = anchors ? m.a : m.b;
  const std::int64_t p = anchors ? task : task - padded;
  if (p >= round_up(set.rows.n, kSide<W>)) {
    return;
  }
  if (p >= (anchors ? m.counts->finite_x : m.counts->finite_y)) {
    return pack_nothing(m, packed, p, static_cast<W>(__builtin_inf()));
  }
  pack_row<S>(m, set, packed, set.sorted[p].row, p, [&m](std::int64_t k) { return m.centre[k]; });
  if (lane_index() == 0 && (!anchors || m.problem.self)) {
    const std::int64_t panel = p / (m.panel * kSide<W>);
    atomic_maximum(&m.radius[panel], ordered(packed.norm[p]));
    if (m.rounded_depth > 0) {
      atomic_maximum(&m.lost[panel], ordered(packed.lost[p]));
    }
  }
}

}  // namespace fastmine::cuda::mining
