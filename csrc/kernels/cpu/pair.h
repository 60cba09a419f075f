// Two registers computed with as one.
//
// A loss is one long chain of dependent operations per element, and a core looks only some hundred instructions ahead:
// written for one register, the loop waits for latencies. With two chains side by side in the instruction stream the
// arithmetic units stay busy. (Vector extensions wider than a register would say the same, but GCC takes their
// comparisons apart lane by lane.)
#pragma once

#include "kernels/cpu/isa.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {

template <class V>
struct Pair {
  V a, b;

  FASTMINE_INLINE Lane<V> operator[](std::size_t i) const { return i < size<V> ? a[i] : b[i - size<V>]; }
  FASTMINE_INLINE Pair& operator+=(Pair other) { return *this = *this + other; }
  FASTMINE_INLINE Pair& operator-=(Pair other) { return *this = *this - other; }
};
template <class V>
Pair(V, V) -> Pair<V>;

template <class V>
inline constexpr bool is_pair = false;
template <class V>
inline constexpr bool is_pair<Pair<V>> = true;

// The operators of a vector: between pairs, and between a pair and a number for every lane.
#define FASTMINE_PAIR_OPERATOR(op)                                               \
  template <class V>                                                             \
  FASTMINE_INLINE auto operator op(Pair<V> x, Pair<V> y) {                       \
    return Pair{x.a op y.a, x.b op y.b};                                         \
  }                                                                              \
  template <class V>                                                             \
  FASTMINE_INLINE auto operator op(Pair<V> x, std::type_identity_t<Lane<V>> y) { \
    return Pair{x.a op y, x.b op y};                                             \
  }                                                                              \
  template <class V>                                                             \
  FASTMINE_INLINE auto operator op(std::type_identity_t<Lane<V>> x, Pair<V> y) { \
    return Pair{x op y.a, x op y.b};                                             \
  }
FASTMINE_PAIR_OPERATOR(+)
FASTMINE_PAIR_OPERATOR(-)
FASTMINE_PAIR_OPERATOR(*)
FASTMINE_PAIR_OPERATOR(/)
FASTMINE_PAIR_OPERATOR(&)
FASTMINE_PAIR_OPERATOR(|)
FASTMINE_PAIR_OPERATOR(<)
FASTMINE_PAIR_OPERATOR(>)
FASTMINE_PAIR_OPERATOR(<=)
FASTMINE_PAIR_OPERATOR(>=)
FASTMINE_PAIR_OPERATOR(==)
FASTMINE_PAIR_OPERATOR(!=)
FASTMINE_PAIR_OPERATOR(<<)
FASTMINE_PAIR_OPERATOR(>>)
#undef FASTMINE_PAIR_OPERATOR

template <class V>
FASTMINE_INLINE auto operator-(Pair<V> x) {
  return Pair{-x.a, -x.b};
}
template <class M, class V>
FASTMINE_INLINE Pair<V> select(Pair<M> mask, Pair<V> x, Pair<V> y) {
  return {select(mask.a, x.a, y.a), select(mask.b, x.b, y.b)};
}
template <class V>
FASTMINE_INLINE Pair<V> minimum(Pair<V> x, Pair<V> y) {
  return {minimum(x.a, y.a), minimum(x.b, y.b)};
}
template <class V>
FASTMINE_INLINE Pair<V> maximum(Pair<V> x, Pair<V> y) {
  return {maximum(x.a, y.a), maximum(x.b, y.b)};
}
template <class U, class V>
FASTMINE_INLINE auto bitcast(Pair<V> x) {
  return Pair{bitcast<U>(x.a), bitcast<U>(x.b)};
}
template <class U, class V>
FASTMINE_INLINE auto convert(Pair<V> x) {
  return Pair{convert<U>(x.a), convert<U>(x.b)};
}
template <class T, class V>
FASTMINE_INLINE void store(T* p, Pair<V> x) {
  store(p, x.a);
  store(p + size<V>, x.b);
}

template <class T, class V>
FASTMINE_INLINE void stream(T* p, Pair<V> x) {
  stream<T, size<V>>(p, x.a);
  stream<T, size<V>>(p + size<V>, x.b);
}

/// The sum of both registers.
template <class V>
FASTMINE_INLINE V fold(Pair<V> x) {
  return x.a + x.b;
}
template <class V>
FASTMINE_INLINE V fold(V x) {
  return x;
}

/// Unaligned load of a vector or pair.
template <class V, class T>
FASTMINE_INLINE V load_as(const T* p) {
  if constexpr (is_pair<V>) {
    return {load(p), load(p + size<V> / 2)};
  } else {
    return load(p);
  }
}

/// What an inner loop computes with: a pair where there are registers enough for two chains.
template <class T>
using Wide = std::conditional_t<kVectorBytes == 64 && sizeof(T) == 4, Pair<Vec<T>>, Vec<T>>;

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
