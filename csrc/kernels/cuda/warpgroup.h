// The matrix unit by the warpgroup, four warps whose first is a multiple of four, and copies that arrive by themselves:
// what sm_90a has beyond matrix.h. On the device instructions of the PTX ISA, each named with what that says of it; in
// the emulator the same, as late or as early as that allows (tests/kernels/cuda_emulator_async.cpp).
//
// Not yet run on a GPU.
#pragma once

#include "kernels/cuda/warp.h"

/// Whether this pass of the compiler is for a device that has them.
#if defined(FASTMINE_EMULATE_CUDA) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FASTMINE_WARPGROUPS 1
#else
#define FASTMINE_WARPGROUPS 0
#endif

namespace fastmine::cuda::mining {

/// Rows of the left factor of a product by a warpgroup, elements that one instruction takes of a row, and threads.
inline constexpr int kGroupRows = 64, kGroupDepth = 16, kGroup = 128;

/// A barrier in shared memory for bytes that are copied there. Its phases are numbered from 0; each ends when all the
/// bytes that were announced for it are there.
using Arrival = std::uint64_t;

#ifdef __CUDACC__

FASTMINE_DEVICE std::uint32_t shared_address(const void* shared) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
}

/// mbarrier.init: makes a barrier of a count of pending arrivals, here one. By one thread.
FASTMINE_DEVICE void make_arrival(Arrival* arrival) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(arrival)) : "memory");
}

/// fence.proxy.async: orders what the generic proxy did, here making barriers, before what the asynchronous proxy does,
/// which copies. By the thread that made them; a barrier of the block follows.
FASTMINE_DEVICE void show_arrivals() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// mbarrier.arrive.expect_tx: adds to the bytes that the current phase waits for, then arrives. By one thread, once a
/// phase, before it starts the copies.
FASTMINE_DEVICE void announce(Arrival* arrival, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(arrival)), "r"(bytes)
               : "memory");
}

/// cp.async.bulk: starts to copy a multiple of 16 bytes, both ends aligned to 16, from global to shared memory, and
/// takes them off the bytes that the barrier waits for as they arrive. An address of the own block is one of its
/// cluster.
FASTMINE_DEVICE void start_bulk_copy(void* shared, const void* global, std::uint32_t bytes, Arrival* arrival) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(arrival))
               : "memory");
}

/// mbarrier.try_wait.parity: suspends for a while, and says whether the current or the preceding phase, that of this
/// parity, has ended; what was copied in it is then seen. So no thread may be two phases behind.
FASTMINE_DEVICE bool has_arrived(Arrival* arrival, std::uint32_t parity) {
  std::uint32_t ended;
  asm volatile(
      "{ .reg .pred ended; mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2; selp.b32 %0, 1, 0, ended; }"
      : "=r"(ended)
      : "r"(shared_address(arrival)), "r"(parity)
      : "memory");
  return ended != 0;
}

/// Clocks that a copy may take: some seconds, of which it takes a millionth.
inline constexpr std::int64_t kMostClocks = std::int64_t{1} << 33;

/// Where nothing ever arrives the kernel ends with an error, which the next call reports, and does not hang. Only a
/// thread that must wait reads the clock.
FASTMINE_DEVICE void wait_for_arrival(Arrival* arrival, std::uint32_t parity) {
  if (has_arrived(arrival, parity)) {
    return;
  }
  const std::int64_t begin = clock64();
  FASTMINE_ROLL while (!has_arrived(arrival, parity)) {
    if (clock64() - begin > kMostClocks) {
      stop_kernel();
    }
  }
}

