// Products of float32 rows in whole numbers: the matrix unit's bytes where the instruction set has one (AMX), the same
// sums in plain vectors, bit by bit, elsewhere.
//
// A row is a unit, 2^-23 of its largest element or little more, times whole numbers of 24 bits, each three digits of
// base 256, from -128 to 127. Of the nine products of digits six are taken; the others are of the size of what rounding
// to whole numbers takes away. Sums of whole numbers are exact, so neither their order nor the unit that computes them
// tells; one rounding brings them back to float32. (Ootomo, Ozaki and Yokota, arXiv:2306.11975.)
//
// With a and b the largest magnitudes of two rows of d elements, 2^-80 < a b < 2^100, their product is off by at most
// 2^-21 d a b and a rounding of itself. Errors of either sign cancel as they do in float32; of normal rows of 64 to 515
// elements they are at most twice as large (tests/kernels/digits_test.cpp).
#pragma once

#include "kernels/cpu/math.h"
#include "kernels/cpu/matrix_unit.h"
#include "kernels/cpu/packing.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {

inline constexpr std::int64_t kTile = static_cast<std::int64_t>(lanes<float>);
inline constexpr std::int64_t kTileDepth = 4 * kTile;
inline constexpr std::int64_t kTilesOfSliver = static_cast<std::int64_t>(kSliverVectors);
inline constexpr std::int64_t kDeepest = 32768;  // 3 x 128 x 128 times as much is below 2^31
inline constexpr float kLargestWhole = 0x7f7f00;

using Words = Vec<std::int32_t>;

/// Digits of kTile rows, kTileDepth of each: as rows, one after the other; or as columns, four elements of each row
/// side by side, then the next four.
struct Tile {
  Words words[kTile];
};

struct Digits {
  Tile high, middle, low;
};

/// Digits of packed rows: a step is kTileDepth of depth.
struct DigitRows {
  std::int64_t steps;  // of a row
  Digits* rows;        // [tiles, steps]: rows as rows
  Digits* columns;     // [tiles, steps]: the same as columns
  Digits* elements;    // [tiles of elements, row_steps]: element after element of all rows; null where not asked for
  std::int64_t row_steps;
  float* unit;  // per position, times 256; NaN for a poisoned row

  bool in_use() const { return unit != nullptr; }
};

inline DigitRows lay_out_digits(Arena& arena, std::int64_t most, std::int64_t d, bool elements) {
  const std::int64_t tiles = divide_up(most, static_cast<std::int64_t>(kSliver<float>)) * kTilesOfSliver;
  DigitRows digits{};
  digits.steps = divide_up(d, kTileDepth);
  digits.rows = arena.take<Digits>((tiles + 1) * digits.steps);  // multiplied two at a time, from any on
  digits.columns = arena.take<Digits>(tiles * digits.steps);
  digits.row_steps = divide_up(tiles * kTile, kTileDepth);
  if (elements) {
    digits.elements = arena.take<Digits>((divide_up(d, kTile) + 1) / 2 * 2 * digits.row_steps);
  }
  digits.unit = arena.take<float>((tiles + 1) * kTile);
  return digits;
}

/// Magnitudes as integers, which are in their order; above them all is NaN.
FASTMINE_INLINE Words magnitude(Vec<float> x) { return bitcast<std::int32_t>(x) & 0x7fffffff; }

FASTMINE_INLINE Words larger_of(Words a, Words b) { return select(a > b, a, b); }

/// x, of at most kLargestWhole, to the nearest whole number: 65536 high + 256 middle + low, its bytes 2, 1 and 0.
FASTMINE_INLINE Words to_digits(Vec<float> x) {
  const auto half = bitcast<float>((bitcast<std::int32_t>(x) & ~0x7fffffff) | 0x3f000000);
  return (convert<std::int32_t>(x + half) + 0x8080) ^ 0x8080;
}

/// Where the mask has ones a, elsewhere b.
FASTMINE_INLINE Words blend(std::int32_t mask, Words a, Words b) { return (a & mask) | (b & ~mask); }

/// What lies `bits` higher and lower, wherever signs are of no interest.
FASTMINE_INLINE Words up(Words x, int bits) { return bitcast<std::int32_t>(bitcast<std::uint32_t>(x) << bits); }
FASTMINE_INLINE Words down(Words x, int bits) { return bitcast<std::int32_t>(bitcast<std::uint32_t>(x) >> bits); }

/// Elements 4 w .. 4 w + 3 of kTile rows, as columns: bytes 2 of all four side by side, and so bytes 1 and 0.
FASTMINE_INLINE void put_columns(const Words (&four)[4], std::int64_t w, Digits& out) {
  const Words outer = blend(0x00ff00ff, four[0], up(four[1], 8)),
              outer_next = blend(0x00ff00ff, four[2], up(four[3], 8));
  const Words inner = blend(0x00ff, down(four[0], 8), four[1]), inner_next = blend(0x00ff, down(four[2], 8), four[3]);
  out.high.words[w] = blend(0xffff, down(outer, 16), outer_next);
  out.middle.words[w] = blend(0xffff, inner, up(inner_next, 16));
  out.low.words[w] = blend(0xffff, outer, up(outer_next, 16));
}

