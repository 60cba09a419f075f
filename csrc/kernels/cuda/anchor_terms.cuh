// A formula on the mined pair of each anchor, of kernels/triplet_formula.h or kernels/selective_terms_formula.h: blocks
// add up their anchors; then each adds up all blocks, in the same fixed order, and writes what its anchors get. Up to
// kThreads anchors take one launch.
#pragma once

#include "kernels/cuda/arena.h"
#include "kernels/cuda/warp.h"
#include "kernels/selective_terms_formula.h"

namespace fastmine::cuda::anchors {

using namespace mining;

/// What is added up: the terms of valid anchors, and those of the policy where there is none.
enum Column { kValid, kTerms, kWeights, kPolicyTerms, kPolicyWeights, kActive, kSemiHard, kColumns };

template <class P>
struct Work {
  P problem;
  double* sums;  // [blocks, kColumns]

  FASTMINE_HOST_DEVICE std::int64_t blocks() const { return divide_up(problem.n, kThreads); }
};

template <class P>
Work<P> lay_out(const P& p, Arena& arena) {
  Work<P> work{p, nullptr};
  work.sums = arena.take<double>(work.blocks() * kColumns);
  return work;
}

/// What anchor i adds, if there is one.
template <class P>
FASTMINE_DEVICE void find_terms(const P& p, std::int64_t i, double (&columns)[kColumns]) {
  if (i < p.n) {
    const triplet::Term t = triplet::term(p, i, true);
    const triplet::Activity a = triplet::activity(p, i);
    const double weight = triplet::weight_of(p, i);
    const bool valid = triplet::is_valid(p, i), policy = t.counted && !valid;
    columns[kValid] = valid ? 1 : 0;
    columns[kTerms] = valid ? weight * t.value : 0;
    columns[kWeights] = valid ? weight : 0;
    columns[kPolicyTerms] = policy ? weight * t.value : 0;
    columns[kPolicyWeights] = policy ? weight : 0;
    columns[kActive] = a.active ? 1 : 0;
    columns[kSemiHard] = a.semi_hard ? 1 : 0;
  }
}

/// One block: kThreads anchors.
template <class P>
FASTMINE_KERNEL(kThreads, 2)
add_terms(FASTMINE_PARAMETER Work<P> work) {
  FASTMINE_SHARED(double, shared, kWarps* kColumns);
  double columns[kColumns] = {};
  find_terms(work.problem, block_index() * kThreads + thread_index(), columns);
  sum_columns(columns, shared, work.sums + block_index() * kColumns);
}

/// One block: the slopes of kThreads anchors; the first, the loss and its evidence.
template <class P>
FASTMINE_KERNEL(kThreads, 2)
write_slopes(FASTMINE_PARAMETER Work<P> work) {
  FASTMINE_SHARED(double, shared, kWarps* kColumns);
  FASTMINE_SHARED(double, all, kColumns);
  const P& p = work.problem;
  const auto find = [&](double (&columns)[kColumns]) { find_terms(p, thread_index(), columns); };
  sum_blocks<kColumns>(work.sums, work.blocks(), find, shared, all);
  const bool empty = all[kValid] == 0;
  const double sum = all[empty ? kPolicyTerms : kTerms], counted = all[empty ? kPolicyWeights : kWeights];
  const double scale = p.reduction == Reduction::mean && counted > 0 ? 1 / counted : 1;
  const std::int64_t i = block_index() * kThreads + thread_index();
  if (i < p.n) {
    const triplet::Term t = triplet::term(p, i, empty);
    const double weight = triplet::weight_of(p, i), sign = triplet::sign_of(p);
    p.slopes[i] = weight * sign * t.slope_p * scale;
    p.slopes[p.n + i] = weight * sign * t.slope_n * scale;
    if (p.reduction == Reduction::none) {
      triplet::write_loss(p, i, weight * t.value);
    }
  }
  if (block_index() == 0 && thread_index() == 0) {
    triplet::write_activity(p, all[kActive], all[kSemiHard]);
    if (p.reduction != Reduction::none) {
      triplet::write_loss(p, 0, sum * scale);
    }
  }
}

/// Bytes of device memory that `apply` needs.
template <class P>
std::size_t workspace(const P& p) {
  Arena arena(nullptr);
  lay_out(p, arena);
  return arena.used();
}

template <class P>
cudaError_t apply(const P& p, void* memory, cudaStream_t stream) {
  Arena arena(memory);
  const Work<P> work = lay_out(p, arena);
  Launches launches(stream);
  launches(&add_terms<P>, work.blocks() > 1 ? work.blocks() : 0, kThreads, work);
  launches(&write_slopes<P>, work.blocks() > 0 ? work.blocks() : 1, kThreads, work);
  return launches.status();
}

}  // namespace fastmine::cuda::anchors
