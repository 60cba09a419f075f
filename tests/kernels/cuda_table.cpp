// The CUDA kernels as a table of kernels, so that the tests of the CPU kernels run on them too: in the emulator, in
// another order of blocks and threads each time.
#include "check.h"
#include "cuda_emulator.h"

// The whole text of the kernels, as C++.
#include "kernels/cuda/segmentation_loss.cu"

namespace fastmine::test {
namespace {

template <class P>
struct Plan {
  P problem;
  void* workspace;
};

std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

std::size_t workspace(const SegmentationLoss& problem) {
  return aligned(sizeof(Plan<SegmentationLoss>)) + cuda::segmentation_loss_workspace(problem.in);
}
std::size_t backward_workspace(const SegmentationLossBackward&) { return sizeof(Plan<SegmentationLossBackward>); }

template <class P>
void* plan(const P& problem, void* memory) {
  return ::new (memory) Plan<P>{problem, static_cast<char*>(memory) + aligned(sizeof(Plan<P>))};
}

std::int64_t one(const void*) { return 1; }

void begin_call() {
  static unsigned calls = 0;
  cuda::emulator::seed(++calls);
}

void forward(void* memory, std::int64_t begin, std::int64_t end) {
  if (begin < end) {
    begin_call();
    const auto& p = *static_cast<Plan<SegmentationLoss>*>(memory);
    check(cuda::segmentation_loss(p.problem, p.workspace, nullptr) == cuda::cudaSuccess, "launching the forward pass");
  }
}

void backward(void* memory, std::int64_t begin, std::int64_t end) {
  if (begin < end) {
    begin_call();
    const auto& p = *static_cast<Plan<SegmentationLossBackward>*>(memory);
    check(cuda::segmentation_loss_backward(p.problem, nullptr) == cuda::cudaSuccess, "launching the backward pass");
  }
}

constexpr Stage kForward[] = {{&one, &one, &forward}};
constexpr Stage kBackward[] = {{&one, &one, &backward}};
constexpr SegmentationLossKernel kLoss{&workspace, &plan<SegmentationLoss>, kForward, 1};
constexpr SegmentationLossBackwardKernel kLossBackward{&backward_workspace, &plan<SegmentationLossBackward>, kBackward,
                                                       1};

}  // namespace

std::vector<const cpu::KernelTable*> tables() {
  static const cpu::KernelTable table = [] {
    cpu::KernelTable t{};
    t.isa = "cuda, emulated";
    t.segmentation_loss[0] = t.segmentation_loss[1] = &kLoss;
    t.segmentation_loss_backward[0] = t.segmentation_loss_backward[1] = &kLossBackward;
    return t;
  }();
  return {&table};
}

}  // namespace fastmine::test
