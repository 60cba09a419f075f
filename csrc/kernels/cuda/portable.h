// All that the CUDA kernels take from the device, so that the same text runs on the CPU too: nvcc compiles it to the
// built-in names, any other compiler to calls of the emulator in tests/kernels/cuda_emulator.cpp, which runs the
// threads of a block as fibers, in a shuffled order between barriers, on poisoned shared memory.
//
// Every thread of a block reaches every barrier, every thread of a warp every shuffle; the emulator stops where not.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/runtime.h"
#include "kernels/host_device.h"

namespace fastmine::cuda {
inline constexpr int kWarp = 32;
}

#ifdef __CUDACC__

#define FASTMINE_DEVICE __device__ __forceinline__
/// Of `threads` threads, with registers for so many `blocks` at a time; its one parameter is a struct.
#define FASTMINE_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define FASTMINE_PARAMETER const __grid_constant__
/// An array of the block.
#define FASTMINE_SHARED(type, name, size) __shared__ type name[size]
/// The array whose bytes the launch says, aligned to 128.
#define FASTMINE_DYNAMIC_SHARED(type, name, size)                \
  extern __shared__ __align__(128) unsigned char name##_bytes[]; \
  type* const name = reinterpret_cast<type*>(name##_bytes)

namespace fastmine::cuda {

FASTMINE_DEVICE std::int64_t block_index() { return static_cast<std::int64_t>(blockIdx.x); }
FASTMINE_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }

/// Wait for all threads of the block; what they wrote before, all see afterwards.
FASTMINE_DEVICE void barrier() { __syncthreads(); }

/// End the kernel with an error.
FASTMINE_DEVICE void stop_kernel() { __trap(); }

/// The values of the thread `distance` further on in the warp; its own beyond the end. All 32 threads take part.
template <class T, int N>
FASTMINE_DEVICE void shuffle_down(const T (&values)[N], int distance, T (&out)[N]) {
  FASTMINE_UNROLL for (int i = 0; i < N; ++i) {
    out[i] = __shfl_down_sync(0xffffffffU, values[i], static_cast<unsigned>(distance));
  }
}

/// The values of the thread whose lane differs in the bits of `mask`. All 32 threads take part.
template <class T, int N>
FASTMINE_DEVICE void shuffle_xor(const T (&values)[N], int mask, T (&out)[N]) {
  FASTMINE_UNROLL for (int i = 0; i < N; ++i) { out[i] = __shfl_xor_sync(0xffffffffU, values[i], mask); }
}

/// Some bytes of global memory that nobody writes meanwhile, aligned to as many or to 16: with loads of 16 bytes.
/// Written down as instructions, since a compiler that finds single elements on another path takes those for both.
template <int kBytes>
FASTMINE_DEVICE void load_bytes(const void* from, void* to) {
  const std::size_t address = __cvta_generic_to_global(from);
  if constexpr (kBytes % 16 == 0) {
    FASTMINE_UNROLL for (int at = 0; at < kBytes; at += 16) {
      std::uint32_t word[4];
      asm("ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];"
          : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
          : "l"(address + at));
      memcpy(static_cast<char*>(to) + at, word, sizeof word);
    }
  } else if constexpr (kBytes == 8) {
    std::uint32_t word[2];
    asm("ld.global.nc.v2.b32 {%0, %1}, [%2];" : "=r"(word[0]), "=r"(word[1]) : "l"(address));
    memcpy(to, word, sizeof word);
  } else {
    static_assert(kBytes == 4);
    std::uint32_t word;
    asm("ld.global.nc.b32 %0, [%1];" : "=r"(word) : "l"(address));
    memcpy(to, &word, sizeof word);
  }
}

/// The other way.
template <int kBytes>
FASTMINE_DEVICE void store_bytes(const void* from, void* to) {
  const std::size_t address = __cvta_generic_to_global(to);
  if constexpr (kBytes % 16 == 0) {
    FASTMINE_UNROLL for (int at = 0; at < kBytes; at += 16) {
      std::uint32_t word[4];
      memcpy(word, static_cast<const char*>(from) + at, sizeof word);
      asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(address + at), "r"(word[0]), "r"(word[1]),
                   "r"(word[2]), "r"(word[3])
                   : "memory");
    }
  } else {
    static_assert(kBytes == 8);
    std::uint32_t word[2];
    memcpy(word, from, sizeof word);
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(address), "r"(word[0]), "r"(word[1]) : "memory");
  }
}

