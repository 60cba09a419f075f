#include "kernels/cuda/triplet_loss.h"

#include "kernels/cuda/arena.h"
#include "kernels/cuda/warp.h"
#include "kernels/triplet_formula.h"

namespace fastmine::cuda {
namespace {

using namespace mining;

/// What is added up: the terms of valid anchors, and those of the policy where there is none.
enum Column { kValid, kTerms, kWeights, kPolicyTerms, kPolicyWeights, kActive, kSemiHard, kColumns };

struct FormulaWork {
  TripletLoss problem;
  double* sums;  // [blocks, kColumns]

  FASTMINE_HOST_DEVICE std::int64_t blocks() const { return divide_up(problem.n, kThreads); }
};

FormulaWork lay_out(const TripletLoss& p, Arena& arena) {
  FormulaWork work{p, nullptr};
  work.sums = arena.take<double>(work.blocks() * kColumns);
  return work;
}

FASTMINE_DEVICE double add_sums(const double (&columns)[kColumns], double* shared) {
  return combine_block(columns, shared, [](int, double a, double b) { return a + b; });
}

/// What anchor i adds, if there is one.
FASTMINE_DEVICE void find_terms(const TripletLoss& p, std::int64_t i, double (&columns)[kColumns]) {
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
FASTMINE_KERNEL(kThreads, 2)
add_terms(FASTMINE_PARAMETER FormulaWork work) {
  FASTMINE_SHARED(double, shared, kWarps* kColumns);
  double columns[kColumns] = {};
  find_terms(work.problem, block_index() * kThreads + thread_index(), columns);
  const double sum = add_sums(columns, shared);
  if (thread_index() < kColumns) {
    work.sums[block_index() * kColumns + thread_index()] = sum;
  }
}

/// One block: the slopes of kThreads anchors; the first, the loss and its evidence.
FASTMINE_KERNEL(kThreads, 2)
write_slopes(FASTMINE_PARAMETER FormulaWork work) {
  FASTMINE_SHARED(double, shared, kWarps* kColumns);
  FASTMINE_SHARED(double, all, kColumns);
  const TripletLoss& p = work.problem;
  double columns[kColumns] = {};
  if (work.blocks() == 1) {
    find_terms(p, thread_index(), columns);
  }
  for (std::int64_t block = thread_index(); work.blocks() > 1 && block < work.blocks(); block += kThreads) {
    FASTMINE_UNROLL for (int c = 0; c < kColumns; ++c) { columns[c] += work.sums[block * kColumns + c]; }
  }
  const double found = add_sums(columns, shared);
  if (thread_index() < kColumns) {
    all[thread_index()] = found;
  }
  barrier();
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
    *p.active = all[kActive];
    *p.semi_hard = all[kSemiHard];
    if (p.reduction != Reduction::none) {
      triplet::write_loss(p, 0, sum * scale);
    }
  }
}

}  // namespace

std::size_t triplet_loss_workspace(const TripletLoss& p) noexcept {
  Arena arena(nullptr);
  lay_out(p, arena);
  return arena.used();
}

cudaError_t triplet_loss(const TripletLoss& p, void* workspace, cudaStream_t stream) noexcept {
  Arena arena(workspace);
  const FormulaWork work = lay_out(p, arena);
  Launches launches(stream);
  launches(&add_terms, work.blocks() > 1 ? work.blocks() : 0, kThreads, work);
  launches(&write_slopes, work.blocks() > 0 ? work.blocks() : 1, kThreads, work);
  return launches.status();
}

}  // namespace fastmine::cuda
