// Per anchor, a few sums over its positive and over its negative pairs: what losses over all pairs of a batch need.
//
// A pair exists between an anchor that its mask admits and an admitted reference; it is positive if their labels are
// the same, else negative. With one set (`self`) an anchor is no pair of its own. Of these, bounds may admit the harder
// ones alone: positives farther than the anchor's bound, negatives nearer. With v the distance of a pair (of `dot`, the
// similarity), its curve is
//
//   scale (v - offset), for PairForm::circle times max(0, sign(scale) (v - turn)), a weight that counts as constant,
//
// and the sums are: how many pairs there are; how many are admitted; of these the sum of v, the log-sum-exp of the
// curve and, for PairForm::nce, the sum over positives of log(1 + exp(L - curve)), with L the negatives' log-sum-exp.
// The last rows are what the derivatives of these by the scale are made of. Who has only some of the references at a
// time adds up what each part has, and then gives L as the `level`, for which the rows of nce alone are computed.
//
// How. A task owns a sliver of anchors and walks the references in panels (row_block.h): distances in the working type
// (float64 for float64 rows, else float32), the largest curve of the panel, then exponentials of what lies below the
// largest so far; sums over a panel in the working type, over panels in float64. Backward computes the distances again,
// turns them into weights in place and multiplies these with the rows across. With one set a row gathers what it
// contributes as anchor and as reference at once, from the same block.
//
// Where the CPU has a matrix unit for bytes, large float32 problems are multiplied as digits of whole numbers
// (cpu/digits.h): other roundings, of the same size, in a third of the time.
//
// A row with a NaN or an Inf is at distance NaN from everything, is admitted by every bound, and makes the sums of all
// who are paired with it NaN. Where there is nothing to sum, a sum is 0 and a log-sum-exp -Inf.
//
// Cost: n m d multiply-adds forward, 2 n m d backward (4 with separate references); workspace of two packed copies of
// the rows (digits: two and a half), backward also of the gradient in float64: no n x m matrix. Deterministic at any
// number of threads.
#pragma once

#include "kernels/embeddings.h"
#include "kernels/stage.h"

namespace fastmine {

enum class PairForm : std::uint8_t {
  sum,     // no log-sum-exp: those rows are 0
  lse,     // a linear curve
  nce,     // the same, and the sum over positives
  circle,  // (arXiv:2002.10857)
};

struct PairCurve {
  double scale, offset, turn;
};

/// The rows of the sums, in order; python/fastmine/reference/pair_sums.py says what they mean.
enum class PairSum : int {
  positives,
  negatives,
  admitted_positives,
  admitted_negatives,
  positive_distance,
  negative_distance,
  positive_lse,
  negative_lse,
  nce,
  nce_slope,
  positive_curve,
  negative_curve,
  nce_curve,
  count,
};

/// The fields of the evidence: those of mining, then these.
inline constexpr const char* kPairExtraFields[] = {"active", "positive_pairs", "negative_pairs"};

struct PairSums {
  Rows x;
  const std::int64_t* labels;  // [x.n]
  const bool* valid;           // [x.n], or null: all
  Rows y;                      // with `self`, the same as x, as are the next two
  const std::int64_t* ref_labels;
  const bool* ref_valid;
  const double* positive_bound;  // [x.n], or null: all pairs are admitted
  const double* negative_bound;
  const double* level;  // [x.n]: L where it is known; or null
  bool self;
  Metric metric;
  PairForm form;
  PairCurve positive, negative;
  Products products;
  const double* scale;  // [1], which multiplies the scales of both curves; or null

  // Out.
  double* sums;      // [PairSum::count, x.n]
  double* evidence;  // the fields of mining, and kPairExtraFields
};

using PairSumsKernel = StagedKernel<PairSums>;

struct PairSumsBackward {
  Rows x;
  const std::int64_t* labels;
  const bool* valid;
  Rows y;
  const std::int64_t* ref_labels;
  const bool* ref_valid;
  const double* positive_bound;
  const double* negative_bound;
  bool self;
  Metric metric;
  PairForm form;
  PairCurve positive, negative;
  Products products;
  const double* scale;
  const double* sums;  // what forward computed
  const double* grad;  // [PairSum::count, x.n], contiguous: of interest from positive_distance to nce

  // Out, contiguous, of the rows' type. With `self`, grad_y is unused.
  void* grad_x;
  void* grad_y;
};

using PairSumsBackwardKernel = StagedKernel<PairSumsBackward>;

}  // namespace fastmine
