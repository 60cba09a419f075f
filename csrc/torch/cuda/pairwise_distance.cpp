// fastmine::pairwise_distance and its backward pass on CUDA devices. Compiled and linked; not yet run on a GPU.
#include "kernels/cuda/pairwise_distance.h"

#include <tuple>

#include "torch/cuda/device.h"
#include "torch/rows.h"

namespace fastmine {
namespace {

Tensor pairwise_distance(const Tensor& x_in, const std::optional<Tensor>& y_in, const std::string& metric) {
  check_same_device(x_in, y_in, "y");
  const torch::stable::accelerator::DeviceGuard guard(x_in.get_device_index());
  const Tensor x = with_dense_rows(x_in), y = y_in ? with_dense_rows(*y_in) : x;
  FASTMINE_CHECK(x.size(1) == y.size(1) && x.scalar_type() == y.scalar_type(), "x and y do not match");
  const Tensor distance = make_like(x, {x.size(0), y.size(0)}, result_type(x));
  const PairwiseDistance problem{rows_of(x), rows_of(y), !y_in.has_value(), metric_of(metric),
                                 distance.mutable_data_ptr()};
  const Tensor workspace = make_workspace(x, cuda::pairwise_distance_workspace(problem));
  check_launch(cuda::pairwise_distance(problem, workspace.mutable_data_ptr(), current_stream(x)));
  return distance;
}

std::tuple<Tensor, Tensor> pairwise_distance_backward(const Tensor& grad_in, const Tensor& x_in,
                                                      const std::optional<Tensor>& y_in, const Tensor& distance_in,
                                                      const std::string& metric) {
  check_same_device(x_in, grad_in, "the gradient");
  check_same_device(x_in, y_in, "y");
  check_same_device(x_in, distance_in, "distance");
  const torch::stable::accelerator::DeviceGuard guard(x_in.get_device_index());
  const bool self = !y_in.has_value();
  const Tensor x = with_dense_rows(x_in), y = self ? x : with_dense_rows(*y_in);
  const Tensor grad = dense(grad_in), distance = dense(distance_in);
  check_distance_gradient(grad, distance, x, y);
  const Tensor grad_x = make_like(x, {x.size(0), x.size(1)}, x.scalar_type());
  const Tensor grad_y =
      self ? make_like(x, {0}, x.scalar_type()) : make_like(y, {y.size(0), y.size(1)}, y.scalar_type());
  const PairwiseDistanceBackward problem{rows_of(x),
                                         rows_of(y),
                                         self,
                                         metric_of(metric),
                                         grad.const_data_ptr(),
                                         distance.const_data_ptr(),
                                         grad_x.mutable_data_ptr(),
                                         grad_y.mutable_data_ptr()};
  const Tensor workspace = make_workspace(x, cuda::pairwise_distance_backward_workspace(problem));
  check_launch(cuda::pairwise_distance_backward(problem, workspace.mutable_data_ptr(), current_stream(x)));
  return {grad_x, grad_y};
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CUDA, m) {
  if (!fastmine::unserved().empty()) {
    return;
  }
  m.impl("pairwise_distance", TORCH_BOX(&fastmine::pairwise_distance));
  m.impl("pairwise_distance_backward", TORCH_BOX(&fastmine::pairwise_distance_backward));
}
