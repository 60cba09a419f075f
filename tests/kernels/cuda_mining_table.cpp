// The CUDA kernels of mining as a table of kernels, like cuda_table.cpp.
#include "cuda_launcher.h"

// The whole text of the kernels, as C++.
#include "kernels/cuda/batch_hard.cu"
#include "kernels/cuda/batch_hard_backward.cu"
#include "kernels/cuda/triplet_loss.cu"

namespace fastmine::test {

Tables tables() {
  static const cpu::KernelTable table = [] {
    cpu::KernelTable t{};
    t.isa = "cuda, emulated";
    set(t.batch_hard, Launched<BatchHard, &cuda::batch_hard_workspace, &cuda::batch_hard>::kKernel);
    set(t.batch_hard_backward,
        Launched<BatchHardBackward, &cuda::batch_hard_backward_workspace, &cuda::batch_hard_backward>::kKernel);
    return t;
  }();
  return {&table};
}

int launches() { return cuda::emulator::launches(); }

void triplet_loss(const TripletLoss& problem) {
  run(Launched<TripletLoss, &cuda::triplet_loss_workspace, &cuda::triplet_loss>::kKernel, problem);
}

}  // namespace fastmine::test
