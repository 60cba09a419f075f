// The CUDA kernels as a table of kernels, so that the tests of the CPU kernels run on them too: in the emulator, in
// another order of blocks and threads each time.
#include "cuda_launcher.h"

// The whole text of the kernels, as C++.
#include "kernels/cuda/lovasz_shares.cu"
#include "kernels/cuda/pairwise_distance.cu"
#include "kernels/cuda/segmentation_loss.cu"
#include "kernels/cuda/segmentation_sums.cu"
#include "kernels/cuda/segmentation_terms.cu"

namespace fastmine::test {
namespace {

std::size_t loss_workspace(const SegmentationLoss& p) noexcept { return cuda::segmentation_loss_workspace(p.in); }
std::size_t sums_workspace(const SegmentationSums& p) noexcept { return cuda::segmentation_sums_workspace(p.in); }

template <class P>
std::size_t nothing(const P&) noexcept {
  return 0;
}
cuda::cudaError_t loss_backward(const SegmentationLossBackward& p, void*, cuda::cudaStream_t stream) noexcept {
  return cuda::segmentation_loss_backward(p, stream);
}
cuda::cudaError_t sums_backward(const SegmentationSumsBackward& p, void*, cuda::cudaStream_t stream) noexcept {
  return cuda::segmentation_sums_backward(p, stream);
}

/// The problem, whose list of classes goes to the device as the binding sends it.
cuda::cudaError_t terms(const SegmentationTerms& p, void* memory, cuda::cudaStream_t stream) noexcept {
  std::vector<std::int64_t> classes;
  for (std::int64_t k = 0; p.kept != nullptr && k < p.classes; ++k) {
    if (p.kept[k] != 0) {
      classes.push_back(k);
    }
  }
  std::vector<std::uint8_t> kept(static_cast<std::size_t>(p.classes), 7);
  SegmentationTerms on_device = p;
  on_device.room = nullptr;
  if (p.kept != nullptr) {
    on_device.kept = kept.data();
    const auto n = static_cast<std::int64_t>(classes.size());
    check(cuda::mark_kept(classes.data(), n, kept.data(), p.classes, stream) == cuda::cudaSuccess, "marking classes");
  }
  return cuda::segmentation_terms(on_device, memory, stream);
}

}  // namespace

Tables tables() {
  static const cpu::KernelTable table = [] {
    cpu::KernelTable t{};
    t.isa = "cuda, emulated";
    set(t.pairwise_distance,
        Launched<PairwiseDistance, &cuda::pairwise_distance_workspace, &cuda::pairwise_distance>::kKernel);
    set(t.pairwise_distance_backward, Launched<PairwiseDistanceBackward, &cuda::pairwise_distance_backward_workspace,
                                               &cuda::pairwise_distance_backward>::kKernel);
    set(t.segmentation_loss, Launched<SegmentationLoss, &loss_workspace, &cuda::segmentation_loss>::kKernel);
    set(t.segmentation_loss_backward, Launched<SegmentationLossBackward, &nothing, &loss_backward>::kKernel);
    set(t.segmentation_sums, Launched<SegmentationSums, &sums_workspace, &cuda::segmentation_sums>::kKernel);
    set(t.segmentation_sums_backward, Launched<SegmentationSumsBackward, &nothing, &sums_backward>::kKernel);
    return t;
  }();
  return {&table};
}

}  // namespace fastmine::test

// Of kernels that are compiled once there is no table: these stand in for them.
namespace fastmine::cpu {

const StagedKernel<LovaszShares> lovasz_shares =
    test::Launched<LovaszShares, &cuda::lovasz_shares_workspace, &cuda::lovasz_shares>::kKernel;

void segmentation_terms(const SegmentationTerms& problem) noexcept {
  test::run(test::Launched<SegmentationTerms, &cuda::segmentation_terms_workspace, &test::terms>::kKernel, problem);
}

}  // namespace fastmine::cpu
