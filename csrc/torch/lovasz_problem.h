// What the bindings of lovasz_shares share: tensors in the kernel's terms, on any device.
#pragma once

#include "kernels/lovasz_shares.h"
#include "torch/tensors.h"

namespace fastmine {

inline void check_lovasz(const Tensor& errors, const Tensor& target, const MaybeTensor& valid, int64_t most) {
  FASTMINE_CHECK(errors.dim() == 3 && target.dim() == 3 && (!valid || valid->dim() == 3),
                 "expected errors, target and valid of shape [samples, classes, positions]");
  for (int64_t d = 0; d < 3; ++d) {
    FASTMINE_CHECK(target.size(d) == errors.size(d) && (!valid || valid->size(d) == errors.size(d)),
                   "target and valid do not have the shape of the errors");
  }
  const ScalarType type = errors.scalar_type();
  FASTMINE_CHECK((type == ScalarType::Float || type == ScalarType::Double) && target.scalar_type() == type,
                 "errors and target are both float32 or both float64");
  FASTMINE_CHECK(!valid || valid->scalar_type() == ScalarType::Bool, "valid is not boolean");
  FASTMINE_CHECK(errors.size(2) <= most, "a group is larger than ", most, " positions");
}

/// The problem; `errors` and `target` are dense.
inline LovaszShares lovasz_problem(const Tensor& errors, const Tensor& target, const MaybeTensor& valid,
                                   const Tensor& shares) {
  LovaszShares problem{
      errors.size(0),          errors.size(1), errors.size(2), dtype_of(errors.scalar_type()), errors.const_data_ptr(),
      target.const_data_ptr(), nullptr,        {0, 0, 0},      shares.mutable_data_ptr()};
  if (valid) {
    problem.valid = static_cast<const uint8_t*>(valid->const_data_ptr());
    for (int64_t d = 0; d < 3; ++d) {
      problem.valid_stride[d] = valid->stride(d);
    }
  }
  return problem;
}

}  // namespace fastmine
