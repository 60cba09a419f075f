// The CUDA kernels of losses over many pairs as a table of kernels, like cuda_table.cpp.
#include "cuda_launcher.h"

// The whole text of the kernels, as C++.
#include "kernels/cuda/batch_all.cu"
#include "kernels/cuda/batch_all_backward.cu"
#include "kernels/cuda/batch_all_formula.cu"
#include "kernels/cuda/mined_pairs.cu"
#include "kernels/cuda/pair_sums.cu"
#include "kernels/cuda/pair_sums_backward.cu"

namespace fastmine::test {
namespace {

cuda::cudaError_t batch_all_backward(const BatchAllBackward& problem, void* workspace,
                                     cuda::cudaStream_t stream) noexcept {
  return cuda::batch_all_backward(problem, nullptr, workspace, stream);
}

}  // namespace

Tables tables() {
  static const cpu::KernelTable table = [] {
    cpu::KernelTable t{};
    t.isa = "cuda, emulated";
    t.pair_sums[0] = t.pair_sums[1] = &Launched<PairSums, &cuda::pair_sums_workspace, &cuda::pair_sums>::kKernel;
    t.pair_sums_backward[0] = t.pair_sums_backward[1] =
        &Launched<PairSumsBackward, &cuda::pair_sums_backward_workspace, &cuda::pair_sums_backward>::kKernel;
    t.mined_pairs[0] = t.mined_pairs[1] =
        &Launched<MinedPairs, &cuda::mined_pairs_workspace, &cuda::mined_pairs>::kKernel;
    t.batch_all[0] = t.batch_all[1] = &Launched<BatchAll, &cuda::batch_all_workspace, &cuda::batch_all>::kKernel;
    t.batch_all_backward[0] = t.batch_all_backward[1] =
        &Launched<BatchAllBackward, &cuda::batch_all_backward_workspace, &batch_all_backward>::kKernel;
    return t;
  }();
  return {&table};
}

}  // namespace fastmine::test
