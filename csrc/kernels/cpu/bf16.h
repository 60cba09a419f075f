// Products of bfloat16 rows, sixteen by sixteen: the matrix unit where the instruction set has one (AMX), the same
// sums in plain vectors elsewhere.
//
// References are in groups of kGroup positions, elements 2k and 2k + 1 of one position side by side:
// group[k][position][2]. Anchors are in blocks of kBlockRows rows, each as it is: block[row][depth]. A depth is a
// multiple of kDepthStep, filled up with zeros.
#pragma once

#include "kernels/cpu/arena.h"
#include "kernels/cpu/matrix_unit.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {

inline constexpr std::int64_t kGroup = 16;
inline constexpr std::int64_t kDepthStep = 32;
inline constexpr std::int64_t kBlockRows = 48;

#if defined(__AMX_BF16__)

/// out[r][j] = start[j] + sum over k of block[r][k] x[j][k], for the kBlockRows rows of a block and the positions j of
/// `Groups` groups, one or two.
///
/// A tile's sums begin as sixteen copies of `start`: loading them costs no more than clearing the tile.
template <std::int64_t Groups>
FASTMINE_NOINLINE void multiply_block(const std::uint16_t* block, const std::uint16_t* group, std::int64_t depth,
                                      const float* start, float* out) {
  static_assert(Groups == 1 || Groups == 2);
  constexpr std::int64_t row = 4 * Groups * kGroup;
  constexpr std::int64_t below = Groups * kGroup * 16;
  const std::uint16_t* next = group + depth * kGroup;
  FASTMINE_LOAD_TILE(0, start, 0);
  FASTMINE_LOAD_TILE(1, start, 0);
  FASTMINE_LOAD_TILE(2, start, 0);
  if constexpr (Groups == 2) {
    FASTMINE_LOAD_TILE(3, start + kGroup, 0);
    FASTMINE_LOAD_TILE(4, start + kGroup, 0);
    FASTMINE_LOAD_TILE(5, start + kGroup, 0);
  }
  for (std::int64_t k = 0; k < depth; k += kDepthStep) {
    const std::uint16_t* a = block + k;
    FASTMINE_LOAD_TILE(6, group + k * kGroup, 64);
    FASTMINE_LOAD_TILE(7, a, 2 * depth);
    FASTMINE_MULTIPLY_BFLOAT16(0, 7, 6);
    FASTMINE_LOAD_TILE(7, a + 16 * depth, 2 * depth);
    FASTMINE_MULTIPLY_BFLOAT16(1, 7, 6);
    FASTMINE_LOAD_TILE(7, a + 32 * depth, 2 * depth);
    FASTMINE_MULTIPLY_BFLOAT16(2, 7, 6);
    if constexpr (Groups == 2) {  // back up the rows: the last tile of them is still there
      FASTMINE_LOAD_TILE(6, next + k * kGroup, 64);
      FASTMINE_MULTIPLY_BFLOAT16(5, 7, 6);
      FASTMINE_LOAD_TILE(7, a + 16 * depth, 2 * depth);
      FASTMINE_MULTIPLY_BFLOAT16(4, 7, 6);
      FASTMINE_LOAD_TILE(7, a, 2 * depth);
      FASTMINE_MULTIPLY_BFLOAT16(3, 7, 6);
    }
  }
  FASTMINE_STORE_TILE(0, out, row);
  FASTMINE_STORE_TILE(1, out + below, row);
  FASTMINE_STORE_TILE(2, out + 2 * below, row);
  if constexpr (Groups == 2) {
    FASTMINE_STORE_TILE(3, out + kGroup, row);
    FASTMINE_STORE_TILE(4, out + kGroup + below, row);
    FASTMINE_STORE_TILE(5, out + kGroup + 2 * below, row);
  }
}

#else

/// The same where there is no matrix unit: so that any machine can test what is built on it.
template <std::int64_t Groups>
FASTMINE_NOINLINE void multiply_block(const std::uint16_t* block, const std::uint16_t* group, std::int64_t depth,
                                      const float* start, float* out) {
  using V = Vec<float>;
  using I = Vec<std::int32_t>;
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<float>);
  for (std::int64_t r = 0; r < kBlockRows; ++r) {
    const std::uint16_t* row = block + r * depth;
    for (std::int64_t j = 0; j < Groups * kGroup; j += step) {
      const std::uint16_t* pairs = group + j / kGroup * depth * kGroup + j % kGroup * 2;
      V even = load(start + j), odd{};
      for (std::int64_t k = 0; k < depth; k += 2, pairs += 2 * kGroup) {
        std::int32_t two;
        __builtin_memcpy(&two, row + k, sizeof two);
        I other;
        __builtin_memcpy(&other, pairs, sizeof other);
        const I mine = broadcast(two);
        even += bitcast<float>(mine << 16) * bitcast<float>(other << 16);
        odd += bitcast<float>(mine & ~0xffff) * bitcast<float>(other & ~0xffff);
      }
      store(out + r * Groups * kGroup + j, even + odd);
    }
  }
}

#endif

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
