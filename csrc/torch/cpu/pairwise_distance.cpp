// fastmine::pairwise_distance on the CPU. Its backward pass is two matrix products: torch's, through the reference.
#include "kernels/pairwise_distance.h"

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

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CPU, m) { m.impl("pairwise_distance", TORCH_BOX(&fastmine::pairwise_distance)); }
