// fastmine::pair_sums and its backward pass on the CPU.
#include <tuple>

#include "torch/cpu/embeddings.h"
#include "torch/cpu/kernels.h"
#include "torch/pair_inputs.h"

namespace fastmine {
namespace {

std::tuple<Tensor, Tensor> pair_sums(const Tensor& embeddings, const Tensor& labels, const MaybeTensor& valid,
                                     const MaybeTensor& ref_embeddings, const MaybeTensor& ref_labels,
                                     const MaybeTensor& ref_valid, const MaybeTensor& positive_bound,
                                     const MaybeTensor& negative_bound, const std::string& metric,
                                     const std::string& form, const std::vector<double>& curve,
                                     const MaybeTensor& scale, const MaybeTensor& level) {
  SummedPairs s;
  s.in = pairs_of(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, positive_bound, negative_bound);
  const PairSums problem = sums_problem(s, &make, level, !ref_embeddings.has_value(), metric, form, curve, scale);
  run(*kernels().pair_sums[result_type(embeddings) == ScalarType::Double], problem);
  return {s.sums, s.evidence};
}

std::tuple<Tensor, Tensor> pair_sums_backward(const Tensor& grad, const Tensor& sums, const Tensor& embeddings,
                                              const Tensor& labels, const MaybeTensor& valid,
                                              const MaybeTensor& ref_embeddings, const MaybeTensor& ref_labels,
                                              const MaybeTensor& ref_valid, const MaybeTensor& positive_bound,
                                              const MaybeTensor& negative_bound, const std::string& metric,
                                              const std::string& form, const std::vector<double>& curve,
                                              const MaybeTensor& scale) {
  PulledPairs g;
  g.in = pairs_of(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, positive_bound, negative_bound);
  const PairSumsBackward problem =
      pulls_problem(g, &make, grad, sums, !ref_embeddings.has_value(), metric, form, curve, scale);
  run(*kernels().pair_sums_backward[result_type(embeddings) == ScalarType::Double], problem);
  return {g.grad_x, g.grad_y};
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CPU, m) {
  m.impl("pair_sums", TORCH_BOX(&fastmine::pair_sums));
  m.impl("pair_sums_backward", TORCH_BOX(&fastmine::pair_sums_backward));
}
