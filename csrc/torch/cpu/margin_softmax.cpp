// fastmine::margin_softmax on the CPU.
#include "kernels/margin_softmax.h"

#include <string>
#include <tuple>

#include "torch/cpu/embeddings.h"
#include "torch/cpu/kernels.h"

namespace fastmine {
namespace {

using Found = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Found margin_softmax(const Tensor& logits_in, const Tensor& unit_in, const Tensor& labels_in,
                     const MaybeTensor& nearest_in, const MaybeTensor& valid_in, const MaybeTensor& weight_in,
                     const std::string& kind, double scale, double margin, const std::string& reduction) {
  const Tensor logits = dense(logits_in), unit = dense(unit_in), labels = dense(labels_in);
  const MaybeTensor nearest = dense(nearest_in), valid = dense(valid_in), weight = dense(weight_in);
  const ScalarType type = logits.scalar_type();
  FASTMINE_CHECK(type == ScalarType::Float || type == ScalarType::Double, "logits are float32 or float64");
  FASTMINE_CHECK(logits.dim() == 2 && unit.dim() == 2 && unit.scalar_type() == type, "rows of the type of logits");
  const int64_t n = logits.size(0), classes = logits.size(1);
  FASTMINE_CHECK(unit.size(0) >= n + classes && labels.numel() == n && labels.scalar_type() == ScalarType::Long,
                 "a label for each row, and a vector for each class");
  FASTMINE_CHECK(!nearest || (nearest->numel() == n && nearest->scalar_type() == ScalarType::Long), "one index a row");
  FASTMINE_CHECK(!valid || (valid->numel() == n && valid->scalar_type() == ScalarType::Bool), "one bit a row");
  FASTMINE_CHECK(!weight || (weight->numel() == n && weight->scalar_type() == type), "one weight a row");

  MarginSoftmax p{};
  p.n = n;
  p.classes = classes;
  p.d = unit.size(1);
  p.logits = logits.const_data_ptr();
  p.unit = unit.const_data_ptr();
  p.labels = static_cast<const int64_t*>(labels.const_data_ptr());
  p.nearest = nearest ? static_cast<const int64_t*>(nearest->const_data_ptr()) : nullptr;
  p.valid = valid ? static_cast<const bool*>(valid->const_data_ptr()) : nullptr;
  p.weight = weight ? weight->const_data_ptr() : nullptr;
  p.kind = kind == "angular" ? MarginKind::angular : MarginKind::cosine;
  p.scale = scale;
  p.margin = margin;
  p.reduction = reduction_of(reduction);

  const Tensor loss = p.reduction == Reduction::none ? make({n}, type) : make({}, type);
  const Tensor slopes = make({n, classes}, type), cosine = make({n}, type), nearest_other = make({n}, type);
  const Tensor active = make({n}, ScalarType::Bool);
  p.loss = loss.mutable_data_ptr();
  p.slopes = slopes.mutable_data_ptr();
  p.cosine = cosine.mutable_data_ptr();
  p.nearest_other = nearest_other.mutable_data_ptr();
  p.active = data<bool>(active);
  run(*kernels().margin_softmax[type == ScalarType::Double], p);
  return {loss, slopes, cosine, nearest_other, active};
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CPU, m) { m.impl("margin_softmax", TORCH_BOX(&fastmine::margin_softmax)); }
