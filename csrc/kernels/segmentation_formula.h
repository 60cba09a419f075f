// The formula of the segmentation losses, on the sums of a group, of a sample and of all, and what is left to do for
// the sums themselves: plain float64 arithmetic, the same text on the CPU (cpu/segmentation_formula.cpp) and on the GPU
// (cuda/segmentation_finish.cuh). Who adds up what in which order is theirs.
#pragma once

#include <cstdint>

#include "kernels/host_device.h"
#include "kernels/segmentation_loss.h"
#include "kernels/segmentation_parts.h"
#include "kernels/segmentation_sums.h"

namespace fastmine::segmentation {

inline constexpr double kInf = __builtin_inf();

FASTMINE_HOST_DEVICE constexpr int index(SegmentationTerm term) { return static_cast<int>(term); }

inline constexpr int kDice = index(SegmentationTerm::dice);
inline constexpr int kIou = index(SegmentationTerm::iou);
inline constexpr int kTversky = index(SegmentationTerm::tversky);
inline constexpr int kFocal = index(SegmentationTerm::focal);

FASTMINE_HOST_DEVICE constexpr bool is_overlap(int term) { return term == kDice || term == kIou || term == kTversky; }

FASTMINE_HOST_DEVICE constexpr bool is_softmax(const SegmentationInputs& in) {
  return in.mode == SegmentationMode::multiclass;
}

/// The cross entropy of a mode.
FASTMINE_HOST_DEVICE constexpr int entropy_term(const SegmentationInputs& in) {
  return index(is_softmax(in) ? SegmentationTerm::ce : SegmentationTerm::bce);
}

FASTMINE_HOST_DEVICE constexpr double at_least_one(double count) { return count > 1 ? count : 1; }

/// The smaller and the larger; NaN if either is.
FASTMINE_HOST_DEVICE constexpr double lower(double a, double b) { return a != a || a < b ? a : b; }
FASTMINE_HOST_DEVICE constexpr double upper(double a, double b) { return a != a || a > b ? a : b; }

/// The sums of one group, in the order in which SegmentationLoss::sums holds them.
struct Sums {
  double n, t, p, a;
};

/// The value of an overlap term and its derivative by a probability, on_target t + everywhere.
struct Overlap {
  double value, on_target, everywhere;
};

FASTMINE_HOST_DEVICE inline bool counts(const SegmentationLoss& problem, const Sums& s) {
  return s.n > 0 && !(s.t == 0 && problem.empty == EmptyGroups::skip);
}

FASTMINE_HOST_DEVICE inline Overlap overlap(const SegmentationLoss& problem, const Sums& s, int term) {
  if (s.t == 0 && problem.empty == EmptyGroups::area) {
    return {s.p / s.n, 0, 1 / s.n};
  }
  const double smooth = problem.smooth, alpha = problem.tversky_alpha, beta = problem.tversky_beta;
  if (term == kDice) {
    const double inverse = 1 / (s.p + s.t + smooth);
    return {1 - (2 * s.a + smooth) * inverse, -2 * inverse, (2 * s.a + smooth) * inverse * inverse};
  }
  const double numerator = s.a + smooth;
  if (term == kIou) {
    const double inverse = 1 / (s.p + s.t - s.a + smooth), square = numerator * inverse * inverse;
    return {1 - numerator * inverse, -(inverse + square), square};
  }
  const double inverse = 1 / (s.a + alpha * (s.p - s.a) + beta * (s.t - s.a) + smooth);
  const double square = numerator * inverse * inverse;
  return {1 - numerator * inverse, -inverse + square * (1 - alpha - beta), alpha * square};
}

/// What the evidence counts beside the terms.
struct Found {
  double annotated = 0, nonempty = 0, items = 0;
  double target_sum = 0, prediction_sum = 0, overlap_sum = 0;
  double target_min = kInf, target_max = -kInf, logit_min = kInf, logit_max = -kInf;
  double nonfinite = 0, out_of_range = 0;

