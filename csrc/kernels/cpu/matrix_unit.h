// The matrix unit of x86 (AMX), where the instruction set has one: eight tiles of up to 16 rows of 64 bytes.
//
// Its instructions are assembly here, not the compiler's own: GCC's forget to say that they read memory.
#pragma once

#include "kernels/cpu/isa.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {

#if defined(__AMX_TILE__)

inline constexpr bool kMatrixUnit = true;

/// While one exists, its thread may compute tiles: eight of 16 rows of 64 bytes.
class MatrixUnit {
 public:
  MatrixUnit() {
    struct alignas(64) {
      std::uint8_t palette, start_row, reserved[14];
      std::uint16_t row_bytes[16];
      std::uint8_t rows[16];
    } shape{1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    static_assert(sizeof shape == 64);
    asm volatile("ldtilecfg %0" ::"m"(shape));
  }
  ~MatrixUnit() { asm volatile("tilerelease"); }
  MatrixUnit(const MatrixUnit&) = delete;
  MatrixUnit& operator=(const MatrixUnit&) = delete;
};

// Strides are in bytes.
#define FASTMINE_CLEAR_TILE(tile) asm volatile("tilezero %%tmm" #tile::)
#define FASTMINE_LOAD_TILE(tile, from, stride) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile::"r"(from), "r"(static_cast<std::int64_t>(stride)) : "memory")
#define FASTMINE_STORE_TILE(tile, to, stride) \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"(static_cast<std::int64_t>(stride)) : "memory")
/// sum += a b, with b's rows pairs of bfloat16, and with them four signed bytes.
#define FASTMINE_MULTIPLY_BFLOAT16(sum, a, b) asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sum::)
#define FASTMINE_MULTIPLY_BYTES(sum, a, b) asm volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #sum::)

#else

inline constexpr bool kMatrixUnit = false;

struct MatrixUnit {};

#endif

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
