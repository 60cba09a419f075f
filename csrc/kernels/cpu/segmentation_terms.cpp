// Compiled once, for every CPU: O(groups) scalar arithmetic.
#include "kernels/segmentation_terms.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/dual.h"

namespace fastmine::cpu {
namespace {

using enum SegmentationSum;
using Formula = SegmentationTerms;

constexpr int index(SegmentationSum sum) { return static_cast<int>(sum); }

constexpr bool is_pointwise(FormulaTerm term) {
  return term == FormulaTerm::bce || term == FormulaTerm::ce || term == FormulaTerm::focal;
}

/// The sums of one group; those that a formula is differentiated by, as variables.
struct Group {
  const double* sums;

  double operator[](SegmentationSum sum) const { return sums[index(sum)]; }
  Dual overlap() const { return {(*this)[a], 0}; }
  Dual probability() const { return {(*this)[p], 1}; }
  Dual squares() const { return {(*this)[pp], 2}; }
};

/// What one group adds to a term: to numerator and denominator, and the numerator's slopes by its sums.
struct Share {
  double numerator = 0, denominator = 0;
  double slopes[kSegmentationSums] = {};
  double lovasz_slope = 0;

  double& slope(SegmentationSum sum) { return slopes[index(sum)]; }
};

/// The groups that are reduced together: those of a sample, or of the batch.
struct Row {
  const double* sums;    // [classes, kSegmentationSums]
  const double* lovasz;  // [classes] or null
  // Generalized Dice, which couples them: the weight of an empty class, its value by the weighted sums of a and of p,
  // and the class weights of the groups that have this value.
  double empty_weight = 0, sharing = 0;
  Dual generalized;

