// Rows of embeddings as the kernels on pairs need them: norms, the centre of all rows, and centred copies in the
// working type, whose distances keep their digits where embeddings lie close together (kernels/cpu/packing.h).
#pragma once

#include "kernels/cuda/load.h"
#include "kernels/cuda/math.h"
#include "kernels/embeddings.h"

namespace fastmine::cuda {

inline constexpr int kRowsThreads = 256, kRowWarps = kRowsThreads / kWarp;
inline constexpr int kSummedRows = 64;  // rows whose sum one block adds up; fixed, so that sums have fixed bits
inline constexpr int kCentreThreads = 1024;
inline constexpr int kRowStep = 8;  // rows are padded with zeros to a multiple of this

/// A set of rows and what is worked out about each. W is the working type.
template <class W>
struct RowSet {
  Rows rows;
  std::int64_t width;  // of a centred row: d and zeros
  double* norm;        // [n]: what a row is divided by: for cosine its norm, 0 for a zero row; else 1
  W* centred;          // [n, width]
  W* squared;          // [n]: squared norm of the centred row; NaN where a NaN or an Inf is in it

  FASTMINE_HOST_DEVICE std::int64_t blocks() const { return (rows.n + kSummedRows - 1) / kSummedRows; }
};

/// One or two sets of rows with their common centre.
template <class W>
struct RowsWork {
  RowSet<W> x, y;  // with one set, y is x
  bool one_set;
  bool for_gradient;
  Metric metric;
  double* centre;  // [d]
  double* sums;    // [blocks of x and y, d + 1]: of the divided rows that are finite, and how many they are

  FASTMINE_HOST_DEVICE std::int64_t rows() const { return x.rows.n + (one_set ? 0 : y.rows.n); }
  FASTMINE_HOST_DEVICE std::int64_t blocks() const { return x.blocks() + (one_set ? 0 : y.blocks()); }
};

/// The sum over the warp of each of N values, in every lane, in a fixed order.
template <int N>
FASTMINE_DEVICE void add_lanes(double (&values)[N]) {
  FASTMINE_UNROLL for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    double others[N];
    shuffle_xor(values, distance, others);
    FASTMINE_UNROLL for (int i = 0; i < N; ++i) { values[i] += others[i]; }
  }
}

template <class S>
FASTMINE_DEVICE const S* row(const Rows& rows, std::int64_t i) {
  return static_cast<const S*>(rows.data) + i * rows.stride;
}

FASTMINE_DEVICE double scale_of(double norm) { return norm == 0 ? 0 : 1 / norm; }

/// One block: norms of some rows, and the sum of those that are finite.
template <class S>
FASTMINE_KERNEL(kRowsThreads, 2)
look_at_rows(FASTMINE_PARAMETER RowsWork<Working<S>> work) {
  FASTMINE_SHARED(double, scale, kSummedRows);  // NaN for a row that does not count
  const bool first = block_index() < work.x.blocks();
  const RowSet<Working<S>>& set = first ? work.x : work.y;
  const std::int64_t begin = (block_index() - (first ? 0 : work.x.blocks())) * kSummedRows, d = set.rows.d;
  const std::int64_t left = set.rows.n - begin, count = left < kSummedRows ? left : kSummedRows;
  const int lane = thread_index() % kWarp;
  for (std::int64_t r = thread_index() / kWarp; r < count; r += kRowWarps) {
    const S* const x = row<S>(set.rows, begin + r);
    double found[2] = {};  // squares, and elements that are not finite
    for (std::int64_t k = lane; k < d; k += kWarp) {
      const auto value = value_of<double>(x[k]);
      found[0] += value * value;
      found[1] += value >= -kLargest<double> && value <= kLargest<double> ? 0 : 1;
    }
    add_lanes(found);
    if (lane == 0) {
      const double norm = work.metric == Metric::cosine ? root(found[0]) : 1;
      const bool finite = found[1] == 0;
      set.norm[begin + r] = norm;
      set.squared[begin + r] = finite ? Working<S>{0} : static_cast<Working<S>>(__builtin_nan(""));
      scale[r] = finite ? scale_of(norm) : __builtin_nan("");
    }
  }
  barrier();
  double* const sums = work.sums + block_index() * (d + 1);
  for (std::int64_t k = thread_index(); k <= d; k += kRowsThreads) {
    double sum = 0;
    for (int r = 0; r < count; ++r) {
      if (scale[r] == scale[r]) {
        sum += k < d ? value_of<double>(row<S>(set.rows, begin + r)[k]) * scale[r] : 1;
      }
    }
    sums[k] = sum;
  }
}