/// Columns as rows.
FASTMINE_INLINE Tile turn(const Tile& columns) {
  Tile rows = columns;
  transpose(rows.words);
  return rows;
}

/// One element of kTile rows, at place `row` of a step.
FASTMINE_INLINE void put_element(Words digits, std::int64_t element, std::int64_t row, Digits& out) {
  const auto put = [=](Tile& tile, int shift) {
    const auto bytes = convert<std::int8_t>(digits >> shift);
    __builtin_memcpy(reinterpret_cast<std::int8_t*>(&tile.words[element]) + row, &bytes, sizeof bytes);
  };
  put(out.high, 16);
  put(out.middle, 8);
  put(out.low, 0);
}

/// The unit of each lane, for numbers up to a magnitude: of 12 bits, so that the product of two is exact; and 1 over
/// it.
struct Unit {
  Vec<float> one, inverse;

  explicit Unit(Words largest) {
    constexpr std::int32_t least = (127 - 100) << 23;  // 2^-100: below, one over it would overflow
    const auto scale = bitcast<float>(larger_of(largest, Words{} + least));
    one = bitcast<float>((bitcast<std::int32_t>(scale * (1 / kLargestWhole)) + 0xfff) & ~0xfff);
    inverse = 1 / one;
  }
};

/// The digits of a packed sliver.
inline void split_sliver(const Packed<float>& packed, std::int64_t d, std::int64_t s, const DigitRows& out) {
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<float>);
  for (std::int64_t tile = s * kTilesOfSliver; tile < (s + 1) * kTilesOfSliver; ++tile) {
    const float* from = packed.sliver(s, d) + tile % kTilesOfSliver * kTile;
    Words largest{};
    for (std::int64_t k = 0; k < d; ++k) {
      largest = larger_of(magnitude(load(from + k * sliver)), largest);
    }
    const Unit unit(largest);
    const Vec<float> c = load(packed.c + tile * kTile);
    store(out.unit + tile * kTile, select(c == c, unit.one * 256, c));
    for (std::int64_t step = 0; step < out.steps; ++step) {
      Digits& columns = out.columns[tile * out.steps + step];
      for (std::int64_t w = 0; w < kTile; ++w) {
        Words four[4];
        for (std::int64_t i = 0; i < 4; ++i) {
          const std::int64_t k = step * kTileDepth + 4 * w + i;
          four[i] = to_digits(k < d ? load(from + k * sliver) / unit.one : Vec<float>{});
          if (out.elements != nullptr && k < d) {
            put_element(four[i], k % kTile, tile % 4 * kTile, out.elements[k / kTile * out.row_steps + tile / 4]);
          }
        }
        put_columns(four, w, columns);
      }
      out.rows[tile * out.steps + step] = {turn(columns.high), turn(columns.middle), turn(columns.low)};
    }
  }
}

/// The digits, as columns, of `count` rows of kTile numbers, kSliver apart, each times its factor; returns the unit,
/// NaN where any of them is.
FASTMINE_NOINLINE inline Vec<float> split_columns(const float* from, const float* factors, std::int64_t count,
                                                  Digits* out) {
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<float>);
  Words largest{};
  for (std::int64_t c = 0; c < count; ++c) {
    largest = larger_of(magnitude(load(from + c * sliver) * factors[c]), largest);
  }
  const Unit unit(largest);
  for (std::int64_t c = 0; c < count; c += 4) {
    Words four[4];
    for (std::int64_t i = 0; i < 4; ++i) {
      four[i] = to_digits(c + i < count ? load(from + (c + i) * sliver) * factors[c + i] * unit.inverse : Vec<float>{});
    }
    put_columns(four, c % kTileDepth / 4, out[c / kTileDepth]);
  }
  for (std::int64_t c = divide_up(count, std::int64_t{4}) * 4; c % kTileDepth != 0; c += 4) {
    const Words none[4] = {};
    put_columns(none, c % kTileDepth / 4, out[c / kTileDepth]);
  }
  return unit.one * 256;
}

// --- products --------------------------------------------------------------------------------------------------------

/// Sums of products of digits of kTile rows and columns, by the weight of what they are multiplied with.
struct Sums {
  Tile high, middle, low;
};

/// sums[t] = the products of tile t of rows, `apart` digits from the one before, with columns, for t < 2.
#if defined(__AMX_INT8__)