  FASTMINE_HOST_DEVICE void add(const SegmentationPart& part) {
    items += part.items;
    target_min = lower(target_min, part.target_min);
    target_max = upper(target_max, part.target_max);
    logit_min = lower(logit_min, part.logit_min);
    logit_max = upper(logit_max, part.logit_max);
    nonfinite += part.nonfinite;
    out_of_range += part.out_of_range;
  }

  /// Class 0 of a softmax is background.
  FASTMINE_HOST_DEVICE void add(const Sums& s, bool foreground) {
    annotated += s.n > 0 ? 1 : 0;
    nonempty += s.n > 0 && s.t != 0 ? 1 : 0;
    if (foreground) {
      target_sum += s.t;
      prediction_sum += s.p;
      overlap_sum += s.a;
    }
  }

  /// A factor, not a replacement: a valid NaN, Inf or impossible target spoils value and gradient alike.
  FASTMINE_HOST_DEVICE double poison() const { return out_of_range + nonfinite > 0 ? __builtin_nan("") : 1; }
};

/// The numerators and denominators of all terms, of one sample or of all.
struct Totals {
  double sums[kSegmentationTerms] = {};
  double groups = 0;  // that count
  double items = 0;

  FASTMINE_HOST_DEVICE double denominator(int term) const { return at_least_one(is_overlap(term) ? groups : items); }

  /// The overlap terms of one group.
  FASTMINE_HOST_DEVICE void add(const SegmentationLoss& problem, const Sums& s) {
    if (!counts(problem, s)) {
      return;
    }
    groups += 1;
    FASTMINE_UNROLL for (int term = 0; term < kSegmentationTerms; ++term) {
      if (is_overlap(term) && problem.weights[term] != 0) {
        sums[term] += overlap(problem, s, term).value;
      }
    }
  }

  FASTMINE_HOST_DEVICE void add(const Totals& other) {
    FASTMINE_UNROLL for (int term = 0; term < kSegmentationTerms; ++term) { sums[term] += other.sums[term]; }
    groups += other.groups;
    items += other.items;
  }

