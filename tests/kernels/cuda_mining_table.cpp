// The CUDA kernels of mining as a table of kernels, like cuda_table.cpp.
#include "check.h"
#include "cuda_emulator.h"

// The whole text of the kernels, as C++.
#include "kernels/cuda/batch_hard.cu"
#include "kernels/cuda/batch_hard_backward.cu"
#include "kernels/cuda/triplet_loss.cu"

namespace fastmine::test {
namespace {

template <class P>
struct Plan {
  P problem;
  void* workspace;
};

std::size_t aligned(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

template <class P>
void* plan(const P& problem, void* memory) {
  return ::new (memory) Plan<P>{problem, static_cast<char*>(memory) + aligned(sizeof(Plan<P>))};
}

std::int64_t one(const void*) { return 1; }

template <class P>
using Launcher = cuda::cudaError_t (*)(const P&, void*, cuda::cudaStream_t) noexcept;

template <class P, Launcher<P> launcher>
void start(void* memory, std::int64_t begin, std::int64_t end) {
  static unsigned calls = 0;
  if (begin < end) {
    cuda::emulator::seed(++calls);
    const auto& p = *static_cast<Plan<P>*>(memory);
    check(launcher(p.problem, p.workspace, nullptr) == cuda::cudaSuccess, "launching");
  }
}

template <class P, std::size_t (*bytes)(const P&) noexcept>
std::size_t workspace(const P& problem) {
  return aligned(sizeof(Plan<P>)) + bytes(problem);
}

template <class P, Launcher<P> launcher>
constexpr Stage kStages[] = {{&one, &one, &start<P, launcher>}};

constexpr BatchHardKernel kBatchHard{&workspace<BatchHard, &cuda::batch_hard_workspace>, &plan<BatchHard>,
                                     kStages<BatchHard, &cuda::batch_hard>, 1};
constexpr BatchHardBackwardKernel kBatchHardBackward{
    &workspace<BatchHardBackward, &cuda::batch_hard_backward_workspace>, &plan<BatchHardBackward>,
    kStages<BatchHardBackward, &cuda::batch_hard_backward>, 1};
constexpr StagedKernel<TripletLoss> kTripletLoss{&workspace<TripletLoss, &cuda::triplet_loss_workspace>,
                                                 &plan<TripletLoss>, kStages<TripletLoss, &cuda::triplet_loss>, 1};

}  // namespace

Tables tables() {
  static const cpu::KernelTable table = [] {
    cpu::KernelTable t{};
    t.isa = "cuda, emulated";
    t.batch_hard[0] = t.batch_hard[1] = &kBatchHard;
    t.batch_hard_backward[0] = t.batch_hard_backward[1] = &kBatchHardBackward;
    return t;
  }();
  return {&table};
}

void triplet_loss(const TripletLoss& problem) { run(kTripletLoss, problem); }

}  // namespace fastmine::test
