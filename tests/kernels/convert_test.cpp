// Element types, exp and log, as compiled for the machine's least instruction set.
#define FASTMINE_ISA_NAMESPACE test_isa
#include <cmath>
#include <limits>

#include "check.h"
#include "kernels/cpu/convert.h"
#include "kernels/cpu/math.h"

namespace fastmine::test {
namespace {

using namespace cpu::test_isa;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// The value of float16 bits, by its definition.
double half_value(unsigned bits) {
  const int exponent = static_cast<int>(bits >> 10 & 31);
  const double mantissa = static_cast<double>(bits & 1023) / 1024;
  const double magnitude = exponent == 31  ? (mantissa == 0 ? static_cast<double>(kInf) : static_cast<double>(kNan))
                           : exponent == 0 ? std::ldexp(mantissa, -14)
                                           : std::ldexp(1 + mantissa, exponent - 15);
  return bits >> 15 != 0 ? -magnitude : magnitude;
}

bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

void every_half_is_read_and_written_back() {
  std::vector<std::uint16_t> bits(65536), back(65536);
  std::vector<float> values(65536);
  std::vector<double> wide(65536);
  for (std::size_t i = 0; i < bits.size(); ++i) {
    bits[i] = static_cast<std::uint16_t>(i);
  }
  for (const DType type : {DType::float16, DType::bfloat16}) {
    read(bits.data(), type, 1, bits.size(), values.data());
    read(bits.data(), type, 1, bits.size(), wide.data());
    write(values.data(), values.size(), back.data(), type);
    bool right = true;
    for (std::size_t i = 0; i < bits.size(); ++i) {
      const std::uint32_t upper = static_cast<std::uint32_t>(i) << 16;
      float expected = 0;
      std::memcpy(&expected, &upper, sizeof expected);
      const double value = type == DType::float16 ? half_value(bits[i]) : static_cast<double>(expected);
      const bool kept = std::isnan(value) ? std::isnan(values[i]) && (back[i] & 0x7fffU) > 0x7c00 : back[i] == bits[i];
      right = right && same(static_cast<double>(values[i]), value) && same(wide[i], value) && kept;
    }
    check(right, "all halves, type " + std::to_string(static_cast<int>(type)));
  }
}

/// Rounding to nearest even: no half is nearer, and of two as near the even one is taken.
void floats_are_rounded_to_the_nearest_half() {
  Random random(1);
  bool right = true;
  for (int i = 0; i < 20000; ++i) {
    const auto value = static_cast<float>(std::ldexp(random() * 2 - 1, static_cast<int>(random.below(44)) - 26));
    std::uint16_t bits = 0;
    write(&value, 1, &bits, DType::float16);
    const double error = std::fabs(half_value(bits) - static_cast<double>(value));
    for (const unsigned other : {bits - 1U, bits + 1U}) {
      const double gap = std::fabs(half_value(other & 0xffffU) - static_cast<double>(value));
      right =
          right && (std::isnan(gap) || error < gap || (error == gap && bits % 2 == 0) || std::isinf(half_value(bits)));
    }
  }
  check(right, "nearest half");
  const float edges[] = {65519.0F, 65520.0F, 1e30F, kInf, -kInf, kNan, 0x1p-25F, 0x1.8p-25F, -0.0F};
  std::uint16_t bits[9];
  write(edges, 9, bits, DType::float16);
  check(bits[0] == 0x7bff && bits[1] == 0x7c00 && bits[2] == 0x7c00 && bits[3] == 0x7c00 && bits[4] == 0xfc00 &&
            (bits[5] & 0x7fff) > 0x7c00 && bits[6] == 0 && bits[7] == 1 && bits[8] == 0x8000,
        "edges of float16");
  const float brain[] = {1.0F + 0x1p-8F, 1.0F + 0x1.8p-7F, kNan, 3.4e38F};
  write(brain, 4, bits, DType::bfloat16);
  check(bits[0] == 0x3f80 && bits[1] == 0x3f82 && (bits[2] & 0x7fff) > 0x7f80 && bits[3] == 0x7f80,
        "edges of bfloat16");
}

template <class S, class T>
void integers_are_read(DType type) {
  std::vector<S> source(301);
  Random random(2);
  for (S& value : source) {
    const double share = std::numeric_limits<S>::is_signed ? random() * 2 - 1 : random();
    value = static_cast<S>(static_cast<double>(std::numeric_limits<S>::max()) * share * 0.99);
  }
  source[0] = std::numeric_limits<S>::max();
  source[1] = std::numeric_limits<S>::min();
  for (const std::ptrdiff_t stride : {1, 2, 0, -1}) {
    for (const std::size_t n : {0, 1, 2, 17, 128, 129, 150}) {
      std::vector<T> out(n + 1, T{7});
      const S* from = stride < 0 ? source.data() + 300 : source.data();
      read(from, type, stride, n, out.data());
      bool right = out[n] == T{7};
      for (std::size_t i = 0; i < n; ++i) {
        const S value = from[static_cast<std::ptrdiff_t>(i) * stride];
        right = right && out[i] == static_cast<T>(static_cast<double>(value));
      }
      check(right, "integers of type " + std::to_string(static_cast<int>(type)) + ", stride " + std::to_string(stride));
    }
  }
}

void booleans_are_0_or_1() {
  const std::uint8_t flags[] = {0, 1, 255, 2, 0};
  float out[5];
  read(flags, DType::bool_, 1, 5, out);
  check(out[0] == 0 && out[1] == 1 && out[2] == 1 && out[3] == 1 && out[4] == 0, "booleans");
}

template <class F, class G>
void agrees(const char* name, F vector_function, G exact, double low, double high, double tolerance) {
  using V = Vec<float>;
  Random random(3);
  double worst = 0;
  for (int i = 0; i < 200000; ++i) {
    const double magnitude = low * std::pow(high / low, random());
    const auto x = static_cast<float>(std::copysign(magnitude, high));
    const V y = vector_function(fill<V>(x));
    const double want = exact(static_cast<double>(x));
    worst = std::fmax(worst, std::fabs(static_cast<double>(y[0]) - want) / std::fabs(want));
  }
  check(worst < tolerance, std::string(name) + ": relative error " + std::to_string(worst * 1e7) + "e-7");
}

void exp_and_log_are_accurate() {
  using V = Vec<float>;
  agrees(
      "exp_negative", [](V x) { return exp_negative(x); }, [](double x) { return std::exp(-x); }, 1e-6, 87.0, 1.2e-7);
  agrees("log1p_unit", [](V x) { return log1p_unit(x); }, [](double x) { return std::log1p(x); }, 1e-30, 1.0, 2e-7);
  agrees(
      "log1p_positive", [](V x) { return log1p_positive(x); }, [](double x) { return std::log1p(x); }, 1e-30, 1e30,
      2e-7);
  agrees("log_positive", [](V x) { return log_positive(x); }, [](double x) { return std::log(x); }, 2.0, 1e30, 2e-7);
  check(exp_negative(fill<V>(0.0F))[0] == 1, "exp(0)");
  check(exp_negative(fill<V>(89.0F))[0] == 0 && exp_negative(fill<V>(kInf))[0] == 0, "exp underflows to 0");
  check(std::isnan(exp_negative(fill<V>(kNan))[0]), "exp(NaN)");
  check(log1p_unit(fill<V>(0.0F))[0] == 0 && log1p_positive(fill<V>(0.0F))[0] == 0, "log(1)");
  check(std::isnan(log1p_unit(fill<V>(kNan))[0]) && std::isnan(log1p_positive(fill<V>(kNan))[0]), "log(NaN)");
  check(log1p_positive(fill<V>(kInf))[0] == kInf, "log(Inf)");
}

}  // namespace
}  // namespace fastmine::test

int main() {
  using namespace fastmine::test;
  every_half_is_read_and_written_back();
  floats_are_rounded_to_the_nearest_half();
  integers_are_read<std::uint8_t, float>(fastmine::DType::uint8);
  integers_are_read<std::int8_t, float>(fastmine::DType::int8);
  integers_are_read<std::int16_t, float>(fastmine::DType::int16);
  integers_are_read<std::int32_t, float>(fastmine::DType::int32);
  integers_are_read<std::int64_t, float>(fastmine::DType::int64);
  integers_are_read<std::int32_t, double>(fastmine::DType::int32);
  integers_are_read<std::int64_t, double>(fastmine::DType::int64);
  booleans_are_0_or_1();
  exp_and_log_are_accurate();
  return report();
}
