// The formulas of every segmentation term on the sums of one group, in numbers that carry their derivatives: the same
// text on the CPU (cpu/segmentation_terms.cpp) and on the GPU (cuda/segmentation_terms.cu). Who adds up what in which
// order is theirs.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/dual.h"
#include "kernels/host_device.h"
#include "kernels/segmentation_terms.h"

namespace fastmine::terms {

using enum SegmentationSum;
using Formula = SegmentationTerms;

FASTMINE_HOST_DEVICE constexpr double larger(double a, double b) { return a < b ? b : a; }

FASTMINE_HOST_DEVICE constexpr int index(SegmentationSum sum) { return static_cast<int>(sum); }

FASTMINE_HOST_DEVICE constexpr bool is_pointwise(FormulaTerm term) {
  return term == FormulaTerm::bce || term == FormulaTerm::ce || term == FormulaTerm::focal;
}

/// The sums of one group; those that a formula is differentiated by, as variables.
struct Group {
  const double* sums;

  FASTMINE_HOST_DEVICE double operator[](SegmentationSum sum) const { return sums[index(sum)]; }
  FASTMINE_HOST_DEVICE Dual overlap() const { return {(*this)[a], 0}; }
  FASTMINE_HOST_DEVICE Dual probability() const { return {(*this)[p], 1}; }
  FASTMINE_HOST_DEVICE Dual squares() const { return {(*this)[pp], 2}; }
};

/// What one group adds to a term: to numerator and denominator, and the numerator's slopes by its sums.
struct Share {
  double numerator = 0, denominator = 0;
  double slopes[kSegmentationSums] = {};
  double lovasz_slope = 0;

  FASTMINE_HOST_DEVICE double& slope(SegmentationSum sum) { return slopes[index(sum)]; }
};

/// What couples the groups of a row in the generalized Dice: the weight of an empty class, its value by the weighted
/// sums of a and of p, and the class weights of the groups that have this value.
struct Generalized {
  double empty_weight = 0, sharing = 0;
  Dual value;
};

/// The groups that are reduced together: those of a sample, or of the batch.
struct Row {
  const double* sums;    // [classes, kSegmentationSums]
  const double* lovasz;  // [classes] or null
  Generalized generalized;

