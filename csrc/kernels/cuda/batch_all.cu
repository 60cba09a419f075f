#include "kernels/cuda/batch_all.h"

#include "kernels/cuda/batch_all_plan.cuh"

namespace fastmine::cuda {
namespace {

using namespace mining;

constexpr std::int64_t kMostTripletRows = std::int64_t{1} << 29;

template <class W>
struct TripletPlan {
  BatchAll problem;
  Plan<W> rows;
  Workers workers;
};

template <class W>
TripletPlan<W> lay_out_triplets(const BatchAll& q, Arena& arena) {
  TripletPlan<W> p{};
  p.problem = q;
  p.rows = lay_out_labelled<W>(q, q.self_index, arena);
  p.rows.way = Way::directly;
  p.workers = lay_out_workers(arena, q.x.n, q.y.n);
  return p;
}

/// One thread: how many triplets an anchor has.
template <class W>
FASTMINE_KERNEL(kThreads, 2)
count_triplets(FASTMINE_PARAMETER TripletPlan<W> p) {
  const BatchAll& q = p.problem;
  const Plan<W>& m = p.rows;
  const std::int64_t i = block_index() * kThreads + thread_index();
  if (i >= q.x.n) {
    return;
  }
  double triplets = 0;
  if (takes_part(m.x, i)) {
    const std::int64_t label = q.labels[i], own = own_row(m.problem, i);
    const int references = m.counts->finite_y + m.counts->poisoned_y, all = static_cast<int>(m.y.rows.n);
    const int same = rank_of({label, kFiniteRows, kNoRow}, m.y.sorted, all) - begin_of_label(m.y, kFiniteRows, label) +
                     count_poisoned(m, label);
    const bool present = own >= 0 && own < q.y.n && q.ref_labels[own] == label && takes_part(m.y, own);
    triplets = static_cast<double>(same - (present ? 1 : 0)) * static_cast<double>(references - same);
  }
  q.triplets[i] = triplets;
  q.sum[i] = q.active[i] = 0;
}

/// What an anchor's candidates add up to.
enum class Triple : int { ranked, plain, negatives, ranked_positives, plain_positives, active, count };
constexpr int kTriples = static_cast<int>(Triple::count);

/// One block: some anchors, one after the other. A positive plus the margin counts once for each triplet that counts,
/// a negative minus once; with a leak, in all other triplets that much.
template <class S>
FASTMINE_KERNEL(kThreads, 2)
sum_triplets(FASTMINE_PARAMETER TripletPlan<Working<S>> p) {
  FASTMINE_SHARED(std::int32_t, rows, kThreads);
  FASTMINE_SHARED(double, keys, kThreads);
  FASTMINE_SHARED(std::int32_t, counts, kWarps);
  FASTMINE_SHARED(std::int32_t, places, kThreads);
  FASTMINE_SHARED(std::int32_t, open, 1);
  FASTMINE_SHARED(std::int32_t, found, 1);
  FASTMINE_SHARED(std::uint64_t, sums, kThreads);
  FASTMINE_SHARED(double, columns, kWarps* kTriples);
  FASTMINE_SHARED(double, totals, kTriples);
  const BatchAll& q = p.problem;
  const RankMemory at{rows, keys, counts, places, open};
  std::uint64_t* const changes = p.workers.changes + block_index() * (p.workers.references + 1);
  for (std::int64_t i = block_index(); i < q.x.n; i += p.workers.count) {
    if (!q.use[i]) {
      continue;
    }
    const Ranked anchor = find_positives<S>(p.rows, p.workers, block_index(), i, found, at);
    double triple[kTriples] = {};
    each_negative<S>(p.rows, q, anchor, at, [&](std::int32_t, double closeness) {
      const auto rank = static_cast<double>(rank_negative(q, anchor, changes, closeness));
      triple[static_cast<int>(Triple::ranked)] += rank * closeness;
      triple[static_cast<int>(Triple::plain)] += closeness;
      triple[static_cast<int>(Triple::negatives)] += 1;
      triple[static_cast<int>(Triple::active)] += rank;
    });
    each_positive(anchor, changes, sums, [&](std::int64_t k, std::int64_t below) {
      const double threshold = anchor.positives[k].closeness + q.margin;
      triple[static_cast<int>(Triple::ranked_positives)] += threshold * static_cast<double>(below);
      triple[static_cast<int>(Triple::plain_positives)] += threshold;
    });
    sum_columns(triple, columns, totals);
    barrier();
    if (thread_index() == 0) {
      const double* const all = totals;
      const auto total = [all](Triple which) { return all[static_cast<int>(which)]; };
      const double above = total(Triple::ranked_positives) - total(Triple::ranked);
      const double plain = total(Triple::plain_positives) * total(Triple::negatives) -
                           total(Triple::plain) * static_cast<double>(anchor.count);
      q.sum[i] = q.leak == 0 ? above : q.leak * plain + (1 - q.leak) * above;
      q.active[i] = total(Triple::active);
    }
  }
}

template <class S>
cudaError_t run_triplets(const BatchAll& q, void* workspace, cudaStream_t stream) {
  using W = Working<S>;
  Arena arena(workspace);
  const TripletPlan<W> p = lay_out_triplets<W>(q, arena);
  Launches launches(stream);
  label_rows<S>(launches, p.rows);
  launches(&count_triplets<W>, divide_up(q.x.n, kThreads), kThreads, p);
  launches(&sum_triplets<S>, p.workers.count, kThreads, p);
  return launches.status();
}

}  // namespace

std::size_t batch_all_workspace(const BatchAll& q) noexcept {
  Arena arena(nullptr);
  if (q.x.dtype == DType::float64) {
    lay_out_triplets<double>(q, arena);
  } else {
    lay_out_triplets<float>(q, arena);
  }
  return arena.used();
}

cudaError_t batch_all(const BatchAll& q, void* workspace, cudaStream_t stream) noexcept {
  if (q.x.n > kMostTripletRows || q.y.n > kMostTripletRows) {
    return cudaErrorInvalidValue;
  }
  switch (q.x.dtype) {
    case DType::float32:
      return run_triplets<float>(q, workspace, stream);
    case DType::float64:
      return run_triplets<double>(q, workspace, stream);
    case DType::bfloat16:
      return run_triplets<BFloat16>(q, workspace, stream);
    case DType::float16:
      return run_triplets<Half>(q, workspace, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace fastmine::cuda
