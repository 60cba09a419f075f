// What mining says about a batch: every block adds up some anchors, then one adds up the blocks, in a fixed order.
#pragma once

#include "kernels/cuda/batch_hard_choice.cuh"

namespace fastmine::cuda::mining {

/// How two values of a part are brought together: NaN stays in an extreme.
FASTMINE_DEVICE double combine_part(int part, double a, double b) {
  switch (static_cast<Part>(part)) {
    case Part::farthest:
      return a != a || a > b ? a : b;
    case Part::closest:
      return a != a || a < b ? a : b;
    default:
      return a + b;
  }
}

/// Over the block, in a fixed order; thread `part` of the first kParts has its sum.
FASTMINE_DEVICE double add_parts(const double (&parts)[kParts], double* shared) {
  return combine_block(parts, shared, [](int part, double a, double b) { return combine_part(part, a, b); });
}

FASTMINE_DEVICE void nothing_yet(double (&parts)[kParts]) {
  FASTMINE_UNROLL for (int part = 0; part < kParts; ++part) { parts[part] = 0; }
  parts[static_cast<int>(Part::farthest)] = -static_cast<double>(__builtin_inf());
  parts[static_cast<int>(Part::closest)] = static_cast<double>(__builtin_inf());
}

/// A poisoned anchor is at distance NaN from all: it takes the lowest rows.
template <class W>
FASTMINE_DEVICE void find_for_poisoned(const Plan<W>& m, std::int64_t i) {
  const BatchHard& q = m.problem;
  const std::int64_t label = q.labels[i], own = own_row(q, i);
  std::int32_t positive = poisoned_of_label(m.y, label, own);
  int place = begin_of_label(m.y, kFiniteRows, label);
  if (holds(m.y, place, kFiniteRows, label) && m.y.sorted[place].row == own) {
    ++place;
  }
  if (holds(m.y, place, kFiniteRows, label) && (positive < 0 || m.y.sorted[place].row < positive)) {
    positive = m.y.sorted[place].row;
  }
  const std::int32_t negative = of_other_label(m.y, m.counts->first, m.counts->first_other, label);
  const double nan = static_cast<double>(__builtin_nan(""));
  if (positive >= 0) {
    settle(q, true, i, positive, nan);
  }
  if (negative >= 0) {
    settle(q, false, i, negative, nan);
  }
}

/// What anchor i adds.
template <class W>
FASTMINE_DEVICE void look_at_anchor(const Plan<W>& m, std::int64_t i, double (&parts)[kParts]) {
  const BatchHard& q = m.problem;
  const std::uint8_t kind = m.x.kind[i];
  const bool bad = (kind & kPoisoned) != 0;
  if (bad && m.way == Way::by_label) {
    find_for_poisoned(m, i);
  }
  const auto part = [&parts](Part p) -> double& { return parts[static_cast<int>(p)]; };
  part(Part::admitted) = 1;
  part(Part::classes) = m.first[i] ? 1 : 0;
  part(Part::negative_labels) = q.labels[i] < 0 ? 1 : 0;
  part(Part::zero_rows) = (kind & kZero) != 0 ? 1 : 0;
  part(Part::nonfinite_rows) = bad ? 1 : 0;
  part(Part::norms) = bad ? 0 : m.x.squared[i];
  part(Part::has_positive) = q.has_positive[i] ? 1 : 0;
  part(Part::has_negative) = q.has_negative[i] ? 1 : 0;
  if (q.has_positive[i] && q.has_negative[i]) {
    const double d_p = q.positive_distance[i], d_n = q.negative_distance[i];
    part(Part::valid) = 1;
    part(Part::hard) = (q.metric == Metric::dot ? d_n > d_p : d_n < d_p) ? 1 : 0;
    part(Part::positive_sum) = part(Part::farthest) = d_p;
    part(Part::negative_sum) = part(Part::closest) = d_n;
  }
}

/// What row i of x and of y adds, if there is one.
template <class W>
FASTMINE_DEVICE void look_at_rows_of_both(const Plan<W>& m, std::int64_t i, double (&parts)[kParts]) {
  if (i < m.x.rows.n && takes_part(m.x, i)) {
    look_at_anchor(m, i, parts);
  }
  if (!m.problem.self && i < m.y.rows.n) {
    parts[static_cast<int>(Part::nonfinite_refs)] = takes_part(m.y, i) && poisoned(m.y, i) ? 1 : 0;
  }
}

/// Blocks of kThreads rows of both.
template <class W>
FASTMINE_HOST_DEVICE std::int64_t evidence_blocks(const Plan<W>& m) {
  return divide_up(m.x.rows.n > m.y.rows.n ? m.x.rows.n : m.y.rows.n, kThreads);
}

/// One block: kThreads rows.
template <class W>
FASTMINE_KERNEL(kThreads, 2)
look_at_anchors(FASTMINE_PARAMETER Plan<W> m) {
  FASTMINE_SHARED(double, shared, kWarps* kParts);
  double parts[kParts];
  nothing_yet(parts);
  look_at_rows_of_both(m, block_index() * kThreads + thread_index(), parts);
  const double sum = add_parts(parts, shared);
  if (thread_index() < kParts) {
    m.parts[block_index() * kParts + thread_index()] = sum;
  }
}

template <class W>
FASTMINE_DEVICE double total_of_column(const Plan<W>& m, std::int64_t k) {
  if (m.way == Way::by_label) {
    return m.total[k];
  }
  double total = 0;
  for (std::int64_t block = 0; block < m.x.blocks(); ++block) {
    total += m.x.raw_sums[block * m.x.rows.d + k];
  }
  return total;
}

/// One block: the evidence.
template <class W>
FASTMINE_KERNEL(kThreads, 2)
gather_evidence(FASTMINE_PARAMETER Plan<W> m) {
  FASTMINE_SHARED(double, shared, kWarps* kParts);
  FASTMINE_SHARED(double, found, kParts + 1);
  const std::int64_t blocks = evidence_blocks(m);
  double parts[kParts];
  nothing_yet(parts);
  if (blocks == 1) {
    look_at_rows_of_both(m, thread_index(), parts);
  }
  for (std::int64_t block = thread_index(); blocks > 1 && block < blocks; block += kThreads) {
    FASTMINE_UNROLL for (int part = 0; part < kParts; ++part) {
      parts[part] = combine_part(part, parts[part], m.parts[block * kParts + part]);
    }
  }
  double sum = add_parts(parts, shared);
  if (thread_index() < kParts) {
    found[thread_index()] = sum;
  }
  nothing_yet(parts);
  for (std::int64_t k = thread_index(); k < m.problem.x.d; k += kThreads) {
    const double total = total_of_column(m, k);
    parts[0] += total * total;
  }
  sum = add_parts(parts, shared);
  if (thread_index() == 0) {
    const double* const all = found;
    const auto part = [all](Part p) { return all[static_cast<int>(p)]; };
    const auto at = [&m](Mining field) -> double& { return m.problem.evidence[static_cast<int>(field)]; };
    const bool any = part(Part::valid) > 0;
    at(Mining::anchors) = static_cast<double>(m.x.rows.n);
    at(Mining::admitted) = part(Part::admitted);
    at(Mining::classes) = part(Part::classes);
    at(Mining::has_positive) = part(Part::has_positive);
    at(Mining::has_negative) = part(Part::has_negative);
    at(Mining::valid) = part(Part::valid);
    at(Mining::hard) = part(Part::hard);
    at(Mining::positive_distance_sum) = part(Part::positive_sum);
    at(Mining::negative_distance_sum) = part(Part::negative_sum);
    at(Mining::positive_distance_max) = any ? part(Part::farthest) : 0;
    at(Mining::negative_distance_min) = any ? part(Part::closest) : 0;
    at(Mining::norm_squared_sum) = part(Part::norms);
    at(Mining::sum_norm_squared) = sum;
    at(Mining::zero_rows) = part(Part::zero_rows);
    at(Mining::nonfinite_rows) = part(Part::nonfinite_rows);
    at(Mining::nonfinite_refs) = part(Part::nonfinite_refs);
    at(Mining::negative_labels) = part(Part::negative_labels);
    if (m.problem.screened != nullptr) {
      *m.problem.screened = m.rounded_depth == 0 ? Screened::full
                            : given_up(m)        ? Screened::rounding_gave_up
                                                 : Screened::rounded;
    }
  }
}

}  // namespace fastmine::cuda::mining