  Group group(std::int64_t k) const { return {sums + k * kSegmentationSums}; }
};

bool is_kept(const Formula& f, std::int64_t k) { return f.kept == nullptr || f.kept[k] != 0; }

double class_weight(const Formula& f, std::int64_t k) { return f.class_weights ? f.class_weights[k] : 1; }

// --- pointwise terms, linear in the sums

void add_linear(Share& share, const Group& s, SegmentationSum sum, double slope) {
  if (slope != 0) {  // a sum that nobody asked for may be NaN in a spoiled batch, as all others are
    share.slope(sum) = slope;
    share.numerator += slope * s[sum];
  }
}

/// w (u on + off), with class weight w and pos_weight u; smoothed, t' = (1 - e) t + e / 2, where sp(x) = x + sp(-x)
/// tells what is known about either side from the other.
Share sigmoid_pointwise(const Formula& f, FormulaTerm term, const Group& s, std::int64_t k) {
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
Share softmax_pointwise(const Formula& f, FormulaTerm term, const Group& s, std::int64_t k) {
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

bool is_empty(const Group& s) { return s[t] == 0; }

/// Where a term has no value of its own: without target; a correlation without background, too.
bool is_undefined(FormulaTerm term, const Group& s) {
  return is_empty(s) || (term == FormulaTerm::mcc && s[t] == s[n]);
}

Dual sizes(const Formula& f, const Group& s) { return f.squared ? s.squares() + s[tt] : s.probability() + s[t]; }

Dual dice_score(const Formula& f, const Group& s) {
  return (2 * s.overlap() + f.smooth_nr) / (sizes(f, s) + f.smooth_dr);
}

/// -log of the Dice score; where every probability on target has underflowed, that of the smallest number.
Dual log_dice(const Formula& f, const Group& s) {
  const Dual score = dice_score(f, s);
  constexpr double kTiny = std::numeric_limits<double>::min();
  return 0 - log(score.value < kTiny ? Dual(kTiny) : score);
}

Dual iou(const Formula& f, const Group& s) {
  return 1 - (s.overlap() + f.smooth_nr) / (sizes(f, s) - s.overlap() + f.smooth_dr);
}

/// The weighted errors of Tversky's index.
Dual errors(const Formula& f, const Group& s) {
  return f.tversky_alpha * (s.probability() - s.overlap()) + f.tversky_beta * (s[t] - s.overlap());
}

Dual tversky(const Formula& f, const Group& s) {
  return 1 - (s.overlap() + f.smooth_nr) / (s.overlap() + errors(f, s) + f.smooth_dr);
}

/// (1 - TI)^e; its slope is infinite at 0 for e < 1, where nothing is left to learn: 0, and no gradient.
Dual focal_tversky(const Formula& f, const Group& s) {
  const Dual wrong = errors(f, s);
  const Dual left = (wrong + (f.smooth_dr - f.smooth_nr)) / (s.overlap() + wrong + f.smooth_dr);  // no cancellation
  return left.value <= 0 ? Dual(0) : pow(left, f.focal_tversky_exponent);
}

/// N - P, which keeps its digits where p has become 1: the sum of q is at least that of p q.
Dual background(const Group& s) {
  const Dual rest = s[n] - s.probability();
  return rest + std::max(s[g1] + s[g0] - rest.value, 0.0);
}

/// 1 - (TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN)), smoothing added to each of the four cells.
Dual mcc(const Formula& f, const Group& s) {
  const double top = f.smooth_nr, low = 2 * f.smooth_dr;
  const Dual p = s.probability();
  const Dual square = (p + low) * (s[t] + low) * (s[n] - s[t] + low) * (background(s) + low);
  if (square.value <= 0) {  // no target, no background, or all probabilities underflowed, which leaves no gradient
    return 1;
  }
  return 1 - ((s.overlap() + top) * (s[n] + 4 * top) - (p + 2 * top) * (s[t] + 2 * top)) / sqrt(square);
}

Dual overlap_value(const Formula& f, FormulaTerm term, const Group& s) {
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

/// What a class weighs in the generalized Dice of its row.
double generalized_weight(const Formula& f, const Row& row, std::int64_t k) {
  const Group s = row.group(k);
  if (!(s[n] > 0) || !is_kept(f, k)) {
    return 0;
  }
  return class_weight(f, k) * (is_empty(s) ? row.empty_weight : std::pow(s[t], -f.generalized_power));
}

/// The mean over groups of a value; an undefined one has its mean probability, nothing, or the value.
Share by_policy(const Formula& f, FormulaTerm term, const Row& row, std::int64_t k) {
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
    value = row.generalized.value;  // whose slopes reach every group of the row
  } else {
    value = overlap_value(f, term, s);
  }
  share.numerator = weight * value.value;
  share.slope(a) = weight * value.by[0];
  share.slope(p) = weight * value.by[1];
  share.slope(pp) = weight * value.by[2];
  return share;
}

Share share_of(const Formula& f, FormulaTerm term, const Row& row, std::int64_t k) {
  const bool every = f.softmax && is_pointwise(term);  // a softmax has no position without its background
  if (!every && !is_kept(f, k)) {
    return {};
  }
  if (is_pointwise(term)) {
    return f.softmax ? softmax_pointwise(f, term, row.group(k), k) : sigmoid_pointwise(f, term, row.group(k), k);
  }
  Share share = by_policy(f, term, row, k);
  if (term == FormulaTerm::generalized_dice) {
    const double weight = row.sharing * generalized_weight(f, row, k);
    share.slope(a) += weight * row.generalized.by[0];
    share.slope(p) += weight * row.generalized.by[1];
  }
  return share;
}

/// One score per row, classes weighted by the inverse of their area; it is the value of each of its groups. Under
/// "smooth" an empty class takes the largest weight of its row, since its own would be infinite.
void add_generalized(const Formula& f, Row& row) {
  double largest = 0;
  for (std::int64_t k = 0; k < f.classes; ++k) {
    const Group s = row.group(k);
    if (is_kept(f, k) && s[n] > 0 && !is_empty(s)) {
      largest = std::max(largest, std::pow(s[t], -f.generalized_power));
    }
  }
  row.empty_weight = f.empty != EmptyGroups::smooth ? 0 : largest == 0 ? 1 : largest;
  double overlap = 0, probability = 0, target = 0;
  bool defined = false;
  for (std::int64_t k = 0; k < f.classes; ++k) {
    const double weight = generalized_weight(f, row, k);
    if (weight == 0) {
      continue;
    }
    const Group s = row.group(k);
    defined = true;
    overlap += weight * s[a];
    probability += weight * s[p];
    target += weight * s[t];
  }
  const Dual denominator = defined ? Dual(probability, 1) + target + f.smooth_dr : 1;
  row.generalized = 1 - (2 * Dual(overlap, 0) + f.smooth_nr) / denominator;
  for (std::int64_t k = 0; k < f.classes; ++k) {
    const Group s = row.group(k);
    const bool own = is_empty(s) && f.empty != EmptyGroups::smooth;  // the policy's value
    row.sharing += is_kept(f, k) && s[n] > 0 && !own ? class_weight(f, k) : 0;
  }
}

// --- from groups to the loss

/// Numerators and denominators, of one row or of all.
struct Totals {
  double numerator[kFormulaTerms] = {}, denominator[kFormulaTerms] = {};

  void add(const Totals& other) {
    for (int i = 0; i < kFormulaTerms; ++i) {
      numerator[i] += other.numerator[i];
      denominator[i] += other.denominator[i];
    }
  }

  /// 0 where there is nothing to divide by.
  double per(int term) const { return denominator[term] == 0 ? 0 : 1 / denominator[term]; }
  double mean(int term) const { return denominator[term] == 0 ? 0 : numerator[term] / denominator[term]; }
};

template <class F>
void for_terms(const Formula& f, F visit) {
  for (int i = 0; i < kFormulaTerms; ++i) {
    if (f.asked[i]) {
      visit(static_cast<FormulaTerm>(i), i);
    }
  }
}

Totals totals_of(const Formula& f, const Row& row) {
  Totals totals;
  for_terms(f, [&](FormulaTerm term, int i) {
    for (std::int64_t k = 0; k < f.classes; ++k) {
      const Share share = share_of(f, term, row, k);
      totals.numerator[i] += share.numerator;
      totals.denominator[i] += share.denominator;
    }
  });
  return totals;
}

double weighted(const Formula& f, const Totals& totals) {
  double loss = 0;
  for_terms(f, [&](FormulaTerm, int i) { loss += f.weights[i] * totals.mean(i); });
  return loss;
}

void write_loss(const Formula& f, std::int64_t i, double value) {
  if (f.loss_dtype == DType::float64) {
    static_cast<double*>(f.loss)[i] = value;
  } else {
    static_cast<float*>(f.loss)[i] = static_cast<float>(value);
  }
}

/// The L1 norm of a term's part of the gradient by the logits of a group, where the sums tell it.
double norm_of(const Formula& f, const Group& s, const double* by) {
  const auto slope = [by](SegmentationSum sum) { return std::abs(by[index(sum)]); };
  const double missed = s[t] - s[a];
  if (f.softmax) {  // p - [y = k] over all classes: 1 - p_y twice
    return 2 * slope(e1) * missed;
  }
  const double overlap = std::abs(by[index(a)] + by[index(p)]) * s[g1] + slope(p) * s[g0];
  return overlap + slope(e1) * missed + slope(e0) * (s[p] - s[a]);
}

/// By how much label smoothing spreads what it takes from the target: evenly over the annotated classes of a sample.
double spread(const Formula& f, std::int64_t sample) {
  if (!f.softmax || f.label_smoothing == 0) {
    return 1;
  }
  double annotated = 0;
  for (std::int64_t k = 0; k < f.classes; ++k) {
    annotated += f.sums[(sample * f.classes + k) * kSegmentationSums + index(n)] > 0 ? 1 : 0;
  }
  return 1 / std::max(annotated, 1.0);
}

std::int64_t row_count(const Formula& f) { return f.batch ? 1 : f.samples; }

/// The sums of each row, with what label smoothing spreads.
void gather(const Formula& f) {
  const std::int64_t size = f.classes * kSegmentationSums;
  std::fill_n(f.room, row_count(f) * size, 0.0);
  for (std::int64_t sample = 0; sample < f.samples; ++sample) {
    const double* from = f.sums + sample * size;
    double* to = f.room + (f.batch ? 0 : sample) * size;
    const double share = spread(f, sample);
    for (std::int64_t i = 0; i < size; ++i) {
      to[i] += i % kSegmentationSums == index(x) ? share * from[i] : from[i];
    }
  }
}

Row row_of(const Formula& f, std::int64_t i) {
  Row row{
      f.room + i * f.classes * kSegmentationSums, f.lovasz == nullptr ? nullptr : f.lovasz + i * f.classes, 0, 0, {}};
  if (f.asked[static_cast<int>(FormulaTerm::generalized_dice)]) {
    add_generalized(f, row);
  }
  return row;
}

/// The slopes of the loss by the sums of a row, whose terms are divided by `totals`, for each of its samples; and their
/// part of the norms.
void write_slopes(const Formula& f, const Row& row, std::int64_t i, const Totals& totals, double poison) {
  const std::int64_t size = f.classes * kSegmentationSums;
  const std::int64_t first = f.batch ? 0 : i, last = f.batch ? f.samples : i + 1;
  if (first == last) {
    return;
  }
  double* slopes = f.slopes + first * size;
  std::fill_n(slopes, size, 0.0);
  for (std::int64_t k = 0; k < f.classes; ++k) {
    double lovasz_slope = 0;
    for_terms(f, [&](FormulaTerm term, int at) {
      Share share = share_of(f, term, row, k);
      const double scale = f.weights[at] * totals.per(at) * poison;
      for (int sum = 0; sum < kSegmentationSums; ++sum) {
        share.slopes[sum] *= scale;
        slopes[k * kSegmentationSums + sum] += share.slopes[sum];
      }
      lovasz_slope += scale * share.lovasz_slope;
      f.norms[at] += norm_of(f, row.group(k), share.slopes);
    });
    if (f.lovasz_slopes != nullptr) {
      f.lovasz_slopes[i * f.classes + k] = lovasz_slope;
    }
  }
  for (std::int64_t sample = last - 1; sample >= first; --sample) {
    double* own = f.slopes + sample * size;
    if (sample > first) {
      std::copy_n(slopes, size, own);
    }
    const double share = spread(f, sample);
    for (std::int64_t k = 0; k < f.classes; ++k) {
      own[k * kSegmentationSums + index(x)] *= share;
    }
  }
}

double poison_of(const Formula& f) {
  const double spoiled =
      f.found[static_cast<int>(Segmentation::nonfinite)] + f.found[static_cast<int>(Segmentation::out_of_range)];
  return spoiled > 0 ? std::numeric_limits<double>::quiet_NaN() : 1;
}

}  // namespace

void segmentation_terms(const SegmentationTerms& f) noexcept {
  const double poison = poison_of(f);
  std::fill_n(f.norms, kFormulaTerms, 0.0);
  if (f.lovasz_slopes != nullptr) {
    std::fill_n(f.lovasz_slopes, row_count(f) * f.classes, 0.0);
  }
  gather(f);
  Totals all;
  double sum = 0;
  for (std::int64_t i = 0; i < row_count(f); ++i) {
    const Row row = row_of(f, i);
    const Totals totals = totals_of(f, row);
    const double loss = weighted(f, totals) * poison;
    all.add(totals);
    sum += loss;
    if (f.reduction == Reduction::none) {
      write_loss(f, i, loss);
    }
    if (f.reduction != Reduction::mean) {
      write_slopes(f, row, i, totals, poison);
    }
  }
  if (f.reduction == Reduction::mean) {
    write_loss(f, 0, weighted(f, all) * poison);
    for (std::int64_t i = 0; i < row_count(f); ++i) {
      write_slopes(f, row_of(f, i), i, all, poison);
    }
  } else if (f.reduction == Reduction::sum) {
    write_loss(f, 0, sum);
  }
  for (int i = 0; i < kFormulaTerms; ++i) {
    f.values[i] = f.asked[i] ? all.mean(i) * poison : 0;
  }
}

}  // namespace fastmine::cpu
