// Batch-hard mining of so few pairs that each is compared directly: one block for an anchor, a warp for a reference.
#pragma once

#include "kernels/cuda/batch_hard_plan.cuh"

namespace fastmine::cuda::mining {

/// The best of a block, for all its threads.
FASTMINE_DEVICE Best best_of_block(Best best, double* keys, std::int32_t* rows) {
  best = best_of_lanes(best);
  if (lane_index() == 0) {
    keys[warp_index()] = best.key;
    rows[warp_index()] = best.row;
  }
  barrier();
  for (int warp = 0; warp < kWarps; ++warp) {
    improve(best, {keys[warp], rows[warp]});
  }
  barrier();
  return best;
}

/// One block: an anchor.
template <class S>
FASTMINE_KERNEL(kThreads, 2)
mine_few_pairs(FASTMINE_PARAMETER Plan<Working<S>> m) {
  constexpr int kTogether = 4;
  FASTMINE_SHARED(double, best_keys, kWarps);
  FASTMINE_SHARED(std::int32_t, best_rows, kWarps);
  FASTMINE_SHARED(std::int32_t, again, 1);
  const BatchHard& q = m.problem;
  const std::int64_t i = block_index();
  if (!takes_part(m.x, i)) {
    return;
  }
  const std::int64_t label = q.labels[i], own = own_row(q, i);
  const auto references = static_cast<std::int32_t>(q.y.n);
  double* const keys = m.keys + i * references;
  const double nan = static_cast<double>(__builtin_nan(""));
  for (std::int32_t first = warp_index() * kTogether; first < references; first += kWarps * kTogether) {
    std::int32_t rows[kTogether];
    double found[kTogether];
    FASTMINE_UNROLL for (int c = 0; c < kTogether; ++c) { rows[c] = first + c < references ? first + c : first; }
    exact_keys<S>(m.x, i, m.y, rows, found);
    FASTMINE_UNROLL for (int c = 0; c < kTogether; ++c) {
      if (lane_index() == c && first + c < references) {
        keys[first + c] = poisoned(m.x, i) || poisoned(m.y, first + c) ? nan : found[c];
      }
    }
  }
  if (thread_index() == 0) {
    *again = 0;
  }
  barrier();

  const auto choose = [&](bool same, double sign, double above) {
    Best best;
    for (std::int32_t j = thread_index(); j < references; j += kThreads) {
      const bool candidate = takes_part(m.y, j) && (q.ref_labels[j] == label) == same && !(same && j == own);
      if (candidate && !(keys[j] <= above)) {
        improve(best, {sign * keys[j], j});
      }
    }
    return best_of_block(best, best_keys, best_rows);
  };
  const auto settle = [&](const Best& best, double sign, std::int64_t* index, double* distance, bool* has) {
    if (thread_index() == 0 && best.row >= 0) {
      index[i] = best.row;
      distance[i] = distance_of(sign * best.key, q.metric);
      has[i] = true;
    }
  };
  const double unbounded = -static_cast<double>(__builtin_inf()), sign = q.easiest_positive ? 1 : -1;
  const Best positive = choose(true, sign, unbounded);
  settle(positive, sign, q.positive_index, q.positive_distance, q.has_positive);
  const bool bounded = q.semi_hard_negative && positive.row >= 0 && positive.key == positive.key;
  double negative_sign = 1;
  Best negative = choose(false, 1, bounded ? sign * positive.key : unbounded);
  if (negative.row < 0 && bounded) {
    negative_sign = -1;
    negative = choose(false, -1, unbounded);
  }
  settle(negative, negative_sign, q.negative_index, q.negative_distance, q.has_negative);

  for (std::int64_t j = thread_index(); j < i; j += kThreads) {
    if (takes_part(m.x, j) && q.labels[j] == label) {
      atomic_maximum(again, 1);
      break;
    }
  }
  barrier();
  if (thread_index() == 0) {
    m.first[i] = *again == 0;
  }
}

}  // namespace fastmine::cuda::mining
