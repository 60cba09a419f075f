// Products of a tile of rows with a tile of rows, by one block: each thread keeps a small square of them in registers,
// and the slices of the rows that it multiplies lie in shared memory, where one is read while the next arrives.
//
// Two ways, with the same interface: Full multiplies in the rows' own type, Rounded multiplies bfloat16 in the matrix
// unit. They differ in which rows and columns a thread has. A block of 64 threads has a smaller tile of the first.
#pragma once

#include "kernels/cuda/load.h"
#include "kernels/cuda/matrix.h"

namespace fastmine::cuda::mining {

/// Rows of a tile of so many threads: what a screen in type W works on at a time.
template <class W, int kBlock = kThreads>
inline constexpr int kSide = (kBlock == 256 ? 16 : 8) * (sizeof(W) == 8 ? 4 : 8);

template <class W, int kBlock = kThreads>
struct Full {
  using Value = W;
  using Element = W;
  static constexpr bool kRounded = false;
  static constexpr int kEach = sizeof(W) == 8 ? 4 : 8;  // rows and columns of a thread
  static constexpr int kRows = kEach, kColumns = kEach;
  static constexpr int kTile = kSide<W, kBlock>;
  static constexpr int kAcross = kTile / kEach;          // threads side by side, and one above the other
  static constexpr int kDepth = kBlock * kEach / kTile;  // elements of a slice
  static constexpr int kPack = 16 / sizeof(W);
  using Vector = Pack<W, kPack>;
  static constexpr int kSharedVectors = 2 * 2 * kDepth * kTile / kPack;
  static_assert(kAcross * kAcross == kBlock && kAcross <= kWarp);

  // Lanes whose numbers differ in bits below kRowLanes have other columns of the same rows; the others, other rows of
  // the same columns. So do the warps, which are parts.
  static constexpr int kRowLanes = kAcross, kRowParts = 1, kColumnParts = kBlock / kWarp;
  FASTMINE_DEVICE static int row_part() { return 0; }
  FASTMINE_DEVICE static int column_part() { return warp_index(); }

  /// Vectors of neighbours, far from each other, so that threads that read at once meet no bank twice.
  FASTMINE_DEVICE static int line(int place, int e) { return e / kPack * (kTile / 2) + place * kPack + e % kPack; }
  /// Rows and columns of a thread, counted from its first.
  FASTMINE_DEVICE static constexpr int step(int e) { return e / kPack * (kTile / 2) + e % kPack; }
  FASTMINE_DEVICE static int row(int r) { return line(thread_index() / kAcross, r); }
  FASTMINE_DEVICE static int column(int c) { return line(thread_index() % kAcross, c); }

  /// The row of a tile of which this thread loads kEach elements of every slice, and from where in the slice.
  FASTMINE_DEVICE static int loaded_line() { return thread_index() % kTile; }
  FASTMINE_DEVICE static int loaded_from() { return thread_index() / kTile * kEach; }

  FASTMINE_DEVICE static void fetch(const W* row, W* slice) {
    FASTMINE_UNROLL for (int k = 0; k < kEach; ++k) {
      start_copy<sizeof(W)>(slice + (loaded_from() + k) * kTile + loaded_line(), row + loaded_from() + k);
    }
  }

  FASTMINE_DEVICE static void take(const W* slice, int place, W (&out)[kEach]) {
    FASTMINE_UNROLL for (int e = 0; e < kEach; e += kPack) {
      const auto vector = *reinterpret_cast<const Vector*>(slice + line(place, e));
      FASTMINE_UNROLL for (int v = 0; v < kPack; ++v) { out[e + v] = vector.item[v]; }
    }
  }

  /// dot[r][c] = the product of rows row(r) and column(c) of two tiles, of which `a` and `b` are the rows that this
  /// thread loads, `depth` elements long. Ends without a barrier.
  FASTMINE_DEVICE static void multiply(const W* a, const W* b, int depth, Vector* shared, W (&dot)[kEach][kEach]) {
    constexpr int kSlice = kDepth * kTile;
    W* const slices = &shared[0].item[0];
    FASTMINE_UNROLL for (int r = 0; r < kEach; ++r) {
      FASTMINE_UNROLL for (int c = 0; c < kEach; ++c) { dot[r][c] = 0; }
    }
    if (depth > 0) {
      fetch(a, slices);
      fetch(b, slices + kSlice);
    }
    int now = 0;
    for (int k = 0; k < depth; k += kDepth, now ^= 1) {
      const W* const slice_a = slices + now * 2 * kSlice;
      const W* const slice_b = slice_a + kSlice;
      wait_for_copies();
      barrier();  // this slice is there, and the one before it is no longer read
      if (k + kDepth < depth) {
        fetch(a + k + kDepth, slices + (now ^ 1) * 2 * kSlice);
        fetch(b + k + kDepth, slices + ((now ^ 1) * 2 + 1) * kSlice);
      }
      FASTMINE_UNROLL for (int q = 0; q < kDepth; ++q) {
        W rows[kEach], columns[kEach];
        take(slice_a + q * kTile, thread_index() / kAcross, rows);
        take(slice_b + q * kTile, thread_index() % kAcross, columns);
        FASTMINE_UNROLL for (int r = 0; r < kEach; ++r) {
          FASTMINE_UNROLL for (int c = 0; c < kEach; ++c) { dot[r][c] += rows[r] * columns[c]; }
        }
      }
    }
  }
};

/// A warp has 64 rows and 32 columns: four by four products of the matrix unit, of which a thread has, in each, two
/// rows eight apart and two columns next to each other.
struct Rounded {
  using Value = float;
  using Element = std::uint16_t;
  static constexpr bool kRounded = true;
  static constexpr int kEach = 8, kWarpRows = 64, kWarpColumns = 32, kDepth = 32;
  static constexpr int kRows = kEach, kColumns = kEach;
  using Vector = Pack<std::uint16_t, 8>;
  static constexpr int kRowVectors = kDepth / 8;  // of a slice
  static constexpr int kSlice = kSide<float> * kRowVectors, kSharedVectors = 2 * 2 * kSlice;
  static constexpr int kLoads = kSlice / kThreads;  // vectors that a thread loads of every slice

