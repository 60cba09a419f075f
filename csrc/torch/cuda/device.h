// What every binding on a CUDA device needs: memory and the stream of the tensors at hand, and the kernels' status.
//
// Memory comes from torch's caching allocator on the current stream, so it may be given back while kernels that were
// started on that stream still use it.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include <initializer_list>
#include <optional>

#include "torch/tensors.h"

namespace fastmine {

/// Whether the driver is of the CUDA version that this library was built with, or later. Where it is not, no op may be
/// registered: nothing would run, and the reference could no longer answer. Looks at the driver, starts nothing.
inline bool driver_serves() {
  int driver = 0;
  return cudaDriverGetVersion(&driver) == cudaSuccess && driver / 1000 >= CUDART_VERSION / 1000;
}

/// An uninitialised tensor on the device of another.
inline Tensor make_like(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()), type);
}

/// The current stream of a tensor's device.
inline cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  FASTMINE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream) == 0, "torch has no CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

inline void check_same_device(const Tensor& t, const std::optional<Tensor>& other, const char* name) {
  FASTMINE_CHECK(!other || (other->is_cuda() && other->get_device_index() == t.get_device_index()), name,
                 " is not on the device of logits");
}

inline void check_launch(cudaError_t status) {
  FASTMINE_CHECK(status == cudaSuccess, "a CUDA kernel did not start: ", cudaGetErrorString(status));
}

}  // namespace fastmine