/// The value of lane `lane`, of the lane whose number differs in the bits `mask`. All 32 threads take part.
template <class T>
FASTMINE_DEVICE T from_lane(T value, int lane) {
  return __shfl_sync(0xffffffffU, value, lane);
}
template <class T>
FASTMINE_DEVICE T from_across(T value, int mask) {
  return __shfl_xor_sync(0xffffffffU, value, mask);
}

/// A bit for every lane. All 32 threads take part.
FASTMINE_DEVICE unsigned ballot(bool bit) { return __ballot_sync(0xffffffffU, bit); }

/// Wait for all threads of the warp; what they wrote before, all see afterwards.
FASTMINE_DEVICE void warp_barrier() { __syncwarp(); }

FASTMINE_DEVICE int count_bits(unsigned bits) { return __popc(bits); }

/// The highest bytes of four words, that of the first lowest.
FASTMINE_DEVICE std::uint32_t top_bytes(std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t d) {
  return __byte_perm(__byte_perm(a, b, 0x73), __byte_perm(c, d, 0x73), 0x5410);
}

/// A sum and the four bytes of a word.
FASTMINE_DEVICE unsigned add_bytes(std::uint32_t word, unsigned sum) { return __dp4a(word, 0x01010101U, sum); }

/// Whether bit i is 1. Written down as an instruction, which goes with the comparison into one: a compiler that sees
/// through it shifts the bit down first.
FASTMINE_DEVICE bool has_bit(unsigned bits, int i) {
  unsigned bit;
  asm("and.b32 %0, %1, %2;" : "=r"(bit) : "r"(bits), "r"(1U << i));
  return bit != 0;
}

/// The place of the lowest bit of a number that is not 0.
FASTMINE_DEVICE int lowest_bit(unsigned bits) { return __ffs(static_cast<int>(bits)) - 1; }
FASTMINE_DEVICE int lowest_bit(std::uint64_t bits) { return __ffsll(static_cast<long long>(bits)) - 1; }

FASTMINE_DEVICE float exponential(float x) { return expf(x); }
FASTMINE_DEVICE double exponential(double x) { return exp(x); }

/// 1 / x for 1 <= x; to 1 unit in the last place.
FASTMINE_DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
FASTMINE_DEVICE double reciprocal(double x) { return 1.0 / x; }

