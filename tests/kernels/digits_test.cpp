// Products by digits: the digits against the rows, their sums against whole numbers, the products against float64.
// Compiled for one instruction set, like the kernels; with FASTMINE_ISA_NAMESPACE=amx it needs a CPU with AMX.
#include "kernels/cpu/digits.h"

#include <cmath>
#include <functional>
#include <limits>

#include "check.h"

namespace fastmine::test {
namespace {

using namespace cpu::FASTMINE_ISA_NAMESPACE;
using Element = std::function<double(std::int64_t, std::int64_t)>;

constexpr std::int64_t kRows = static_cast<std::int64_t>(kSliver<float>);

/// One packed sliver and its digits.
struct Rows {
  Rows(std::int64_t depth, const Element& element) : d(depth) {
    Arena measured(nullptr);
    lay_out(measured);
    memory.resize(measured.used() + 64, '\x55');
    Arena arena(reinterpret_cast<void*>((reinterpret_cast<std::uintptr_t>(memory.data()) + 63) / 64 * 64));
    lay_out(arena);
    for (std::int64_t i = 0; i < kRows; ++i) {
      packed.c[i] = 1;
      largest.push_back(0);
      for (std::int64_t k = 0; k < d; ++k) {
        packed.data[k * kRows + i] = static_cast<float>(element(i, k));
        largest.back() = std::fmax(largest.back(), std::abs(at(i, k)));
      }
    }
    split_sliver(packed, d, 0, digits);
  }
  void lay_out(Arena& arena) {
    packed = lay_out_packed<float>(arena, kRows, d);
    digits = lay_out_digits(arena, kRows, d, true);
  }
  double at(std::int64_t i, std::int64_t k) const { return static_cast<double>(packed.data[k * kRows + i]); }
  double unit(std::int64_t i) const { return static_cast<double>(digits.unit[i]) / 256; }

  std::int64_t d;
  std::vector<char> memory;
  Packed<float> packed{};
  DigitRows digits{};
  std::vector<double> largest;
};

/// Byte `byte` of word `word` of a row of a tile.
std::int64_t byte_of(const Tile& tile, std::int64_t row, std::int64_t word, std::int64_t byte) {
  return static_cast<std::int8_t>(static_cast<std::uint32_t>(tile.words[row][static_cast<std::size_t>(word)]) >>
                                  (8 * byte));
}

struct Whole {
  std::int64_t high, middle, low;

