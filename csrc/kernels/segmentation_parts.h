// What the kernels of the segmentation losses, CPU and CUDA, hand to their formula. Layouts only.
#pragma once

namespace fastmine {

/// What one task found, followed in memory by a SegmentationGroup for each of its classes.
struct SegmentationPart {
  double items;  // valid ones; multiclass: positions
  double cross_entropy;
  double focal;
  double target_min;  // over valid items, +Inf and -Inf where there are none; NaN if one of them is
  double target_max;
  double logit_min;
  double logit_max;
  double nonfinite;     // valid logits that are NaN or infinite
  double out_of_range;  // valid targets outside their domain
};

struct SegmentationGroup {
  double target;
  double prediction;
  double overlap;
};

/// The same with all sums, in the order of SegmentationSum; a part of those that are wanted.
struct SegmentationGroupSums {
  double n, t, p, a, pp, tt, e1, e0, f1, f0, x, tx, g1, g0;
};

}  // namespace fastmine
