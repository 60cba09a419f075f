// fastmine::segmentation_terms on CUDA devices. Compiled and linked; not yet run on a GPU.
#include "kernels/cuda/segmentation_terms.h"

#include "torch/cuda/device.h"
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
  for (const MaybeTensor& other : {MaybeTensor(found), lovasz, focal_alpha, pos_weight, class_weights}) {
    check_same_device(sums, other, "an input");
  }
  const torch::stable::accelerator::DeviceGuard guard(sums.get_device_index());
  TermsTensors t;
  SegmentationTerms problem =
      terms_problem(t, beside(sums), sums, found, lovasz, mode, terms, weights, empty, smooth_nr, smooth_dr, squared,
                    focal_alpha, tversky_alpha, tversky_beta, focal_tversky_exponent, generalized_weights, pos_weight,
                    label_smoothing, class_weights, class_weight_norm, classes, batch, reduction, wide);
  const Tensor kept = make_workspace(sums, classes ? static_cast<size_t>(problem.classes) : 0);
  if (classes) {
    problem.kept = data<uint8_t>(kept);
    check_launch(cuda::mark_kept(classes->data(), static_cast<int64_t>(classes->size()), data<uint8_t>(kept),
                                 problem.classes, current_stream(sums)));
  }
  const Tensor workspace = make_workspace(sums, cuda::segmentation_terms_workspace(problem));
  check_launch(cuda::segmentation_terms(problem, workspace.mutable_data_ptr(), current_stream(sums)));
  return t.outputs();
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CUDA, m) {
  if (fastmine::unserved().empty()) {
    m.impl("segmentation_terms", TORCH_BOX(&fastmine::segmentation_terms));
  }
}