  static constexpr int kRowLanes = 4, kRowParts = kSide<float> / kWarpColumns;
  static constexpr int kColumnParts = kSide<float> / kWarpRows;
  static_assert(kRowParts * kColumnParts == kWarps && kRowVectors % kLoads == 0);
  FASTMINE_DEVICE static int row_part() { return warp_index() % kRowParts; }
  FASTMINE_DEVICE static int column_part() { return warp_index() / kRowParts; }

  FASTMINE_DEVICE static int row(int r) { return column_part() * kWarpRows + r * 8 + lane_index() / 4; }
  FASTMINE_DEVICE static int column(int c) {
    return row_part() * kWarpColumns + c / 2 * 8 + lane_index() % 4 * 2 + c % 2;
  }
  FASTMINE_DEVICE static int loaded_line() { return thread_index() * kLoads / kRowVectors; }

  /// Where element k of a row lies in memory, among rows of so many: tile after tile; of a tile, the first 8 elements
  /// of all its rows, then the next 8. So any slice of a tile is one piece, as the matrix unit takes it (warpgroup.h).
  FASTMINE_DEVICE static std::int64_t place_of(std::int64_t depth, std::int64_t row, std::int64_t k) {
    constexpr std::int64_t side = kSide<float>;
    return row / side * side * depth + k / 8 * 8 * side + row % side * 8 + k % 8;
  }

  /// Where a vector of a row lies in a slice: permuted, so that eight rows that are read at once meet no bank twice.
  FASTMINE_DEVICE static int place(int line, int vector) {
    return line * kRowVectors + (vector ^ (line / 2 % kRowVectors));
  }

  FASTMINE_DEVICE static void fetch(const std::uint16_t* row, Vector* slice) {
    FASTMINE_UNROLL for (int v = 0; v < kLoads; ++v) {
      const int vector = thread_index() * kLoads % kRowVectors + v;
      start_copy<16>(slice + place(loaded_line(), vector), row + vector * 8 * kSide<float>);
    }
  }

  /// As Full::multiply.
  FASTMINE_DEVICE static void multiply(const std::uint16_t* a, const std::uint16_t* b, int depth, Vector* shared,
                                       float (&dot)[kEach][kEach]) {
    float sum[4][4][4];
    FASTMINE_UNROLL for (int r = 0; r < 4; ++r) {
      FASTMINE_UNROLL for (int c = 0; c < 4; ++c) {
        FASTMINE_UNROLL for (int e = 0; e < 4; ++e) { sum[r][c][e] = 0; }
      }
    }
    if (depth > 0) {
      fetch(a, shared);
      fetch(b, shared + kSlice);
    }
    int now = 0;
    for (int k = 0; k < depth; k += kDepth, now ^= 1) {
      const Vector* const slice_a = shared + now * 2 * kSlice;
      const Vector* const slice_b = slice_a + kSlice;
      wait_for_copies();
      barrier();  // as in Full
      if (k + kDepth < depth) {
        const std::int64_t next = std::int64_t{k + kDepth} * kSide<float>;
        fetch(a + next, shared + (now ^ 1) * 2 * kSlice);
        fetch(b + next, shared + ((now ^ 1) * 2 + 1) * kSlice);
      }
      FASTMINE_UNROLL for (int step = 0; step < kDepth / 16; ++step) {
        const int lane = lane_index();
        std::uint32_t columns[2][4];  // of two products each
        FASTMINE_UNROLL for (int c = 0; c < 2; ++c) {
          const int line = row_part() * kWarpColumns + c * 16 + lane / 16 * 8 + lane % 8;
          load_matrices(slice_b + place(line, step * 2 + lane / 8 % 2), columns[c]);
        }
        FASTMINE_UNROLL for (int r = 0; r < 4; ++r) {
          const int line = column_part() * kWarpRows + r * 16 + lane % 16;
          std::uint32_t rows[4];
          load_matrices(slice_a + place(line, step * 2 + lane / 16), rows);
          FASTMINE_UNROLL for (int c = 0; c < 4; ++c) {
            multiply_add(rows, columns[c / 2][c % 2 * 2], columns[c / 2][c % 2 * 2 + 1], sum[r][c]);
          }
        }
      }
    }
    FASTMINE_UNROLL for (int r = 0; r < kEach; ++r) {
      FASTMINE_UNROLL for (int c = 0; c < kEach; ++c) { dot[r][c] = sum[r / 2][c / 2][r % 2 * 2 + c % 2]; }
    }
  }
};

}  // namespace fastmine::cuda::mining
