// fastmine::triplet_terms on the CPU; its slopes go to the backward pass of triplet_loss.
#include <cstring>
#include <tuple>

#include "torch/cpu/embeddings.h"
#include "torch/cpu/kernels.h"
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
  const Tensor mined = dense(mined_in);
  const auto allocate = [](std::initializer_list<int64_t> shape_of_it, ScalarType type) {
    return make(shape_of_it, type);
  };
  MinedTerms m;
  TripletTerms p =
      mined_terms_problem(m, allocate, rows, positive_distance, negative_distance, has_positive, has_negative, mined,
                          weight, metric, shape, margin, leak, on_empty, reduction, swap, hardness, active_fraction);
  Between b;
  if (swap) {
    const PairedDistance problem = between_problem(b, allocate, rows, positive_index, negative_index, p);
    run(*kernels().paired_distance[result_type(rows) == ScalarType::Double], problem);
    p.between = problem.distance;
  }
  MaybeTensor violations;
  if (active_fraction) {
    violations = make({p.n * p.positives * p.negatives}, ScalarType::Double);
    p.violations = data<double>(*violations);
  }
  std::memcpy(data<double>(m.evidence), mined.const_data_ptr(), static_cast<size_t>(mined.numel()) * sizeof(double));
  cpu::triplet_terms(p);
  return {m.loss, m.slopes, m.evidence};
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CPU, m) { m.impl("triplet_terms", TORCH_BOX(&fastmine::triplet_terms)); }
