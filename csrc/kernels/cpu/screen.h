// The screen of the negatives in bfloat16: a twin of the packed rows in half their bytes, products of whole blocks by
// the matrix unit, and how far their keys may be from the truth.
//
// Keys are halved here: c[j] / 2 - x[i].x[j] is what a product that starts at c[j] / 2 with -x[i] leaves, ready to be
// compared; halving and negating are exact.
#pragma once

#include <cmath>

#include "kernels/cpu/bf16.h"
#include "kernels/cpu/packing.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {

inline constexpr std::int64_t kWidestRounded = 2048;  // elements of a row; a block of such rows is on the stack

/// Packed rows, rounded to bfloat16, in groups (see bf16.h); positions up to a multiple of kBlockRows.
struct Rounded {
  std::int64_t count;
  std::int64_t depth;
  std::uint16_t* data;
  float* half;   // c / 2
  float* error;  // at least the norm of what rounding took from the row

  std::int64_t blocks() const { return divide_up(count, kBlockRows); }
  std::uint16_t* group(std::int64_t g) const { return data + g * depth * kGroup; }
};

inline std::int64_t round_up(std::int64_t n, std::int64_t step) { return divide_up(n, step) * step; }

/// All but `data`.
inline Rounded lay_out_rounded(Arena& arena, std::int64_t most, std::int64_t d) {
  const std::int64_t padded = round_up(most, kBlockRows);
  Rounded rounded{};
  rounded.depth = round_up(d, kDepthStep);
  rounded.half = arena.take<float>(padded);
  rounded.error = arena.take<float>(padded);
  return rounded;
}

/// bfloat16 bits of x to nearest even, in the upper half of each lane.
FASTMINE_INLINE Vec<std::int32_t> round_to_bfloat16(Vec<float> x) {
  const auto bits = bitcast<std::int32_t>(x);
  return (bits + 0x7fff + ((bits >> 16) & 1)) & ~0xffff;
}

/// Round the packed rows of one block.
inline void round_block(const Packed<float>& packed, std::int64_t d, const Rounded& rounded, std::int64_t block) {
  using V = Vec<float>;
  using I = Vec<std::int32_t>;
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<float>);
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<float>);
  static_assert(sliver % step == 0 && kBlockRows % sliver == 0 && kGroup % step == 0);
  // The sum of squares is rounded at most d + 2 times, and a square may underflow.
  const float slack = 1 + (static_cast<float>(d) + 8) * 0x1p-23F;
  const float tiny = ::sqrtf(static_cast<float>(d)) * 0x1p-62F;
  for (std::int64_t position = block * kBlockRows; position < (block + 1) * kBlockRows; position += step) {
    const bool padding = position >= packed.slivers() * sliver;
    const float* from = packed.sliver(position / sliver, d) + position % sliver;
    std::uint16_t* to = rounded.group(position / kGroup) + position % kGroup * 2;
    V squared{};
    for (std::int64_t k = 0; k < rounded.depth; k += 2, to += 2 * kGroup) {
      const V first = padding || k >= d ? V{} : load(from + k * sliver);
      const V second = padding || k + 1 >= d ? V{} : load(from + (k + 1) * sliver);
      const I low = round_to_bfloat16(first), high = round_to_bfloat16(second);
      const V lost = first - bitcast<float>(low), also = second - bitcast<float>(high);
      squared += lost * lost;
      squared += also * also;
      const I both = bitcast<std::int32_t>(bitcast<std::uint32_t>(low) >> 16) | high;
      __builtin_memcpy(to, &both, sizeof both);
    }
    for (std::int64_t lane = 0; lane < step; ++lane) {
      const float at = padding ? static_cast<float>(__builtin_inf()) : packed.c[position + lane];
      rounded.half[position + lane] = at / 2;
      rounded.error[position + lane] = ::sqrtf(squared[static_cast<std::size_t>(lane)]) * slack + tiny;
    }
  }
}

/// An upper bound on how far a key of the bfloat16 screen is from the truth, for rows of norms at most `a` and `b` from
/// which rounding took vectors of norms at most `a_lost` and `b_lost`.
///
/// With x = x' + u and y = y' + v, x' and y' in bfloat16: x.y - x'.y' = u.y + x'.v, at most |u| |y| + (|x| + |u|) |v|,
/// and the key holds it twice. Products of two bfloat16 are exact in float32. How a matrix unit adds them up is taken
/// to be unknown: additions in any order, to nearest or not, subnormal operands and results flushed to zero. Each of at
/// most `depth` additions then loses at most 2^-23 of c[j] + 2 sum |x'[k] y'[k]| <= (|x'| + |y'|)^2, twice what
/// key_error allows for, so it is asked for twice the depth; what is flushed is below its allowance for underflow.
template <class D>
FASTMINE_INLINE D rounded_key_error(std::int64_t depth, D a, D a_lost, double b, double b_lost) {
  return 2 * (a_lost * b + (a + a_lost) * b_lost) + key_error<float>(2 * depth, a + a_lost, b + b_lost);
}

/// One side of a screen: rounded rows, their classes and, semi-hard, what a key must surpass.
struct Side {
  const Rounded* rows;
  const std::int32_t* classes;  // padded like the rows, and in order
  const float* floor;           // halved, of c[j] / 2 - x[i].x[j]
};

