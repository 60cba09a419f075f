// Numbers that carry their derivatives by three variables, so that a formula is written once and differentiated
// exactly.
#pragma once

#include <cmath>

namespace fastmine::cpu {

struct Dual {
  double value = 0;
  double by[3] = {};

  Dual() = default;
  Dual(double constant) : value(constant) {}  // NOLINT: a number is one whose derivatives are 0
  Dual(double v, int variable) : value(v) { by[variable] = 1; }

  /// f of this, where f has that value and slope here.
  Dual chain(double v, double slope) const {
    Dual result(v);
    for (int i = 0; i < 3; ++i) {
      result.by[i] = slope * by[i];
    }
    return result;
  }
};

/// What follows from both values with these slopes by either.
inline Dual combined(double value, const Dual& x, double by_x, const Dual& y, double by_y) {
  Dual result(value);
  for (int i = 0; i < 3; ++i) {
    result.by[i] = by_x * x.by[i] + by_y * y.by[i];
  }
  return result;
}

inline Dual operator+(const Dual& x, const Dual& y) { return combined(x.value + y.value, x, 1, y, 1); }
inline Dual operator-(const Dual& x, const Dual& y) { return combined(x.value - y.value, x, 1, y, -1); }
inline Dual operator*(const Dual& x, const Dual& y) { return combined(x.value * y.value, x, y.value, y, x.value); }
inline Dual operator/(const Dual& x, const Dual& y) {
  return combined(x.value / y.value, x, 1 / y.value, y, -x.value / y.value / y.value);
}
inline Dual log(const Dual& x) { return x.chain(std::log(x.value), 1 / x.value); }
inline Dual sqrt(const Dual& x) {
  const double root = std::sqrt(x.value);
  return x.chain(root, 0.5 / root);
}
inline Dual pow(const Dual& x, double exponent) {
  return x.chain(std::pow(x.value, exponent), exponent * std::pow(x.value, exponent - 1));
}

}  // namespace fastmine::cpu
