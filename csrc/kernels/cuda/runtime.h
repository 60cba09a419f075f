// The CUDA runtime's status and stream, or their stand-ins where kernels run in the emulator of tests/kernels.
#pragma once

#ifdef FASTMINE_EMULATE_CUDA

namespace fastmine::cuda {

enum cudaError_t : int { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
using cudaStream_t = void*;

}  // namespace fastmine::cuda

#else

#include <cuda_runtime_api.h>

#endif
