// What the bindings of the segmentation losses share: tensors and options in the kernels' terms, on any device.
#pragma once

#include <algorithm>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "kernels/segmentation_loss.h"
#include "kernels/segmentation_sums.h"
#include "torch/tensors.h"

namespace fastmine {

inline SegmentationMode mode_of(const std::string& name) {
  if (name == "binary") return SegmentationMode::binary;
  if (name == "multilabel") return SegmentationMode::multilabel;
  FASTMINE_CHECK(name == "multiclass", "unknown mode ", name);
  return SegmentationMode::multiclass;
}

inline EmptyGroups empty_of(const std::string& name) {
  if (name == "area") return EmptyGroups::area;
  if (name == "skip") return EmptyGroups::skip;
  FASTMINE_CHECK(name == "smooth", "unknown policy for empty groups ", name);
  return EmptyGroups::smooth;
}

inline Focal focal_of(std::optional<double> alpha, double gamma) {
  return {alpha.value_or(1.0), alpha ? 1.0 - *alpha : 1.0, gamma};
}

/// A tensor whose dimensions from `first` on can be walked with one stride: itself, or a copy where it cannot.
inline Tensor walkable(const Tensor& t, int64_t first) {
  const auto sizes = t.sizes(), strides = t.strides();
  int64_t stride = 0;
  const bool walks = collapse(sizes.data() + first, strides.data() + first, t.dim() - first, stride);
  return walks ? t : torch::stable::contiguous(t);
}

/// A walkable tensor as [samples, classes, positions]; a tensor without classes has its positions from dimension 1 on.
inline Grid grid_of(const Tensor& t, bool has_classes) {
  const int64_t first = has_classes ? 2 : 1;
  const auto sizes = t.sizes(), strides = t.strides();
  Grid grid{t.const_data_ptr(), dtype_of(t.scalar_type()), {t.stride(0), has_classes ? t.stride(1) : 0, 0}};
  collapse(sizes.data() + first, strides.data() + first, t.dim() - first, grid.stride[2]);
  return grid;
}

/// The inputs in the kernel's terms, and the tensors that own them.
struct Inputs {
  Tensor logits, target;
  std::optional<Tensor> valid;
  SegmentationInputs kernel;
};

inline void check_shapes(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& valid,
                         bool multiclass, bool has_classes) {
  const int64_t dims = logits.dim();
  FASTMINE_CHECK(dims >= (has_classes ? 2 : 1), "logits have ", dims, " dimensions");
  FASTMINE_CHECK(target.dim() == dims - (multiclass ? 1 : 0), "target has ", target.dim(), " dimensions");
  for (int64_t d = 0; d < dims; ++d) {
    const bool by_class = multiclass && d == 1;
    const int64_t at = multiclass && d > 1 ? d - 1 : d;
    FASTMINE_CHECK(by_class || target.size(at) == logits.size(d), "target does not have the shape of logits");
    FASTMINE_CHECK(!valid || (valid->dim() == dims && valid->size(d) == (by_class ? 1 : logits.size(d))),
                   "valid does not have the shape of logits");
  }
  FASTMINE_CHECK(!valid || valid->scalar_type() == ScalarType::Bool, "valid is not boolean");
  const DType labels = dtype_of(target.scalar_type());
  FASTMINE_CHECK(!multiclass || labels == DType::bool_ || (labels >= DType::uint8 && labels <= DType::int64),
                 "class indices are not integers");
}

inline Inputs inputs_of(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& valid,
                        std::optional<int64_t> ignore_index, const std::string& mode_name) {
  constexpr int64_t kMostClasses = int64_t{1} << 24;  // whose indices float32 holds exactly
  const SegmentationMode mode = mode_of(mode_name);
  const bool multiclass = mode == SegmentationMode::multiclass, has_classes = mode != SegmentationMode::binary;
  check_shapes(logits, target, valid, multiclass, has_classes);
  Inputs in{walkable(logits, has_classes ? 2 : 1), walkable(target, has_classes && !multiclass ? 2 : 1), valid, {}};
  if (valid) {
    in.valid = walkable(*valid, has_classes ? 2 : 1);
  }
  const DType dtype = dtype_of(logits.scalar_type());
  FASTMINE_CHECK(dtype <= DType::float16, "logits are not floating point");
  in.kernel.logits = grid_of(in.logits, has_classes);
  in.kernel.target = grid_of(in.target, has_classes && !multiclass);
  in.kernel.valid = in.valid ? grid_of(*in.valid, has_classes) : Grid{nullptr, DType::bool_, {0, 0, 0}};
  in.kernel.ignores = ignore_index.has_value();
  in.kernel.ignore_index = ignore_index.value_or(0);
  in.kernel.mode = mode;
  in.kernel.samples = logits.size(0);
  in.kernel.classes = has_classes ? logits.size(1) : 1;
  in.kernel.positions = 1;
  for (int64_t d = has_classes ? 2 : 1; d < logits.dim(); ++d) {
    in.kernel.positions *= logits.size(d);
  }
  FASTMINE_CHECK(in.kernel.classes <= kMostClasses, "more classes than fit");
  return in;
}

/// The classes of each sample that are part of its class 0; a tensor that owns what the kernel reads.
inline MaybeTensor add_merged(const MaybeTensor& merged, SegmentationInputs& in) {
  if (!merged) {
    return std::nullopt;
  }
  FASTMINE_CHECK(in.mode == SegmentationMode::multiclass, "only classes of a softmax are merged");
  FASTMINE_CHECK(merged->scalar_type() == ScalarType::Bool && merged->dim() == 2 && merged->size(0) == in.samples &&
                     merged->size(1) == in.classes,
                 "merged is not boolean of shape [samples, classes]");
  const Tensor rows = dense(*merged);
  in.merged = static_cast<const std::uint8_t*>(rows.const_data_ptr());
  return rows;
}

inline SegmentationSumSet sums_of(const std::vector<std::string>& names) {
  SegmentationSumSet set = 0;
  for (const std::string& name : names) {
    const auto* const end = std::end(kSegmentationSumNames);
    const auto* const found = std::find(std::begin(kSegmentationSumNames), end, name);
    FASTMINE_CHECK(found != end, "unknown sum ", name);
    set |= SegmentationSumSet{1} << (found - std::begin(kSegmentationSumNames));
  }
  return set;
}

inline void check_sums_gradient(const Tensor& grad, const SegmentationInputs& in) {
  FASTMINE_CHECK(grad.scalar_type() == ScalarType::Double && grad.dim() == 3 && grad.size(0) == in.samples &&
                     grad.size(1) == in.classes && grad.size(2) == kSegmentationSums,
                 "the gradient is of other sums");
}

/// The problem but for its outputs.
inline SegmentationLoss segmentation_problem(const SegmentationInputs& in, const std::vector<double>& weights,
                                             double smooth, std::optional<double> focal_alpha, double focal_gamma,
                                             double tversky_alpha, double tversky_beta, const std::string& empty,
                                             const std::string& reduction) {
  FASTMINE_CHECK(weights.size() == kSegmentationTerms, "expected ", kSegmentationTerms, " weights");
  const auto foreign = in.mode == SegmentationMode::multiclass ? SegmentationTerm::bce : SegmentationTerm::ce;
  FASTMINE_CHECK(weights[static_cast<size_t>(foreign)] == 0, "a term of another mode has a weight");

  SegmentationLoss problem{};
  problem.in = in;
  for (size_t term = 0; term < kSegmentationTerms; ++term) {
    problem.weights[term] = weights[term];
  }
  problem.smooth = smooth;
  problem.focal = focal_of(focal_alpha, focal_gamma);
  problem.tversky_alpha = tversky_alpha;
  problem.tversky_beta = tversky_beta;
  problem.empty = empty_of(empty);
  problem.reduction = reduction_of(reduction);
  return problem;
}

/// The problem of the backward pass but for its output.
inline SegmentationLossBackward segmentation_backward_problem(const SegmentationInputs& in, const Tensor& grad,
                                                              const Tensor& coefficients,
                                                              std::optional<double> focal_alpha, double focal_gamma) {
  FASTMINE_CHECK(
      coefficients.scalar_type() == ScalarType::Double && coefficients.numel() == in.samples * in.classes * 4,
      "the coefficients are of another problem");
  FASTMINE_CHECK(grad.dim() == 0 || (grad.dim() == 1 && grad.size(0) == in.samples),
                 "the gradient is neither one number nor one per sample");
  return {in,
          data<double>(coefficients),
          focal_of(focal_alpha, focal_gamma),
          grad.const_data_ptr(),
          dtype_of(grad.scalar_type()),
          grad.dim() == 0 ? 0 : grad.stride(0),
          nullptr};
}

}  // namespace fastmine
