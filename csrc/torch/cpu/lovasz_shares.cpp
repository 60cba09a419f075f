// fastmine::lovasz_shares on the CPU.
#include "torch/cpu/embeddings.h"
#include "torch/lovasz_problem.h"

namespace fastmine {
namespace {

Tensor lovasz_shares(const Tensor& errors_in, const Tensor& target_in, const MaybeTensor& valid) {
  check_lovasz(errors_in, target_in, valid, std::numeric_limits<uint32_t>::max());
  const Tensor errors = dense(errors_in), target = dense(target_in);
  const Tensor shares = make(errors.sizes(), errors.scalar_type());
  run(cpu::lovasz_shares, lovasz_problem(errors, target, valid, shares));
  return shares;
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CPU, m) { m.impl("lovasz_shares", TORCH_BOX(&fastmine::lovasz_shares)); }
