// fastmine::margin_softmax on the CPU.
#include "torch/margin_softmax_inputs.h"

#include "torch/cpu/embeddings.h"
#include "torch/cpu/kernels.h"

namespace fastmine {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> margin_softmax(const Tensor& logits, const Tensor& unit,
                                                                  const Tensor& labels, const MaybeTensor& nearest,
                                                                  const MaybeTensor& valid, const MaybeTensor& weight,
                                                                  const std::string& kind, double scale, double margin,
                                                                  const std::string& reduction) {
  const auto allocate = [](std::initializer_list<int64_t> shape, ScalarType type) { return make(shape, type); };
  MarginSoftmaxTensors t;
  const MarginSoftmax p =
      margin_softmax_problem(t, allocate, logits, unit, labels, nearest, valid, weight, kind, scale, margin, reduction);
  run(*kernels().margin_softmax[p.dtype == DType::float64], p);
  return t.found();
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CPU, m) { m.impl("margin_softmax", TORCH_BOX(&fastmine::margin_softmax)); }
