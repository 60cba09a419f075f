// The one inner loop of everything that compares rows: a register tile of dot products.
//
// Rows are packed in slivers of kSliver, element k of all of them side by side: packed[k * kSliver + row]. A tile is
// kTileRows consecutive rows of one sliver against all rows of another, so one packed copy serves both sides.
#pragma once

#include "kernels/cpu/isa.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {

inline constexpr std::size_t kSliverVectors = 3;

/// Rows in a sliver.
template <class W>
inline constexpr std::size_t kSliver = kSliverVectors * lanes<W>;

/// Rows of a tile: as many as the accumulators leave registers for, and a divisor of kSliver.
template <class W>
inline constexpr std::size_t kTileRows = kVectorBytes == 64    ? 8
                                         : kSliver<W> % 4 == 0 ? 4
                                                               : 2;

/// out[r][c] = sum over k of a[k KStep + r RowStep] b[k][c], for R rows, by default of a sliver, and the first
/// `Vectors` vectors of b's; with `Onward`, added to what out holds. Each sum runs over k in order, so a pair's product
/// has the same bits in whichever tile, on whichever side, and with the depth cut wherever it is computed.
///
/// Not inlined, and into memory: GCC otherwise sometimes spills accumulators inside the loop, which halves the speed.
template <class W, std::size_t R, std::size_t Vectors = kSliverVectors, bool Onward = false, std::size_t RowStep = 1,
          std::size_t KStep = kSliver<W>>
FASTMINE_NOINLINE void dot_tile(const W* a, const W* b, std::size_t depth, W* out) {
  using V = Vec<W>;
  V sum[R][Vectors];
  for (std::size_t r = 0; r < R; ++r) {
    for (std::size_t v = 0; v < Vectors; ++v) {
      sum[r][v] = Onward ? load(out + r * kSliver<W> + v * lanes<W>) : V{};
    }
  }
  for (std::size_t k = 0; k < depth; ++k, a += KStep, b += kSliver<W>) {
    V column[Vectors];
    for (std::size_t v = 0; v < Vectors; ++v) {
      column[v] = load(b + v * lanes<W>);
    }
    for (std::size_t r = 0; r < R; ++r) {
      const V row = broadcast(a[r * RowStep]);
      for (std::size_t v = 0; v < Vectors; ++v) {
        sum[r][v] += row * column[v];
      }
    }
  }
  for (std::size_t r = 0; r < R; ++r) {
    for (std::size_t v = 0; v < Vectors; ++v) {
      store(out + r * kSliver<W> + v * lanes<W>, sum[r][v]);
    }
  }
}

/// The most of two slivers' depth that is compared at a time, so that both stay in the first cache.
template <class W>
inline constexpr std::size_t kBlockDepth = 640 / sizeof(W);

template <class W, std::size_t Vectors>
FASTMINE_INLINE void dot_block_of(const W* a, const W* b, std::size_t depth, std::size_t height, W* out) {
  constexpr std::size_t rows = kTileRows<W>;
  const std::size_t parts = depth == 0 ? 1 : (depth + kBlockDepth<W> - 1) / kBlockDepth<W>;
  const std::size_t longest = (depth + parts - 1) / parts;
  std::size_t k = 0;
  do {
    const std::size_t part = depth - k < longest ? depth - k : longest;
    const W* a_part = a + k * kSliver<W>;
    const W* b_part = b + k * kSliver<W>;
    for (std::size_t r = 0; r < height; r += rows) {
      k == 0 ? dot_tile<W, rows, Vectors>(a_part + r, b_part, part, out + r * kSliver<W>)
             : dot_tile<W, rows, Vectors, true>(a_part + r, b_part, part, out + r * kSliver<W>);
    }
    k += longest;
  } while (k < depth);
}

/// out[r][c] = sum over k of a[k][r] b[k][c], for the first `height` rows of a's sliver and `width` of b's; up to whole
/// tiles and vectors more of out are overwritten. Depth is cut into parts that stay in the first cache.
template <class W>
void dot_block(const W* a, const W* b, std::size_t depth, std::size_t height, std::size_t width, W* out) {
  static_assert(kSliverVectors == 3);
  width <= lanes<W>       ? dot_block_of<W, 1>(a, b, depth, height, out)
  : width <= 2 * lanes<W> ? dot_block_of<W, 2>(a, b, depth, height, out)
                          : dot_block_of<W, 3>(a, b, depth, height, out);
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
