// What the threads of a warp tell each other, and atomics whose result does not depend on their order; on the device
// and, like portable.h, in the emulator.
#pragma once

#include "kernels/cuda/portable.h"

namespace fastmine::cuda::mining {

/// Threads of a block; in the emulator fewer, which take longest to take turns.
#ifdef FASTMINE_EMULATE_CUDA
inline constexpr int kThreads = 64;
#else
inline constexpr int kThreads = 256;
#endif
inline constexpr int kWarps = kThreads / kWarp;

FASTMINE_DEVICE int lane_index() { return thread_index() % kWarp; }
FASTMINE_DEVICE int warp_index() { return thread_index() / kWarp; }

#ifdef __CUDACC__

/// The sum over the warp, in all its lanes, in a fixed order.
FASTMINE_DEVICE double add_lanes(double value) {
  FASTMINE_UNROLL for (int mask = kWarp / 2; mask > 0; mask /= 2) { value += from_across(value, mask); }
  return value;
}

/// *place = the smaller (larger) of itself and value.
FASTMINE_DEVICE void atomic_minimum(std::int32_t* place, std::int32_t value) { atomicMin(place, value); }
FASTMINE_DEVICE void atomic_minimum(std::int64_t* place, std::int64_t value) {
  atomicMin(reinterpret_cast<long long*>(place), static_cast<long long>(value));
}
FASTMINE_DEVICE void atomic_maximum(std::int32_t* place, std::int32_t value) { atomicMax(place, value); }
FASTMINE_DEVICE void atomic_maximum(std::int64_t* place, std::int64_t value) {
  atomicMax(reinterpret_cast<long long*>(place), static_cast<long long>(value));
}

/// A number of its own for each that asks, from *place on.
FASTMINE_DEVICE std::int32_t atomic_next(std::int32_t* place) { return atomicAdd(place, 1); }
FASTMINE_DEVICE void atomic_count(std::uint64_t* place, int more) {
  atomicAdd(reinterpret_cast<unsigned long long*>(place), static_cast<unsigned long long>(more));
}

/// The smaller of two; where one is NaN, the other.
FASTMINE_DEVICE float minimum(float a, float b) { return fminf(a, b); }
FASTMINE_DEVICE double minimum(double a, double b) { return fmin(a, b); }

FASTMINE_DEVICE std::int32_t bits_of(float x) { return __float_as_int(x); }
FASTMINE_DEVICE std::int64_t bits_of(double x) { return __double_as_longlong(x); }
FASTMINE_DEVICE float from_bits(std::int32_t bits) { return __int_as_float(bits); }
FASTMINE_DEVICE double from_bits(std::int64_t bits) { return __longlong_as_double(bits); }

#else

inline double add_lanes(double value) {
  const double* const all = lanes_of(value);
  double sum[kWarp / 2];
  for (int lane = 0; lane < kWarp / 2; ++lane) {
    sum[lane] = all[lane] + all[lane + kWarp / 2];
  }
  for (int mask = kWarp / 4; mask > 0; mask /= 2) {
    for (int lane = 0; lane < mask; ++lane) {
      sum[lane] += sum[lane + mask];
    }
  }
  return sum[0];
}

// One thread runs at a time.
template <class I>
void atomic_minimum(I* place, I value) {
  *place = value < *place ? value : *place;
}
template <class I>
void atomic_maximum(I* place, I value) {
  *place = value > *place ? value : *place;
}
inline std::int32_t atomic_next(std::int32_t* place) { return (*place)++; }
inline void atomic_count(std::uint64_t* place, int more) { *place += static_cast<std::uint64_t>(more); }

inline float minimum(float a, float b) { return __builtin_fminf(a, b); }
inline double minimum(double a, double b) { return __builtin_fmin(a, b); }

inline std::int32_t bits_of(float x) { return __builtin_bit_cast(std::int32_t, x); }
inline std::int64_t bits_of(double x) { return __builtin_bit_cast(std::int64_t, x); }
inline float from_bits(std::int32_t bits) { return __builtin_bit_cast(float, bits); }
inline double from_bits(std::int64_t bits) { return __builtin_bit_cast(double, bits); }

#endif

/// Over a block, in a fixed order: thread c of the first kColumns has column c of all, brought together by
/// combine(c, a, b). `shared` has room for the columns of every warp.
template <int kColumns, class F>
FASTMINE_DEVICE double combine_block(const double (&columns)[kColumns], double* shared, F combine) {
  static_assert(kColumns <= kThreads);
  double sum[kColumns];
  FASTMINE_UNROLL for (int c = 0; c < kColumns; ++c) { sum[c] = columns[c]; }
  FASTMINE_UNROLL for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    double others[kColumns];
    shuffle_down(sum, distance, others);
    FASTMINE_UNROLL for (int c = 0; c < kColumns; ++c) { sum[c] = combine(c, sum[c], others[c]); }
  }
  if (lane_index() == 0) {
    FASTMINE_UNROLL for (int c = 0; c < kColumns; ++c) { shared[warp_index() * kColumns + c] = sum[c]; }
  }
  barrier();
  double total = 0;
  if (thread_index() < kColumns) {
    total = shared[thread_index()];
    for (int warp = 1; warp < kWarps; ++warp) {
      total = combine(thread_index(), total, shared[warp * kColumns + thread_index()]);
    }
  }
  barrier();
  return total;
}

/// Columns that are added up over all anchors, kThreads of them a block: every block leaves its sums in `sums` [blocks,
/// kColumns], and each block of the next launch adds up these, in order. Of one block there is nothing to leave.
template <int kColumns>
FASTMINE_DEVICE void sum_columns(const double (&columns)[kColumns], double* shared, double* sums) {
  const double sum = combine_block(columns, shared, [](int, double a, double b) { return a + b; });
  if (thread_index() < kColumns) {
    sums[thread_index()] = sum;
  }
}

/// all[c] = column c of all anchors, for all threads; find(columns) tells that of this thread's anchor.
template <int kColumns, class F>
FASTMINE_DEVICE void sum_blocks(const double* sums, std::int64_t blocks, F find, double* shared, double* all) {
  double columns[kColumns] = {};
  if (blocks == 1) {
    find(columns);
  }
  for (std::int64_t block = thread_index(); blocks > 1 && block < blocks; block += kThreads) {
    FASTMINE_UNROLL for (int c = 0; c < kColumns; ++c) { columns[c] += sums[block * kColumns + c]; }
  }
  sum_columns(columns, shared, all);
  barrier();
}

/// Integers of a floating type's size.
template <class W>
struct IntegerLike {
  using type = std::int32_t;
};
template <>
struct IntegerLike<double> {
  using type = std::int64_t;
};
template <class W>
using Ordered = typename IntegerLike<W>::type;

/// An integer that orders like x, which is not NaN; and x again.
template <class W>
FASTMINE_DEVICE Ordered<W> ordered(W x) {
  const Ordered<W> bits = bits_of(x);
  constexpr Ordered<W> kMagnitude = static_cast<Ordered<W>>(sizeof(W) == 8 ? INT64_MAX : INT32_MAX);
  return bits >= 0 ? bits : bits ^ kMagnitude;
}
template <class I>
FASTMINE_DEVICE auto unordered(I key) {
  constexpr I kMagnitude = static_cast<I>(sizeof(I) == 8 ? INT64_MAX : INT32_MAX);
  return from_bits(key >= 0 ? key : static_cast<I>(key ^ kMagnitude));
}

}  // namespace fastmine::cuda::mining
