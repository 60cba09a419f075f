// The CUDA kernels of losses over many pairs as a table of kernels, like cuda_table.cpp.
#include "cuda_launcher.h"

// The whole text of the kernels, as C++.
#include "kernels/cuda/pair_sums.cu"
#include "kernels/cuda/pair_sums_backward.cu"

namespace fastmine::test {

std::vector<const cpu::KernelTable*> tables() {
  static const cpu::KernelTable table = [] {
    cpu::KernelTable t{};
    t.isa = "cuda, emulated";
    t.pair_sums[0] = t.pair_sums[1] = &Launched<PairSums, &cuda::pair_sums_workspace, &cuda::pair_sums>::kKernel;
    t.pair_sums_backward[0] = t.pair_sums_backward[1] =
        &Launched<PairSumsBackward, &cuda::pair_sums_backward_workspace, &cuda::pair_sums_backward>::kKernel;
    return t;
  }();
  return {&table};
}

}  // namespace fastmine::test