  FASTMINE_HOST_DEVICE Group group(std::int64_t k) const { return {sums + k * kSegmentationSums}; }
};

FASTMINE_HOST_DEVICE inline bool is_kept(const Formula& f, std::int64_t k) {
  return f.kept == nullptr || f.kept[k] != 0;
}

FASTMINE_HOST_DEVICE inline double class_weight(const Formula& f, std::int64_t k) {
  return f.class_weights ? f.class_weights[k] : 1;
}

// --- pointwise terms, linear in the sums

FASTMINE_HOST_DEVICE inline void add_linear(Share& share, const Group& s, SegmentationSum sum, double slope) {
  if (slope != 0) {  // a sum that nobody asked for may be NaN in a spoiled batch, as all others are
    share.slope(sum) = slope;
    share.numerator += slope * s[sum];
  }
}

/// w (u on + off), with class weight w and pos_weight u; smoothed, t' = (1 - e) t + e / 2, where sp(x) = x + sp(-x)
/// tells what is known about either side from the other.
FASTMINE_HOST_DEVICE inline Share sigmoid_pointwise(const Formula& f, FormulaTerm term, const Group& s,
                                                    std::int64_t k) {
  Share share;
  const double weight = class_weight(f, k);
  share.denominator = f.weights_count ? s[n] : weight * s[n];
  if (term == FormulaTerm::focal) {
    add_linear(share, s, f1, weight * (f.focal_alpha ? f.focal_alpha[k] : 1));
    add_linear(share, s, f0, weight * (f.focal_alpha ? 1 - f.focal_alpha[k] : 1));
    return share;
  }
  const double half = f.label_smoothing / 2, on = f.pos_weight ? f.pos_weight[k] : 1;
  add_linear(share, s, e1, weight * (on * (1 - half) + half));
  add_linear(share, s, e0, weight * (on * half + (1 - half)));
  add_linear(share, s, x, -weight * on * half);
  add_linear(share, s, tx, weight * (on + 1) * half);
  return share;
}

/// Over positions, each at the class of its target: w_y (-log p_y), smoothed (1 - e) (..) + e / C sum_k w_k (..).
FASTMINE_HOST_DEVICE inline Share softmax_pointwise(const Formula& f, FormulaTerm term, const Group& s,
                                                    std::int64_t k) {
  Share share;
  const double weight = class_weight(f, k);
  if (term == FormulaTerm::focal) {
    add_linear(share, s, f1, weight * (f.focal_alpha ? f.focal_alpha[k] : 1));
  } else {
    add_linear(share, s, e1, weight * (1 - f.label_smoothing));
    add_linear(share, s, x, weight * f.label_smoothing);
  }
  const double positions = k == 0 ? s[n] : 0;  // one is one, whatever its classes
  share.denominator = f.class_weights && !f.weights_count ? weight * s[t] : positions;
  return share;
}

// --- overlap terms

FASTMINE_HOST_DEVICE inline bool is_empty(const Group& s) { return s[t] == 0; }

/// Where a term has no value of its own: without target; a correlation without background, too.
FASTMINE_HOST_DEVICE inline bool is_undefined(FormulaTerm term, const Group& s) {
  return is_empty(s) || (term == FormulaTerm::mcc && s[t] == s[n]);
}

FASTMINE_HOST_DEVICE inline Dual sizes(const Formula& f, const Group& s) {
  return f.squared ? s.squares() + s[tt] : s.probability() + s[t];
}

FASTMINE_HOST_DEVICE inline Dual dice_score(const Formula& f, const Group& s) {
  return (2 * s.overlap() + f.smooth_nr) / (sizes(f, s) + f.smooth_dr);
}

/// -log of the Dice score; where every probability on target has underflowed, that of the smallest number.
FASTMINE_HOST_DEVICE inline Dual log_dice(const Formula& f, const Group& s) {
  const Dual score = dice_score(f, s);
  constexpr double kTiny = __DBL_MIN__;
  return 0 - log(score.value < kTiny ? Dual(kTiny) : score);
}

FASTMINE_HOST_DEVICE inline Dual iou(const Formula& f, const Group& s) {
  return 1 - (s.overlap() + f.smooth_nr) / (sizes(f, s) - s.overlap() + f.smooth_dr);
}

/// The weighted errors of Tversky's index.
FASTMINE_HOST_DEVICE inline Dual errors(const Formula& f, const Group& s) {
  return f.tversky_alpha * (s.probability() - s.overlap()) + f.tversky_beta * (s[t] - s.overlap());
}

FASTMINE_HOST_DEVICE inline Dual tversky(const Formula& f, const Group& s) {
  return 1 - (s.overlap() + f.smooth_nr) / (s.overlap() + errors(f, s) + f.smooth_dr);
}

/// (1 - TI)^e; its slope is infinite at 0 for e < 1, where nothing is left to learn: 0, and no gradient.
FASTMINE_HOST_DEVICE inline Dual focal_tversky(const Formula& f, const Group& s) {
  const Dual wrong = errors(f, s);
  const Dual left = (wrong + (f.smooth_dr - f.smooth_nr)) / (s.overlap() + wrong + f.smooth_dr);  // no cancellation
  return left.value <= 0 ? Dual(0) : pow(left, f.focal_tversky_exponent);
}

/// N - P, which keeps its digits where p has become 1: the sum of q is at least that of p q.
FASTMINE_HOST_DEVICE inline Dual background(const Group& s) {
  const Dual rest = s[n] - s.probability();
  return rest + larger(s[g1] + s[g0] - rest.value, 0);
}

/// 1 - (TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN)), smoothing added to each of the four cells.
FASTMINE_HOST_DEVICE inline Dual mcc(const Formula& f, const Group& s) {
  const double top = f.smooth_nr, low = 2 * f.smooth_dr;
  const Dual p = s.probability();
  const Dual square = (p + low) * (s[t] + low) * (s[n] - s[t] + low) * (background(s) + low);
  if (square.value <= 0) {  // no target, no background, or all probabilities underflowed, which leaves no gradient
    return 1;
  }
  return 1 - ((s.overlap() + top) * (s[n] + 4 * top) - (p + 2 * top) * (s[t] + 2 * top)) / sqrt(square);
}

FASTMINE_HOST_DEVICE inline Dual overlap_value(const Formula& f, FormulaTerm term, const Group& s) {
  switch (term) {
    case FormulaTerm::dice:
      return 1 - dice_score(f, s);
    case FormulaTerm::iou:
      return iou(f, s);
    case FormulaTerm::tversky:
      return tversky(f, s);
    case FormulaTerm::log_dice:
      return log_dice(f, s);
    case FormulaTerm::focal_tversky:
      return focal_tversky(f, s);
    default:
      return mcc(f, s);
  }
}

/// The weight of a class with target in the generalized Dice of its row, without its class weight; 0 for others.
FASTMINE_HOST_DEVICE inline double target_weight(const Formula& f, const Group& s, std::int64_t k) {
  return is_kept(f, k) && s[n] > 0 && !is_empty(s) ? ::pow(s[t], -f.generalized_power) : 0;
}

/// Under "smooth" an empty class takes the largest weight of its row, since its own would be infinite.
FASTMINE_HOST_DEVICE inline double empty_weight(const Formula& f, double largest) {
  return f.empty != EmptyGroups::smooth ? 0 : largest == 0 ? 1 : largest;
}

/// What a class weighs in the generalized Dice of its row.
FASTMINE_HOST_DEVICE inline double generalized_weight(const Formula& f, const Row& row, std::int64_t k) {
  const Group s = row.group(k);
  if (!(s[n] > 0) || !is_kept(f, k)) {
    return 0;
  }
  return class_weight(f, k) * (is_empty(s) ? row.generalized.empty_weight : target_weight(f, s, k));
}

/// What the generalized Dice of a row is made of.
struct GeneralizedSums {
  double overlap = 0, probability = 0, target = 0, classes = 0, sharing = 0;
};

/// One class of it, given the weight of an empty one.
FASTMINE_HOST_DEVICE inline void add_class(const Formula& f, const Row& row, std::int64_t k, GeneralizedSums& sums) {
  const Group s = row.group(k);
  const double weight = generalized_weight(f, row, k);
  if (weight != 0) {
    sums.overlap += weight * s[a];
    sums.probability += weight * s[p];
    sums.target += weight * s[t];
    sums.classes += 1;
  }
  const bool own = is_empty(s) && f.empty != EmptyGroups::smooth;  // the policy's value
  sums.sharing += is_kept(f, k) && s[n] > 0 && !own ? class_weight(f, k) : 0;
}

/// One score per row, classes weighted by the inverse of their area; it is the value of each of its groups.
FASTMINE_HOST_DEVICE inline Generalized generalized(const Formula& f, double weight_of_empty,
                                                    const GeneralizedSums& sums) {
  const Dual denominator = sums.classes > 0 ? Dual(sums.probability, 1) + sums.target + f.smooth_dr : Dual(1);
  return {weight_of_empty, sums.sharing, 1 - (2 * Dual(sums.overlap, 0) + f.smooth_nr) / denominator};
}

/// The mean over groups of a value; an undefined one has its mean probability, nothing, or the value.
FASTMINE_HOST_DEVICE inline Share by_policy(const Formula& f, FormulaTerm term, const Row& row, std::int64_t k) {
  Share share;
  const Group s = row.group(k);
  const bool undefined = is_undefined(term, s);
  if (!(s[n] > 0) || (undefined && f.empty == EmptyGroups::skip)) {
    return share;
  }
  const double weight = class_weight(f, k);
  share.denominator = f.weights_count ? 1 : weight;
  Dual value;
  if (undefined && f.empty == EmptyGroups::area) {
    const bool full = term == FormulaTerm::mcc && !is_empty(s);
    value = (full ? background(s) : s.probability()) / s[n];
  } else if (term == FormulaTerm::lovasz) {
    value = row.lovasz[k];
    share.lovasz_slope = weight;
  } else if (term == FormulaTerm::generalized_dice) {
    value = row.generalized.value.value;  // whose slopes reach every group of the row
  } else {
    value = overlap_value(f, term, s);
  }
  share.numerator = weight * value.value;
  share.slope(a) = weight * value.by[0];
  share.slope(p) = weight * value.by[1];
  share.slope(pp) = weight * value.by[2];
  return share;
}

FASTMINE_HOST_DEVICE inline Share share_of(const Formula& f, FormulaTerm term, const Row& row, std::int64_t k) {
  const bool every = f.softmax && is_pointwise(term);  // a softmax has no position without its background
  if (!every && !is_kept(f, k)) {
    return {};
  }
  if (is_pointwise(term)) {
    return f.softmax ? softmax_pointwise(f, term, row.group(k), k) : sigmoid_pointwise(f, term, row.group(k), k);
  }
  Share share = by_policy(f, term, row, k);
  if (term == FormulaTerm::generalized_dice) {
    const double weight = row.generalized.sharing * generalized_weight(f, row, k);
    share.slope(a) += weight * row.generalized.value.by[0];
    share.slope(p) += weight * row.generalized.value.by[1];
  }
  return share;
}

/// The L1 norm of a term's part of the gradient by the logits of a group, where the sums tell it: given its slopes,
/// and `other`, under a softmax of two classes the slope by p of the other one.
FASTMINE_HOST_DEVICE inline double norm_of(const Formula& f, const Group& s, const double* by, double other) {
  const auto slope = [by](SegmentationSum sum) { return ::fabs(by[index(sum)]); };
  const double missed = s[t] - s[a];
  if (f.softmax) {  // p - [y = k] over all classes: 1 - p_y twice; and p_0 p_1 (h_0 - h_1) of both
    return 2 * (slope(e1) * missed + (f.classes == 2 ? ::fabs(by[index(a)] + by[index(p)] - other) * s[g1] : 0));
  }
  const double overlap = ::fabs(by[index(a)] + by[index(p)]) * s[g1] + slope(p) * s[g0];
  return overlap + slope(e1) * missed + slope(e0) * (s[p] - s[a]);
}

/// The slope by p of the other of two classes of a softmax.
FASTMINE_HOST_DEVICE inline double other_slope(const Formula& f, FormulaTerm term, const Row& row, std::int64_t k) {
  return f.softmax && f.classes == 2 ? share_of(f, term, row, 1 - k).slope(p) : 0;
}

/// By how much label smoothing spreads what it takes from the target: evenly over the annotated classes of a sample.
FASTMINE_HOST_DEVICE inline double spread(const Formula& f, std::int64_t sample) {
  if (!f.softmax || f.label_smoothing == 0) {
    return 1;
  }
  double annotated = 0;
  for (std::int64_t k = 0; k < f.classes; ++k) {
    annotated += f.sums[(sample * f.classes + k) * kSegmentationSums + index(n)] > 0 ? 1 : 0;
  }
  return 1 / larger(annotated, 1);
}

FASTMINE_HOST_DEVICE inline void write_loss(const Formula& f, std::int64_t i, double value) {
  if (f.loss_dtype == DType::float64) {
    static_cast<double*>(f.loss)[i] = value;
  } else {
    static_cast<float*>(f.loss)[i] = static_cast<float>(value);
  }
}

FASTMINE_HOST_DEVICE inline double poison_of(const Formula& f) {
  const double spoiled =
      f.found[static_cast<int>(Segmentation::nonfinite)] + f.found[static_cast<int>(Segmentation::out_of_range)];
  return spoiled > 0 ? __builtin_nan("") : 1;
}

}  // namespace fastmine::terms
