#include "kernels/cuda/selective_terms.h"

#include "kernels/cuda/anchor_terms.cuh"

namespace fastmine::cuda {

std::size_t selective_terms_workspace(const SelectiveTerms& p) noexcept { return anchors::workspace(p); }

cudaError_t selective_terms(const SelectiveTerms& p, void* workspace, cudaStream_t stream) noexcept {
  return anchors::apply(p, workspace, stream);
}

}  // namespace fastmine::cuda
