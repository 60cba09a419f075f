// A function that runs on the CPU and, where nvcc compiles it, on the GPU as well. A loop that indexes registers
// must be unrolled there, or the array goes to memory.
#pragma once

#ifdef __CUDACC__
#define FASTMINE_HOST_DEVICE __host__ __device__
#else
#define FASTMINE_HOST_DEVICE
#endif

#ifdef __CUDA_ARCH__
#define FASTMINE_UNROLL _Pragma("unroll")
#else
#define FASTMINE_UNROLL
#endif
