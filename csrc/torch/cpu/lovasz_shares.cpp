// fastmine::lovasz_shares on the CPU.
#include "kernels/lovasz_shares.h"

#include <limits>

#include "torch/cpu/embeddings.h"

namespace fastmine {
namespace {

Tensor lovasz_shares(const Tensor& errors_in, const Tensor& target_in, const MaybeTensor& valid) {
  FASTMINE_CHECK(errors_in.dim() == 3 && target_in.dim() == 3 && (!valid || valid->dim() == 3),
                 "expected errors, target and valid of shape [samples, classes, positions]");
  for (int64_t d = 0; d < 3; ++d) {
    FASTMINE_CHECK(target_in.size(d) == errors_in.size(d) && (!valid || valid->size(d) == errors_in.size(d)),
                   "target and valid do not have the shape of the errors");
  }
  const ScalarType type = errors_in.scalar_type();
  FASTMINE_CHECK((type == ScalarType::Float || type == ScalarType::Double) && target_in.scalar_type() == type,
                 "errors and target are both float32 or both float64");
  FASTMINE_CHECK(!valid || valid->scalar_type() == ScalarType::Bool, "valid is not boolean");
  FASTMINE_CHECK(errors_in.size(2) <= std::numeric_limits<uint32_t>::max(),
                 "a group is larger than 2^32 - 1 positions");
  const Tensor errors = dense(errors_in), target = dense(target_in);
  const Tensor shares = make(errors.sizes(), type);
  LovaszShares problem{errors.size(0),           errors.size(1),          errors.size(2), dtype_of(type),
                       errors.const_data_ptr(),  target.const_data_ptr(), nullptr,        {0, 0, 0},
                       shares.mutable_data_ptr()};
  if (valid) {
    problem.valid = static_cast<const uint8_t*>(valid->const_data_ptr());
    for (int64_t d = 0; d < 3; ++d) {
      problem.valid_stride[d] = valid->stride(d);
    }
  }
  run(cpu::lovasz_shares, problem);
  return shares;
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CPU, m) { m.impl("lovasz_shares", TORCH_BOX(&fastmine::lovasz_shares)); }
