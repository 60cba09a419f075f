// exp and log for vectors of float, and libm lane by lane for vectors of double (there to be exact, not to be fast).
//
// Only the ranges that losses need: softplus and softmax exponentiate what is <= 0 and take logarithms of what is >= 1.
// NaN stays NaN. Largest relative errors in float32, measured over the whole range: exp_negative 1.0e-7, log1p_unit
// and log1p_positive 1.5e-7. The polynomials are minimax fits of the relative error.
#pragma once

#include "kernels/cpu/pair.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {

/// x in every lane of a vector like V.
template <class V>
FASTMINE_INLINE V fill(Lane<V> x) {
  if constexpr (is_pair<V>) {
    const auto half = fill<decltype(V{}.a)>(x);
    return {half, half};
  } else {
    return broadcast<Lane<V>, size<V>>(x);
  }
}

template <class V>
FASTMINE_INLINE V absolute(V x) {
  constexpr Bits<V> kMagnitude = static_cast<Bits<V>>(~(Bits<V>{1} << (8 * sizeof(Bits<V>) - 1)));
  return bitcast<Lane<V>>(bitcast<Bits<V>>(x) & kMagnitude);
}

/// The smaller and the larger of every lane of x and a register, both registers of a pair; NaN in x is passed over.
template <class W, class V>
FASTMINE_INLINE V fold_minimum(W x, V low) {
  if constexpr (is_pair<W>) {
    return minimum(x.b, minimum(x.a, low));
  } else {
    return minimum(x, low);
  }
}
template <class W, class V>
FASTMINE_INLINE V fold_maximum(W x, V high) {
  if constexpr (is_pair<W>) {
    return maximum(x.b, maximum(x.a, high));
  } else {
    return maximum(x, high);
  }
}

/// f of each lane, for double.
template <class V, class F>
FASTMINE_INLINE V each_lane(V x, F f) {
  V y = x;
  for (std::size_t i = 0; i < size<V>; ++i) {
    y[i] = f(x[i]);
  }
  return y;
}

/// e^-y for y >= 0. In float32 what would be below 2^-126 is 0.
template <class V>
FASTMINE_INLINE V exp_negative(V y) {
  if constexpr (sizeof(Lane<V>) == 8) {
    return each_lane(y, [](double v) { return __builtin_exp(-v); });
  } else {
    y = minimum(fill<V>(88.0F), y);  // there n = -127 below, whose exponent bits make the scale exactly 0
    // e^-y = 2^n e^r. Adding 1.5 * 2^23 + 127 rounds to the integer n and leaves n + 127 in the lowest bits.
    const V shifted = 12583039.0F - y * 1.44269504088896341F;
    const V n = shifted - 12583039.0F;
    V r = -(y + n * 0.693359375F);  // ln 2 in two parts, the first short enough for an exact product
    r = r + n * 2.12194440e-4F;
    V poly = r * 0.00138145995531F + 0.00836871687526F;
    poly = poly * r + 0.041668388031F;
    poly = poly * r + 0.166665206318F;
    poly = poly * r + 0.499999934478F;
    poly = poly * r + 1.0F;
    poly = poly * r + 1.0F;
    return poly * bitcast<float>(bitcast<std::int32_t>(shifted) << 23);
  }
}

/// log(1 + e) for 0 <= e <= 1.
template <class V>
FASTMINE_INLINE V log1p_unit(V e) {
  if constexpr (sizeof(Lane<V>) == 8) {
    return each_lane(e, [](double v) { return __builtin_log1p(v); });
  } else {
    // e times a polynomial about the middle: its terms shrink threefold each, so none cancels another.
    const V w = e - 0.5F;
    V poly = w * -0.00324402447282F + 0.00525334889298F;
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
}

/// log(2^k (1 + g)) for x = 2^k (1 + g) > 0, with g at hand where it is known better than x. float32 only.
template <class V, class I>
FASTMINE_INLINE V log_parts(I k, V g) {
  return convert<float>(k) * 0.693147180559945309F + log1p_unit(g);
}

/// log(1 + s) for s >= 0, to full relative precision.
template <class V>
FASTMINE_INLINE V log1p_positive(V s) {
  if constexpr (sizeof(Lane<V>) == 8) {
    return each_lane(s, [](double v) { return __builtin_log1p(v); });
  } else {
    const auto bits = bitcast<std::int32_t>(1.0F + s);
    const auto k = (bits >> 23) - 127;
    const V fraction = bitcast<float>((bits & 0x7fffff) | 0x3f800000) - 1.0F;
    const V log = log_parts(k, select(k == 0, s, fraction));
    return select(s < fill<V>(__builtin_inff()), log, s);
  }
}

/// log(x) for x >= 0, to a relative or absolute error of 1.5e-7 (float32), whichever is larger: enough to raise x to a
/// power. Zero and subnormal numbers count as about 2^-127.
template <class V>
FASTMINE_INLINE V log_positive(V x) {
  if constexpr (sizeof(Lane<V>) == 8) {
    return each_lane(x, [](double v) { return __builtin_log(v); });
  } else {
    const auto bits = bitcast<std::int32_t>(x);
    const V fraction = bitcast<float>((bits & 0x7fffff) | 0x3f800000) - 1.0F;
    const V log = log_parts((bits >> 23) - 127, fraction);
    return select(x < fill<V>(__builtin_inff()), log, x);
  }
}

/// The sum of the lanes, and the smallest and the largest where none is NaN.
template <class V>
FASTMINE_INLINE Lane<V> sum_lanes(V v) {
  Vec<Lane<V>, size<V> / 2> halves[2];
  __builtin_memcpy(halves, &v, sizeof v);
  if constexpr (size<V> == 2) {
    return v[0] + v[1];
  } else {
    return sum_lanes(halves[0] + halves[1]);
  }
}
template <class V>
FASTMINE_INLINE Lane<V> min_lanes(V v) {
  Vec<Lane<V>, size<V> / 2> halves[2];
  __builtin_memcpy(halves, &v, sizeof v);
  if constexpr (size<V> == 2) {
    return v[0] < v[1] ? v[0] : v[1];
  } else {
    return min_lanes(minimum(halves[0], halves[1]));
  }
}
template <class V>
FASTMINE_INLINE Lane<V> max_lanes(V v) {
  return -min_lanes(-v);
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
