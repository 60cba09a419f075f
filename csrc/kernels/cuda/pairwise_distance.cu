#include "kernels/cuda/pairwise_distance.h"

#include "kernels/cuda/distance_gradient.cuh"
#include "kernels/cuda/distance_tile.cuh"

namespace fastmine::cuda {
namespace {

constexpr std::int64_t kMostTiles = INT32_MAX;

/// Takes arrays from a block of memory, or counts what they would take where there is none.
class Memory {
 public:
  explicit Memory(void* start) : start_(static_cast<char*>(start)) {}

  template <class T>
  T* take(std::int64_t count) {
    char* const at = start_ == nullptr ? nullptr : start_ + used_;
    used_ += (static_cast<std::size_t>(count) * sizeof(T) + 15) / 16 * 16;
    return reinterpret_cast<T*>(at);
  }
  std::size_t used() const { return used_; }

 private:
  char* start_;
  std::size_t used_ = 0;
};

template <class W>
RowSet<W> lay_out_rows(Memory& memory, const Rows& rows) {
  const std::int64_t width = (rows.d + kRowStep - 1) / kRowStep * kRowStep;
  return {rows, width, memory.take<double>(rows.n), memory.take<W>(rows.n * width), memory.take<W>(rows.n)};
}

/// Rows of a problem of either direction.
template <class W, class Problem>
RowsWork<W> lay_out(Memory& memory, const Problem& problem, bool for_gradient) {
  RowsWork<W> work{};
  work.x = lay_out_rows<W>(memory, problem.x);
  work.y = problem.self ? work.x : lay_out_rows<W>(memory, problem.y);
  work.one_set = problem.self;
  work.for_gradient = for_gradient;
  work.metric = problem.metric;
  work.centre = memory.take<double>(problem.x.d);
  work.sums = memory.take<double>(work.blocks() * (problem.x.d + 1));
  return work;
}

/// What the rows of one side gather, after the rows themselves.
template <class W>
GatherWork<W> lay_out_side(Memory& memory, const PairwiseDistanceBackward& problem, const RowsWork<W>& rows,
                           bool transposed) {
  const RowSet<W>&own = transposed ? rows.y : rows.x, &other = transposed ? rows.x : rows.y;
  return {own,
          other,
          problem.metric,
          problem.self,
          transposed,
          static_cast<const W*>(problem.grad),
          static_cast<const W*>(problem.distance),
          rows.y.rows.n,
          rows.centre,
          memory.take<double>(own.rows.n * own.rows.d),
          memory.take<double>(own.rows.n),
          transposed ? problem.grad_y : problem.grad_x};
}

template <class S>
cudaError_t fill(const PairwiseDistance& problem, Memory memory, cudaStream_t stream) {
  using W = Working<S>;
  constexpr std::int64_t kEdge = TileShape<W>::kEdge;
  const RowsWork<W> rows = lay_out<W>(memory, problem, false);
  const DistanceWork<W> work{rows, static_cast<W*>(problem.distance), (problem.x.n + kEdge - 1) / kEdge,
                             (problem.y.n + kEdge - 1) / kEdge};
  if (work.tiles() == 0) {
    return cudaSuccess;
  }
  if (work.tiles() > kMostTiles) {
    return cudaErrorInvalidValue;
  }
  if (const cudaError_t error = prepare_rows<S>(rows, stream)) {
    return error;
  }
  return launch(&fill_distances<S>, work.tiles(), TileShape<W>::kThreads, stream, work);
}

template <class S>
cudaError_t gather(const GatherWork<Working<S>>& work, cudaStream_t stream) {
  const std::int64_t n = work.own.rows.n;
  const std::int64_t blocks = (n + GatherShape::kOwn - 1) / GatherShape::kOwn * work.panels();
  if (n == 0) {
    return cudaSuccess;
  }
  if (blocks > kMostTiles) {
    return cudaErrorInvalidValue;
  }
  if (const cudaError_t error = launch(&gather_pairs<S>, blocks, GatherShape::kThreads, stream, work)) {
    return error;
  }
  return launch(&write_gradient<S>, (n + kRowWarps - 1) / kRowWarps, kRowsThreads, stream, work);
}

template <class S>
cudaError_t gather_sides(const PairwiseDistanceBackward& problem, Memory memory, cudaStream_t stream) {
  using W = Working<S>;
  const RowsWork<W> rows = lay_out<W>(memory, problem, true);
  if (const cudaError_t error = prepare_rows<S>(rows, stream)) {
    return error;
  }
  if (const cudaError_t error = gather<S>(lay_out_side(memory, problem, rows, false), stream)) {
    return error;
  }
  return problem.self ? cudaSuccess : gather<S>(lay_out_side(memory, problem, rows, true), stream);
}

/// f(S{}) with S the stored type of the rows; an error where there is no kernel for it.
template <class F>
cudaError_t for_type(DType dtype, F f) {
  switch (dtype) {
    case DType::float32:
      return f(float{});
    case DType::float64:
      return f(double{});
    case DType::bfloat16:
      return f(BFloat16{});
    case DType::float16:
      return f(Half{});
    default:
      return cudaErrorInvalidValue;
  }
}

template <class W>
std::size_t bytes(const PairwiseDistance& problem) {
  Memory memory(nullptr);
  lay_out<W>(memory, problem, false);
  return memory.used();
}

template <class W>
std::size_t bytes(const PairwiseDistanceBackward& problem) {
  Memory memory(nullptr);
  const RowsWork<W> rows = lay_out<W>(memory, problem, true);
  lay_out_side(memory, problem, rows, false);
  if (!problem.self) {
    lay_out_side(memory, problem, rows, true);
  }
  return memory.used();
}

}  // namespace

std::size_t pairwise_distance_workspace(const PairwiseDistance& problem) noexcept {
  return problem.x.dtype == DType::float64 ? bytes<double>(problem) : bytes<float>(problem);
}

std::size_t pairwise_distance_backward_workspace(const PairwiseDistanceBackward& problem) noexcept {
  return problem.x.dtype == DType::float64 ? bytes<double>(problem) : bytes<float>(problem);
}

cudaError_t pairwise_distance(const PairwiseDistance& problem, void* workspace, cudaStream_t stream) noexcept {
  return for_type(problem.x.dtype, [&](auto tag) { return fill<decltype(tag)>(problem, Memory(workspace), stream); });
}

cudaError_t pairwise_distance_backward(const PairwiseDistanceBackward& problem, void* workspace,
                                       cudaStream_t stream) noexcept {
  return for_type(problem.x.dtype,
                  [&](auto tag) { return gather_sides<decltype(tag)>(problem, Memory(workspace), stream); });
}

}  // namespace fastmine::cuda
