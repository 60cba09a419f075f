// What every binding on a CUDA device needs: memory and the stream of the tensors at hand, and the kernels' status.
//
// Memory comes from torch's caching allocator on the current stream, so it may be given back while kernels that were
// started on that stream still use it.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include <initializer_list>
#include <optional>
#include <string>

#include "torch/tensors.h"

namespace fastmine {

/// Why this library cannot serve this machine, in words: the driver is too old, or one of the devices has no code in
/// it. Empty where it can; where not, no op may be registered: nothing would run, and the reference could no longer
/// answer. Asks the driver and all devices, so CUDA must have been started. It is asked once.
const std::string& unserved();

/// An uninitialised tensor on the device of another.
inline Tensor make_like(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()), type);
}

/// Allocates beside a tensor.
inline auto beside(const Tensor& like) {
  return [&like](std::initializer_list<int64_t> shape, ScalarType type) { return make_like(like, shape, type); };
}

/// So many bytes on the device of a tensor, for the duration of a call.
inline Tensor make_workspace(const Tensor& like, std::size_t bytes) {
  return make_like(like, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
}

/// The current stream of a tensor's device.
inline cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  FASTMINE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream) == 0, "torch has no CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

inline void check_same_device(const Tensor& t, const std::optional<Tensor>& other, const char* name) {
  FASTMINE_CHECK(!other || (other->is_cuda() && other->get_device_index() == t.get_device_index()), name,
                 " is on another device");
}

inline void check_launch(cudaError_t status) {
  FASTMINE_CHECK(status == cudaSuccess, "a CUDA kernel did not start: ", cudaGetErrorString(status));
}

}  // namespace fastmine
