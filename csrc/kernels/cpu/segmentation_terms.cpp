// Compiled once, for every CPU: O(groups) scalar arithmetic.
#include "kernels/segmentation_terms.h"

#include <algorithm>

#include "kernels/segmentation_terms_formula.h"

namespace fastmine::cpu {
namespace {

using namespace terms;

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

Generalized generalized_of(const Formula& f, Row& row) {
  double largest = 0;
  for (std::int64_t k = 0; k < f.classes; ++k) {
    largest = larger(largest, target_weight(f, row.group(k), k));
  }
  row.generalized.empty_weight = empty_weight(f, largest);
  GeneralizedSums sums;
  for (std::int64_t k = 0; k < f.classes; ++k) {
    add_class(f, row, k, sums);
  }
  return generalized(f, row.generalized.empty_weight, sums);
}

Row row_of(const Formula& f, std::int64_t i) {
  Row row{f.room + i * f.classes * kSegmentationSums, f.lovasz == nullptr ? nullptr : f.lovasz + i * f.classes, {}};
  if (f.asked[static_cast<int>(FormulaTerm::generalized_dice)]) {
    row.generalized = generalized_of(f, row);
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
      f.norms[at] += norm_of(f, row.group(k), share.slopes, scale * other_slope(f, term, row, k));
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
