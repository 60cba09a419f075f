// The segmentation losses: a few sums per (sample, class) in one pass over logits and targets, a small formula, and one
// pass back. python/fastmine/reference/segmentation_loss.py is the specification.
//
// With v valid, t target, x logit and p its sigmoid or softmax, per group (one sample and class): N = sum v, T = sum v
// t, P = sum v p, A = sum v p t, and per sample the cross entropy and the focal term (arXiv:1708.02002) where asked
// for. Dice (arXiv:1608.04117), IoU and Tversky (arXiv:1706.05721) are quotients of these sums; their derivative by a
// probability is a t + b with two numbers a and b per group. So four coefficients per group, and the inputs, are all
// that the backward pass needs.
//
// Precision: float64 logits are computed in float64 through libm, all others in float32 with about 1e-7 per element.
// Runs of at most 512 elements are added in that type, runs and tasks in float64. p and 1 - p both keep their relative
// precision for |x| up to 87, so a gradient does not die where 1 - p rounds to 0.
//
// An item is valid if its mark in `valid` says so, where there are marks, and its target is not the index to ignore,
// where there is one. An invalid item is replaced before any arithmetic: whatever it holds, NaN included, changes
// nothing. A valid logit that is NaN or infinite, and a valid target outside its domain, make loss and coefficients
// NaN; the evidence counts them. With nothing valid the loss and all coefficients are 0.
//
// Cost. Forward: one read of logits, target and valid, about 50 operations an element (sigmoid, all terms), one exp,
// one reciprocal, one log1p. Backward: the same reads and arithmetic, one write. Memory: 9 + 3 C numbers for each
// 16,384 logits. Nothing that was not asked for is computed.
//
// Deterministic: work is cut by the shape alone and parts are added in order, so the bits do not depend on the threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/reduction.h"
#include "kernels/stage.h"

namespace fastmine {

/// binary: one class and a sigmoid. multilabel: a sigmoid for every class. multiclass: a softmax over the classes, and
/// class indices for targets.
enum class SegmentationMode : std::uint8_t { binary, multilabel, multiclass };

/// What an annotated group without target is worth in the overlap terms: its mean probability, nothing, or the formula.
enum class EmptyGroups : std::uint8_t { area, skip, smooth };

/// In the order of TERMS in the specification.
enum class SegmentationTerm : int { bce, ce, dice, iou, tversky, focal, count };
inline constexpr int kSegmentationTerms = static_cast<int>(SegmentationTerm::count);

/// The fields of the evidence, in order; the specification says what they mean.
enum class Segmentation : int {
  groups,
  annotated,
  nonempty,
  items,
  ignored,
  target_sum,
  prediction_sum,
  overlap_sum,
  target_min,
  target_max,
  logit_min,
  logit_max,
  nonfinite,
  out_of_range,
  first_term,  // and as many as there are terms
  count = first_term + kSegmentationTerms,
};

inline constexpr const char* kSegmentationFields[] = {
    "groups",      "annotated",  "nonempty",   "items",     "ignored",   "target_sum", "prediction_sum",
    "overlap_sum", "target_min", "target_max", "logit_min", "logit_max", "nonfinite",  "out_of_range",
    "bce",         "ce",         "dice",       "iou",       "tversky",   "focal",
};
static_assert(sizeof kSegmentationFields / sizeof *kSegmentationFields ==
              static_cast<std::size_t>(Segmentation::count));

/// An array of shape [samples, classes, positions]: so many elements lie between neighbours along each dimension (0 and
/// negative numbers too).
struct Grid {
  const void* data;
  DType dtype;
  std::int64_t stride[3];
};

struct SegmentationInputs {
  Grid logits;  // float32, float64, bfloat16 or float16
  Grid target;  // any type; multiclass: an integer type, stride[1] is not used
  Grid valid;   // bool; data is null where all is valid; multiclass: stride[1] is not used
  std::int64_t samples;
  std::int64_t classes;  // binary: 1; at most 2^24
  std::int64_t positions;
  SegmentationMode mode;
  /// [samples, classes], contiguous, or null: which classes of a sample are part of its class 0 (segmentation_sums.h).
  const std::uint8_t* merged = nullptr;
  /// Whether items whose target has this value are not valid either.
  bool ignores = false;
  std::int64_t ignore_index = 0;
};

/// -alpha_t (1 - p_t)^gamma log p_t, with alpha_t 1 where nobody asked for an alpha. Multiclass uses gamma alone.
struct Focal {
  double on_target;
  double off_target;
  double gamma;
};

struct SegmentationLoss {
  SegmentationInputs in;
  double weights[kSegmentationTerms];  // 0 leaves a term out
  double smooth;
  Focal focal;
  double tversky_alpha;
  double tversky_beta;
  EmptyGroups empty;
  Reduction reduction;

  // Out.
  void* loss;            // [samples] for Reduction::none, else [1]
  DType loss_dtype;      // float32 or float64
  double* coefficients;  // [samples, classes, 4]: a, b, and the scales of cross entropy and focal term
  double* evidence;      // [Segmentation::count]
  double* sums;          // [samples, classes, 4]: N, T, P, A; or null
  double* entropies;     // [samples, 2]: sums of the cross entropy and of the focal term; or null
};

using SegmentationLossKernel = StagedKernel<SegmentationLoss>;

/// sigmoid: g = (a t + b) p q + w_ce (p - t) + w_focal dFL; softmax: g_k = p_k (h_k - sum_j p_j h_j) + ... with
/// h = a t + b. Zero where invalid.
struct SegmentationLossBackward {
  SegmentationInputs in;
  const double* coefficients;  // [samples, classes, 4], contiguous; multiclass: the scales are read at class 0
  Focal focal;
  const void* grad;  // of the loss: one number, or one per sample
  DType grad_dtype;
  std::int64_t grad_stride;  // 0 for one number

  void* grad_logits;  // out: [samples, classes, positions], contiguous, of the logits' type
};

using SegmentationLossBackwardKernel = StagedKernel<SegmentationLossBackward>;

/// The one stride of several dimensions that can be walked as one, outermost first; false if there is none, and then
/// the array must be copied.
[[gnu::always_inline]] inline constexpr bool collapse(const std::int64_t* sizes, const std::int64_t* strides,
                                                      std::int64_t dims, std::int64_t& stride) {
  std::int64_t walked = 1;  // positions within the dimensions seen so far
  stride = 1;
  for (std::int64_t d = dims - 1; d >= 0; --d) {
    if (sizes[d] == 0) {
      return true;
    }
    if (sizes[d] == 1) {
      continue;
    }
    if (walked == 1) {
      stride = strides[d];
    } else if (strides[d] != stride * walked) {
      return false;
    }
    walked *= sizes[d];
  }
  return true;
}

}  // namespace fastmine
