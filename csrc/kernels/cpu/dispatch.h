// One table of CPU kernels per instruction set, and the choice between them.
//
// To add an op's kernel: one member here, one line in table.cpp.
#pragma once

#include <cstddef>

#include "kernels/batch_all.h"
#include "kernels/batch_hard.h"
#include "kernels/margin_softmax.h"
#include "kernels/mined_pairs.h"
#include "kernels/pair_sums.h"
#include "kernels/pairwise_distance.h"
#include "kernels/proxy_evidence.h"
#include "kernels/segmentation_loss.h"
#include "kernels/segmentation_sums.h"
#include "kernels/triplet_terms.h"

namespace fastmine::cpu {

struct KernelTable {
  const char* isa;  // "baseline", "avx2", "avx512", "amx"

  // Each in two working types: [0] float32, for float32 and narrower inputs, and [1] float64.
  const PairwiseDistanceKernel* pairwise_distance[2];
  const PairwiseDistanceBackwardKernel* pairwise_distance_backward[2];
  const BatchHardKernel* batch_hard[2];
  const BatchHardBackwardKernel* batch_hard_backward[2];
  const MinedPairsKernel* mined_pairs[2];
  const PairedDistanceKernel* paired_distance[2];
  const ProxyEvidenceKernel* proxy_evidence[2];
  const MarginSoftmaxKernel* margin_softmax[2];
  const PairSumsKernel* pair_sums[2];
  const PairSumsBackwardKernel* pair_sums_backward[2];
  const BatchAllKernel* batch_all[2];
  const BatchAllBackwardKernel* batch_all_backward[2];
  const SegmentationLossKernel* segmentation_loss[2];
  const SegmentationLossBackwardKernel* segmentation_loss_backward[2];
  const SegmentationSumsKernel* segmentation_sums[2];
  const SegmentationSumsBackwardKernel* segmentation_sums_backward[2];
};

/// The i-th compiled table, best first; nullptr past the last.
const KernelTable* compiled(std::size_t i) noexcept;

/// Whether this CPU and its operating system can run that table. For "amx" it asks Linux for the use of the tile
/// registers, which a process must, once; the answer holds for all its threads, and asking again changes nothing.
bool supported(const KernelTable& table) noexcept;

/// The table to use: the best supported one for nullptr or "", else the one of that name; nullptr if that name is not
/// compiled or not supported. Reads no environment, keeps no state.
const KernelTable* select(const char* requested) noexcept;

}  // namespace fastmine::cpu