/// wgmma.fence: orders accesses to the registers of the sums before products that use them. Before the first product
/// after any other access to them. By all threads of a warpgroup, as all that follows, and, since it is `aligned`, by
/// whole warps at once: threads that waited or asked apart come together first.
FASTMINE_DEVICE void begin_products() {
  warp_barrier();
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/// wgmma.commit_group: makes a group of the products since the last.
FASTMINE_DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Sums as operands of an instruction.
#define FASTMINE_SUMS8(at)                                                                           \
  "+f"(sum[at]), "+f"(sum[(at) + 1]), "+f"(sum[(at) + 2]), "+f"(sum[(at) + 3]), "+f"(sum[(at) + 4]), \
      "+f"(sum[(at) + 5]), "+f"(sum[(at) + 6]), "+f"(sum[(at) + 7])
#define FASTMINE_SUMS64                                                                             \
  FASTMINE_SUMS8(0), FASTMINE_SUMS8(8), FASTMINE_SUMS8(16), FASTMINE_SUMS8(24), FASTMINE_SUMS8(32), \
      FASTMINE_SUMS8(40), FASTMINE_SUMS8(48), FASTMINE_SUMS8(56)

/// wgmma.mma_async, m64n128k16: starts to compute sum += a b from two descriptors of K-major matrices of bfloat16. Lane
/// l of warp w of the group has rows 16 w + l / 4 and 8 further; sum[4 i + 2 r + c] is row r of these, column 8 i + 2
/// (l % 4) + c.
FASTMINE_DEVICE void multiply_add(std::uint64_t a, std::uint64_t b, float (&sum)[64]) {
  asm volatile(
      "{ .reg .pred add; setp.eq.u32 add, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, add, 1, 1, 0, 0; }"
      : FASTMINE_SUMS64
      : "l"(a), "l"(b)
      : "memory");
}

/// wgmma.wait_group 0: waits for all groups; only then may the sums be read, or what was multiplied be overwritten. It
/// names the sums, so that the compiler moves no use of them before it. Whole warps, as in begin_products.
FASTMINE_DEVICE void wait_for_products(float (&sum)[64]) {
  warp_barrier();
  asm volatile("wgmma.wait_group.sync.aligned 0;" : FASTMINE_SUMS64 : : "memory");
}

#undef FASTMINE_SUMS64
#undef FASTMINE_SUMS8

#else

}  // namespace fastmine::cuda::mining

namespace fastmine::cuda::emulator {

std::uint32_t shared_address(const void* shared);
void make_arrival(std::uint64_t* arrival);
void show_arrivals();
void announce(std::uint64_t* arrival, std::uint32_t bytes);
void start_bulk_copy(void* shared, const void* global, std::uint32_t bytes, std::uint64_t* arrival);
void wait_for_arrival(std::uint64_t* arrival, std::uint32_t parity);
void begin_products();
void commit_products();
void multiply_add(std::uint64_t a, std::uint64_t b, float* sum, int sums);
void wait_for_products(float* sum, int sums);

}  // namespace fastmine::cuda::emulator

namespace fastmine::cuda::mining {

using emulator::announce;
using emulator::begin_products;
using emulator::commit_products;
using emulator::make_arrival;
using emulator::shared_address;
using emulator::show_arrivals;
using emulator::start_bulk_copy;
using emulator::wait_for_arrival;

/// As many columns as there are sums for.
template <int N>
void multiply_add(std::uint64_t a, std::uint64_t b, float (&sum)[N]) {
  emulator::multiply_add(a, b, sum, N);
}
template <int N>
void wait_for_products(float (&sum)[N]) {
  emulator::wait_for_products(sum, N);
}

#endif

/// The descriptor of a K-major matrix of bfloat16 in shared memory without swizzle. It is made of core matrices of 8
/// rows x 16 bytes, each 128 bytes in one piece, aligned to 16; `leading` bytes lead to the next along K, `stride`
/// bytes to the next 8 rows. Matrix descriptor format: bits 0-13 the address, 16-29 the leading dimension byte offset
/// and 32-45 the stride dimension byte offset, each without its low 4 bits; 49-51 the base offset and 62-63 the
/// swizzle, 0.
FASTMINE_DEVICE std::uint64_t describe_matrix(const void* shared, std::uint32_t leading, std::uint32_t stride) {
  const auto field = [](std::uint32_t bytes) { return static_cast<std::uint64_t>((bytes & 0x3ffff) >> 4); };
  return field(shared_address(shared)) | field(leading) << 16 | field(stride) << 32;
}

}  // namespace fastmine::cuda::mining
