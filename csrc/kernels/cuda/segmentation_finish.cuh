// What comes after the pass: the runs of each row are added up, and then one block works out the rest, from these rows.
#pragma once

#include "kernels/cuda/segmentation_tasks.cuh"

namespace fastmine::cuda {

inline constexpr int kRowThreads = 1024, kFormulaThreads = 256;
inline constexpr int kSummaryColumns = 21;

/// One block: 32 columns of the parts of one row, added in the order of the runs modulo 32, then over those.
static FASTMINE_KERNEL(kRowThreads, 1) add_runs(FASTMINE_PARAMETER ForwardWork work) {
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

/// The sums of all warps of a block, each in its first lane: in the first of `of_warp`, for all threads.
template <int kWarps>
FASTMINE_DEVICE const Summary& add_warps(Summary mine, Summary* of_warp) {
  if (thread_index() % kWarp == 0) {
    of_warp[thread_index() / kWarp] = mine;
  }
  barrier();
  if (thread_index() == 0) {
    for (int other = 1; other < kWarps; ++other) {
      mine.add(of_warp[other]);
    }
    of_warp[0] = mine;
  }
  barrier();
  return of_warp[0];
}

/// What the last kernel of a forward pass works on: a problem, and the columns of its rows.
template <class Problem>
struct FinishWork {
  Problem problem;
  Cut cut;
  const double* rows;
  double* samples;  // the fused loss: [samples, kSummaryColumns]
};

/// The columns of the row that a group is in, and of the group itself.
template <class Problem>
FASTMINE_DEVICE const double* row_of(const FinishWork<Problem>& work, std::int64_t group) {
  return work.rows + group / work.cut.classes * work.cut.columns;
}
template <class Group, class Problem>
FASTMINE_DEVICE const Group& group_of(const FinishWork<Problem>& work, std::int64_t group) {
  const double* columns = row_of(work, group) + kPartColumns + group % work.cut.classes * kGroupColumns<Group>;
  return *reinterpret_cast<const Group*>(columns);
}

FASTMINE_DEVICE const SegmentationPart& part_of(const double* row) {
  return *reinterpret_cast<const SegmentationPart*>(row);
}

}  // namespace fastmine::cuda