FASTMINE_NOINLINE inline void multiply_digits(const Digits* rows, std::int64_t apart, const Digits* columns,
                                              std::int64_t steps, Sums (&sums)[2]) {
  FASTMINE_CLEAR_TILE(0);
  FASTMINE_CLEAR_TILE(1);
  FASTMINE_CLEAR_TILE(2);
  FASTMINE_CLEAR_TILE(3);
  FASTMINE_CLEAR_TILE(4);
  FASTMINE_CLEAR_TILE(5);
  for (std::int64_t step = 0; step < steps; ++step) {
    const Digits &a = rows[step], &next = rows[apart + step], &b = columns[step];
    // Each time another of the two is loaded.
    FASTMINE_LOAD_TILE(6, &b.low, 64);
    FASTMINE_LOAD_TILE(7, &a.high, 64);
    FASTMINE_MULTIPLY_BYTES(2, 7, 6);
    FASTMINE_LOAD_TILE(6, &b.middle, 64);
    FASTMINE_MULTIPLY_BYTES(1, 7, 6);
    FASTMINE_LOAD_TILE(7, &a.middle, 64);
    FASTMINE_MULTIPLY_BYTES(2, 7, 6);
    FASTMINE_LOAD_TILE(6, &b.high, 64);
    FASTMINE_MULTIPLY_BYTES(1, 7, 6);
    FASTMINE_LOAD_TILE(7, &a.low, 64);
    FASTMINE_MULTIPLY_BYTES(2, 7, 6);
    FASTMINE_LOAD_TILE(7, &a.high, 64);
    FASTMINE_MULTIPLY_BYTES(0, 7, 6);
    FASTMINE_LOAD_TILE(7, &next.high, 64);
    FASTMINE_MULTIPLY_BYTES(3, 7, 6);
    FASTMINE_LOAD_TILE(7, &next.low, 64);
    FASTMINE_MULTIPLY_BYTES(5, 7, 6);
    FASTMINE_LOAD_TILE(7, &next.middle, 64);
    FASTMINE_MULTIPLY_BYTES(4, 7, 6);
    FASTMINE_LOAD_TILE(6, &b.middle, 64);
    FASTMINE_MULTIPLY_BYTES(5, 7, 6);
    FASTMINE_LOAD_TILE(7, &next.high, 64);
    FASTMINE_MULTIPLY_BYTES(4, 7, 6);
    FASTMINE_LOAD_TILE(6, &b.low, 64);
    FASTMINE_MULTIPLY_BYTES(5, 7, 6);
  }
  FASTMINE_STORE_TILE(0, &sums[0].high, 64);
  FASTMINE_STORE_TILE(1, &sums[0].middle, 64);
  FASTMINE_STORE_TILE(2, &sums[0].low, 64);
  FASTMINE_STORE_TILE(3, &sums[1].high, 64);
  FASTMINE_STORE_TILE(4, &sums[1].middle, 64);
  FASTMINE_STORE_TILE(5, &sums[1].low, 64);
}

#else

FASTMINE_INLINE void add_bytes(const Tile& rows, const Tile& columns, std::int64_t r, Words& sum) {
  for (std::int64_t w = 0; w < kTile; ++w) {
    for (int shift = 24; shift >= 0; shift -= 8) {
      const std::int32_t a = static_cast<std::int32_t>(static_cast<std::uint32_t>(rows.words[r][w]) << shift) >> 24;
      sum += (bitcast<std::int32_t>(bitcast<std::uint32_t>(columns.words[w]) << shift) >> 24) * a;
    }
  }
}

FASTMINE_NOINLINE inline void multiply_digits(const Digits* rows, std::int64_t apart, const Digits* columns,
                                              std::int64_t steps, Sums (&sums)[2]) {
  for (std::int64_t t = 0; t < 2; ++t, rows += apart) {
    sums[t] = {};
    for (std::int64_t r = 0; r < kTile; ++r) {
      for (std::int64_t step = 0; step < steps; ++step) {
        const Digits &a = rows[step], &b = columns[step];
        add_bytes(a.high, b.high, r, sums[t].high.words[r]);
        add_bytes(a.high, b.middle, r, sums[t].middle.words[r]);
        add_bytes(a.middle, b.high, r, sums[t].middle.words[r]);
        add_bytes(a.high, b.low, r, sums[t].low.words[r]);
        add_bytes(a.middle, b.middle, r, sums[t].low.words[r]);
        add_bytes(a.low, b.high, r, sums[t].low.words[r]);
      }
    }
  }
}

#endif

/// Row r of the products: the sum of the products of whole numbers, in units of 65536.
FASTMINE_INLINE Vec<float> product(const Sums& sums, std::int64_t r) {
  const auto high = convert<float>(sums.high.words[r]), middle = convert<float>(sums.middle.words[r]);
  return (high * 256 + middle) * 256 + convert<float>(sums.low.words[r]);
}

/// out[r * apart + c] = the product of row r of two tiles of x, from `tile` on, with row c of tile `across` of y.
inline void multiply_rows(const DigitRows& x, std::int64_t tile, const DigitRows& y, std::int64_t across, float* out,
                          std::int64_t apart) {
  Sums sums[2];
  multiply_digits(x.rows + tile * x.steps, x.steps, y.columns + across * y.steps, y.steps, sums);
  const Vec<float> unit = load(y.unit + across * kTile);
  for (std::int64_t r = 0; r < 2 * kTile; ++r) {
    store(out + r * apart, product(sums[r / kTile], r % kTile) * (unit * x.unit[tile * kTile + r]));
  }
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
