#include "kernels/cuda/triplet_loss.h"

#include "kernels/cuda/anchor_terms.cuh"

namespace fastmine::cuda {

std::size_t triplet_loss_workspace(const TripletLoss& p) noexcept { return anchors::workspace(p); }

cudaError_t triplet_loss(const TripletLoss& p, void* workspace, cudaStream_t stream) noexcept {
  return anchors::apply(p, workspace, stream);
}

}  // namespace fastmine::cuda
