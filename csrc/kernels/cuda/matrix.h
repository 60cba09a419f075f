// What feeds products: copies to shared memory that pass by the registers, and the matrix unit, by the warp: fragments
// of bfloat16 from shared memory, and their products added up in float32. On the device cp.async and mma.sync, from
// sm_80 on; in the emulator the same, lane by lane.
#pragma once

#include "kernels/cuda/warp.h"

namespace fastmine::cuda::mining {

#ifdef __CUDACC__

/// Start to copy kBytes, 4, 8 or 16 and aligned to them, from global to shared memory.
template <int kBytes>
FASTMINE_DEVICE void start_copy(void* shared, const void* global) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(address), "l"(global), "n"(kBytes) : "memory");
}

/// Wait for the copies of this thread.
FASTMINE_DEVICE void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

/// Four 8 x 8 matrices of 16-bit elements; lane l gives where row l % 8 of matrix l / 8 lies, aligned to 16 bytes, and
/// takes elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of each.
FASTMINE_DEVICE void load_matrices(const void* row, std::uint32_t (&out)[4]) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

/// c += a b: 16 x 8 from 16 x 16 and 16 x 8. Lane l has rows l / 4 (c[0], c[1]) and l / 4 + 8 (c[2], c[3]), columns
/// 2 (l % 4) and 2 (l % 4) + 1.
FASTMINE_DEVICE void multiply_add(const std::uint32_t (&a)[4], std::uint32_t b_low, std::uint32_t b_high,
                                  float (&c)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_low), "r"(b_high));
}

#else

template <int kBytes>
void start_copy(void* shared, const void* global) {
  emulator::expect_aligned(shared, kBytes);
  emulator::expect_aligned(global, kBytes);
  std::memcpy(shared, global, kBytes);
}
inline void wait_for_copies() {}

inline void load_matrices(const void* row, std::uint32_t (&out)[4]) {
  emulator::expect_aligned(row, 16);
  const void* const* const rows = lanes_of(row);
  for (int matrix = 0; matrix < 4; ++matrix) {
    const auto* elements = static_cast<const char*>(rows[matrix * 8 + lane_index() / 4]);
    std::memcpy(&out[matrix], elements + lane_index() % 4 * 4, 4);
  }
}

inline void multiply_add(const std::uint32_t (&a)[4], std::uint32_t b_low, std::uint32_t b_high, float (&c)[4]) {
  struct Fragments {
    std::uint32_t a[4], b[2];
  };
  const Fragments* const all = lanes_of(Fragments{{a[0], a[1], a[2], a[3]}, {b_low, b_high}});
  const auto half = [](std::uint32_t pair, int k) {
    return from_bits(static_cast<std::int32_t>(k % 2 == 0 ? pair << 16 : pair & 0xffff0000U));
  };
  for (int e = 0; e < 4; ++e) {
    const int row = lane_index() / 4, column = lane_index() % 4 * 2 + e % 2;
    for (int k = 0; k < 16; ++k) {
      const int lane = k % 8 / 2, later = k / 8;
      c[e] += half(all[row * 4 + lane].a[later * 2 + e / 2], k) * half(all[column * 4 + lane].b[later], k);
    }
  }
}

#endif

}  // namespace fastmine::cuda::mining
