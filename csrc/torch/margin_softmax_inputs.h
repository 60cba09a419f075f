// What the bindings of margin_softmax share, on any device: tensors to a problem, options by name.
#pragma once

#include <string>
#include <tuple>

#include "kernels/margin_softmax.h"
#include "torch/tensors.h"

namespace fastmine {

/// The tensors that the kernel reads, made such that it can, and those that it writes.
struct MarginSoftmaxTensors {
  Tensor logits, unit, labels;
  MaybeTensor nearest, valid, weight;
  Tensor loss, slopes, cosine, nearest_other, active;

  std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> found() const {
    return {loss, slopes, cosine, nearest_other, active};
  }
};

/// The problem, its tensors kept in `t`; make(shape, type) allocates.
template <class Make>
MarginSoftmax margin_softmax_problem(MarginSoftmaxTensors& t, Make make, const Tensor& logits, const Tensor& unit,
                                     const Tensor& labels, const MaybeTensor& nearest, const MaybeTensor& valid,
                                     const MaybeTensor& weight, const std::string& kind, double scale, double margin,
                                     const std::string& reduction) {
  t.logits = dense(logits);
  t.unit = dense(unit);
  t.labels = dense(labels);
  t.nearest = dense(nearest);
  t.valid = dense(valid);
  t.weight = dense(weight);
  const ScalarType type = t.logits.scalar_type();
  FASTMINE_CHECK(type == ScalarType::Float || type == ScalarType::Double, "logits are float32 or float64");
  FASTMINE_CHECK(t.logits.dim() == 2 && t.unit.dim() == 2 && t.unit.scalar_type() == type,
                 "rows of the type of logits");
  const int64_t n = t.logits.size(0), classes = t.logits.size(1);
  const auto of_rows = [n](const Tensor& x, ScalarType as) { return x.numel() == n && x.scalar_type() == as; };
  FASTMINE_CHECK(t.unit.size(0) >= n + classes && of_rows(t.labels, ScalarType::Long),
                 "a label for each row, and a vector for each class");
  FASTMINE_CHECK(!t.nearest || of_rows(*t.nearest, ScalarType::Long), "one index a row");
  FASTMINE_CHECK(!t.valid || of_rows(*t.valid, ScalarType::Bool), "one bit a row");
  FASTMINE_CHECK(!t.weight || of_rows(*t.weight, type), "one weight a row");

  MarginSoftmax p{};
  p.n = n;
  p.classes = classes;
  p.d = t.unit.size(1);
  p.dtype = dtype_of(type);
  p.logits = t.logits.const_data_ptr();
  p.unit = t.unit.const_data_ptr();
  p.labels = static_cast<const int64_t*>(t.labels.const_data_ptr());
  p.nearest = t.nearest ? static_cast<const int64_t*>(t.nearest->const_data_ptr()) : nullptr;
  p.valid = t.valid ? static_cast<const bool*>(t.valid->const_data_ptr()) : nullptr;
  p.weight = t.weight ? t.weight->const_data_ptr() : nullptr;
  p.kind = kind == "angular" ? MarginKind::angular : MarginKind::cosine;
  p.scale = scale;
  p.margin = margin;
  p.reduction = reduction_of(reduction);

  t.loss = p.reduction == Reduction::none ? make({n}, type) : make({}, type);
  t.slopes = make({n, classes}, type);
  t.cosine = make({n}, type);
  t.nearest_other = make({n}, type);
  t.active = make({n}, ScalarType::Bool);
  p.loss = t.loss.mutable_data_ptr();
  p.slopes = t.slopes.mutable_data_ptr();
  p.cosine = t.cosine.mutable_data_ptr();
  p.nearest_other = t.nearest_other.mutable_data_ptr();
  p.active = data<bool>(t.active);
  return p;
}

}  // namespace fastmine
