// The triplet loss of mined pairs, several to an anchor, and what may be adjusted about them.
//
// Every mined positive of an anchor forms a triplet with every mined negative of it. violation = d_p - d_n + margin (of
// a similarity: d_n - d_p + margin), with three adjustments: `between`, the distance of the positive to the negative,
// stands for d_n where it is smaller; where d_p - d_n is negative it is multiplied by 1 - hardness; and with an active
// fraction the margin is raised to the least with which this part of the triplets is above the kink. The rest is as in
// triplet_loss.h, with triplets for anchors. All in float64, in the order of the anchors.
//
// Cost: O(triplets), with an active fraction on average. Deterministic.
#pragma once

#include "kernels/stage.h"
#include "kernels/triplet_loss.h"

namespace fastmine {

/// The evidence, in order.
enum class TripletTerm : int {
  active,     // anchors with a triplet above the kink
  semi_hard,  // anchors whose first pairs have, unadjusted, d_p <= d_n < d_p + margin
  triplets,
  active_triplets,  // above the kink
  swapped,          // triplets whose positive is nearer to the negative than the anchor is
  margin,           // of this batch
  count,
};

struct TripletTerms {
  std::int64_t n, positives, negatives;
  const double* positive_distance;  // [n, positives]
  const double* negative_distance;  // [n, negatives]
  const double* between;            // [n], where each anchor has one pair of each sign; or null: no swap
  const bool* has_positive;
  const bool* has_negative;
  const double* weight;  // [n], or null: all are 1
  Metric metric;
  TripletShape shape;
  double margin;
  double leak;
  double hardness;         // 0: none
  double active_fraction;  // 0: the margin stays
  OnEmpty on_empty;
  Reduction reduction;

  double* violations;  // [triplets]: workspace for an active fraction, else unused

  // Out.
  void* loss;        // of type `loss_dtype`: [n] for Reduction::none, else [1]
  DType loss_dtype;  // float32 or float64
  double* slopes;    // the loss by the distances to the positives [n, positives], to the negatives [n, negatives], and
                     // with `between` by these [n]
  double* evidence;  // [TripletTerm::count]
};

/// The distances between rows that belong together, in float64. NaN where a row is not finite; 0 where a row is absent.
/// Cost: O(n d), for cosine the norms of all rows.
struct PairedDistance {
  Rows rows;
  Metric metric;
  std::int64_t n;
  const std::int64_t* first;  // [n], rows of `rows`
  const std::int64_t* second;
  const bool* has_first;
  const bool* has_second;

  // Out, [n].
  double* distance;
};

using PairedDistanceKernel = StagedKernel<PairedDistance>;

namespace cpu {
void triplet_terms(const TripletTerms& problem) noexcept;
}  // namespace cpu

}  // namespace fastmine