/// 2^x, to 2 units in the last place; 0 where that is below the normal numbers.
FASTMINE_DEVICE float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// log2(x) for 2 <= x; relative error 2^-22.
FASTMINE_DEVICE float binary_logarithm(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// The smaller and the larger of two numbers; NaN if one of them is.
FASTMINE_DEVICE float lower(float a, float b) {
  float y;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}
FASTMINE_DEVICE float upper(float a, float b) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}
/// The same of two numbers at once, bfloat16 or of half precision, in the halves of a word.
FASTMINE_DEVICE std::uint32_t lower_bfloat16s(std::uint32_t a, std::uint32_t b) {
  std::uint32_t y;
  asm("min.NaN.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
}
FASTMINE_DEVICE std::uint32_t upper_bfloat16s(std::uint32_t a, std::uint32_t b) {
  std::uint32_t y;
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
}
FASTMINE_DEVICE std::uint32_t lower_halves(std::uint32_t a, std::uint32_t b) {
  std::uint32_t y;
  asm("min.NaN.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
}
FASTMINE_DEVICE std::uint32_t upper_halves(std::uint32_t a, std::uint32_t b) {
  std::uint32_t y;
  asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
}

FASTMINE_DEVICE float float_of_half(std::uint16_t bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
/// To nearest even; too large is Inf, NaN stays NaN.
FASTMINE_DEVICE std::uint16_t half_of_float(float x) {
  std::uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
FASTMINE_DEVICE std::uint16_t bfloat16_of_float(float x) {
  std::uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

/// Start a kernel, with so many bytes of shared memory beyond its own; its own error, not that of an earlier one. More
/// blocks than a grid has are an error, too: as an unsigned number they might be few.
template <class P>
cudaError_t launch(void (*kernel)(P), std::int64_t blocks, int threads, cudaStream_t stream, const P& parameter,
                   std::size_t shared = 0) {
  if (blocks > INT32_MAX) {
    return cudaErrorInvalidValue;
  }
  const void* const function = reinterpret_cast<const void*>(kernel);
  if (shared > 0) {  // more than every device has must be asked for
    const cudaError_t status =
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (status != cudaSuccess) {
      return status;
    }
  }
  void* parameters[] = {const_cast<void*>(static_cast<const void*>(&parameter))};
  return cudaLaunchKernel(function, dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)),
                          parameters, shared, stream);
}

}  // namespace fastmine::cuda

#else

#include <cmath>
#include <cstring>
#include <functional>

#define FASTMINE_DEVICE inline
#define FASTMINE_KERNEL(threads, blocks) void
#define FASTMINE_PARAMETER const
#define FASTMINE_SHARED(type, name, size) \
  type* const name = static_cast<type*>(::fastmine::cuda::emulator::shared(sizeof(type) * (size)))
#define FASTMINE_DYNAMIC_SHARED(type, name, size) FASTMINE_SHARED(type, name, static_cast<std::size_t>(size))

namespace fastmine::cuda {

namespace emulator {

/// Where the running thread stands.
struct Place {
  std::int64_t block_index;
  int thread_index;
};
const Place& place();

/// The next array of the block, the same for all its threads.
void* shared(std::size_t bytes);

void block_barrier();

/// Wait for the warp, all of whose threads say the same number.
void warp_barrier(std::size_t number);

void run(std::int64_t blocks, int threads, const std::function<void()>& kernel);

/// Ends the program where a pointer is not aligned to so many bytes, as a device would the kernel.
void expect_aligned(const void* p, std::size_t bytes);

float float_of_half(std::uint16_t bits);
std::uint16_t half_of_float(float x);
std::uint16_t bfloat16_of_float(float x);

}  // namespace emulator

using emulator::bfloat16_of_float;
using emulator::float_of_half;
using emulator::half_of_float;

inline std::int64_t block_index() { return emulator::place().block_index; }
inline int thread_index() { return emulator::place().thread_index; }
inline void barrier() { emulator::block_barrier(); }

/// What every lane has; not for longer than until its next call. No lane is more than one call ahead of another.
template <class T>
const T* lanes_of(const T& value) {
  static T given[2][1024];
  static bool parity[1024];
  const int thread = thread_index();
  T* const now = given[parity[thread]];
  now[thread] = value;
  parity[thread] = !parity[thread];
  emulator::warp_barrier(sizeof(T));
  return now + thread / kWarp * kWarp;
}

template <class T>
T from_lane(T value, int lane) {
  return lanes_of(value)[lane];
}
template <class T>
T from_across(T value, int mask) {
  return from_lane(value, thread_index() % kWarp ^ mask);
}

template <class T, int N>
void shuffle_from(const T (&values)[N], int lane, T (&out)[N]) {
  struct Values {
    T value[N];
  };
  Values own;
  std::memcpy(own.value, values, sizeof values);
  std::memcpy(out, lanes_of(own)[lane].value, sizeof out);
}
template <class T, int N>
void shuffle_down(const T (&values)[N], int distance, T (&out)[N]) {
  const int lane = thread_index() % kWarp;
  shuffle_from(values, lane + distance < kWarp ? lane + distance : lane, out);
}
template <class T, int N>
void shuffle_xor(const T (&values)[N], int mask, T (&out)[N]) {
  shuffle_from(values, thread_index() % kWarp ^ mask, out);
}

template <int kBytes>
void load_bytes(const void* from, void* to) {
  emulator::expect_aligned(from, kBytes < 16 ? kBytes : 16);
  std::memcpy(to, from, kBytes);
}
template <int kBytes>
void store_bytes(const void* from, void* to) {
  emulator::expect_aligned(to, kBytes < 16 ? kBytes : 16);
  std::memcpy(to, from, kBytes);
}

inline unsigned ballot(bool bit) {
  const bool* const all = lanes_of(bit);
  unsigned bits = 0;
  for (int lane = 0; lane < kWarp; ++lane) {
    bits |= static_cast<unsigned>(all[lane]) << lane;
  }
  return bits;
}

inline void warp_barrier() { emulator::warp_barrier(0); }

inline int count_bits(unsigned bits) { return __builtin_popcount(bits); }
inline std::uint32_t top_bytes(std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t d) {
  return a >> 24 | b >> 24 << 8 | c >> 24 << 16 | d >> 24 << 24;
}
inline unsigned add_bytes(std::uint32_t word, unsigned sum) {
  return sum + (word & 0xffU) + (word >> 8 & 0xffU) + (word >> 16 & 0xffU) + (word >> 24);
}
inline bool has_bit(unsigned bits, int i) { return (bits >> i & 1U) != 0; }
inline int lowest_bit(unsigned bits) { return __builtin_ctz(bits); }
inline int lowest_bit(std::uint64_t bits) { return __builtin_ctzll(bits); }

inline float exponential(float x) { return __builtin_expf(x); }
inline double exponential(double x) { return __builtin_exp(x); }
inline float reciprocal(float x) { return 1.0F / x; }
inline double reciprocal(double x) { return 1.0 / x; }
inline float power_of_two(float x) {
  const float y = __builtin_exp2f(x);
  return y < __FLT_MIN__ ? 0 : y;
}
inline float binary_logarithm(float x) { return __builtin_log2f(x); }

inline float lower(float a, float b) { return a != a || a < b ? a : b; }
inline float upper(float a, float b) { return a != a || a > b ? a : b; }

/// choose(x, y) of the lower and of the upper halves of two words, which are numbers by `read`.
template <class Read, class Choose>
std::uint32_t of_halves(std::uint32_t a, std::uint32_t b, Read read, Choose choose) {
  const auto half = [&](int shift) {
    const std::uint32_t of_a = a >> shift & 0xffffU, of_b = b >> shift & 0xffffU;
    const float x = read(of_a), chosen = choose(x, read(of_b));
    return (chosen != chosen ? 0x7fffU : chosen == x ? of_a : of_b) << shift;
  };
  return half(0) | half(16);
}
inline float read_bfloat16(std::uint32_t half) {
  const std::uint32_t bits = half << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline float read_half(std::uint32_t half) { return float_of_half(static_cast<std::uint16_t>(half)); }
inline std::uint32_t lower_bfloat16s(std::uint32_t a, std::uint32_t b) { return of_halves(a, b, read_bfloat16, lower); }
inline std::uint32_t upper_bfloat16s(std::uint32_t a, std::uint32_t b) { return of_halves(a, b, read_bfloat16, upper); }
inline std::uint32_t lower_halves(std::uint32_t a, std::uint32_t b) { return of_halves(a, b, read_half, lower); }
inline std::uint32_t upper_halves(std::uint32_t a, std::uint32_t b) { return of_halves(a, b, read_half, upper); }

template <class P>
cudaError_t launch(void (*kernel)(P), std::int64_t blocks, int threads, cudaStream_t, const P& parameter,
                   std::size_t = 0) {
  if (blocks > INT32_MAX) {
    return cudaErrorInvalidValue;
  }
  emulator::run(blocks, threads, [&] { kernel(parameter); });
  return cudaSuccess;
}

}  // namespace fastmine::cuda

#endif
