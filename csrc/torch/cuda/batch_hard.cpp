// fastmine::batch_hard, fastmine::triplet_loss and their backward pass on CUDA devices. Compiled and linked; not yet
// run on a GPU.
#include "kernels/cuda/batch_hard.h"

#include <cstdlib>

#include "kernels/cuda/architectures.h"
#include "kernels/cuda/triplet_loss.h"
#include "torch/cuda/device.h"
#include "torch/mining.h"

namespace fastmine {
namespace {

/// Whether FASTMINE_CUDA_WGMMA asks for warpgroups. Read at every call, so that one process can compare.
bool asks_for_warpgroups() {
  const char* const set = std::getenv("FASTMINE_CUDA_WGMMA");
  const std::string value = set == nullptr || *set == 0 ? "0" : set;
  FASTMINE_CHECK(value == "0" || value == "1", "FASTMINE_CUDA_WGMMA is 0 or 1, not '", value, "'");
  return value == "1";
}

/// What multiplies bfloat16 on the device of a tensor.
cuda::MatrixUnit matrix_unit(const Tensor& t) {
  if (!asks_for_warpgroups() || !cuda::architectures_name(FASTMINE_CUDA_COMPILED_FOR, "90a")) {
    return cuda::MatrixUnit::by_warp;
  }
  const auto attribute = [&t](cudaDeviceAttr which) {
    int value = 0;
    FASTMINE_CHECK(cudaDeviceGetAttribute(&value, which, t.get_device_index()) == cudaSuccess,
                   "the device does not tell its compute capability");
    return value;
  };
  return attribute(cudaDevAttrComputeCapabilityMajor) == 9 && attribute(cudaDevAttrComputeCapabilityMinor) == 0
             ? cuda::MatrixUnit::by_warpgroup
             : cuda::MatrixUnit::by_warp;
}

void check_devices(const Tensor& like, std::initializer_list<MaybeTensor> others) {
  for (const MaybeTensor& other : others) {
    check_same_device(like, other, "an input");
  }
}

}  // namespace

Mined mine(const Tensor& embeddings, const Tensor& labels, const MaybeTensor& valid, const MaybeTensor& ref_embeddings,
           const MaybeTensor& ref_labels, const MaybeTensor& ref_valid, const MaybeTensor& self_index,
           const std::string& metric, const std::string& positive, const std::string& negative, int64_t extra) {
  check_devices(embeddings, {labels, valid, ref_embeddings, ref_labels, ref_valid, self_index});
  const torch::stable::accelerator::DeviceGuard guard(embeddings.get_device_index());
  Mined m;
  const BatchHard problem = mining_problem(m, beside(embeddings), embeddings, labels, valid, ref_embeddings, ref_labels,
                                           ref_valid, self_index, metric, positive, negative, extra);
  const Tensor workspace = make_workspace(embeddings, cuda::batch_hard_workspace(problem));
  check_launch(
      cuda::batch_hard(problem, workspace.mutable_data_ptr(), current_stream(embeddings), matrix_unit(embeddings)));
  return m;
}

Formula apply_formula(const Mined& m, const MaybeTensor& weight, const std::string& metric, const std::string& shape,
                      double margin, double leak, const std::string& on_empty, const std::string& reduction) {
  check_same_device(m.embeddings, weight, "weight");
  const torch::stable::accelerator::DeviceGuard guard(m.embeddings.get_device_index());
  Formula f;
  const TripletLoss problem =
      formula_problem(m, f, beside(m.embeddings), weight, metric, shape, margin, leak, on_empty, reduction);
  const Tensor workspace = make_workspace(m.embeddings, cuda::triplet_loss_workspace(problem));
  check_launch(cuda::triplet_loss(problem, workspace.mutable_data_ptr(), current_stream(m.embeddings)));
  return f;
}

std::tuple<Tensor, Tensor> mining_gradient(const Tensor& grad_positive, const Tensor& grad_negative,
                                           const MaybeTensor& slopes, const Tensor& embeddings,
                                           const MaybeTensor& ref_embeddings, const Tensor& positive_index,
                                           const Tensor& negative_index, const Tensor& has_positive,
                                           const Tensor& has_negative, const std::string& metric) {
  check_devices(embeddings, {grad_positive, grad_negative, slopes, ref_embeddings, positive_index, negative_index,
                             has_positive, has_negative});
  const torch::stable::accelerator::DeviceGuard guard(embeddings.get_device_index());
  MinedGradient g;
  const BatchHardBackward problem =
      gradient_problem(g, beside(embeddings), grad_positive, grad_negative, slopes, embeddings, ref_embeddings,
                       positive_index, negative_index, has_positive, has_negative, metric);
  const Tensor workspace = make_workspace(embeddings, cuda::batch_hard_backward_workspace(problem));
  check_launch(cuda::batch_hard_backward(problem, workspace.mutable_data_ptr(), current_stream(embeddings)));
  return {g.grad_x, g.grad_y};
}

}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CUDA, m) {
  if (!fastmine::unserved().empty()) {
    return;
  }
  m.impl("batch_hard", TORCH_BOX(&fastmine::mining_ops::batch_hard));
  m.impl("batch_hard_backward", TORCH_BOX(&fastmine::mining_ops::batch_hard_backward));
  m.impl("triplet_loss", TORCH_BOX(&fastmine::mining_ops::triplet_loss));
  m.impl("triplet_loss_backward", TORCH_BOX(&fastmine::mining_ops::triplet_loss_backward));
}
