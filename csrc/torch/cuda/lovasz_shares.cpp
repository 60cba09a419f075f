// fastmine::lovasz_shares on CUDA devices. Compiled and linked; not yet run on a GPU.
#include "kernels/cuda/lovasz_shares.h"

#include "torch/cuda/device.h"
#include "torch/lovasz_problem.h"

namespace fastmine {
namespace {

Tensor lovasz_shares(const Tensor& errors_in, const Tensor& target_in, const MaybeTensor& valid) {
  check_same_device(errors_in, target_in, "target");
  check_same_device(errors_in, valid, "valid");
  check_lovasz(errors_in, target_in, valid, std::numeric_limits<int32_t>::max());
  const torch::stable::accelerator::DeviceGuard guard(errors_in.get_device_index());
  const Tensor errors = dense(errors_in), target = dense(target_in);
  const Tensor shares = torch::stable::new_empty(errors, errors.sizes());
  const LovaszShares problem = lovasz_problem(errors, target, valid, shares);
  const Tensor workspace = make_workspace(errors, cuda::lovasz_shares_workspace(problem));
  check_launch(cuda::lovasz_shares(problem, workspace.mutable_data_ptr(), current_stream(errors)));
  return shares;
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CUDA, m) {
  if (fastmine::unserved().empty()) {
    m.impl("lovasz_shares", TORCH_BOX(&fastmine::lovasz_shares));
  }
}
