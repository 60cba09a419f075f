// The CUDA kernels as a table of kernels, so that the tests of the CPU kernels run on them too: in the emulator, in
// another order of blocks and threads each time.
#include "check.h"
#include "cuda_emulator.h"

// The whole text of the kernels, as C++.
#include "kernels/cuda/lovasz_shares.cu"
#include "kernels/cuda/pairwise_distance.cu"
#include "kernels/cuda/segmentation_loss.cu"
#include "kernels/cuda/segmentation_sums.cu"
#include "kernels/cuda/segmentation_terms.cu"

namespace fastmine::test {
namespace {

template <class P>
struct Plan {
  P problem;
  void* workspace;
};

template <class P>
constexpr std::size_t kPlanBytes = (sizeof(Plan<P>) + 63) / 64 * 64;

template <class P>
void* plan(const P& problem, void* memory) {
  return ::new (memory) Plan<P>{problem, static_cast<char*>(memory) + kPlanBytes<P>};
}

std::int64_t one(const void*) { return 1; }

/// The stage of a kernel that needs `bytes(problem)` of workspace and is started by `start(problem, workspace)`.
template <class P, std::size_t (*bytes)(const P&), cuda::cudaError_t (*start)(const P&, void*)>
struct Emulated {
  static std::size_t workspace(const P& problem) { return kPlanBytes<P> + bytes(problem); }

  static void run(void* memory, std::int64_t begin, std::int64_t end) {
    static unsigned calls = 0;
    if (begin < end) {
      cuda::emulator::seed(++calls);
      const auto& p = *static_cast<Plan<P>*>(memory);
      check(start(p.problem, p.workspace) == cuda::cudaSuccess, "launching a kernel");
    }
  }

  static constexpr Stage kStages[] = {{&one, &one, &run}};
  static constexpr StagedKernel<P> kKernel{&workspace, &plan<P>, kStages, 1};
};

template <class P>
std::size_t nothing(const P&) {
  return 0;
}

std::size_t distance_bytes(const PairwiseDistance& p) { return cuda::pairwise_distance_workspace(p); }
cuda::cudaError_t distance(const PairwiseDistance& p, void* memory) {
  return cuda::pairwise_distance(p, memory, nullptr);
}
std::size_t distance_backward_bytes(const PairwiseDistanceBackward& p) {
  return cuda::pairwise_distance_backward_workspace(p);
}
cuda::cudaError_t distance_backward(const PairwiseDistanceBackward& p, void* memory) {
  return cuda::pairwise_distance_backward(p, memory, nullptr);
}

std::size_t loss_bytes(const SegmentationLoss& p) { return cuda::segmentation_loss_workspace(p.in); }
cuda::cudaError_t loss(const SegmentationLoss& p, void* memory) { return cuda::segmentation_loss(p, memory, nullptr); }
cuda::cudaError_t loss_backward(const SegmentationLossBackward& p, void*) {
  return cuda::segmentation_loss_backward(p, nullptr);
}
std::size_t sums_bytes(const SegmentationSums& p) { return cuda::segmentation_sums_workspace(p.in); }
cuda::cudaError_t sums(const SegmentationSums& p, void* memory) { return cuda::segmentation_sums(p, memory, nullptr); }
cuda::cudaError_t sums_backward(const SegmentationSumsBackward& p, void*) {
  return cuda::segmentation_sums_backward(p, nullptr);
}
std::size_t shares_bytes(const LovaszShares& p) { return cuda::lovasz_shares_workspace(p); }
cuda::cudaError_t shares(const LovaszShares& p, void* memory) { return cuda::lovasz_shares(p, memory, nullptr); }
std::size_t terms_bytes(const SegmentationTerms& p) { return cuda::segmentation_terms_workspace(p); }

/// The problem, whose list of classes goes to the device as the binding sends it.
cuda::cudaError_t terms(const SegmentationTerms& p, void* memory) {
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
    check(cuda::mark_kept(classes.data(), n, kept.data(), p.classes, nullptr) == cuda::cudaSuccess, "marking classes");
  }
  return cuda::segmentation_terms(on_device, memory, nullptr);
}

/// The same kernel for every working type: it looks at the type of its inputs.
template <class P>
void set(const StagedKernel<P>* (&entries)[2], const StagedKernel<P>& kernel) {
  entries[0] = entries[1] = &kernel;
}

}  // namespace

Tables tables() {
  static const cpu::KernelTable table = [] {
    cpu::KernelTable t{};
    t.isa = "cuda, emulated";
    set(t.pairwise_distance, Emulated<PairwiseDistance, &distance_bytes, &distance>::kKernel);
    set(t.pairwise_distance_backward,
        Emulated<PairwiseDistanceBackward, &distance_backward_bytes, &distance_backward>::kKernel);
    set(t.segmentation_loss, Emulated<SegmentationLoss, &loss_bytes, &loss>::kKernel);
    set(t.segmentation_loss_backward, Emulated<SegmentationLossBackward, &nothing, &loss_backward>::kKernel);
    set(t.segmentation_sums, Emulated<SegmentationSums, &sums_bytes, &sums>::kKernel);
    set(t.segmentation_sums_backward, Emulated<SegmentationSumsBackward, &nothing, &sums_backward>::kKernel);
    return t;
  }();
  return {&table};
}

}  // namespace fastmine::test

// Of kernels that are compiled once there is no table: these stand in for them.
namespace fastmine::cpu {

const StagedKernel<LovaszShares> lovasz_shares =
    test::Emulated<LovaszShares, &test::shares_bytes, &test::shares>::kKernel;

void segmentation_terms(const SegmentationTerms& problem) noexcept {
  test::run(test::Emulated<SegmentationTerms, &test::terms_bytes, &test::terms>::kKernel, problem);
}

}  // namespace fastmine::cpu
