// fastmine::pairwise_distance and its backward pass on the CPU.
#include "kernels/pairwise_distance.h"

#include <tuple>

#include "torch/cpu/embeddings.h"
#include "torch/cpu/kernels.h"

namespace fastmine {
namespace {

Tensor pairwise_distance(const Tensor& x_in, const std::optional<Tensor>& y_in, const std::string& metric) {
  const Tensor x = with_dense_rows(x_in), y = y_in ? with_dense_rows(*y_in) : x;
  FASTMINE_CHECK(x.size(1) == y.size(1) && x.scalar_type() == y.scalar_type(), "x and y do not match");
  const Tensor distance = make({x.size(0), y.size(0)}, result_type(x));
  const bool wide = result_type(x) == ScalarType::Double;
  run(*kernels().pairwise_distance[wide],
      {rows_of(x), rows_of(y), !y_in.has_value(), metric_of(metric), distance.mutable_data_ptr()});
  return distance;
}

std::tuple<Tensor, Tensor> pairwise_distance_backward(const Tensor& grad_in, const Tensor& x_in,
                                                      const std::optional<Tensor>& y_in, const Tensor& distance_in,
                                                      const std::string& metric) {
  const bool self = !y_in.has_value();
  const Tensor x = with_dense_rows(x_in), y = self ? x : with_dense_rows(*y_in);
  const Tensor grad = dense(grad_in), distance = dense(distance_in);
  check_distance_gradient(grad, distance, x, y);
  const Tensor grad_x = make({x.size(0), x.size(1)}, x.scalar_type());
  const Tensor grad_y = self ? make({0}, x.scalar_type()) : make({y.size(0), y.size(1)}, y.scalar_type());
  const bool wide = result_type(x) == ScalarType::Double;
  run(*kernels().pairwise_distance_backward[wide],
      {rows_of(x), rows_of(y), self, metric_of(metric), grad.const_data_ptr(), distance.const_data_ptr(),
       grad_x.mutable_data_ptr(), grad_y.mutable_data_ptr()});
  return {grad_x, grad_y};
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CPU, m) {
  m.impl("pairwise_distance", TORCH_BOX(&fastmine::pairwise_distance));
  m.impl("pairwise_distance_backward", TORCH_BOX(&fastmine::pairwise_distance_backward));
}
