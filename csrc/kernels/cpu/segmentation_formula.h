// How the work of the segmentation losses is cut, and from the sums of all tasks to loss, coefficients and evidence, or
// to their sums; compiled once.
#pragma once

#include <cstdint>

#include "kernels/segmentation_loss.h"
#include "kernels/segmentation_parts.h"
#include "kernels/segmentation_sums.h"

namespace fastmine::cpu {

/// How the work is cut. A task is a run of positions of one sample, and of one class (sigmoid) or of all (softmax).
struct SegmentationTasks {
  std::int64_t rows;     // pairs (sample, class) for sigmoid, samples for softmax
  std::int64_t classes;  // of one task
  std::int64_t run;      // positions of one task, but for the last of a row
  std::int64_t runs;     // tasks of one row
  std::int64_t grain;    // tasks worth a thread of their own
};

/// Depends on the shape alone.
SegmentationTasks segmentation_tasks(const SegmentationInputs& in) noexcept;

/// Doubles of one part with its groups, as SegmentationGroup and as SegmentationGroupSums.
std::int64_t segmentation_part_size(const SegmentationTasks& tasks) noexcept;
std::int64_t segmentation_sums_part_size(const SegmentationTasks& tasks) noexcept;

/// Add the parts in order, and write the outputs of the problem. Needs room for sums and entropies in the problem.
void segmentation_formula(const SegmentationLoss& problem, const SegmentationTasks& tasks,
                          const double* parts) noexcept;

/// Add the parts in order, and write sums and evidence.
void segmentation_sums(const SegmentationSums& problem, const SegmentationTasks& tasks, const double* parts) noexcept;

}  // namespace fastmine::cpu
