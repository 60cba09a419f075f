#include "kernels/cuda/batch_hard.h"

#include "kernels/cuda/batch_hard_evidence.cuh"
#include "kernels/cuda/batch_hard_small.cuh"
#include "kernels/cuda/batch_hard_tiles.cuh"
#include "kernels/cuda/batch_hard_warpgroup.cuh"

namespace fastmine::cuda {
namespace {

using namespace mining;

constexpr std::int64_t kMostRows = std::int64_t{1} << 29;

std::int64_t grid(std::int64_t tasks) { return tasks < kMostBlocks ? tasks : kMostBlocks; }

/// The least value of every anchor and panel, and what follows for every anchor.
template <class T>
void screen(Launches& launches, Search<typename T::Value> s, MatrixUnit unit) {
  using W = typename T::Value;
  const std::int64_t n = s.plan.x.rows.n, rows = divide_up(n, kSide<W>);
  s.blocks = grid(divide_up(s.plan.panels * n, kThreads));
  launches(&clear_nearest<W>, s.blocks, kThreads, s);
  s.blocks = grid(s.same ? rows : rows * divide_up(s.plan.y.rows.n, kSide<W>));
  if constexpr (T::kRounded) {
    const std::int64_t depth = s.plan.rounded_depth;
    if (unit == MatrixUnit::by_warpgroup && depth <= Grouped::kMostDepth) {
      launches(&screen_by_warpgroups, s.blocks, Grouped::kBlock, s, Grouped::shared_bytes(depth));
    } else {
      launches(&screen_negatives<T, false>, s.blocks, kThreads, s);
    }
  } else if (s.same) {
    launches(&screen_positives<W>, s.blocks, kThreads, s);
  } else {
    launches(s.bounded ? &screen_negatives<T, true> : &screen_negatives<T, false>, s.blocks, kThreads, s);
  }
  launches(&find_limits<W, T::kRounded>, divide_up(n, kThreads), kThreads, s);
}

template <class T>
void look_into_panels(Launches& launches, Search<typename T::Value> s) {
  s.blocks = grid(divide_up(s.plan.x.rows.n, s.piece) * s.plan.panels);
  launches(&look_again<T>, s.blocks, kThreads, s);
}

template <class S>
void run(Launches& launches, Search<Working<S>> s, MatrixUnit unit) {
  using W = Working<S>;
  const auto at = [&s](When when) {
    s.when = when;
    return s;
  };
  bool rounded = false;
  if constexpr (sizeof(W) == 4) {
    rounded = s.plan.rounded_depth > 0 && !s.same;
    if (rounded) {
      screen<Rounded>(launches, at(When::always), unit);
      screen<Full<W>>(launches, at(When::if_given_up), unit);
      look_into_panels<Rounded>(launches, at(When::if_kept));
      look_into_panels<Full<W>>(launches, at(When::if_given_up));
    }
  }
  if (!rounded) {
    screen<Full<W>>(launches, s, unit);
    look_into_panels<Full<W>>(launches, s);
  }
  launches(&choose<S>, divide_up(s.plan.x.rows.n, kWarps), kThreads, at(When::always));
}

template <class S>
void mine_many_pairs(Launches& launches, const Plan<Working<S>>& p, MatrixUnit unit) {
  using W = Working<S>;
  const BatchHard& q = p.problem;
  const std::int64_t n = q.x.n, m = q.y.n;
  sort(launches, p.x.items, p.x.spare, n);
  if (!q.self) {
    sort(launches, p.y.items, p.y.spare, m);
  }
  launches(&match_labels<W>, divide_up(n > 0 ? n : 1, kThreads), kThreads, p);
  launches(&find_centre<W>, divide_up(q.x.d, kWarp) + 1, kColumnThreads, p);
  const std::int64_t positions = round_up(n, kSide<W>) + (q.self ? 0 : round_up(m, kSide<W>));
  launches(&pack_rows<S>, divide_up(positions, kWarps), kThreads, p);
  launches(&find_positives<S>, divide_up(n, kWarps), kThreads, p);
  Search<W> s{p, true, false, false, When::always, q.easiest_positive ? W{1} : W{-1}, 0, piece_of(n)};
  run<S>(launches, s, unit);
  s.same = false;
  s.bounded = q.semi_hard_negative;
  s.sign = 1;
  run<S>(launches, s, unit);
  if (q.semi_hard_negative) {
    s.bounded = false;
    s.listed = true;
    s.sign = -1;
    run<S>(launches, s, unit);
  }
}

template <class S>
void mine_by_tiles(Launches& launches, const Plan<Working<S>>& p) {
  using W = Working<S>;
  const bool twice = p.problem.semi_hard_negative;
  for (const Round<W>& round : {Round<W>{p, true, !twice}, Round<W>{p, false, true}}) {
    if (round.positives || twice) {
      launches(round.positives ? &screen_tiles<W, false> : &screen_tiles<W, true>, round.tasks(), kTileBlock, round);
      launches(&settle_anchors<S>, divide_up(p.problem.x.n, kWarps), kThreads, round);
    }
  }
}

template <class S>
cudaError_t mine(const BatchHard& q, void* workspace, cudaStream_t stream, MatrixUnit unit) {
  using W = Working<S>;
  Arena arena(workspace);
  const Plan<W> p = lay_out<W>(q, arena);
  Launches launches(stream);
  launches(&look_at_rows<S>, p.x.blocks() + (q.self ? 0 : p.y.blocks()), kThreads, p);
  switch (p.way) {
    case Way::directly:
      launches(&mine_few_pairs<S>, q.x.n, kThreads, p);
      break;
    case Way::by_tiles:
      mine_by_tiles<S>(launches, p);
      break;
    case Way::by_label:
      mine_many_pairs<S>(launches, p, unit);
  }
  launches(&look_at_anchors<W>, evidence_blocks(p) > 1 ? evidence_blocks(p) : 0, kThreads, p);
  launches(&gather_evidence<W>, 1, kThreads, p);
  return launches.status();
}

}  // namespace

std::size_t batch_hard_workspace(const BatchHard& q) noexcept {
  Arena arena(nullptr);
  if (q.x.dtype == DType::float64) {
    lay_out<double>(q, arena);
  } else {
    lay_out<float>(q, arena);
  }
  return arena.used();
}

cudaError_t batch_hard(const BatchHard& q, void* workspace, cudaStream_t stream, MatrixUnit unit) noexcept {
  if (q.x.n > kMostRows || q.y.n > kMostRows) {
    return cudaErrorInvalidValue;
  }
  switch (q.x.dtype) {
    case DType::float32:
      return mine<float>(q, workspace, stream, unit);
    case DType::float64:
      return mine<double>(q, workspace, stream, unit);
    case DType::bfloat16:
      return mine<BFloat16>(q, workspace, stream, unit);
    case DType::float16:
      return mine<Half>(q, workspace, stream, unit);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace fastmine::cuda
