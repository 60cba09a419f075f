// The batch-all triplet loss: every triplet of an anchor, a positive and a negative, without listing them.
//
// With thresholds t_p = d_p + margin, an anchor's sum of max(0, t_p - d_n) over its pairs of a positive and a negative
// needs for each negative only how many thresholds are above it, and for each positive how many negatives are below its
// threshold. Of a similarity the negative acts as a distance. With a leak s the sum is of max(s v, v), linear in the
// counts too.
//
// How. Distances are computed in row blocks (cpu/row_block.h) and compared with all thresholds while they are in the
// cache. Backward computes the blocks again; a row gathers what its negatives push it by from both ends of a pair at
// once, as anchor and as reference, and its positives pull it each by its difference. Anchors of large classes are
// taken 48 at a time instead, and closeness is ranked among their thresholds by bisection.
//
// Instead of all triplets, only the hard ones may count, whose negative is nearer than their positive, or the semi-hard
// ones, whose negative is not, but within the margin: then the thresholds are the positives, or the counts a
// difference.
//
// Only the anchors in `use` are looked at: mining tells which have a triplet above the kink at all.
//
// Precision: positives are direct differences in float64. Distances of negatives are those of products in the working
// type (large float32 problems with a matrix unit: of digits, as in pair_sums.h); but one so near a threshold that, by
// a rigorous rounding bound, it might be on the other side is compared directly. So the counts are those of direct
// differences, and the values right to the working type. The gradient: products in the working type or of digits, and
// where those would cancel, differences in float64.
//
// Cost: u m d multiply-adds forward, for u anchors in use; back 2 u (2 n - u) d with one set, at most 2 n^2 d, and 4 u
// m d with separate references (large classes: 3 u m d). Memory of two packed copies of each side (digits: two and a
// half), of the thresholds, at most max(d, 48) for each anchor, and back of the gradient in float64; for large classes
// of at most 16 partial gradients of the references: 64 MiB of them, or four. Deterministic at any number of threads:
// what a task adds up is cut by the problem.
#pragma once

#include "kernels/embeddings.h"
#include "kernels/reduction.h"
#include "kernels/stage.h"

namespace fastmine {

enum class Triplets : std::uint8_t { all, hard, semi_hard };

struct BatchAll {
  Rows x;
  const std::int64_t* labels;  // [x.n]
  const bool* valid;           // [x.n], or null: all
  Rows y;                      // with `self`, the same as x, as are the next two
  const std::int64_t* ref_labels;
  const bool* ref_valid;
  bool self;
  const std::int64_t* self_index;  // as in BatchHard
  Metric metric;
  Triplets kind;
  double margin;
  double leak;      // 0 unless all triplets count
  const bool* use;  // [x.n]: anchors whose sum is wanted; they and all that they see are finite
  Products products;

  // Out, each [x.n].
  double* triplets;  // positives times negatives, of every anchor that takes part
  double* sum;       // over the triplets of the anchor; 0 unless in use
  double* active;    // of these, the ones that count and are above the kink
};

using BatchAllKernel = StagedKernel<BatchAll>;

struct BatchAllBackward {
  BatchAll problem;      // without its outputs
  const double* weight;  // [x.n]: the derivative of the loss by each anchor's sum. NaN for one that sees a NaN: then it
                         // and all that it sees have NaN gradients

  // Out, contiguous, of the rows' type. With `self`, grad_y is unused.
  void* grad_x;
  void* grad_y;
};

using BatchAllBackwardKernel = StagedKernel<BatchAllBackward>;

/// The formula around the sums. It is batch-hard's loss of the hardest pairs where no anchor has both a positive and a
/// negative, and then left as it is. Else: the sum over all triplets, or their mean: over those with a gradient, which
/// with a leak are all, or over all.
struct BatchAllFormula {
  std::int64_t n;
  const double* positive_distance;  // [n] each: of the hardest pairs
  const double* negative_distance;
  const bool* has_positive;
  const bool* has_negative;
  const double* triplets;  // [n] each: what the kernel found
  const double* sum;
  const double* active;
  const double* weight;  // [n]: of each anchor, or null: all are 1
  Metric metric;
  Triplets kind;
  double margin;
  double leak;
  Reduction reduction;
  bool of_active;  // the mean is over the triplets with a gradient

  // Out.
  bool* use;             // [n]: by use_of_anchors
  void* loss;            // of type `loss_dtype`: [n] for Reduction::none, a sum per anchor; else [1]
  DType loss_dtype;      // float32 or float64
  double* scale;         // [n]: the derivative of the loss by each sum; NaN where an anchor sees a NaN
  double* slopes;        // [2 n]: of the hardest pairs; set to 0 unless no anchor has both
  double* all_triplets;  // evidence
  double* all_active;    // evidence
};

namespace cpu {
/// Fill in `use`, before the kernel runs: the anchors whose hardest pair has a gradient.
void use_of_anchors(const BatchAllFormula& problem) noexcept;
/// Fill in the other outputs, after it.
void batch_all_formula(const BatchAllFormula& problem) noexcept;
/// For the backward pass: weight[i] = grad[i stride] scale[i] in float64, and whether anchor i is in use. Returns
/// whether any weight is not 0.
bool weigh_anchors(const void* grad, DType grad_dtype, std::int64_t stride, const double* scale, std::int64_t n,
                   double* weight, bool* use) noexcept;
}  // namespace cpu

}  // namespace fastmine