/// Rows of a block as multiply_block wants them, negated, and what goes with each.
struct Block {
  alignas(64) std::uint16_t data[kBlockRows * kWidestRounded];
  float half[kBlockRows];
  float floor[kBlockRows];
  std::int32_t classes[kBlockRows];
};

template <bool Floored>
inline void take_row(const Side& side, std::int64_t position, Block& block, std::int64_t row) {
  const std::int64_t depth = side.rows->depth;
  const std::uint16_t* from = side.rows->group(position / kGroup) + position % kGroup * 2;
  std::uint16_t* to = block.data + row * depth;
  for (std::int64_t k = 0; k < depth; k += 2) {
    std::uint32_t pair;
    __builtin_memcpy(&pair, from + k * kGroup, sizeof pair);
    pair ^= 0x80008000U;
    __builtin_memcpy(to + k, &pair, sizeof pair);
  }
  block.half[row] = side.rows->half[position];
  block.floor[row] = Floored ? side.floor[position] : 0;
  block.classes[row] = side.classes[position];
}

template <class V>
FASTMINE_INLINE V least(V a, V b) {
  return select(b < a, b, a);
}

/// Bring the products of a block with `Groups` groups into the minima of its rows and, with Mirror, of the columns,
/// where they are c[i] / 2 + c[j] / 2 - x[i].x[j] until the block is done.
///
/// `Mixed`: some pairs may be of one label, and are left out. `Floored`: semi-hard, values below the floor are left
/// out.
template <std::int64_t Groups, bool Mirror, bool Mixed, bool Floored>
FASTMINE_INLINE void reduce_block(const float* products, const Block& block, const Side& y, std::int64_t column,
                                  Vec<float>* row_least, float* column_least) {
  using V = Vec<float>;
  using I = Vec<std::int32_t>;
  constexpr std::int64_t width = Groups * kGroup, step = static_cast<std::int64_t>(lanes<float>);
  constexpr std::int64_t vectors = width / step;
  const V none = broadcast(static_cast<float>(__builtin_inf()));
  V of_columns[vectors], floors[vectors];
  I ids[vectors];
  for (std::int64_t v = 0; v < vectors; ++v) {
    of_columns[v] = Mirror ? load(column_least + v * step) : none;
    ids[v] = load(y.classes + column + v * step);
    floors[v] = Mirror && Floored ? load(y.floor + column + v * step) + load(y.rows->half + column + v * step) : none;
  }
  for (std::int64_t r = 0; r < kBlockRows; ++r) {
    for (std::int64_t v = 0; v < vectors; ++v) {
      V to_row = load(products + r * width + v * step);
      V to_column = to_row + block.half[r];
      if constexpr (Floored) {
        to_row = select(to_row < block.floor[r], none, to_row);
        to_column = select(to_column < floors[v], none, to_column);
      }
      if constexpr (Mixed) {
        const auto same = ids[v] == broadcast(block.classes[r]);
        to_row = select(same, none, to_row);
        to_column = select(same, none, to_column);
      }
      row_least[r] = least(row_least[r], to_row);
      of_columns[v] = Mirror ? least(of_columns[v], to_column) : none;
    }
  }
  if constexpr (Mirror) {
    for (std::int64_t v = 0; v < vectors; ++v) {
      store(column_least + v * step, of_columns[v]);
    }
  }
}

/// Multiply a block with the groups at `column` and reduce the products.
template <std::int64_t Groups, bool Mirror, bool Floored>
FASTMINE_INLINE void screen_groups(const Block& block, const Side& y, std::int64_t column, bool mixed,
                                   Vec<float>* row_least, float* column_least) {
  alignas(64) float products[kBlockRows * Groups * kGroup];
  multiply_block<Groups>(block.data, y.rows->group(column / kGroup), y.rows->depth, y.rows->half + column, products);
  if (mixed) {
    reduce_block<Groups, Mirror, true, Floored>(products, block, y, column, row_least, column_least);
  } else {
    reduce_block<Groups, Mirror, false, Floored>(products, block, y, column, row_least, column_least);
  }
}

/// A block against the positions [begin, end), multiples of kBlockRows: writes the least key of each of its rows to
/// `nearest`, and brings its own into `column_least`, which has a place for every position.
template <bool Mirror, bool Floored>
void screen_block(const Block& block, const Side& y, std::int64_t begin, std::int64_t end, bool mixed,
                  float* column_least, float* nearest) {
  using V = Vec<float>;
  V row_least[kBlockRows];
  for (V& v : row_least) {
    v = broadcast(static_cast<float>(__builtin_inf()));
  }
  std::int64_t column = begin;
  for (; column + 2 * kGroup <= end; column += 2 * kGroup) {
    screen_groups<2, Mirror, Floored>(block, y, column, mixed, row_least, Mirror ? column_least + column : nullptr);
  }
  if (column < end) {
    screen_groups<1, Mirror, Floored>(block, y, column, mixed, row_least, Mirror ? column_least + column : nullptr);
  }
  for (std::int64_t r = 0; r < kBlockRows; ++r) {
    nearest[r] = 2 * least_of(row_least[r]);
  }
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
