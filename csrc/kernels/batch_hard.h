// Batch-hard mining (arXiv:1703.07737): for each anchor its farthest positive and its nearest negative.
//
// An admitted row is one that its mask does not exclude. A positive of an anchor is an admitted reference of its label,
// a negative one of another label; an anchor is not its own positive, with one set (`self`) or where `self_index` says
// which reference it is. An anchor has both, one or none, and says which; what is absent has index 0 and distance 0.
//
// How. Admitted rows are grouped by label, centred and packed. The nearest negatives are screened tile by tile in the
// working type (float32; float64 for float64 rows): what survives per row is one minimum per panel of references, so no
// n x m matrix exists, a panel pair is owned by one task, and with one set every tile serves its rows and its columns.
// An anchor then looks again at the panel with the least minimum, and at those that a rigorous rounding bound cannot
// rule out after that, each time together with other anchors that do; every reference in them that it cannot rule out
// is compared by direct difference in float64. Positives are compared directly where a label is small, else found the
// same way. So the pairs are those of the float64 distances, ties going to the lowest original index.
//
// A small batch, of up to about 50 rows, takes no such way: all its pairs are compared directly.
//
// Where the CPU has a matrix unit, large float32 problems are screened in bfloat16, with a bound of its own; a sample
// of anchors tells beforehand whether that would rule out enough. If not, they are screened in float32: the same
// result, later, and only `screened` says so. See Screen.
//
// Semi-hard: the nearest negative that is farther than the mined positive or, where there is none, the farthest. An
// anchor without a positive takes its nearest negative.
//
// A row with a NaN or an Inf is at distance NaN from everything, and a candidate at distance NaN is taken before all.
//
// Cost: n m d / 2 multiply-adds with one set; workspace of one packed copy of the rows, at most as much again for the
// minima (half of it where they are screened in bfloat16), and O(n); for a small batch, of its rows and keys in
// float64. Deterministic at any number of threads.
#pragma once

#include "kernels/embeddings.h"
#include "kernels/stage.h"

namespace fastmine {

/// The fields of the evidence, in order; python/fastmine/reference/batch_hard.py says what they mean.
enum class Mining : int {
  anchors,
  admitted,
  classes,
  has_positive,
  has_negative,
  valid,
  hard,
  positive_distance_sum,
  negative_distance_sum,
  positive_distance_max,
  negative_distance_min,
  norm_squared_sum,
  sum_norm_squared,
  zero_rows,
  nonfinite_rows,
  nonfinite_refs,
  negative_labels,
  count,
};

inline constexpr const char* kMiningFields[] = {
    "anchors",
    "admitted",
    "classes",
    "has_positive",
    "has_negative",
    "valid",
    "hard",
    "positive_distance_sum",
    "negative_distance_sum",
    "positive_distance_max",
    "negative_distance_min",
    "norm_squared_sum",
    "sum_norm_squared",
    "zero_rows",
    "nonfinite_rows",
    "nonfinite_refs",
    "negative_labels",
};
static_assert(sizeof kMiningFields / sizeof *kMiningFields == static_cast<std::size_t>(Mining::count));

/// How to screen the negatives. It changes the time a call takes, never a result.
enum class Screen : int {
  automatic,       // whichever should be faster
  full,            // in the working type
  rounded,         // in bfloat16, however small the problem and whatever the CPU, unless it would leave too much over
  rounded_always,  // in bfloat16 even then; float64 rows and very wide ones are always screened in full
};

/// How they were screened.
enum class Screened : int {
  full,
  rounded,
  rounding_gave_up,  // in full, since rows lie so close together, for their size, that bfloat16 rules out too little
};

struct BatchHard {
  Rows x;
  const std::int64_t* labels;  // [x.n]
  const bool* valid;           // [x.n], or null: all
  Rows y;                      // with `self`, the same as x, as are the next two
  const std::int64_t* ref_labels;
  const bool* ref_valid;
  bool self;
  const std::int64_t* self_index;  // [x.n]: the reference that is the anchor itself, -1 for none; null: with `self`
                                   // its own row, else none
  Metric metric;
  bool easiest_positive;
  bool semi_hard_negative;
  Screen screen;

  // Out, each [x.n].
  std::int64_t* positive_index;
  std::int64_t* negative_index;
  double* positive_distance;
  double* negative_distance;
  bool* has_positive;
  bool* has_negative;
  double* evidence;    // [Mining::count]
  Screened* screened;  // or null
};

using BatchHardKernel = StagedKernel<BatchHard>;

/// The gradient of the mined distances, of one or several pairs of each sign per anchor, in O((n + m + pairs) d): every
/// row gathers what its own pairs and the anchors that chose it contribute, in the order of the anchors, in float64.
/// Coincident pairs contribute nothing.
struct BatchHardBackward {
  Rows x;
  Rows y;
  bool self;
  Metric metric;
  std::int64_t positives;  // mined by each anchor
  std::int64_t negatives;
  const std::int64_t* positive_index;  // [x.n, positives]
  const std::int64_t* negative_index;  // [x.n, negatives]
  const bool* has_positive;
  const bool* has_negative;
  const void* grad_positive;  // of type `grad_dtype`, with this many elements from one pair's to the next
  const void* grad_negative;
  const double* slopes;  // factors of the gradients, which are then of each anchor and not of each pair: [x.n,
                         // positives], [x.n, negatives] and, with `between`, [x.n]; or null: all are 1
  bool between;          // each anchor has one pair of each sign, and these two rows of y a pair of their own
  DType grad_dtype;      // float32 or float64
  std::int64_t grad_positive_stride;
  std::int64_t grad_negative_stride;

  // Out, contiguous, of the rows' type. With `self`, grad_y is unused.
  void* grad_x;
  void* grad_y;
};

using BatchHardBackwardKernel = StagedKernel<BatchHardBackward>;

}  // namespace fastmine
