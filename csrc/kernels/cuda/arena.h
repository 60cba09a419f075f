// A workspace in device memory, and launches one after another. On the host.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/portable.h"

namespace fastmine::cuda::mining {

/// Laying out a workspace: the same walk once over nothing, to measure it, and once over the memory.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  /// Room for `count` elements, aligned to 256 bytes; a pointer to it, or null while measuring.
  template <class T>
  T* take(std::int64_t count) {
    T* place = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (static_cast<std::size_t>(count) * sizeof(T) + 255) / 256 * 256;
    return place;
  }

  std::size_t used() const { return used_; }

 private:
  char* base_;
  std::size_t used_ = 0;
};

/// Starts kernels on one stream until one of them fails to start.
class Launches {
 public:
  explicit Launches(cudaStream_t stream) : stream_(stream) {}

  template <class P>
  void operator()(void (*kernel)(P), std::int64_t blocks, int threads, const P& parameter, std::size_t shared = 0) {
    if (status_ == cudaSuccess && blocks > 0) {
      status_ = launch(kernel, blocks, threads, stream_, parameter, shared);
    }
  }

  cudaError_t status() const { return status_; }

 private:
  cudaStream_t stream_;
  cudaError_t status_ = cudaSuccess;
};

FASTMINE_HOST_DEVICE constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
FASTMINE_HOST_DEVICE constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return divide_up(a, b) * b; }

}  // namespace fastmine::cuda::mining
