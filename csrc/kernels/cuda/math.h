// exp, log and roots for one thread: float32 by polynomials and the device's exp, float64 by its libm.
#pragma once

#include "kernels/cuda/portable.h"

namespace fastmine::cuda {

template <class T>
inline constexpr T kLargest = static_cast<T>(__DBL_MAX__);
template <>
inline constexpr float kLargest<float> = __FLT_MAX__;

template <class T>
FASTMINE_DEVICE T smaller(T a, T b) {
  return a < b ? a : b;
}
template <class T>
FASTMINE_DEVICE T larger(T a, T b) {
  return a > b ? a : b;
}

/// log(1 + e) for 0 <= e <= 1, relative error 1.5e-7: the polynomial of cpu/math.h.
FASTMINE_DEVICE float log1p_unit(float e) {
  const float w = e - 0.5F;
  float poly = w * -0.00324402447282F + 0.00525334889298F;
  poly = poly * w - 0.00674991178605F;
  poly = poly * w + 0.0115761512163F;
  poly = poly * w - 0.0205702957269F;
  poly = poly * w + 0.0366354727341F;
  poly = poly * w - 0.0676876987005F;
  poly = poly * w + 0.132609003931F;
  poly = poly * w - 0.288527110494F;
  poly = poly * w + 0.810930220005F;
  return poly * e;
}
FASTMINE_DEVICE double log1p_unit(double e) { return log1p(e); }

FASTMINE_DEVICE float log1p_positive(float s) { return log1pf(s); }
FASTMINE_DEVICE double log1p_positive(double s) { return log1p(s); }

/// log(1 + s) for 0 <= s, in few instructions; relative error 5e-7.
FASTMINE_DEVICE float log1p_of_sum(float s) { return s < 1 ? log1p_unit(s) : binary_logarithm(1 + s) * 0.693147181F; }

FASTMINE_DEVICE float logarithm(float x) { return logf(x); }
FASTMINE_DEVICE double logarithm(double x) { return log(x); }

FASTMINE_DEVICE float root(float x) { return sqrtf(x); }
FASTMINE_DEVICE double root(double x) { return sqrt(x); }

/// sigmoid(x), sigmoid(-x) and log(1 + e^-|x|): both probabilities keep their relative precision, from one exp and one
/// reciprocal.
template <class T>
struct Sigmoid {
  T p, q, rest;
};

template <class T>
FASTMINE_DEVICE Sigmoid<T> sigmoid(T x, bool with_rest) {
  const T e = exponential(x < 0 ? x : -x);
  const T high = reciprocal(1 + e), low = e * high;
  return {x >= 0 ? high : low, x >= 0 ? low : high, with_rest ? log1p_unit(e) : T{0}};
}

/// By which power a pointwise term is weighted; the same for all elements of a problem.
enum class Power : std::uint8_t { zero, one, two, any };

FASTMINE_DEVICE constexpr Power power_of(double gamma) {
  return gamma == 0 ? Power::zero : gamma == 1 ? Power::one : gamma == 2 ? Power::two : Power::any;
}

/// u^gamma, given u and its logarithm.
template <class T>
FASTMINE_DEVICE T raise(Power power, T u, T log_u, T gamma) {
  switch (power) {
    case Power::zero:
      return 1;
    case Power::one:
      return u;
    case Power::two:
      return u * u;
    default:
      return exponential(log_u * gamma);
  }
}

}  // namespace fastmine::cuda
