// A function that runs on the CPU and, where nvcc compiles it, on the GPU as well. A loop that indexes registers
// must be unrolled there, or the array goes to memory; one whose turns do not fit into the registers at once must not.
#pragma once

#ifdef __CUDACC__
#define FASTMINE_HOST_DEVICE __host__ __device__
#else
#define FASTMINE_HOST_DEVICE
#endif

#ifdef __CUDA_ARCH__
#define FASTMINE_UNROLL _Pragma("unroll")
#define FASTMINE_ROLL _Pragma("unroll 1")
#else
#define FASTMINE_UNROLL
#define FASTMINE_ROLL
#endif
