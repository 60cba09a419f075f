#include "kernels/cuda/segmentation_terms.h"

#include "kernels/cuda/arena.h"
#include "kernels/cuda/warp.h"
#include "kernels/segmentation_terms_formula.h"

namespace fastmine::cuda {
namespace {

using namespace mining;
using namespace terms;

/// A problem whose room is in the workspace, and what is known about its rows.
struct TermsWork {
  Formula problem;
  double* spreads;           // [samples]
  Generalized* generalized;  // [rows]
  double* totals;            // [rows + 1, kFormulaTerms, 2]: numerators and denominators of each row, and of all
  double* losses;            // [rows]

  FASTMINE_HOST_DEVICE std::int64_t rows() const { return problem.batch ? 1 : problem.samples; }
  FASTMINE_HOST_DEVICE double* totals_of(std::int64_t row) const { return totals + row * kFormulaTerms * 2; }
};

TermsWork lay_out(const SegmentationTerms& problem, Arena& arena) {
  TermsWork work{problem, nullptr, nullptr, nullptr, nullptr};
  work.problem.room = arena.take<double>(work.rows() * problem.classes * kSegmentationSums);
  work.spreads = arena.take<double>(problem.samples);
  work.generalized = arena.take<Generalized>(work.rows());
  work.totals = arena.take<double>((work.rows() + 1) * kFormulaTerms * 2);
  work.losses = arena.take<double>(work.rows());
  return work;
}

/// The sums of each row, with what label smoothing spreads.
FASTMINE_DEVICE void gather(const TermsWork& work) {
  const Formula& f = work.problem;
  for (std::int64_t sample = thread_index(); sample < f.samples; sample += kThreads) {
    work.spreads[sample] = spread(f, sample);
  }
  barrier();
  const std::int64_t size = f.classes * kSegmentationSums;
  for (std::int64_t i = thread_index(); i < work.rows() * size; i += kThreads) {
    const std::int64_t first = i / size, last = f.batch ? f.samples : first + 1;
    const bool spreads = i % kSegmentationSums == index(SegmentationSum::x);
    double sum = 0;
    for (std::int64_t sample = first; sample < last; ++sample) {
      const double value = f.sums[sample * size + i % size];
      sum += spreads ? work.spreads[sample] * value : value;
    }
    f.room[i] = sum;
  }
  barrier();
}

FASTMINE_DEVICE Row row_of(const TermsWork& work, std::int64_t i) {
  const Formula& f = work.problem;
  Row row{f.room + i * f.classes * kSegmentationSums, f.lovasz == nullptr ? nullptr : f.lovasz + i * f.classes, {}};
  if (f.asked[static_cast<int>(FormulaTerm::generalized_dice)]) {
    row.generalized = work.generalized[i];
  }
  return row;
}

/// One warp: what couples the groups of a row.
FASTMINE_DEVICE void couple(const TermsWork& work, std::int64_t i) {
  const Formula& f = work.problem;
  Row row{f.room + i * f.classes * kSegmentationSums, nullptr, {}};
  double largest = 0;
  for (std::int64_t k = lane_index(); k < f.classes; k += kWarp) {
    largest = terms::larger(largest, target_weight(f, row.group(k), k));
  }
  FASTMINE_UNROLL for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    largest = terms::larger(largest, from_across(largest, mask));
  }
  row.generalized.empty_weight = empty_weight(f, largest);
  GeneralizedSums sums;
  for (std::int64_t k = lane_index(); k < f.classes; k += kWarp) {
    add_class(f, row, k, sums);
  }
  sums = {add_lanes(sums.overlap), add_lanes(sums.probability), add_lanes(sums.target), add_lanes(sums.classes),
          add_lanes(sums.sharing)};
  if (lane_index() == 0) {
    work.generalized[i] = terms::generalized(f, row.generalized.empty_weight, sums);
  }
}

/// One warp: numerator and denominator of every term of a row.
FASTMINE_DEVICE void add_row(const TermsWork& work, std::int64_t i) {
  const Formula& f = work.problem;
  const Row row = row_of(work, i);
  for (int term = 0; term < kFormulaTerms; ++term) {
    double numerator = 0, denominator = 0;
    for (std::int64_t k = lane_index(); f.asked[term] && k < f.classes; k += kWarp) {
      const Share share = share_of(f, static_cast<FormulaTerm>(term), row, k);
      numerator += share.numerator;
      denominator += share.denominator;
    }
    numerator = add_lanes(numerator);
    denominator = add_lanes(denominator);
    if (lane_index() == 0) {
      work.totals_of(i)[term * 2] = numerator;
      work.totals_of(i)[term * 2 + 1] = denominator;
    }
  }
}

/// 0 where there is nothing to divide by.
FASTMINE_DEVICE double divided(double numerator, double denominator) {
  return denominator == 0 ? 0 : numerator / denominator;
}

FASTMINE_DEVICE double weighted(const Formula& f, const double* totals) {
  double loss = 0;
  for (int term = 0; term < kFormulaTerms; ++term) {
    loss += f.asked[term] ? f.weights[term] * divided(totals[term * 2], totals[term * 2 + 1]) : 0;
  }
  return loss;
}

/// The slopes of one group by one term, added to those of the first sample of its row. Returns their part of the norm.
FASTMINE_DEVICE double add_slopes(const TermsWork& work, std::int64_t group, int term, double poison) {
  const Formula& f = work.problem;
  const std::int64_t i = group / f.classes, k = group % f.classes;
  const Row row = row_of(work, i);
  Share share = share_of(f, static_cast<FormulaTerm>(term), row, k);
  const double* totals = work.totals_of(f.reduction == Reduction::mean ? work.rows() : i);
  const double scale = f.weights[term] * divided(1, totals[term * 2 + 1]) * poison;
  double* slopes = f.slopes + group * kSegmentationSums;
  FASTMINE_UNROLL for (int sum = 0; sum < kSegmentationSums; ++sum) {
    share.slopes[sum] *= scale;
    slopes[sum] += share.slopes[sum];
  }
  if (f.lovasz_slopes != nullptr) {
    f.lovasz_slopes[group] += scale * share.lovasz_slope;
  }
  return norm_of(f, row.group(k), share.slopes, scale * other_slope(f, static_cast<FormulaTerm>(term), row, k));
}

/// The slopes of the loss by all sums, each group the work of one thread throughout; and the norms.
FASTMINE_DEVICE void write_slopes(const TermsWork& work, double poison, double* shared) {
  const Formula& f = work.problem;
  const std::int64_t size = f.classes * kSegmentationSums;
  const std::int64_t groups = f.samples == 0 ? 0 : work.rows() * f.classes;
  for (std::int64_t group = thread_index(); group < groups; group += kThreads) {
    FASTMINE_UNROLL for (int sum = 0; sum < kSegmentationSums; ++sum) { f.slopes[group * kSegmentationSums + sum] = 0; }
  }
  for (std::int64_t group = thread_index(); f.lovasz_slopes != nullptr && group < work.rows() * f.classes;
       group += kThreads) {
    f.lovasz_slopes[group] = 0;
  }
  for (int term = 0; term < kFormulaTerms; ++term) {
    double norm[1] = {0};
    for (std::int64_t group = thread_index(); f.asked[term] && group < groups; group += kThreads) {
      norm[0] += add_slopes(work, group, term, poison);
    }
    const double sum = combine_block(norm, shared, [](int, double a, double b) { return a + b; });
    if (thread_index() == 0) {
      f.norms[term] = sum;
    }
  }
  for (std::int64_t group = thread_index(); group < groups; group += kThreads) {
    double* const slopes = f.slopes + group * kSegmentationSums;
    const std::int64_t first = group / f.classes, copies = f.batch ? f.samples : 1;
    for (std::int64_t copy = copies - 1; copy >= 0; --copy) {  // the first, which the others are copied from, last
      FASTMINE_UNROLL for (int sum = 0; sum < kSegmentationSums; ++sum) {
        const double share = sum == index(SegmentationSum::x) ? work.spreads[first + copy] : 1;
        slopes[copy * size + sum] = share * slopes[sum];
      }
    }
  }
}

/// One block: everything.
FASTMINE_KERNEL(kThreads, 1)
formula_on_sums(FASTMINE_PARAMETER TermsWork work) {
  FASTMINE_SHARED(double, shared, kWarps);
  const Formula& f = work.problem;
  const double poison = poison_of(f);
  gather(work);
  if (f.asked[static_cast<int>(FormulaTerm::generalized_dice)]) {
    for (std::int64_t row = warp_index(); row < work.rows(); row += kWarps) {
      couple(work, row);
    }
    barrier();
  }
  for (std::int64_t row = warp_index(); row < work.rows(); row += kWarps) {
    add_row(work, row);
  }
  barrier();
  for (int column = thread_index(); column < kFormulaTerms * 2; column += kThreads) {
    double sum = 0;
    for (std::int64_t row = 0; row < work.rows(); ++row) {
      sum += work.totals_of(row)[column];
    }
    work.totals_of(work.rows())[column] = sum;
  }
  for (std::int64_t row = thread_index(); row < work.rows(); row += kThreads) {
    work.losses[row] = weighted(f, work.totals_of(row)) * poison;
    if (f.reduction == Reduction::none) {
      write_loss(f, row, work.losses[row]);
    }
  }
  barrier();
  const double* all = work.totals_of(work.rows());
  if (thread_index() == 0 && f.reduction == Reduction::mean) {
    write_loss(f, 0, weighted(f, all) * poison);
  } else if (thread_index() == 0 && f.reduction == Reduction::sum) {
    double sum = 0;
    for (std::int64_t row = 0; row < work.rows(); ++row) {
      sum += work.losses[row];
    }
    write_loss(f, 0, sum);
  }
  for (int term = thread_index(); term < kFormulaTerms; term += kThreads) {
    f.values[term] = f.asked[term] ? divided(all[term * 2], all[term * 2 + 1]) * poison : 0;
  }
  write_slopes(work, poison, shared);
}

/// As many class indices as a launch takes along.
struct KeptWork {
  static constexpr int kMost = 400;

