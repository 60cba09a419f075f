// Numbers that carry their derivatives by three variables, so that a formula is written once and differentiated
// exactly; on the CPU and on the GPU.
#pragma once

#include <cmath>

#include "kernels/host_device.h"

namespace fastmine {

struct Dual {
  double value = 0;
  double by[3] = {};

  Dual() = default;
  FASTMINE_HOST_DEVICE Dual(double constant) : value(constant) {}  // NOLINT: a number is one whose derivatives are 0
  FASTMINE_HOST_DEVICE Dual(double v, int variable) : value(v) { by[variable] = 1; }

  /// f of this, where f has that value and slope here.
  FASTMINE_HOST_DEVICE Dual chain(double v, double slope) const {
    Dual result(v);
    FASTMINE_UNROLL for (int i = 0; i < 3; ++i) { result.by[i] = slope * by[i]; }
    return result;
  }
};

/// What follows from both values with these slopes by either.
FASTMINE_HOST_DEVICE inline Dual combined(double value, const Dual& x, double by_x, const Dual& y, double by_y) {
  Dual result(value);
  FASTMINE_UNROLL for (int i = 0; i < 3; ++i) { result.by[i] = by_x * x.by[i] + by_y * y.by[i]; }
  return result;
}

FASTMINE_HOST_DEVICE inline Dual operator+(const Dual& x, const Dual& y) {
  return combined(x.value + y.value, x, 1, y, 1);
}
FASTMINE_HOST_DEVICE inline Dual operator-(const Dual& x, const Dual& y) {
  return combined(x.value - y.value, x, 1, y, -1);
}
FASTMINE_HOST_DEVICE inline Dual operator*(const Dual& x, const Dual& y) {
  return combined(x.value * y.value, x, y.value, y, x.value);
}
FASTMINE_HOST_DEVICE inline Dual operator/(const Dual& x, const Dual& y) {
  return combined(x.value / y.value, x, 1 / y.value, y, -x.value / y.value / y.value);
}
FASTMINE_HOST_DEVICE inline Dual log(const Dual& x) { return x.chain(::log(x.value), 1 / x.value); }
FASTMINE_HOST_DEVICE inline Dual sqrt(const Dual& x) {
  const double root = ::sqrt(x.value);
  return x.chain(root, 0.5 / root);
}
FASTMINE_HOST_DEVICE inline Dual pow(const Dual& x, double exponent) {
  return x.chain(::pow(x.value, exponent), exponent * ::pow(x.value, exponent - 1));
}

}  // namespace fastmine
