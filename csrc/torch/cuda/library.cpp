// Whether this library can serve the machine that loads it.
#include <cuda_runtime_api.h>

#include <string>

#include "kernels/cuda/architectures.h"
#include "torch/cuda/device.h"

#ifndef FASTMINE_CUDA_COMPILED_FOR
#error "compile with -DFASTMINE_CUDA_COMPILED_FOR (see cmake/Cuda.cmake)"
#endif

namespace fastmine {
namespace {

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

std::string reason() {
  int driver = 0, devices = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    return "there is no NVIDIA driver";
  }
  if (driver / 1000 < CUDART_VERSION / 1000) {
    return "the driver is of CUDA " + version(driver) + ", and fastmine_torch_cuda.so was built with " +
           version(CUDART_VERSION);
  }
  if (const cudaError_t status = cudaGetDeviceCount(&devices)) {
    return std::string("the devices cannot be counted: ") + cudaGetErrorString(status);
  }
  for (int device = 0; device < devices; ++device) {
    int major = 0, minor = 0;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) {
      return "device " + std::to_string(device) + " does not tell its compute capability";
    }
    if (!cuda::architectures_serve(FASTMINE_CUDA_COMPILED_FOR, major * 10 + minor)) {
      return "device " + std::to_string(device) + " has compute capability " + std::to_string(major) + "." +
             std::to_string(minor) + ", and fastmine_torch_cuda.so was compiled for " FASTMINE_CUDA_COMPILED_FOR;
    }
  }
  return "";
}

}  // namespace

const std::string& unserved() {
  static const std::string why = reason();
  return why;
}

}  // namespace fastmine

/// Why no op of this library is registered; an empty string where they are.
extern "C" __attribute__((visibility("default"))) const char* fastmine_cuda_unserved() {
  return fastmine::unserved().c_str();
}
