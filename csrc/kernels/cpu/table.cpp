// This instruction set's kernels, by name.
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/isa.h"

#define FASTMINE_STRING_(x) #x
#define FASTMINE_STRING(x) FASTMINE_STRING_(x)

// An instruction set that extends another compiles what gains by it, and shares the rest.
#ifndef FASTMINE_ISA_EXTENDS
#define FASTMINE_ISA_EXTENDS FASTMINE_ISA_NAMESPACE
#endif

namespace fastmine::cpu::FASTMINE_ISA_EXTENDS {

extern const PairwiseDistanceKernel pairwise_distance_float32, pairwise_distance_float64;
extern const PairwiseDistanceBackwardKernel pairwise_distance_backward_float32, pairwise_distance_backward_float64;
extern const BatchHardBackwardKernel batch_hard_backward_float32, batch_hard_backward_float64;
extern const MinedPairsKernel mined_pairs_float32, mined_pairs_float64;
extern const PairedDistanceKernel paired_distance_float32, paired_distance_float64;
extern const ProxyEvidenceKernel proxy_evidence_float32, proxy_evidence_float64;
extern const SegmentationLossKernel segmentation_loss_float32, segmentation_loss_float64;
extern const SegmentationLossBackwardKernel segmentation_loss_backward_float32, segmentation_loss_backward_float64;
extern const SegmentationSumsKernel segmentation_sums_float32, segmentation_sums_float64;
extern const SegmentationSumsBackwardKernel segmentation_sums_backward_float32, segmentation_sums_backward_float64;

}  // namespace fastmine::cpu::FASTMINE_ISA_EXTENDS

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {

using namespace FASTMINE_ISA_EXTENDS;

extern const BatchHardKernel batch_hard_float32, batch_hard_float64;
extern const PairSumsKernel pair_sums_float32, pair_sums_float64;
extern const PairSumsBackwardKernel pair_sums_backward_float32, pair_sums_backward_float64;
extern const BatchAllKernel batch_all_float32, batch_all_float64;
extern const BatchAllBackwardKernel batch_all_backward_float32, batch_all_backward_float64;

extern const KernelTable table;
const KernelTable table = {
    .isa = FASTMINE_STRING(FASTMINE_ISA_NAMESPACE),
    .pairwise_distance = {&pairwise_distance_float32, &pairwise_distance_float64},
    .pairwise_distance_backward = {&pairwise_distance_backward_float32, &pairwise_distance_backward_float64},
    .batch_hard = {&batch_hard_float32, &batch_hard_float64},
    .batch_hard_backward = {&batch_hard_backward_float32, &batch_hard_backward_float64},
    .mined_pairs = {&mined_pairs_float32, &mined_pairs_float64},
    .paired_distance = {&paired_distance_float32, &paired_distance_float64},
    .proxy_evidence = {&proxy_evidence_float32, &proxy_evidence_float64},
    .pair_sums = {&pair_sums_float32, &pair_sums_float64},
    .pair_sums_backward = {&pair_sums_backward_float32, &pair_sums_backward_float64},
    .batch_all = {&batch_all_float32, &batch_all_float64},
    .batch_all_backward = {&batch_all_backward_float32, &batch_all_backward_float64},
    .segmentation_loss = {&segmentation_loss_float32, &segmentation_loss_float64},
    .segmentation_loss_backward = {&segmentation_loss_backward_float32, &segmentation_loss_backward_float64},
    .segmentation_sums = {&segmentation_sums_float32, &segmentation_sums_float64},
    .segmentation_sums_backward = {&segmentation_sums_backward_float32, &segmentation_sums_backward_float64},
};

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
