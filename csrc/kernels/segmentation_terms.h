// Every term of a segmentation loss as a formula on the sums of its groups (segmentation_sums.h), with its slopes by
// them: what the fused loss (segmentation_loss.h) does not have. python/fastmine/reference/segmentation_formula.py is
// the specification.
//
// A term is a numerator and a denominator per group. Its mean is the quotient of their totals over all groups, or over
// those of each sample for Reduction::none and ::sum; with `batch` the sums of all samples are added first, and the
// batch is one sample. The loss is the weighted sum of the terms. What does not count is 0 in both, and a term of which
// nothing counts is 0.
//
// Precision: float64 throughout. Slopes are exact derivatives, from the same text as the values. Sums that are NaN, and
// found items that are not finite or outside their domain, make loss and slopes NaN.
//
// Cost: about 200 operations per group and term; no pass over anything larger than the sums.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/host_device.h"
#include "kernels/reduction.h"
#include "kernels/segmentation_sums.h"

namespace fastmine {

/// In the order of ALL_TERMS in the specification.
enum class FormulaTerm : int {
  bce,
  ce,
  dice,
  iou,
  tversky,
  focal,
  log_dice,
  generalized_dice,
  focal_tversky,
  mcc,
  lovasz,
  count,
};
inline constexpr int kFormulaTerms = static_cast<int>(FormulaTerm::count);

inline constexpr const char* kFormulaTermNames[] = {
    "bce", "ce", "dice", "iou", "tversky", "focal", "log_dice", "generalized_dice", "focal_tversky", "mcc", "lovasz"};
static_assert(sizeof kFormulaTermNames / sizeof *kFormulaTermNames == kFormulaTerms);

/// One number for each class, or the same for all (stride 0); none if `values` is null.
struct PerClass {
  const double* values = nullptr;
  std::int64_t stride = 0;

  FASTMINE_HOST_DEVICE explicit operator bool() const { return values != nullptr; }
  FASTMINE_HOST_DEVICE double operator[](std::int64_t k) const { return values[k * stride]; }
};

struct SegmentationTerms {
  std::int64_t samples, classes;
  bool softmax;
  const double* sums;    // [samples, classes, kSegmentationSums]
  const double* found;   // [Segmentation::first_term]: the evidence of the sums
  const double* lovasz;  // [samples or 1, classes]: its value per group, which no sum tells; or null

  bool asked[kFormulaTerms];
  double weights[kFormulaTerms];
  EmptyGroups empty;
  double smooth_nr, smooth_dr;
  bool squared;  // sum p^2 + sum t^2 for P + T in dice, log_dice and iou
  double tversky_alpha, tversky_beta, focal_tversky_exponent;
  double generalized_power;  // the weights of generalized Dice are T to the power of minus this
  PerClass focal_alpha, pos_weight, class_weights;
  bool weights_count;  // class weights are divided by how many count, not by their sum
  double label_smoothing;
  const std::uint8_t* kept;  // [classes]: which have terms; or null for all
  bool batch;
  Reduction reduction;

  double* room;  // [samples, or 1 with `batch`, classes, kSegmentationSums]: sums as they are reduced

  // Out.
  void* loss;             // [samples or 1] for Reduction::none, else [1]
  DType loss_dtype;       // float32 or float64
  double* slopes;         // [samples, classes, kSegmentationSums]: of the loss by each sum
  double* lovasz_slopes;  // as lovasz; or null
  double* values;         // [kFormulaTerms]: the mean of each term over all that counts, whatever the reduction
  /// [kFormulaTerms]: the L1 norm of each term's part of the gradient by the logits, as far as the sums tell it: hard
  /// targets, and for a sigmoid terms whose slope is p q, q or p times one factor on target and another off it, for a
  /// softmax the cross entropy, without smoothing, and of two classes terms linear in p. Needs g1 and g0.
  double* norms;
};

namespace cpu {

/// Compiled once, for every CPU; runs on the calling thread.
void segmentation_terms(const SegmentationTerms& problem) noexcept;

}  // namespace cpu
}  // namespace fastmine
