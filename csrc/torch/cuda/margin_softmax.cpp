// fastmine::margin_softmax on CUDA devices. Compiled and linked; not yet run on a GPU.
#include "kernels/cuda/margin_softmax.h"

#include "torch/cuda/device.h"
#include "torch/margin_softmax_inputs.h"

namespace fastmine {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> margin_softmax(const Tensor& logits, const Tensor& unit,
                                                                  const Tensor& labels, const MaybeTensor& nearest,
                                                                  const MaybeTensor& valid, const MaybeTensor& weight,
                                                                  const std::string& kind, double scale, double margin,
                                                                  const std::string& reduction) {
  for (const MaybeTensor& other : {MaybeTensor(unit), MaybeTensor(labels), nearest, valid, weight}) {
    check_same_device(logits, other, "an input");
  }
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  MarginSoftmaxTensors t;
  const MarginSoftmax p = margin_softmax_problem(t, beside(logits), logits, unit, labels, nearest, valid, weight, kind,
                                                 scale, margin, reduction);
  const Tensor workspace = make_workspace(logits, cuda::margin_softmax_workspace(p));
  check_launch(cuda::margin_softmax(p, workspace.mutable_data_ptr(), current_stream(logits)));
  return t.found();
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CUDA, m) {
  if (fastmine::unserved().empty()) {
    m.impl("margin_softmax", TORCH_BOX(&fastmine::margin_softmax));
  }
}