/// One block: 32 elements of the centre, the mean of all finite rows; 0 for dot, which is not translation invariant.
template <class W>
FASTMINE_KERNEL(kCentreThreads, 1)
find_centre(FASTMINE_PARAMETER RowsWork<W> work) {
  constexpr int kLanes = kCentreThreads / kWarp;
  FASTMINE_SHARED(double, sums, kLanes*(kWarp + 1));
  FASTMINE_SHARED(double, counts, kLanes);
  const std::int64_t d = work.x.rows.d, k = block_index() * kWarp + thread_index() % kWarp;
  const int lane = thread_index() / kWarp;
  double sum = 0, count = 0;
  for (std::int64_t block = lane; block < work.blocks(); block += kLanes) {
    const double* const of_block = work.sums + block * (d + 1);
    sum += k < d ? of_block[k] : 0;
    count += of_block[d];
  }
  sums[lane * (kWarp + 1) + thread_index() % kWarp] = sum;
  if (thread_index() % kWarp == 0) {
    counts[lane] = count;
  }
  barrier();
  if (lane == 0 && k < d) {
    for (int other = 1; other < kLanes; ++other) {
      sum += sums[other * (kWarp + 1) + thread_index()];
      count += counts[other];
    }
    work.centre[k] = work.metric == Metric::dot ? 0 : sum / larger(count, 1.0);
  }
}

/// One block: a centred copy of a few rows, a warp for each, and what is known about it.
template <class S>
FASTMINE_KERNEL(kRowsThreads, 2)
centre_rows(FASTMINE_PARAMETER RowsWork<Working<S>> work) {
  using W = Working<S>;
  const std::int64_t place = block_index() * kRowWarps + thread_index() / kWarp;
  if (place >= work.rows()) {
    return;
  }
  const bool first = place < work.x.rows.n;
  const RowSet<W>& set = first ? work.x : work.y;
  const std::int64_t i = place - (first ? 0 : work.x.rows.n), d = set.rows.d;
  const S* const x = row<S>(set.rows, i);
  const double norm = set.norm[i], scale = scale_of(norm);
  double squared[1] = {};
  for (std::int64_t k = thread_index() % kWarp; k < set.width; k += kWarp) {
    const double centred = k < d ? value_of<double>(x[k]) * scale - work.centre[k] : 0;
    squared[0] += centred * centred;
    set.centred[i * set.width + k] = static_cast<W>(centred);
  }
  add_lanes(squared);
  if (thread_index() % kWarp == 0) {
    const bool finite = set.squared[i] == 0, zero = norm == 0;
    // A zero vector has cosine 0 with everything: as if it were a unit vector orthogonal to all others. What pulls at
    // it is looked at pair by pair: as if it were close to all.
    const double whole = squared[0] + (zero ? work.for_gradient ? __builtin_inf() : 1 : 0);
    set.squared[i] = static_cast<W>(finite ? whole : __builtin_nan(""));
  }
}

/// The kernels above, for the rows of a problem.
template <class S>
cudaError_t prepare_rows(const RowsWork<Working<S>>& work, cudaStream_t stream) {
  const std::int64_t n = work.rows(), d = work.x.rows.d;
  if (n == 0) {
    return cudaSuccess;
  }
  if (const cudaError_t error = launch(&look_at_rows<S>, work.blocks(), kRowsThreads, stream, work)) {
    return error;
  }
  if (d > 0) {
    if (const cudaError_t error =
            launch(&find_centre<Working<S>>, (d + kWarp - 1) / kWarp, kCentreThreads, stream, work)) {
      return error;
    }
  }
  return launch(&centre_rows<S>, (n + kRowWarps - 1) / kRowWarps, kRowsThreads, stream, work);
}

}  // namespace fastmine::cuda
