// From what the blocks found to loss, coefficients and evidence: the runs of each row are added up, then one block
// works out the formula, a warp for each sample and a thread for each group.
#pragma once

#include "kernels/cuda/segmentation_tasks.cuh"

namespace fastmine::cuda {

inline constexpr int kRowThreads = 1024, kFormulaThreads = 256;
inline constexpr int kSummaryColumns = 21;

/// One block: 32 columns of the parts of one row, added in the order of the runs modulo 32, then over those.
FASTMINE_KERNEL(kRowThreads, 1)
add_runs(FASTMINE_PARAMETER ForwardWork work) {
  constexpr int kLanes = kRowThreads / kWarp;
  FASTMINE_SHARED(double, found, kLanes*(kWarp + 1));
  const Cut& c = work.cut;
  const std::int64_t tiles = (c.columns + kWarp - 1) / kWarp, row = block_index() / tiles;
  const std::int64_t column = block_index() % tiles * kWarp + thread_index() % kWarp;
  const int lane = thread_index() / kWarp;
  if (column < c.columns && lane < c.runs) {
    const double* part = work.parts + (row * c.runs + lane) * c.columns + column;
    double sum = *part;
    for (std::int64_t run = lane + kLanes; run < c.runs; run += kLanes) {
      part += kLanes * c.columns;
      sum = combine(column, sum, *part);
    }
    found[lane * (kWarp + 1) + thread_index() % kWarp] = sum;
  }
  barrier();
  if (lane == 0 && column < c.columns) {
    double sum = found[thread_index()];
    for (int other = 1; other < kLanes && other < c.runs; ++other) {
      sum = combine(column, sum, found[other * (kWarp + 1) + thread_index()]);
    }
    work.rows[row * c.columns + column] = sum;
  }
}

/// What a sample, or all, come to.
struct Summary {
  segmentation::Totals totals;
  segmentation::Found found;
  double loss = 0;  // the sum of the samples' losses

  /// f(mine, theirs, how) for each number: 0 adds, -1 takes the smaller, 1 the larger.
  template <class F>
  FASTMINE_DEVICE void zip(Summary& other, F f) {
    FASTMINE_UNROLL for (int term = 0; term < kSegmentationTerms; ++term) {
      f(totals.sums[term], other.totals.sums[term], 0);
    }
    f(totals.groups, other.totals.groups, 0);
    f(totals.items, other.totals.items, 0);
    f(found.annotated, other.found.annotated, 0);
    f(found.nonempty, other.found.nonempty, 0);
    f(found.items, other.found.items, 0);
    f(found.target_sum, other.found.target_sum, 0);
    f(found.prediction_sum, other.found.prediction_sum, 0);
    f(found.overlap_sum, other.found.overlap_sum, 0);
    f(found.target_min, other.found.target_min, -1);
    f(found.target_max, other.found.target_max, 1);
    f(found.logit_min, other.found.logit_min, -1);
    f(found.logit_max, other.found.logit_max, 1);
    f(found.nonfinite, other.found.nonfinite, 0);
    f(found.out_of_range, other.found.out_of_range, 0);
    f(loss, other.loss, 0);
  }

  FASTMINE_DEVICE static double merge(double mine, double theirs, int how) {
    return how == 0 ? mine + theirs : how < 0 ? segmentation::lower(mine, theirs) : segmentation::upper(mine, theirs);
  }

  FASTMINE_DEVICE void add(Summary other) {
    zip(other, [](double& mine, double& theirs, int how) { mine = merge(mine, theirs, how); });
  }

  /// Over the warp, in a fixed order; the first lane has the sum.
  FASTMINE_DEVICE void add_lanes() {
    FASTMINE_UNROLL for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      double values[kSummaryColumns], others[kSummaryColumns];
      int i = 0;
      zip(*this, [&](double& mine, double&, int) { values[i++] = mine; });
      shuffle_down(values, distance, others);
      i = 0;
      zip(*this, [&](double& mine, double&, int how) { mine = merge(mine, others[i++], how); });
    }
  }
};
static_assert(sizeof(Summary) == kSummaryColumns * sizeof(double));

/// A group's sums, from the columns of its row.
FASTMINE_DEVICE segmentation::Sums sums_of(const ForwardWork& work, std::int64_t group) {
  const std::int64_t row = group / work.cut.classes, k = group % work.cut.classes;
  const double* columns = work.rows + row * work.cut.columns;
  const double* mine = columns + kPartColumns + k * kGroupColumns;
  return {columns[0], mine[0], mine[1], mine[2]};
}

