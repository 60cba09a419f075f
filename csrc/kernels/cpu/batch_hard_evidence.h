// What mining says about a batch, read off the rows and the pairs that were found.
#pragma once

#include "kernels/batch_hard.h"
#include "kernels/cpu/packing.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {

FASTMINE_INLINE bool takes_part(const RowSet& set, std::int64_t i) { return (set.kind[i] & kSkipped) == 0; }
FASTMINE_INLINE bool poisoned(const RowSet& set, std::int64_t i) { return (set.kind[i] & kPoisoned) != 0; }

/// Candidates at distance NaN are taken before all, whatever else there is.
FASTMINE_INLINE void settle_poisoned(std::int64_t i, std::int64_t j, std::int64_t* index, double* distance,
                                     bool* found) {
  index[i] = j;
  distance[i] = __builtin_nan("");
  found[i] = true;
}

/// Say of every anchor that it has neither a positive nor a negative.
inline void clear_pairs(const BatchHard& q) {
  for (std::int64_t i = 0; i < q.x.n; ++i) {
    q.positive_index[i] = q.negative_index[i] = 0;
    q.positive_distance[i] = q.negative_distance[i] = 0;
    q.has_positive[i] = q.has_negative[i] = false;
  }
}

/// Fill in the evidence. `total` is the sum of the anchors that take part and are finite, `classes` how many labels
/// they and the poisoned ones have.
inline void gather_evidence(const BatchHard& q, const RowSet& x, const double* total, std::int64_t classes,
                            std::int64_t nonfinite_rows, std::int64_t nonfinite_refs) {
  double* e = q.evidence;
  const auto at = [e](Mining field) -> double& { return e[static_cast<int>(field)]; };
  std::int64_t admitted = 0, negative_labels = 0, zero_rows = 0, positives = 0, negatives = 0, valid = 0, hard = 0;
  double positive_sum = 0, negative_sum = 0, farthest = 0, closest = 0, norms = 0, norm_of_sum = 0;
  for (std::int64_t i = 0; i < q.x.n; ++i) {
    if (!takes_part(x, i)) {
      continue;
    }
    ++admitted;
    negative_labels += q.labels[i] < 0;
    zero_rows += (x.kind[i] & kZero) != 0;
    norms += poisoned(x, i) ? 0 : x.squared[i];
    positives += q.has_positive[i];
    negatives += q.has_negative[i];
    if (!q.has_positive[i] || !q.has_negative[i]) {
      continue;
    }
    const double d_p = q.positive_distance[i], d_n = q.negative_distance[i];
    const bool first = valid == 0;
    ++valid;
    hard += q.metric == Metric::dot ? d_n > d_p : d_n < d_p;
    positive_sum += d_p;
    negative_sum += d_n;
    farthest = first || !(d_p <= farthest) ? (farthest != farthest ? farthest : d_p) : farthest;
    closest = first || !(d_n >= closest) ? (closest != closest ? closest : d_n) : closest;
  }
  for (std::int64_t k = 0; k < q.x.d; ++k) {
    norm_of_sum += total[k] * total[k];
  }
  at(Mining::anchors) = static_cast<double>(q.x.n);
  at(Mining::admitted) = static_cast<double>(admitted);
  at(Mining::classes) = static_cast<double>(classes);
  at(Mining::has_positive) = static_cast<double>(positives);
  at(Mining::has_negative) = static_cast<double>(negatives);
  at(Mining::valid) = static_cast<double>(valid);
  at(Mining::hard) = static_cast<double>(hard);
  at(Mining::positive_distance_sum) = positive_sum;
  at(Mining::negative_distance_sum) = negative_sum;
  at(Mining::positive_distance_max) = farthest;
  at(Mining::negative_distance_min) = closest;
  at(Mining::norm_squared_sum) = norms;
  at(Mining::sum_norm_squared) = norm_of_sum;
  at(Mining::zero_rows) = static_cast<double>(zero_rows);
  at(Mining::nonfinite_rows) = static_cast<double>(nonfinite_rows);
  at(Mining::nonfinite_refs) = q.self ? 0 : static_cast<double>(nonfinite_refs);
  at(Mining::negative_labels) = static_cast<double>(negative_labels);
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
