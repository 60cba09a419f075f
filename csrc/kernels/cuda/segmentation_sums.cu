#include "kernels/cuda/segmentation_sums.h"

#include "kernels/cuda/segmentation_launch.cuh"

namespace fastmine::cuda {

namespace {

/// One block: the sums of all groups as they are wanted, and the evidence.
FASTMINE_KERNEL(kFormulaThreads, 1)
finish_groups(FASTMINE_PARAMETER FinishWork<SegmentationSums> work) {
  constexpr int kWarps = kFormulaThreads / kWarp;
  FASTMINE_SHARED(double, shared, kWarps* kSummaryColumns);
  const SegmentationSums& problem = work.problem;
  const SegmentationInputs& in = problem.in;
  const std::int64_t groups = in.samples * in.classes;
  const bool softmax = segmentation::is_softmax(in);
  const auto items_of = [&](std::int64_t group) {
    const bool merged = softmax && segmentation::is_merged(in, group / in.classes, group % in.classes);
    return merged ? 0 : part_of(row_of(work, group)).items;
  };

  Summary mine;
  for (std::int64_t group = thread_index(); group < groups; group += kFormulaThreads) {
    const auto& sums = group_of<SegmentationGroupSums>(work, group);
    mine.found.add({items_of(group), sums.t, sums.p, sums.a}, !(softmax && group % in.classes == 0));
    if (group % work.cut.classes == 0) {
      mine.found.add(part_of(row_of(work, group)));
    }
  }
  mine.add_lanes();
  const Summary& all = add_warps<kWarps>(mine, reinterpret_cast<Summary*>(shared));

  const double poison = all.found.poison();
  for (std::int64_t group = thread_index(); group < groups; group += kFormulaThreads) {
    double* const out = problem.sums + group * kSegmentationSums;
    auto& sums = *reinterpret_cast<SegmentationGroupSums*>(out);
    sums = group_of<SegmentationGroupSums>(work, group);
    sums.n = items_of(group);
    segmentation::finish_sums(problem, poison, out);
  }
  if (thread_index() == 0) {
    segmentation::write_found(in, all.found, problem.evidence);
  }
}

}  // namespace

std::size_t segmentation_sums_workspace(const SegmentationInputs& in) noexcept {
  return forward_workspace<SegmentationGroupSums>(in);
}

cudaError_t segmentation_sums(const SegmentationSums& problem, void* workspace, cudaStream_t stream) noexcept {
  using Sum = SegmentationSum;
  const auto any = [&](auto... sums) { return (problem.wanted & segmentation::set_of(sums...)) != 0; };
  const bool focal = any(Sum::f1, Sum::f0);
  // At gamma 0 the focal term is the entropy, and the sums of that are read for both.
  const Asked asked{any(Sum::e1, Sum::e0) || focal, focal && problem.gamma != 0,
                    any(Sum::pp, Sum::tt, Sum::g1, Sum::g0), any(Sum::x, Sum::tx), Focal{1, 1, problem.gamma}};
  return run_forward<SegmentationGroupSums>(problem, asked, &finish_groups, workspace, stream);
}

cudaError_t segmentation_sums_backward(const SegmentationSumsBackward& problem, cudaStream_t stream) noexcept {
  return run_backward(problem, stream);
}

}  // namespace fastmine::cuda
