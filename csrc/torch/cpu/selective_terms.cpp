// fastmine::selective_terms on the CPU; its slopes go to the backward pass of triplet_loss.
#include "torch/selective_terms_inputs.h"

#include <cstring>
#include <tuple>

#include "torch/cpu/embeddings.h"

namespace fastmine {
namespace {

/// The indices are there for the schema of `triplet_terms`, whose place this op takes.
std::tuple<Tensor, Tensor, Tensor> selective_terms(const Tensor& rows, const Tensor&, const Tensor&,
                                                   const Tensor& positive_distance, const Tensor& negative_distance,
                                                   const Tensor& has_positive, const Tensor& has_negative,
                                                   const Tensor& mined_in, const MaybeTensor& weight,
                                                   const std::string& metric, double temperature, double hard_weight,
                                                   const std::string& on_empty, const std::string& reduction) {
  const Tensor mined = dense(mined_in);
  const auto allocate = [](std::initializer_list<int64_t> shape, ScalarType type) { return make(shape, type); };
  SelectiveTensors t;
  const SelectiveTerms p =
      selective_terms_problem(t, allocate, rows, positive_distance, negative_distance, has_positive, has_negative,
                              mined, weight, metric, temperature, hard_weight, on_empty, reduction);
  std::memcpy(data<double>(t.evidence), mined.const_data_ptr(), static_cast<size_t>(mined.numel()) * sizeof(double));
  cpu::selective_terms(p);
  return {t.loss, t.slopes, t.evidence};
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CPU, m) { m.impl("selective_terms", TORCH_BOX(&fastmine::selective_terms)); }
