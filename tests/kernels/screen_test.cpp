// The bound of the bfloat16 screen: keys by its products against keys in float64, over random and adversarial rows.
// Compiled for one instruction set, like the kernels; with FASTMINE_ISA_NAMESPACE=amx it needs a CPU with AMX.
#include "kernels/cpu/screen.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "check.h"

namespace fastmine::test {
namespace {

using namespace cpu::FASTMINE_ISA_NAMESPACE;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::int64_t kSliverRows = static_cast<std::int64_t>(kSliver<float>);

/// Rows where the screen finds them: packed, then rounded.
struct Rows48 {
  Rows48(std::int64_t depth, const std::function<double(std::int64_t, std::int64_t)>& element) : d(depth) {
    const std::int64_t slivers = kBlockRows / kSliverRows;
    Arena measured(nullptr);
    lay_out(measured);
    memory.resize(measured.used() + 64);
    Arena arena(reinterpret_cast<void*>((reinterpret_cast<std::uintptr_t>(memory.data()) + 63) / 64 * 64));
    lay_out(arena);
    for (std::int64_t i = 0; i < kBlockRows; ++i) {
      double squared = 0;
      for (std::int64_t k = 0; k < d; ++k) {
        const auto x = static_cast<float>(element(i, k));
        packed.data[(i / kSliverRows * d + k) * kSliverRows + i % kSliverRows] = x;
        squared += static_cast<double>(x) * static_cast<double>(x);
      }
      packed.c[i] = static_cast<float>(squared);
      packed.norm[i] = static_cast<float>(std::sqrt(squared) * 1.000001);
    }
    packed.count = slivers * kSliverRows;
    rounded.count = kBlockRows;
    round_block(packed, d, rounded, 0);
  }
  void lay_out(Arena& arena) {
    packed = lay_out_packed<float>(arena, kBlockRows, d);
    rounded = lay_out_rounded(arena, kBlockRows, d);
    rounded.data = arena.take<std::uint16_t>(kBlockRows * rounded.depth);
    classes = arena.take<std::int32_t>(kBlockRows);
    if (classes != nullptr) {
      std::fill(classes, classes + kBlockRows, 0);
    }
  }
  double at(std::int64_t i, std::int64_t k) const {
    return static_cast<double>(packed.data[(i / kSliverRows * d + k) * kSliverRows + i % kSliverRows]);
  }
  /// |y|^2 - 2 x.y of row i against row j of y, as far as packing is exact.
  double key(std::int64_t i, const Rows48& y, std::int64_t j) const {
    double sum = 0;
    for (std::int64_t k = 0; k < d; ++k) {
      sum += y.at(j, k) * y.at(j, k) - 2 * at(i, k) * y.at(j, k);
    }
    return sum;
  }
  double bound(std::int64_t i, const Rows48& y, std::int64_t j) const {
    return rounded_key_error<double>(rounded.depth, static_cast<double>(packed.norm[i]),
                                     static_cast<double>(rounded.error[i]), static_cast<double>(y.packed.norm[j]),
                                     static_cast<double>(y.rounded.error[j]));
  }

  std::int64_t d;
  std::vector<char> memory;
  Packed<float> packed{};
  Rounded rounded{};
  std::int32_t* classes = nullptr;
};

/// The largest share of its bound that the error of a pair takes; above 1: the bound does not hold.
double worst(const Rows48& x, const Rows48& y) {
  const auto block = std::make_unique<Block>();
  const Side side{&x.rounded, x.classes, nullptr};
  for (std::int64_t r = 0; r < kBlockRows; ++r) {
    take_row<false>(side, r, *block, r);
  }
  alignas(64) float out[kBlockRows * 2 * kGroup];
  double share = 0;
  [[maybe_unused]] const MatrixUnit unit;
  for (std::int64_t column = 0; column < kBlockRows; column += kGroup) {
    const bool two = column == 0;  // the first two groups at once, then the second and the third alone
    const std::int64_t width = two ? 2 * kGroup : kGroup;
    const auto multiply = two ? &multiply_block<2> : &multiply_block<1>;
    multiply(block->data, y.rounded.group(column / kGroup), y.rounded.depth, y.rounded.half + column, out);
    for (std::int64_t r = 0; r < kBlockRows; ++r) {
      for (std::int64_t j = 0; j < width; ++j) {
        const double screened = 2 * static_cast<double>(out[r * width + j]);
        const double error = std::abs(screened - x.key(r, y, column + j)), bound = x.bound(r, y, column + j);
        if (bound < kInfinity) {  // else nothing is certain, and the screen says so
          share = std::fmax(share, error <= bound ? error / bound : kInfinity);
        }
      }
    }
  }
  return share;
}

void bound_holds() {
  Random random(3);
  const auto normal = [&random] {
    return std::sqrt(-2 * std::log(1 - random())) * std::cos(6.283185307179586 * random());
  };
  const std::int64_t depths[] = {1, 2, 31, 32, 33, 70, 128, 515, 2048};
  for (const std::int64_t d : depths) {
    const auto try_rows = [d](const std::string& name, const std::function<double(std::int64_t, std::int64_t)>& f) {
      const Rows48 x(d, f), y(d, f);
      check(worst(x, y) <= 1, name + " d=" + std::to_string(d));
      check(worst(x, x) <= 1, name + " against itself d=" + std::to_string(d));
    };
    try_rows("normal", [&](std::int64_t, std::int64_t) { return normal(); });
    try_rows("lognormal", [&](std::int64_t, std::int64_t) { return std::exp(4 * normal()); });
    try_rows("cauchy", [&](std::int64_t, std::int64_t) { return std::tan(3.14159 * (random() - 0.5)); });
    try_rows("halfway",
             [&](std::int64_t, std::int64_t) { return 1 + 0x1p-8 * static_cast<double>(random.below(256)); });
    try_rows("collapsed", [&](std::int64_t, std::int64_t) { return 1 + 1e-6 * normal(); });
    for (const double scale : {1e-44, 1e-38, 1e-30, 1e-19, 1e-12, 1e12, 1e17, 1e19, 1e30, 1e37}) {
      try_rows("scale " + std::to_string(std::log10(scale)),
               [&](std::int64_t, std::int64_t) { return scale * normal(); });
    }
    try_rows("largest", [&](std::int64_t, std::int64_t) { return 3.4028e38 * (random() - 0.5 < 0 ? -1 : 1); });
    try_rows("two scales", [&](std::int64_t i, std::int64_t) { return (i % 2 == 0 ? 1e-20 : 1.0) * normal(); });
  }
}

/// Every element as far above a bfloat16 as may be, so that all that is lost points the same way.
void bound_is_attained() {
  for (const std::int64_t d : {32, 128, 1024}) {
    const Rows48 x(d, [](std::int64_t, std::int64_t) { return 1 + 0x1p-8 - 0x1p-20; });
    const double share = worst(x, x);
    check(share > 0.9 && share <= 1, "the worst case takes " + std::to_string(share) + " of its bound");
  }
}

}  // namespace
}  // namespace fastmine::test

int main() {
  const fastmine::cpu::KernelTable* table = fastmine::cpu::select(FASTMINE_TESTED_ISA);
  if (table == nullptr) {
    std::printf("SKIPPED %s: not on this CPU\n", FASTMINE_TESTED_ISA);
    return 0;
  }
  fastmine::test::bound_holds();
  fastmine::test::bound_is_attained();
  return fastmine::test::report();
}
