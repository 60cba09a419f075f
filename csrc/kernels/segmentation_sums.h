// The sums behind every segmentation loss, and the gradient that comes back through them: what a formula is made of
// that the fused loss (segmentation_loss.h) does not have. python/fastmine/reference/segmentation_sums.py is the
// specification.
//
// Per group (one sample and class), with v valid, t target, x logit, p probability, q = 1 - p, g gamma, and
// sp(x) = log(1 + e^x); [y=k] is 1 where the target is this class:
//
//        sigmoid               softmax
//   n    sum v                 the same for all classes
//   t    sum v t               sum v [y=k]
//   p    sum v p               sum v p_k
//   a    sum v p t             sum v p_k [y=k]
//   pp   sum v p^2             sum v p_k^2
//   tt   sum v t^2             t
//   e1   sum v t sp(-x)        sum v [y=k] (-log p_k)
//   e0   sum v (1-t) sp(x)     0
//   f1   sum v t q^g sp(-x)    sum v [y=k] (1 - p_k)^g (-log p_k)
//   f0   sum v (1-t) p^g sp(x) 0
//   x    sum v x               sum v (-log p_k)
//   tx   sum v t x             0
//   g1   sum v t p q           sum v [y=k] p_k q_k
//   g0   sum v (1-t) p q       sum v [y!=k] p_k q_k
//
// Backward, with a capital for the gradient of each sum: sigmoid
//   p q (A t + P + 2 PP p) + E1 (-t q) + E0 (1-t) p + X + TX t + focal,
// softmax, with h_k = A_k [y=k] + P_k + 2 PP_k p_k,
//   p_k (h_k - sum_j p_j h_j) + E1_y (p_k - [y=k]) + p_k sum_j X_j - X_k + focal.
// n, t and tt do not depend on the logits; g1 and g0 are there to be read, and have no gradient.
//
// Label sets (softmax): a class that is merged in a sample is part of its class 0, whose logit is then the log of the
// sum of the exponentials of both, and so is a target of that class (arXiv:2107.03846). A merged class has no sums.
//
// Precision, validity, determinism: as in segmentation_loss.h, whose pass over the logits this is. Each sum is added up
// by itself and not as a difference of others, so that a few items keep their digits beside many. Merging rounds once
// more, at the size of a logit. A valid logit that is NaN or infinite, or a valid target outside its domain, makes all
// sums NaN except n and t; it does not reach the gradient by itself, only as a gradient of the sums that is NaN.
//
// Cost: as there. Everything takes 1.2 to 1.5 times the forward pass of the fused BCE or CE, Dice and focal loss, and
// 1.1 to 1.3 times its backward pass; a softmax reads its logits once more for x. A sum that is not wanted costs
// nothing, but for t, p and a, which the evidence needs. Memory: 9 + 14 C numbers for each 16,384 logits.
#pragma once

#include "kernels/segmentation_loss.h"

namespace fastmine {

/// In the order of the last dimension of the sums.
enum class SegmentationSum : int { n, t, p, a, pp, tt, e1, e0, f1, f0, x, tx, g1, g0, count };
inline constexpr int kSegmentationSums = static_cast<int>(SegmentationSum::count);

inline constexpr const char* kSegmentationSumNames[] = {"n",  "t",  "p",  "a", "pp", "tt", "e1",
                                                        "e0", "f1", "f0", "x", "tx", "g1", "g0"};
static_assert(sizeof kSegmentationSumNames / sizeof *kSegmentationSumNames == kSegmentationSums);

/// Some of the sums: bit i for the i-th.
using SegmentationSumSet = std::uint32_t;

struct SegmentationSums {
  SegmentationInputs in;
  SegmentationSumSet wanted;
  double gamma;

  // Out.
  double* sums;      // [samples, classes, kSegmentationSums]; 0 where not wanted
  double* evidence;  // [Segmentation::first_term]: the fields of the fused loss that come before its terms
};

using SegmentationSumsKernel = StagedKernel<SegmentationSums>;

struct SegmentationSumsBackward {
  SegmentationInputs in;
  SegmentationSumSet wanted;  // the gradients of others are not read
  double gamma;
  const double* grad;  // of the sums: [samples, classes, kSegmentationSums], contiguous

  void* grad_logits;  // out: [samples, classes, positions], contiguous, of the logits' type
};

using SegmentationSumsBackwardKernel = StagedKernel<SegmentationSumsBackward>;

}  // namespace fastmine
