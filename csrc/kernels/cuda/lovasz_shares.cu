#include "kernels/cuda/lovasz_shares.h"

#include "kernels/cuda/sort.cuh"

namespace fastmine::cuda {
namespace {

using namespace mining;

/// Sorted errors that a thread walks over, and a block.
#ifdef FASTMINE_EMULATE_CUDA
inline constexpr int kRun = 2;
#else
inline constexpr int kRun = 32;
#endif
inline constexpr int kShareTile = kThreads * kRun;

struct SharesWork {
  LovaszShares problem;
  Tagged* items;  // [groups, positions]: of one group in the order of its errors
  Tagged* spare;  // the same
  double* sums;   // [groups, tiles]: of the target
  std::int64_t groups, tiles;
};

SharesWork lay_out(const LovaszShares& p, Arena& arena) {
  SharesWork work{p, nullptr, nullptr, nullptr, p.samples * p.classes, divide_up(p.positions, kShareTile)};
  work.items = arena.take<Tagged>(work.groups * p.positions);
  work.spare = arena.take<Tagged>(work.groups * p.positions);
  work.sums = arena.take<double>(work.groups * work.tiles);
  return work;
}

/// An error as a number that grows as it shrinks, whatever the sign of a zero; NaN first of all.
template <class T>
FASTMINE_DEVICE std::int64_t key_of(T error) {
  constexpr auto kMagnitude = static_cast<Ordered<T>>(sizeof(T) == 8 ? INT64_MAX : INT32_MAX);
  return kMagnitude - (bits_of(error) & kMagnitude);
}

/// One thread: an error. What is not valid goes last.
template <class T>
FASTMINE_KERNEL(kThreads, 2)
enter_errors(FASTMINE_PARAMETER SharesWork work) {
  const LovaszShares& p = work.problem;
  const std::int64_t i = block_index() * kThreads + thread_index();
  if (i >= work.groups * p.positions) {
    return;
  }
  const std::int64_t group = i / p.positions, position = i % p.positions;
  const std::int64_t flag = group / p.classes * p.valid_stride[0] + group % p.classes * p.valid_stride[1];
  const bool valid = p.valid == nullptr || p.valid[flag + position * p.valid_stride[2]] != 0;
  work.items[i] = {key_of(static_cast<const T*>(p.errors)[i]), valid ? 0 : 1, static_cast<std::int32_t>(position)};
}

/// The sorted errors that a thread walks over.
struct ShareRun {
  std::int64_t group, begin, end;  // places in the order of the group
};

FASTMINE_DEVICE ShareRun share_run(const SharesWork& work) {
  const std::int64_t begin = block_index() % work.tiles * kShareTile + thread_index() * kRun;
  const std::int64_t end = begin + kRun < work.problem.positions ? begin + kRun : work.problem.positions;
  return {block_index() / work.tiles, begin, end};
}

template <class T>
FASTMINE_DEVICE double target_of(const SharesWork& work, std::int64_t group, const Tagged& item) {
  const T* targets = static_cast<const T*>(work.problem.target) + group * work.problem.positions;
  return item.group == 0 ? static_cast<double>(targets[item.row]) : 0;
}

/// One block: the sum of the target over a tile of sorted errors.
template <class T>
FASTMINE_KERNEL(kThreads, 2)
sum_targets(FASTMINE_PARAMETER SharesWork work) {
  FASTMINE_SHARED(double, shared, kWarps);
  const ShareRun run = share_run(work);
  const Tagged* items = work.items + run.group * work.problem.positions;
  double columns[1] = {};
  for (std::int64_t i = run.begin; i < run.end; ++i) {
    columns[0] += target_of<T>(work, run.group, items[i]);
  }
  sum_columns(columns, shared, work.sums + block_index());
}

/// The sum over the block of what the threads before each have.
FASTMINE_DEVICE double sum_before(double value, double* shared) {
  double sum = value;  // of the lanes up to this one
  FASTMINE_UNROLL for (int distance = 1; distance < kWarp; distance *= 2) {
    const double before = from_lane(sum, lane_index() >= distance ? lane_index() - distance : lane_index());
    sum += lane_index() >= distance ? before : 0;
  }
  if (lane_index() == kWarp - 1) {
    shared[warp_index()] = sum;
  }
  const double last = from_lane(sum, lane_index() > 0 ? lane_index() - 1 : 0);
  barrier();
  double before = lane_index() > 0 ? last : 0;
  for (int warp = 0; warp < warp_index(); ++warp) {
    before += shared[warp];
  }
  return before;
}

/// One block: the shares of a tile of sorted errors.
template <class T>
FASTMINE_KERNEL(kThreads, 2)
write_shares(FASTMINE_PARAMETER SharesWork work) {
  FASTMINE_SHARED(double, shared, kWarps * 2);
  FASTMINE_SHARED(double, targets, 2);
  FASTMINE_SHARED(double, warps, kWarps);
  const std::int64_t positions = work.problem.positions, tile = block_index() % work.tiles;
  const ShareRun run = share_run(work);
  const Tagged* items = work.items + run.group * positions;
  T* shares = static_cast<T*>(work.problem.shares) + run.group * positions;
  double columns[2] = {};  // the target of the group, and of the tiles before this one
  for (std::int64_t i = thread_index(); i < work.tiles; i += kThreads) {
    const double sum = work.sums[run.group * work.tiles + i];
    columns[0] += sum;
    columns[1] += i < tile ? sum : 0;
  }
  sum_columns(columns, shared, targets);
  double mine = 0;
  for (std::int64_t i = run.begin; i < run.end; ++i) {
    mine += target_of<T>(work, run.group, items[i]);
  }
  const double before = sum_before(mine, warps);  // whose barrier is also that of `targets`
  double left = targets[0] - (targets[1] + before);
  for (std::int64_t i = run.begin; i < run.end; ++i) {
    const double t = target_of<T>(work, run.group, items[i]);
    left -= t;
    shares[items[i].row] = static_cast<T>(items[i].group == 0 ? lovasz_share(t, left, i + 1) : 0);
  }
}

template <class T>
cudaError_t run(const SharesWork& work, cudaStream_t stream) {
  const std::int64_t positions = work.problem.positions, all = work.groups * positions;
  Launches launches(stream);
  launches(&enter_errors<T>, divide_up(all, kThreads), kThreads, work);
  SharesWork sorted = work;
  if (all > 0) {
    sort(launches, work.items, work.spare, positions, work.groups);
    sorted.items = sorted_place(work.items, work.spare, positions);
  }
  launches(&sum_targets<T>, work.groups * work.tiles, kThreads, sorted);
  launches(&write_shares<T>, work.groups * work.tiles, kThreads, sorted);
  return launches.status();
}

}  // namespace

std::size_t lovasz_shares_workspace(const LovaszShares& problem) noexcept {
  Arena arena(nullptr);
  lay_out(problem, arena);
  return arena.used();
}

cudaError_t lovasz_shares(const LovaszShares& problem, void* workspace, cudaStream_t stream) noexcept {
  Arena arena(workspace);
  const SharesWork work = lay_out(problem, arena);
  if (problem.positions > INT32_MAX || divide_up(work.groups * problem.positions, kThreads) + work.groups > INT32_MAX) {
    return cudaErrorInvalidValue;
  }
  return problem.dtype == DType::float64 ? run<double>(work, stream) : run<float>(work, stream);
}

}  // namespace fastmine::cuda