  std::uint8_t* kept;
  std::int64_t count;  // of classes
  std::int64_t n;      // of indices
  std::int64_t classes[kMost];
  bool first;
};

/// One block: those of the list are kept; the first launch clears all others.
FASTMINE_KERNEL(kThreads, 1)
mark_classes(FASTMINE_PARAMETER KeptWork work) {
  for (std::int64_t k = thread_index(); work.first && k < work.count; k += kThreads) {
    work.kept[k] = 0;
  }
  barrier();
  for (std::int64_t i = thread_index(); i < work.n; i += kThreads) {
    work.kept[work.classes[i]] = 1;
  }
}

}  // namespace

std::size_t segmentation_terms_workspace(const SegmentationTerms& problem) noexcept {
  Arena arena(nullptr);
  lay_out(problem, arena);
  return arena.used();
}

cudaError_t segmentation_terms(const SegmentationTerms& problem, void* workspace, cudaStream_t stream) noexcept {
  Arena arena(workspace);
  return launch(&formula_on_sums, 1, kThreads, stream, lay_out(problem, arena));
}

cudaError_t mark_kept(const std::int64_t* classes, std::int64_t n, std::uint8_t* kept, std::int64_t count,
                      cudaStream_t stream) noexcept {
  Launches launches(stream);
  KeptWork work{kept, count, 0, {}, true};
  do {
    work.n = n < KeptWork::kMost ? n : KeptWork::kMost;
    for (std::int64_t i = 0; i < work.n; ++i) {
      work.classes[i] = classes[i];
    }
    launches(&mark_classes, 1, kThreads, work);
    classes += work.n;
    n -= work.n;
    work.first = false;
  } while (n > 0);
  return launches.status();
}

}  // namespace fastmine::cuda
