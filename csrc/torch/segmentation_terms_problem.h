// What the bindings of segmentation_terms share: tensors and options in the kernel's terms, on any device.
#pragma once

#include <algorithm>
#include <iterator>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/segmentation_terms.h"
#include "torch/segmentation_inputs.h"

namespace fastmine {

/// The tensors that the formula reads, made such that kernels can, and those that it writes.
struct TermsTensors {
  Tensor sums, found;
  MaybeTensor lovasz;
  Tensor loss, slopes, lovasz_slopes, values, norms;

  std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> outputs() const {
    return {loss, slopes, lovasz_slopes, values, norms};
  }
};

inline double generalized_power(const std::string& name) {
  if (name == "square") return 2;
  if (name == "simple") return 1;
  FASTMINE_CHECK(name == "uniform", "unknown weights of generalized Dice ", name);
  return 0;
}

inline void ask_for(const std::vector<std::string>& terms, const std::vector<double>& weights,
                    SegmentationTerms& problem) {
  FASTMINE_CHECK(terms.size() == weights.size(), "every term has a weight");
  for (size_t i = 0; i < terms.size(); ++i) {
    const auto* const end = std::end(kFormulaTermNames);
    const auto* const found = std::find(std::begin(kFormulaTermNames), end, terms[i]);
    FASTMINE_CHECK(found != end, "unknown term ", terms[i]);
    problem.asked[found - std::begin(kFormulaTermNames)] = true;
    problem.weights[found - std::begin(kFormulaTermNames)] = weights[i];
  }
}

/// One number, or one for each class.
inline PerClass per_class(const MaybeTensor& values, int64_t classes) {
  if (!values) {
    return {};
  }
  FASTMINE_CHECK(values->scalar_type() == ScalarType::Double && (values->dim() == 0 || values->numel() == classes),
                 "expected one float64 number, or one for each of ", classes, " classes");
  return {static_cast<const double*>(values->const_data_ptr()), values->dim() == 0 ? 0 : values->stride(0)};
}

/// The problem but for `kept` and `room`, its tensors kept in `t`; make(shape, type) allocates.
template <class Make>
SegmentationTerms terms_problem(TermsTensors& t, Make make, const Tensor& sums, const Tensor& found,
                                const MaybeTensor& lovasz, const std::string& mode,
                                const std::vector<std::string>& terms, const std::vector<double>& weights,
                                const std::string& empty, double smooth_nr, double smooth_dr, bool squared,
                                const MaybeTensor& focal_alpha, double tversky_alpha, double tversky_beta,
                                double focal_tversky_exponent, const std::string& generalized_weights,
                                const MaybeTensor& pos_weight, double label_smoothing, const MaybeTensor& class_weights,
                                const std::string& class_weight_norm,
                                const std::optional<std::vector<int64_t>>& classes, bool batch,
                                const std::string& reduction, bool wide) {
  FASTMINE_CHECK(sums.dim() == 3 && sums.size(2) == kSegmentationSums && sums.scalar_type() == ScalarType::Double,
                 "expected the sums of segmentation_sums");
  FASTMINE_CHECK(found.dim() == 1 && found.size(0) == static_cast<int64_t>(Segmentation::first_term) &&
                     found.scalar_type() == ScalarType::Double,
                 "expected the evidence of segmentation_sums");
  const int64_t samples = sums.size(0), count = sums.size(1), rows = batch ? 1 : samples;
  for (const int64_t k : classes.value_or(std::vector<int64_t>{})) {
    FASTMINE_CHECK(k >= 0 && k < count, "there is no class ", k);
  }

  SegmentationTerms problem{};
  problem.samples = samples;
  problem.classes = count;
  problem.softmax = mode_of(mode) == SegmentationMode::multiclass;
  ask_for(terms, weights, problem);
  problem.empty = empty_of(empty);
  problem.smooth_nr = smooth_nr;
  problem.smooth_dr = smooth_dr;
  problem.squared = squared;
  problem.tversky_alpha = tversky_alpha;
  problem.tversky_beta = tversky_beta;
  problem.focal_tversky_exponent = focal_tversky_exponent;
  problem.generalized_power = generalized_power(generalized_weights);
  problem.focal_alpha = per_class(focal_alpha, count);
  problem.pos_weight = per_class(pos_weight, count);
  problem.class_weights = per_class(class_weights, count);
  FASTMINE_CHECK(class_weight_norm == "weights" || class_weight_norm == "count", "unknown norm ", class_weight_norm);
  problem.weights_count = class_weight_norm == "count";
  problem.label_smoothing = label_smoothing;
  problem.batch = batch;
  problem.reduction = reduction_of(reduction);

  const bool sorted = problem.asked[static_cast<int>(FormulaTerm::lovasz)];
  FASTMINE_CHECK(sorted == lovasz.has_value(), "the term lovasz needs its values, and they are for nothing else");
  FASTMINE_CHECK(!lovasz || (lovasz->scalar_type() == ScalarType::Double && lovasz->dim() == 2 &&
                             lovasz->size(0) == rows && lovasz->size(1) == count),
                 "the values of lovasz are of other groups");
  const ScalarType type = wide ? ScalarType::Double : ScalarType::Float;
  t.sums = dense(sums);
  t.found = dense(found);
  t.lovasz = dense(lovasz);
  t.loss = problem.reduction == Reduction::none ? make({rows}, type) : make({}, type);
  t.slopes = make({samples, count, kSegmentationSums}, ScalarType::Double);
  t.lovasz_slopes = make({lovasz ? rows : 0, count}, ScalarType::Double);
  t.values = make({kFormulaTerms}, ScalarType::Double);
  t.norms = make({kFormulaTerms}, ScalarType::Double);
  problem.sums = static_cast<const double*>(t.sums.const_data_ptr());
  problem.found = static_cast<const double*>(t.found.const_data_ptr());
  problem.lovasz = t.lovasz ? static_cast<const double*>(t.lovasz->const_data_ptr()) : nullptr;
  problem.loss = t.loss.mutable_data_ptr();
  problem.loss_dtype = dtype_of(type);
  problem.slopes = data<double>(t.slopes);
  problem.lovasz_slopes = lovasz ? data<double>(t.lovasz_slopes) : nullptr;
  problem.values = data<double>(t.values);
  problem.norms = data<double>(t.norms);
  return problem;
}

}  // namespace fastmine
