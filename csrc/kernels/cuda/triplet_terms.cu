#include "kernels/cuda/triplet_terms.h"

#include "kernels/cuda/rows.cuh"
#include "kernels/triplet_terms_formula.h"

namespace fastmine::cuda {
namespace {

using namespace mining;

constexpr std::int64_t kMostSorted = std::int64_t{1} << 30;

// --- the formula -------------------------------------------------------------------------------------------------

/// What is added up: counts, the terms of valid triplets, and those of the policy where there is none.
enum Column {
  kTriplets,
  kActiveTriplets,
  kSwapped,
  kActive,
  kSemiHard,
  kTerms,
  kWeights,
  kPolicyTerms,
  kPolicyWeights,
  kColumns
};

/// In which order triplets are sorted, before their distance from the kink.
enum Standing : std::int32_t { kValid, kInvalid };

struct TermsWork {
  TripletTerms problem;
  double* sums;    // [blocks, kColumns]
  Tagged* items;   // [triplets], with an active fraction: the farthest above the kink first
  Tagged* spare;   // [triplets]: while they are being sorted
  Tagged* sorted;  // one of the two

  FASTMINE_HOST_DEVICE std::int64_t blocks() const { return divide_up(problem.n, kThreads); }
  FASTMINE_HOST_DEVICE std::int64_t triplets() const {
    return problem.active_fraction > 0 ? problem.n * triplet::triplets_of_anchor(problem) : 0;
  }
};

TermsWork lay_out(const TripletTerms& p, Arena& arena) {
  TermsWork work{p, nullptr, nullptr, nullptr, nullptr};
  work.sums = arena.take<double>(work.blocks() * kColumns);
  work.items = arena.take<Tagged>(work.triplets());
  work.spare = arena.take<Tagged>(work.triplets());
  work.sorted = sorted_place(work.items, work.spare, work.triplets());
  return work;
}

/// One thread: how far a triplet is from the kink, NaN farther than all.
FASTMINE_KERNEL(kThreads, 2)
list_gaps(FASTMINE_PARAMETER TermsWork work) {
  const TripletTerms& p = work.problem;
  const std::int64_t m = block_index() * kThreads + thread_index();
  if (m >= work.triplets()) {
    return;
  }
  const std::int64_t i = m / triplet::triplets_of_anchor(p), of_anchor = m % triplet::triplets_of_anchor(p);
  const triplet::Triplet t{i, i * p.positives + of_anchor / p.negatives, i * p.negatives + of_anchor % p.negatives};
  const double gap = triplet::gap(p, t).value;
  work.items[m] = {gap != gap ? INT64_MIN : ~ordered(gap), triplet::is_valid(p, t) ? kValid : kInvalid,
                   static_cast<std::int32_t>(m)};
}

/// The margin of this batch.
FASTMINE_DEVICE double margin_of(const TermsWork& work) {
  const TripletTerms& p = work.problem;
  if (work.triplets() == 0) {
    return p.margin;
  }
  const int count = rank_of({INT64_MIN, kInvalid, INT32_MIN}, work.sorted, static_cast<int>(work.triplets()));
  if (count == 0) {
    return p.margin;
  }
  const std::int64_t last = work.sorted[triplet::wanted(p, count) - 1].label;
  return triplet::margin_above(p, last == INT64_MIN ? static_cast<double>(__builtin_nan("")) : unordered(~last));
}

/// What anchor i adds, if there is one.
FASTMINE_DEVICE void find_terms(const TripletTerms& p, std::int64_t i, double margin, double (&columns)[kColumns]) {
  if (i >= p.n) {
    return;
  }
  const triplet::Counts counts = triplet::count(p, i, margin);
  const triplet::Share valid = triplet::add_terms(p, i, margin, false, nullptr);
  const triplet::Share policy = triplet::add_terms(p, i, margin, true, nullptr);
  columns[kTriplets] = static_cast<double>(counts.triplets);
  columns[kActiveTriplets] = static_cast<double>(counts.active_triplets);
  columns[kSwapped] = static_cast<double>(counts.swapped);
  columns[kActive] = counts.active ? 1 : 0;
  columns[kSemiHard] = counts.semi_hard ? 1 : 0;
  columns[kTerms] = valid.loss;
  columns[kWeights] = valid.weight;
  columns[kPolicyTerms] = policy.loss;
  columns[kPolicyWeights] = policy.weight;
}

/// One block: kThreads anchors.
FASTMINE_KERNEL(kThreads, 2)
add_triplets(FASTMINE_PARAMETER TermsWork work) {
  FASTMINE_SHARED(double, shared, kWarps* kColumns);
  double columns[kColumns] = {};
  find_terms(work.problem, block_index() * kThreads + thread_index(), margin_of(work), columns);
  sum_columns(columns, shared, work.sums + block_index() * kColumns);
}

FASTMINE_DEVICE void write_evidence(const TripletTerms& p, const double* all, double margin) {
  const auto at = [&p](TripletTerm field) -> double& { return p.evidence[static_cast<int>(field)]; };
  at(TripletTerm::active) = all[kActive];
  at(TripletTerm::semi_hard) = all[kSemiHard];
  at(TripletTerm::triplets) = all[kTriplets];
  at(TripletTerm::active_triplets) = all[kActiveTriplets];
  at(TripletTerm::swapped) = all[kSwapped];
  at(TripletTerm::margin) = margin;
}

/// One block: the slopes of kThreads anchors; the first, the loss and its evidence.
FASTMINE_KERNEL(kThreads, 2)
settle_triplets(FASTMINE_PARAMETER TermsWork work) {
  FASTMINE_SHARED(double, shared, kWarps* kColumns);
  FASTMINE_SHARED(double, all, kColumns);
  const TripletTerms& p = work.problem;
  const double margin = margin_of(work);
  const auto find = [&](double (&columns)[kColumns]) { find_terms(p, thread_index(), margin, columns); };
  sum_blocks<kColumns>(work.sums, work.blocks(), find, shared, all);
  const bool empty = all[kTriplets] == 0;
  const double sum = all[empty ? kPolicyTerms : kTerms], counted = all[empty ? kPolicyWeights : kWeights];
  const double scale = p.reduction == Reduction::mean && counted > 0 ? 1 / counted : 1;
  const std::int64_t i = block_index() * kThreads + thread_index();
  if (i < p.n) {
    triplet::each_slope(p, i, [](double& slope) { slope = 0; });
    const triplet::Share own = triplet::add_terms(p, i, margin, empty, p.slopes);
    triplet::each_slope(p, i, [scale](double& slope) { slope *= scale; });
    if (p.reduction == Reduction::none) {
      triplet::write_loss(p, i, own.loss);
    }
  }
  if (block_index() == 0 && thread_index() == 0) {
    write_evidence(p, all, margin);
    if (p.reduction != Reduction::none) {
      triplet::write_loss(p, 0, sum * scale);
    }
  }
}

// --- distances ---------------------------------------------------------------------------------------------------

struct PairsWork {
  PairedDistance problem;
  RowSet rows;  // for cosine, the norm of every row
};

PairsWork lay_out(const PairedDistance& problem, Arena& arena) {
  PairsWork work{};
  work.problem = problem;
  work.rows.rows = problem.rows;
  work.rows.metric = problem.metric;
  const std::int64_t n = problem.metric == Metric::cosine ? problem.rows.n : 0;
  work.rows.kind = arena.take<std::uint8_t>(n);
  work.rows.norm = arena.take<double>(n);
  work.rows.squared = arena.take<double>(n);
  return work;
}

/// One warp: the norm of a row.
template <class S>
FASTMINE_KERNEL(kThreads, 2)
measure_rows(FASTMINE_PARAMETER PairsWork work) {
  const std::int64_t i = block_index() * kWarps + warp_index();
  if (i < work.rows.rows.n) {
    look_at_row<S>(work.rows, i);
  }
}

/// One warp: the distance of a pair.
template <class S>
FASTMINE_KERNEL(kThreads, 2)
compare_pairs(FASTMINE_PARAMETER PairsWork work) {
  const PairedDistance& q = work.problem;
  const std::int64_t i = block_index() * kWarps + warp_index();
  if (i >= q.n) {
    return;
  }
  double distance = 0;
  if (q.has_first[i] && q.has_second[i]) {
    const double key = exact_key<S>(work.rows, q.first[i], work.rows, static_cast<std::int32_t>(q.second[i]));
    // A zero row has cosine 0 with every other, but not with one that is not finite.
    const bool bad =
        q.metric == Metric::cosine && (poisoned(work.rows, q.first[i]) || poisoned(work.rows, q.second[i]));
    distance = !bad && key - key == 0 ? distance_of(key, q.metric) : static_cast<double>(__builtin_nan(""));
  }
  if (lane_index() == 0) {
    q.distance[i] = distance;
  }
}

template <class S>
cudaError_t run_pairs(const PairsWork& work, cudaStream_t stream) {
  const PairedDistance& q = work.problem;
  Launches launches(stream);
  launches(&measure_rows<S>, q.metric == Metric::cosine ? divide_up(q.rows.n, kWarps) : 0, kThreads, work);
  launches(&compare_pairs<S>, divide_up(q.n, kWarps), kThreads, work);
  return launches.status();
}

}  // namespace

std::size_t triplet_terms_workspace(const TripletTerms& p) noexcept {
  Arena arena(nullptr);
  lay_out(p, arena);
  return arena.used();
}

cudaError_t triplet_terms(const TripletTerms& p, void* workspace, cudaStream_t stream) noexcept {
  Arena arena(workspace);
  const TermsWork work = lay_out(p, arena);
  if (work.triplets() >= kMostSorted) {
    return cudaErrorInvalidValue;
  }
  Launches launches(stream);
  launches(&list_gaps, divide_up(work.triplets(), kThreads), kThreads, work);
  sort(launches, work.items, work.spare, work.triplets());
  launches(&add_triplets, work.blocks() > 1 ? work.blocks() : 0, kThreads, work);
  launches(&settle_triplets, work.blocks() > 0 ? work.blocks() : 1, kThreads, work);
  return launches.status();
}

std::size_t paired_distance_workspace(const PairedDistance& q) noexcept {
  Arena arena(nullptr);
  lay_out(q, arena);
  return arena.used();
}

cudaError_t paired_distance(const PairedDistance& q, void* workspace, cudaStream_t stream) noexcept {
  Arena arena(workspace);
  const PairsWork work = lay_out(q, arena);
  switch (q.rows.dtype) {
    case DType::float32:
      return run_pairs<float>(work, stream);
    case DType::float64:
      return run_pairs<double>(work, stream);
    case DType::bfloat16:
      return run_pairs<BFloat16>(work, stream);
    case DType::float16:
      return run_pairs<Half>(work, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace fastmine::cuda
