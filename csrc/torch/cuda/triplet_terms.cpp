// fastmine::triplet_terms on CUDA devices; its slopes go to the backward pass of triplet_loss. Compiled and linked; not
// yet run on a GPU.
#include "kernels/cuda/triplet_terms.h"

#include <tuple>

#include "torch/cuda/device.h"
#include "torch/triplet_terms_inputs.h"

namespace fastmine {
namespace {

std::tuple<Tensor, Tensor, Tensor> triplet_terms(const Tensor& rows, const Tensor& positive_index,
                                                 const Tensor& negative_index, const Tensor& positive_distance,
                                                 const Tensor& negative_distance, const Tensor& has_positive,
                                                 const Tensor& has_negative, const Tensor& mined_in,
                                                 const MaybeTensor& weight, const std::string& metric,
                                                 const std::string& shape, double margin, double leak,
                                                 const std::string& on_empty, const std::string& reduction, bool swap,
                                                 double hardness, const std::optional<double>& active_fraction) {
  for (const MaybeTensor& other :
       {MaybeTensor(positive_index), MaybeTensor(negative_index), MaybeTensor(positive_distance),
        MaybeTensor(negative_distance), MaybeTensor(has_positive), MaybeTensor(has_negative), MaybeTensor(mined_in),
        weight}) {
    check_same_device(rows, other, "an input");
  }
  const torch::stable::accelerator::DeviceGuard guard(rows.get_device_index());
  const cudaStream_t stream = current_stream(rows);
  const Tensor mined = dense(mined_in);
  const auto make = beside(rows);
  MinedTerms m;
  TripletTerms p =
      mined_terms_problem(m, make, rows, positive_distance, negative_distance, has_positive, has_negative, mined,
                          weight, metric, shape, margin, leak, on_empty, reduction, swap, hardness, active_fraction);
  Between b;
  if (swap) {
    const PairedDistance problem = between_problem(b, make, rows, positive_index, negative_index, p);
    const Tensor workspace = make_workspace(rows, cuda::paired_distance_workspace(problem));
    check_launch(cuda::paired_distance(problem, workspace.mutable_data_ptr(), stream));
    p.between = problem.distance;
  }
  const std::size_t known = static_cast<std::size_t>(mined.numel()) * sizeof(double);
  check_launch(
      cudaMemcpyAsync(data<double>(m.evidence), mined.const_data_ptr(), known, cudaMemcpyDeviceToDevice, stream));
  const Tensor workspace = make_workspace(rows, cuda::triplet_terms_workspace(p));
  check_launch(cuda::triplet_terms(p, workspace.mutable_data_ptr(), stream));
  return {m.loss, m.slopes, m.evidence};
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CUDA, m) {
  if (fastmine::unserved().empty()) {
    m.impl("triplet_terms", TORCH_BOX(&fastmine::triplet_terms));
  }
}
