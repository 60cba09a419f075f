#include "kernels/cuda/segmentation_loss.h"

#include "kernels/cuda/segmentation_launch.cuh"

namespace fastmine::cuda {

namespace {

using FormulaWork = FinishWork<SegmentationLoss>;

FASTMINE_DEVICE segmentation::Sums sums_of(const FormulaWork& work, std::int64_t group) {
  const auto& mine = group_of<SegmentationGroup>(work, group);
  return {part_of(row_of(work, group)).items, mine.target, mine.prediction, mine.overlap};
}

/// One lane's share of a sample: every 32nd class.
FASTMINE_DEVICE Summary summarise(const FormulaWork& work, std::int64_t sample, int lane) {
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
      const SegmentationPart& part = part_of(row_of(work, group));
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
segmentation_formula(FASTMINE_PARAMETER FormulaWork work) {
  constexpr int kWarps = kFormulaThreads / kWarp;
  FASTMINE_SHARED(double, shared, kWarps* kSummaryColumns);
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
  const Summary& all = add_warps<kWarps>(mine, reinterpret_cast<Summary*>(shared));
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

}  // namespace

std::size_t segmentation_loss_workspace(const SegmentationInputs& in) noexcept {
  return forward_workspace<SegmentationGroup>(in);
}

cudaError_t segmentation_loss(const SegmentationLoss& problem, void* workspace, cudaStream_t stream) noexcept {
  const auto weight = [&](SegmentationTerm term) { return problem.weights[segmentation::index(term)]; };
  const bool focal = weight(SegmentationTerm::focal) != 0;
  const bool entropy = focal || weight(SegmentationTerm::bce) != 0 || weight(SegmentationTerm::ce) != 0;
  const Asked asked{entropy, focal, false, false, problem.focal};
  return run_forward<SegmentationGroup>(problem, asked, &segmentation_formula, workspace, stream);
}

cudaError_t segmentation_loss_backward(const SegmentationLossBackward& problem, cudaStream_t stream) noexcept {
  return run_backward(problem, stream);
}

}  // namespace fastmine::cuda
