// fastmine::selective_terms on CUDA devices; its slopes go to the backward pass of triplet_loss. Compiled and linked;
// not yet run on a GPU.
#include "kernels/cuda/selective_terms.h"

#include <tuple>

#include "torch/cuda/device.h"
#include "torch/selective_terms_inputs.h"

namespace fastmine {
namespace {

/// The indices are there for the schema of `triplet_terms`, whose place this op takes.
std::tuple<Tensor, Tensor, Tensor> selective_terms(const Tensor& rows, const Tensor&, const Tensor&,
                                                   const Tensor& positive_distance, const Tensor& negative_distance,
                                                   const Tensor& has_positive, const Tensor& has_negative,
                                                   const Tensor& mined_in, const MaybeTensor& weight,
                                                   const std::string& metric, double temperature, double hard_weight,
                                                   const std::string& on_empty, const std::string& reduction) {
  for (const MaybeTensor& other :
       {MaybeTensor(positive_distance), MaybeTensor(negative_distance), MaybeTensor(has_positive),
        MaybeTensor(has_negative), MaybeTensor(mined_in), weight}) {
    check_same_device(rows, other, "an input");
  }
  const torch::stable::accelerator::DeviceGuard guard(rows.get_device_index());
  const cudaStream_t stream = current_stream(rows);
  const Tensor mined = dense(mined_in);
  SelectiveTensors t;
  const SelectiveTerms p =
      selective_terms_problem(t, beside(rows), rows, positive_distance, negative_distance, has_positive, has_negative,
                              mined, weight, metric, temperature, hard_weight, on_empty, reduction);
  const std::size_t known = static_cast<std::size_t>(mined.numel()) * sizeof(double);
  check_launch(
      cudaMemcpyAsync(data<double>(t.evidence), mined.const_data_ptr(), known, cudaMemcpyDeviceToDevice, stream));
  const Tensor workspace = make_workspace(rows, cuda::selective_terms_workspace(p));
  check_launch(cuda::selective_terms(p, workspace.mutable_data_ptr(), stream));
  return {t.loss, t.slopes, t.evidence};
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CUDA, m) {
  if (fastmine::unserved().empty()) {
    m.impl("selective_terms", TORCH_BOX(&fastmine::selective_terms));
  }
}