  bool operator==(const Whole&) const = default;
  std::int64_t value() const { return 65536 * high + 256 * middle + low; }
};

Whole whole_of(const Digits& digits, std::int64_t row, std::int64_t word, std::int64_t byte) {
  return {byte_of(digits.high, row, word, byte), byte_of(digits.middle, row, word, byte),
          byte_of(digits.low, row, word, byte)};
}

/// Element k of row i, from each of the three places where it lies.
Whole as_row(const DigitRows& x, std::int64_t i, std::int64_t k) {
  const std::int64_t in_step = k % kTileDepth;
  return whole_of(x.rows[i / kTile * x.steps + k / kTileDepth], i % kTile, in_step / 4, in_step % 4);
}
Whole as_column(const DigitRows& x, std::int64_t i, std::int64_t k) {
  const std::int64_t in_step = k % kTileDepth;
  return whole_of(x.columns[i / kTile * x.steps + k / kTileDepth], in_step / 4, i % kTile, in_step % 4);
}
Whole as_element(const DigitRows& x, std::int64_t i, std::int64_t k) {
  const std::int64_t in_step = i % kTileDepth;
  return whole_of(x.elements[k / kTile * x.row_steps + i / kTileDepth], k % kTile, in_step / 4, in_step % 4);
}

void digits_are_the_rows(const Rows& x, const std::string& name) {
  bool close = true, same = true, padded = true;
  for (std::int64_t i = 0; i < kRows; ++i) {
    for (std::int64_t k = 0; k < x.digits.steps * kTileDepth; ++k) {
      const Whole whole = as_row(x.digits, i, k);
      same = same && whole == as_column(x.digits, i, k);
      if (k < x.d) {
        same = same && whole == as_element(x.digits, i, k);
        const double off = std::abs(static_cast<double>(whole.value()) * x.unit(i) - x.at(i, k));
        close = close && off <= 0.75 * x.unit(i);
      } else {
        padded = padded && whole.value() == 0;
      }
    }
    close = close && x.unit(i) <= std::fmax(x.largest[static_cast<std::size_t>(i)], 0x1p-100) * 0x1.02p-23;
  }
  check(close, name + ": whole numbers are within a unit, and a unit is small");
  check(same, name + ": rows, columns and elements have the same digits");
  check(padded, name + ": the rest of the last step is 0");
}

void sums_are_exact(const Rows& x, const Rows& y, const std::string& name) {
  Sums sums[2];
  bool right = true;
  for (std::int64_t across = 0; across < kTilesOfSliver; ++across) {
    multiply_digits(x.digits.rows, x.digits.steps, y.digits.columns + across * y.digits.steps, x.digits.steps, sums);
    for (std::int64_t i = 0; i < 2 * kTile; ++i) {
      for (std::int64_t j = 0; j < kTile; ++j) {
        Whole want{};
        for (std::int64_t k = 0; k < x.d; ++k) {
          const Whole a = as_row(x.digits, i, k), b = as_row(y.digits, across * kTile + j, k);
          want.high += a.high * b.high;
          want.middle += a.high * b.middle + a.middle * b.high;
          want.low += a.high * b.low + a.middle * b.middle + a.low * b.high;
        }
        const Sums& got = sums[i / kTile];
        const auto lane = static_cast<std::size_t>(j);
        right = right && want == Whole{got.high.words[i % kTile][lane], got.middle.words[i % kTile][lane],
                                       got.low.words[i % kTile][lane]};
      }
    }
  }
  check(right, name + ": sums of digits are those of whole numbers");
}

struct Errors {
  double digits = 0, floats = 0;  // sums of squares
};

Errors products_are_right(const Rows& x, const Rows& y, const std::string& name) {
  alignas(64) float out[2 * kTile * kTile], floats[kRows * kRows];
  dot_block(x.packed.data, y.packed.data, static_cast<std::size_t>(x.d), kSliver<float>, kSliver<float>, floats);
  Errors errors;
  bool right = true;
  for (std::int64_t across = 0; across < kTilesOfSliver; ++across) {
    multiply_rows(x.digits, 0, y.digits, across, out, kTile);
    for (std::int64_t i = 0; i < 2 * kTile; ++i) {
      for (std::int64_t j = 0; j < kTile; ++j) {
        const std::int64_t other = across * kTile + j;
        double product = 0;
        for (std::int64_t k = 0; k < x.d; ++k) {
          product += x.at(i, k) * y.at(other, k);
        }
        const double a = x.largest[static_cast<std::size_t>(i)], b = y.largest[static_cast<std::size_t>(other)];
        const double off = static_cast<double>(out[i * kTile + j]) - product;
        const double bound = static_cast<double>(x.d) * 0x1p-21 * a * b + 0x1p-23 * std::abs(product);
        const bool extreme = a * b != 0 && !(a * b > 0x1p-80 && a * b < 0x1p100);  // for which nobody asks
        right = right && (extreme || std::abs(off) <= bound);
        errors.digits += off * off;
        errors.floats += std::pow(static_cast<double>(floats[i * kRows + other]) - product, 2);
      }
    }
  }
  check(right, name + ": products are within their bound");
  return errors;
}

void rows_of_every_kind() {
  Random random(3);
  const auto normal = [&random] {
    return std::sqrt(-2 * std::log(1 - random())) * std::cos(6.283185307179586 * random());
  };
  for (const std::int64_t d : {1, 2, 31, 64, 65, 128, 515}) {
    const auto try_rows = [d](const std::string& kind, const Element& element) {
      const Rows x(d, element), y(d, element);
      const std::string name = kind + " d=" + std::to_string(d);
      digits_are_the_rows(x, name);
      sums_are_exact(x, y, name);
      return products_are_right(x, y, name);
    };
    const Errors errors = try_rows("normal", [&](std::int64_t, std::int64_t) { return normal(); });
    check(d < 64 || errors.digits <= 4 * errors.floats, "twice the error of float32 d=" + std::to_string(d));
    try_rows("zero", [](std::int64_t, std::int64_t) { return 0; });
    try_rows("cauchy", [&](std::int64_t, std::int64_t) { return std::tan(3.14159 * (random() - 0.5)); });
    try_rows("largest whole", [](std::int64_t i, std::int64_t k) { return (i + k) % 2 == 0 ? 0x7f7fff : -0x7f7fff; });
    try_rows("halves", [&](std::int64_t, std::int64_t) { return 1 - static_cast<double>(random.below(99)) * 0x1p-24; });
    try_rows("two scales", [&](std::int64_t i, std::int64_t) { return (i % 2 == 0 ? 1e-20 : 1.0) * normal(); });
    for (const double scale : {1e-44, 1e-38, 1e-30, 1e-19, 1e12, 1e17}) {
      try_rows("scale " + std::to_string(std::log10(scale)),
               [&](std::int64_t, std::int64_t) { return scale * normal(); });
    }
  }
}

/// Weights become digits on the way: any number of them, each with a factor.
void weights() {
  Random random(5);
  constexpr std::int64_t most = 3 * kTileDepth;
  std::vector<float> from(most * kRows), factors(most);
  for (float& value : from) {
    value = static_cast<float>(random() - 0.5);
  }
  for (float& factor : factors) {
    factor = static_cast<float>(1 + random());
  }
  const auto out = std::make_unique<Digits[]>(3);
  for (const std::int64_t count : {std::int64_t{1}, kTileDepth - 3, kTileDepth, kTileDepth + 5, most}) {
    const Vec<float> unit = split_columns(from.data(), factors.data(), count, out.get());
    bool right = true;
    for (std::int64_t c = 0; c < divide_up(count, kTileDepth) * kTileDepth; ++c) {
      for (std::int64_t lane = 0; lane < kTile; ++lane) {
        const double one = static_cast<double>(unit[static_cast<std::size_t>(lane)]) / 256;
        const double want = c < count ? static_cast<double>(from[static_cast<std::size_t>(c * kRows + lane)]) *
                                            static_cast<double>(factors[static_cast<std::size_t>(c)])
                                      : 0;
        const Whole got = whole_of(out[c / kTileDepth], c % kTileDepth / 4, lane, c % 4);
        right = right && std::abs(static_cast<double>(got.value()) * one - want) <= 2 * one;
      }
    }
    check(right, "weights, " + std::to_string(count));
  }
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    from[7 * kRows + 2] = static_cast<float>(bad);
    const Vec<float> unit = split_columns(from.data(), factors.data(), 20, out.get());
    check(!std::isfinite(unit[2]) && std::isfinite(unit[1]), "a weight that is not finite is seen by its lane alone");
  }
}

void a_poisoned_row_has_no_unit() {
  Rows x(5, [](std::int64_t i, std::int64_t k) { return static_cast<double>(i - k); });
  x.packed.c[2] = std::numeric_limits<float>::quiet_NaN();
  split_sliver(x.packed, x.d, 0, x.digits);
  check(std::isnan(x.digits.unit[2]) && std::isfinite(x.digits.unit[1]), "a poisoned row has no unit");
}

}  // namespace
}  // namespace fastmine::test

int main() {
  const fastmine::cpu::KernelTable* table = fastmine::cpu::select(FASTMINE_TESTED_ISA);
  if (table == nullptr) {
    std::printf("SKIPPED %s: not on this CPU\n", FASTMINE_TESTED_ISA);
    return 0;
  }
  [[maybe_unused]] const fastmine::cpu::FASTMINE_ISA_NAMESPACE::MatrixUnit unit;
  fastmine::test::rows_of_every_kind();
  fastmine::test::weights();
  fastmine::test::a_poisoned_row_has_no_unit();
  return fastmine::test::report();
}