  FASTMINE_HOST_DEVICE double mean(int term) const { return sums[term] / denominator(term); }
};

FASTMINE_HOST_DEVICE inline double weighted(const SegmentationLoss& problem, const Totals& totals) {
  double loss = 0;
  FASTMINE_UNROLL for (int term = 0; term < kSegmentationTerms; ++term) {
    if (problem.weights[term] != 0) {
      loss += problem.weights[term] * totals.mean(term);
    }
  }
  return loss;
}

FASTMINE_HOST_DEVICE inline void write_loss(const SegmentationLoss& problem, std::int64_t i, double value) {
  if (problem.loss_dtype == DType::float64) {
    static_cast<double*>(problem.loss)[i] = value;
  } else {
    static_cast<float*>(problem.loss)[i] = static_cast<float>(value);
  }
}

/// The coefficients of one group; `totals` are those over which the loss takes its means.
FASTMINE_HOST_DEVICE inline void write_coefficients(const SegmentationLoss& problem, std::int64_t group, const Sums& s,
                                                    const Totals& totals, double poison) {
  const double items = at_least_one(totals.items), groups = at_least_one(totals.groups);
  double on_target = 0, everywhere = 0;
  FASTMINE_UNROLL for (int term = 0; term < kSegmentationTerms; ++term) {
    if (is_overlap(term) && problem.weights[term] != 0 && counts(problem, s)) {
      const Overlap slope = overlap(problem, s, term);
      on_target += problem.weights[term] * slope.on_target / groups;
      everywhere += problem.weights[term] * slope.everywhere / groups;
    }
  }
  double* out = problem.coefficients + group * 4;
  out[0] = on_target * poison;
  out[1] = everywhere * poison;
  out[2] = problem.weights[entropy_term(problem.in)] / items * poison;
  out[3] = problem.weights[kFocal] / items * poison;
}

FASTMINE_HOST_DEVICE inline void put(double* evidence, Segmentation field, double value) {
  evidence[static_cast<int>(field)] = value;
}

/// The fields before the terms.
FASTMINE_HOST_DEVICE inline void write_found(const SegmentationInputs& in, const Found& found, double* out) {
  const double items = static_cast<double>(in.samples * (is_softmax(in) ? 1 : in.classes) * in.positions);
  const bool seen = found.items > 0;
  put(out, Segmentation::groups, static_cast<double>(in.samples * in.classes));
  put(out, Segmentation::annotated, found.annotated);
  put(out, Segmentation::nonempty, found.nonempty);
  put(out, Segmentation::items, items);
  put(out, Segmentation::ignored, items - found.items);
  put(out, Segmentation::target_sum, found.target_sum);
  put(out, Segmentation::prediction_sum, found.prediction_sum);
  put(out, Segmentation::overlap_sum, found.overlap_sum);
  put(out, Segmentation::target_min, seen ? found.target_min : 0);
  put(out, Segmentation::target_max, seen ? found.target_max : 0);
  put(out, Segmentation::logit_min, seen ? found.logit_min : 0);
  put(out, Segmentation::logit_max, seen ? found.logit_max : 0);
  put(out, Segmentation::nonfinite, found.nonfinite);
  put(out, Segmentation::out_of_range, found.out_of_range);
}

FASTMINE_HOST_DEVICE inline void write_evidence(const SegmentationLoss& problem, const Found& found,
                                                const Totals& totals) {
  double* out = problem.evidence;
  write_found(problem.in, found, out);
  FASTMINE_UNROLL for (int term = 0; term < kSegmentationTerms; ++term) {
    out[static_cast<int>(Segmentation::first_term) + term] = problem.weights[term] != 0 ? totals.mean(term) : 0;
  }
}

// --- all sums

/// Whether a class is part of class 0 of its sample.
FASTMINE_HOST_DEVICE inline bool is_merged(const SegmentationInputs& in, std::int64_t sample, std::int64_t k) {
  return in.merged != nullptr && k > 0 && in.merged[sample * in.classes + k] != 0;
}

template <class... Sums>
FASTMINE_HOST_DEVICE constexpr SegmentationSumSet set_of(Sums... sums) {
  return ((SegmentationSumSet{1} << static_cast<int>(sums)) | ...);
}

FASTMINE_HOST_DEVICE constexpr bool has(SegmentationSumSet set, int sum) { return (set >> sum & 1) != 0; }

/// What something wrong makes NaN. A softmax has none of the second set.
inline constexpr SegmentationSumSet kSpoiled =
    set_of(SegmentationSum::p, SegmentationSum::a, SegmentationSum::pp, SegmentationSum::tt, SegmentationSum::e1,
           SegmentationSum::f1, SegmentationSum::x, SegmentationSum::g1, SegmentationSum::g0);
inline constexpr SegmentationSumSet kSpoiledSigmoid =
    kSpoiled | set_of(SegmentationSum::e0, SegmentationSum::f0, SegmentationSum::tx);

/// What the passes leave out of the sums of a group because it follows; then only what is wanted, and NaN where
/// something was wrong.
FASTMINE_HOST_DEVICE inline void finish_sums(const SegmentationSums& problem, double poison, double* sums) {
  const auto sum = [sums](SegmentationSum which) -> double& { return sums[static_cast<int>(which)]; };
  const bool softmax = is_softmax(problem.in);
  if (softmax) {
    sum(SegmentationSum::tt) = sum(SegmentationSum::t);
  }
  if (problem.gamma == 0) {
    sum(SegmentationSum::f1) = sum(SegmentationSum::e1);
    sum(SegmentationSum::f0) = sum(SegmentationSum::e0);
  }
  const SegmentationSumSet spoiled = softmax ? kSpoiled : kSpoiledSigmoid;
  for (int i = 0; i < kSegmentationSums; ++i) {
    const double value = has(spoiled, i) ? sums[i] * poison : sums[i];
    sums[i] = has(problem.wanted, i) ? value : 0;
  }
}

}  // namespace fastmine::segmentation
