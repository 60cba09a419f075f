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

/// out[r][c] = sum over k of a[k KStep + r RowStep] b[k][c], for R rows, by default of a sliver, and all of b's. Each
/// sum runs over k in order, so a pair's product has the same bits in whichever tile, and on whichever side, it is
/// computed.
///
/// Not inlined, and into memory: GCC otherwise sometimes spills accumulators inside the loop, which halves the speed.
template <class W, std::size_t R, std::size_t RowStep = 1, std::size_t KStep = kSliver<W>>
FASTMINE_NOINLINE void dot_tile(const W* a, const W* b, std::size_t depth, W* out) {
  using V = Vec<W>;
  V sum[R][kSliverVectors] = {};
  for (std::size_t k = 0; k < depth; ++k, a += KStep, b += kSliver<W>) {
    V column[kSliverVectors];
    for (std::size_t v = 0; v < kSliverVectors; ++v) {
      column[v] = load(b + v * lanes<W>);
    }
    for (std::size_t r = 0; r < R; ++r) {
      const V row = broadcast(a[r * RowStep]);
      for (std::size_t v = 0; v < kSliverVectors; ++v) {
        sum[r][v] += row * column[v];
      }
    }
  }
  for (std::size_t r = 0; r < R; ++r) {
    for (std::size_t v = 0; v < kSliverVectors; ++v) {
      store(out + r * kSliver<W> + v * lanes<W>, sum[r][v]);
    }
  }
}

/// out[c] = sum over k of a[k] b[k][c]: a single row of a's sliver against all rows of b's. Its three vectors alone
/// would wait for each addition; sums over even and odd k, added last, keep the multipliers busy.
template <class W>
FASTMINE_NOINLINE void dot_row(const W* a, const W* b, std::size_t depth, W* out) {
  using V = Vec<W>;
  V even[kSliverVectors] = {}, odd[kSliverVectors] = {};
  std::size_t k = 0;
  for (; k + 1 < depth; k += 2, a += 2 * kSliver<W>, b += 2 * kSliver<W>) {
    const V first = broadcast(a[0]), second = broadcast(a[kSliver<W>]);
    for (std::size_t v = 0; v < kSliverVectors; ++v) {
      even[v] += first * load(b + v * lanes<W>);
      odd[v] += second * load(b + kSliver<W> + v * lanes<W>);
    }
  }
  for (std::size_t v = 0; v < kSliverVectors; ++v) {
    if (k < depth) {
      even[v] += broadcast(a[0]) * load(b + v * lanes<W>);
    }
    store(out + v * lanes<W>, even[v] + odd[v]);
  }
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