/// One lane's share of a sample: every 32nd class.
FASTMINE_DEVICE Summary summarise(const ForwardWork& work, std::int64_t sample, int lane) {
  const SegmentationLoss& problem = work.problem;
  const SegmentationInputs& in = problem.in;
  const bool softmax = segmentation::is_softmax(in);
  Summary summary;
  double cross_entropy = 0, focal = 0;
  for (std::int64_t k = lane; k < in.classes; k += kWarp) {
    const std::int64_t group = sample * in.classes + k;
    const segmentation::Sums sums = sums_of(work, group);
    summary.found.add(sums, !(softmax && k == 0));
    summary.totals.add(problem, sums);
    if (!softmax || k == 0) {
      const auto& part =
          *reinterpret_cast<const SegmentationPart*>(work.rows + group / work.cut.classes * work.cut.columns);
      summary.found.add(part);
      summary.totals.items += part.items;
      cross_entropy += part.cross_entropy;
      focal += part.focal;
    }
    if (problem.sums != nullptr) {
      *reinterpret_cast<segmentation::Sums*>(problem.sums + group * 4) = sums;
    }
  }
  summary.totals.sums[segmentation::index(SegmentationTerm::ce)] = softmax ? cross_entropy : 0;
  summary.totals.sums[segmentation::index(SegmentationTerm::bce)] = softmax ? 0 : cross_entropy;
  summary.totals.sums[segmentation::kFocal] = focal;
  return summary;
}

/// One block: loss, coefficients and evidence of the whole problem.
FASTMINE_KERNEL(kFormulaThreads, 1)
segmentation_formula(FASTMINE_PARAMETER ForwardWork work) {
  constexpr int kWarps = kFormulaThreads / kWarp;
  FASTMINE_SHARED(double, shared, kWarps* kSummaryColumns);
  auto* const of_warp = reinterpret_cast<Summary*>(shared);
  auto* const of_sample = reinterpret_cast<Summary*>(work.samples);
  const SegmentationLoss& problem = work.problem;
  const SegmentationInputs& in = problem.in;
  const int lane = thread_index() % kWarp, warp = thread_index() / kWarp;

  Summary mine;  // of this warp's samples
  for (std::int64_t sample = warp; sample < in.samples; sample += kWarps) {
    Summary summary = summarise(work, sample, lane);
    summary.add_lanes();
    if (lane == 0) {
      summary.loss = segmentation::weighted(problem, summary.totals);
      of_sample[sample] = summary;
      mine.add(summary);
      if (problem.entropies != nullptr) {
        problem.entropies[sample * 2] =
            summary.totals.sums[segmentation::index(SegmentationTerm::bce)] +
            summary.totals.sums[segmentation::index(SegmentationTerm::ce)];  // one of them is 0
        problem.entropies[sample * 2 + 1] = summary.totals.sums[segmentation::kFocal];
      }
    }
  }
  if (lane == 0) {
    of_warp[warp] = mine;
  }
  barrier();
  if (thread_index() == 0) {
    for (int other = 1; other < kWarps; ++other) {
      mine.add(of_warp[other]);
    }
    of_warp[0] = mine;
  }
  barrier();
  const Summary& all = of_warp[0];
  const double poison = all.found.poison();

  const bool mean = problem.reduction == Reduction::mean;
  for (std::int64_t group = thread_index(); group < in.samples * in.classes; group += kFormulaThreads) {
    const segmentation::Totals& totals = mean ? all.totals : of_sample[group / in.classes].totals;
    segmentation::write_coefficients(problem, group, sums_of(work, group), totals, poison);
  }
  if (problem.reduction == Reduction::none) {
    for (std::int64_t sample = thread_index(); sample < in.samples; sample += kFormulaThreads) {
      segmentation::write_loss(problem, sample, of_sample[sample].loss * poison);
    }
  }
  if (thread_index() == 0) {
    if (problem.reduction != Reduction::none) {
      segmentation::write_loss(problem, 0, (mean ? segmentation::weighted(problem, all.totals) : all.loss) * poison);
    }
    segmentation::write_evidence(problem, all.found, all.totals);
  }
}

}  // namespace fastmine::cuda
