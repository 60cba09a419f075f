// fastmine::segmentation_terms on the CPU.
#include "torch/cpu/embeddings.h"
#include "torch/segmentation_terms_problem.h"

namespace fastmine {
namespace {

using Slopes = Tensor;
using LovaszSlopes = Tensor;
using Values = Tensor;
using Norms = Tensor;

std::tuple<Tensor, Slopes, LovaszSlopes, Values, Norms> segmentation_terms(
    const Tensor& sums, const Tensor& found, const MaybeTensor& lovasz, const std::string& mode,
    const std::vector<std::string>& terms, const std::vector<double>& weights, const std::string& empty,
    double smooth_nr, double smooth_dr, bool squared, const MaybeTensor& focal_alpha, double tversky_alpha,
    double tversky_beta, double focal_tversky_exponent, const std::string& generalized_weights,
    const MaybeTensor& pos_weight, double label_smoothing, const MaybeTensor& class_weights,
    const std::string& class_weight_norm, const std::optional<std::vector<int64_t>>& classes, bool batch,
    const std::string& reduction, bool wide) {
  TermsTensors t;
  SegmentationTerms problem = terms_problem(
      t, [](std::initializer_list<int64_t> shape, ScalarType type) { return make(shape, type); }, sums, found, lovasz,
      mode, terms, weights, empty, smooth_nr, smooth_dr, squared, focal_alpha, tversky_alpha, tversky_beta,
      focal_tversky_exponent, generalized_weights, pos_weight, label_smoothing, class_weights, class_weight_norm,
      classes, batch, reduction, wide);
  std::vector<uint8_t> kept(static_cast<size_t>(problem.classes));
  for (const int64_t k : classes.value_or(std::vector<int64_t>{})) {
    kept[static_cast<size_t>(k)] = 1;
  }
  problem.kept = classes ? kept.data() : nullptr;
  const Tensor room = make({batch ? 1 : problem.samples, problem.classes, kSegmentationSums}, ScalarType::Double);
  problem.room = data<double>(room);
  cpu::segmentation_terms(problem);
  return t.outputs();
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CPU, m) { m.impl("segmentation_terms", TORCH_BOX(&fastmine::segmentation_terms)); }
