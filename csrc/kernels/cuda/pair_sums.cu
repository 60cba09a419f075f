#include "kernels/cuda/pair_sums.h"

#include "kernels/cuda/pair_curve.cuh"

namespace fastmine::cuda {
namespace {

using namespace mining;

constexpr std::int64_t kMostSummedRows = std::int64_t{1} << 29;

/// Over some pairs of one sign of an anchor. `top` is the largest curve of an admitted pair, -Inf without one, `mass`
/// the sum of exp(curve - top), `curve` that of curve exp(curve - top).
struct PairPart {
  double top = -static_cast<double>(__builtin_inf()), mass = 0, curve = 0;
  double distance = 0, every_distance = 0;  // of the admitted pairs, and of all
  double admitted = 0;
};

/// The rows of nce over some pairs of an anchor.
struct NcePart {
  double sum = 0, slope = 0, curve = 0;
};

/// What is told of all anchors, besides what mining tells.
constexpr int kExtra = sizeof kPairExtraFields / sizeof *kPairExtraFields;

template <class W>
struct SumsPlan {
  PairSums problem;
  Plan<W> rows;
  TileCut cut;
  std::int64_t slots;  // parts of an anchor: one for every chunk and thread
  PairPart* parts[2];  // [slots, n] each, by position
  NcePart* nce;        // [slots, n], likewise
  double* level;       // [n], by position: the log-sum-exp of the negatives
  double* extra;       // [blocks of kThreads anchors, kExtra]

  FASTMINE_DEVICE double& at(PairSum row, std::int64_t i) const {
    return problem.sums[static_cast<std::int64_t>(row) * problem.x.n + i];
  }
};

template <class W>
SumsPlan<W> lay_out_sums(const PairSums& q, Arena& arena) {
  const std::int64_t n = q.x.n;
  SumsPlan<W> p{};
  p.problem = q;
  p.rows = lay_out_row_blocks<W>(q, nullptr, arena);
  p.rows.problem.evidence = q.evidence;
  p.cut = cut_tiles<W>(n, q.y.n, kEnoughBlocks);
  p.slots = p.cut.chunks() * BlockShape<W>::kShare;
  p.parts[0] = arena.take<PairPart>(p.slots * n);
  p.parts[1] = arena.take<PairPart>(p.slots * n);
  p.nce = arena.take<NcePart>(q.form == PairForm::nce ? p.slots * n : 0);
  p.level = arena.take<double>(n);
  p.extra = arena.take<double>(divide_up(n, kThreads) * kExtra);
  return p;
}

// --- the sums of a tile of anchors -----------------------------------------------------------------------------------

/// An anchor as its threads know it.
template <class W>
struct PairedAnchor {
  bool there;
  std::int32_t begin, end, itself;  // the references of its label; itself among them, -1 for none
  W positive_bound, negative_bound;

  FASTMINE_DEVICE PairedAnchor(const SumsPlan<W>& p, std::int32_t position)
      : there(position < p.rows.counts->finite_x) {
    const PairSums& q = p.problem;
    const std::int64_t i = there ? p.rows.x.sorted[position].row : 0;
    begin = there ? p.rows.same_begin[position] : 0;
    end = there ? p.rows.same_end[position] : 0;
    itself = there ? p.rows.own[position] : -1;
    positive_bound = there ? bound_of<W>(q.positive_bound, true, q.metric, i) : W{0};
    negative_bound = there ? bound_of<W>(q.negative_bound, false, q.metric, i) : W{0};
  }

  FASTMINE_DEVICE bool pairs(bool positive, std::int32_t reference) const {
    const bool same = reference >= begin && reference < end;
    return positive ? same && reference != itself : !same;
  }
};

/// f(distance, whether it is admitted) for the pairs of one sign in a block.
template <class W, class F>
FASTMINE_DEVICE void each_pair(const SumsPlan<W>& p, const PairedAnchor<W>& own, bool positive, std::int32_t first,
                               const W* block, F f) {
  using Shape = BlockShape<W>;
  const std::int32_t references = p.rows.counts->finite_y;
  const W bound = positive ? own.positive_bound : own.negative_bound;
  for (int q = Shape::first(); q < Shape::kAcross; q += Shape::kShare) {
    const std::int32_t reference = first + Shape::position(q);
    if (reference < references && own.pairs(positive, reference)) {
      const W v = block[q * Shape::kPitch + Shape::own()];
      f(v, admits(bound, positive, p.problem.metric, v));
    }
  }
}

template <class W>
FASTMINE_DEVICE void add_block(const SumsPlan<W>& p, const PairedAnchor<W>& own, bool positive, std::int32_t first,
                               const W* block, PairPart& part) {
  const PairSums& q = p.problem;
  const Curve<W> curve(positive ? q.positive : q.negative, q.scale, q.form);
  W distance = 0, every_distance = 0, top = static_cast<W>(part.top);
  int admitted = 0;
  each_pair(p, own, positive, first, block, [&](W v, bool counts) {
    every_distance += v;
    if (counts) {
      ++admitted;
      distance += v;
      top = larger(curve(v), top);
    }
  });
  part.distance += static_cast<double>(distance);
  part.every_distance += static_cast<double>(every_distance);
  part.admitted += admitted;
  if (q.form == PairForm::sum || admitted == 0) {
    return;
  }
  const W none = -static_cast<W>(__builtin_inf()), shift = top == none ? W{0} : top;
  const auto shrink = static_cast<double>(exponential(static_cast<W>(part.top) - shift));
  W mass = 0, total = 0;
  each_pair(p, own, positive, first, block, [&](W v, bool counts) {
    if (counts) {
      const W t = curve(v), e = exponential(t - shift);
      mass += e;
      total += e * t;
    }
  });
  part.top = static_cast<double>(top);
  part.mass = part.mass * shrink + static_cast<double>(mass);
  part.curve = part.curve * shrink + static_cast<double>(total);
}

/// One block: a tile of anchors with a chunk of the references.
template <class W>
FASTMINE_KERNEL(kThreads, 1)
sum_pairs(FASTMINE_PARAMETER SumsPlan<W> p) {
  using Shape = BlockShape<W>;
  using Vector = typename Full<W>::Vector;
  FASTMINE_SHARED(Vector, shared, Shape::kSharedVectors);
  const Side<W> anchors = anchors_of(p.rows), references = references_of(p.rows);
  const TileRange range = tile_range(p.cut, Shape::kOwn);
  const std::int32_t position = range.row + Shape::own();
  if (range.row >= anchors.count) {
    return;
  }
  const PairedAnchor<W> own(p, position);
  PairPart positive, negative;
  for (std::int32_t tile = range.begin; tile < range.end && tile * Shape::kOwn < references.count; ++tile) {
    each_block(p.rows, anchors, range.row, references, tile * Shape::kOwn, shared,
               [&](std::int32_t first, const W* block) {
                 if (own.there) {
                   add_block(p, own, false, first, block, negative);
                   add_block(p, own, true, first, block, positive);
                 }
               });
  }
  if (own.there) {
    const std::int64_t place = (range.chunk * Shape::kShare + Shape::first()) * p.problem.x.n + position;
    p.parts[0][place] = positive;
    p.parts[1][place] = negative;
  }
}

template <class W>
FASTMINE_DEVICE void add_nce(const SumsPlan<W>& p, const PairedAnchor<W>& own, W level, std::int32_t first,
                             const W* block, NcePart& part) {
  const Curve<W> curve(p.problem.positive, p.problem.scale, p.problem.form);
  W sum = 0, slope = 0, total = 0;
  each_pair(p, own, true, first, block, [&](W v, bool counts) {
    if (counts) {
      const W t = curve(v), excess = level - t, e = exponential(excess < 0 ? excess : -excess);
      const W share = (excess < 0 ? e : W{1}) * reciprocal(1 + e);
      sum += (excess < 0 ? W{0} : excess) + log1p_unit(e);
      slope += share;
      total += share * t;
    }
  });
  part.sum += static_cast<double>(sum);
  part.slope += static_cast<double>(slope);
  part.curve += static_cast<double>(total);
}

/// One block: the rows of nce of a tile of anchors with a chunk of the references, as far as they hold positives.
template <class W>
FASTMINE_KERNEL(kThreads, 1)
sum_nce(FASTMINE_PARAMETER SumsPlan<W> p) {
  using Shape = BlockShape<W>;
  using Vector = typename Full<W>::Vector;
  FASTMINE_SHARED(Vector, shared, Shape::kSharedVectors);
  const Side<W> anchors = anchors_of(p.rows), references = references_of(p.rows);
  const TileRange range = tile_range(p.cut, Shape::kOwn);
  const std::int32_t position = range.row + Shape::own();
  if (range.row >= anchors.count) {
    return;
  }
  const std::int32_t after = range.row + Shape::kOwn, last = (after < anchors.count ? after : anchors.count) - 1;
  const std::int32_t begin = p.rows.same_begin[range.row], end = p.rows.same_end[last];
  const PairedAnchor<W> own(p, position);
  const W level = own.there ? static_cast<W>(p.level[position]) : W{0};
  NcePart part;
  for (std::int32_t tile = range.begin; tile < range.end; ++tile) {
    if (tile * Shape::kOwn < end && (tile + 1) * Shape::kOwn > begin) {
      each_block(p.rows, anchors, range.row, references, tile * Shape::kOwn, shared,
                 [&](std::int32_t first, const W* block) {
                   if (own.there) {
                     add_nce(p, own, level, first, block, part);
                   }
                 });
    }
  }
  if (own.there) {
    p.nce[(range.chunk * Shape::kShare + Shape::first()) * p.problem.x.n + position] = part;
  }
}

// --- put together ----------------------------------------------------------------------------------------------------

/// Both parts of the pairs of an anchor.
FASTMINE_DEVICE PairPart together(const PairPart& a, const PairPart& b) {
  const double none = -static_cast<double>(__builtin_inf()), top = larger(a.top, b.top), shift = top == none ? 0 : top;
  const double of_a = exponential(a.top - shift), of_b = exponential(b.top - shift);
  PairPart both;
  both.top = top;
  both.mass = a.mass * of_a + b.mass * of_b;
  both.curve = a.curve * of_a + b.curve * of_b;
  both.distance = a.distance + b.distance;
  both.every_distance = a.every_distance + b.every_distance;
  both.admitted = a.admitted + b.admitted;
  return both;
}

/// The pairs of one sign of an anchor: those of its parts, and those with poisoned rows, which are at distance NaN.
template <class W>
FASTMINE_DEVICE PairPart collect(const SumsPlan<W>& p, bool positive, std::int64_t position, int poisoned_pairs) {
  PairPart sum;
  for (std::int64_t slot = 0; slot < p.slots && p.problem.level == nullptr && position >= 0; ++slot) {
    sum = together(sum, p.parts[positive ? 0 : 1][slot * p.problem.x.n + position]);
  }
  if (poisoned_pairs > 0) {
    sum.admitted += poisoned_pairs;
    if (p.problem.level == nullptr) {
      sum.mass = sum.curve = sum.distance = sum.every_distance = static_cast<double>(__builtin_nan(""));
    }
  }
  return sum;
}

/// The sums of anchor i over the pairs of one sign, of which there are so many, and their mean distance.
template <class W>
FASTMINE_DEVICE void put_sums(const SumsPlan<W>& p, std::int64_t i, bool positive, const PairPart& sum,
                              std::int64_t pairs) {
  const PairSums& q = p.problem;
  const bool curved = q.form != PairForm::sum, empty = sum.mass == 0;
  const bool bounded = q.positive_bound != nullptr || q.negative_bound != nullptr;
  const auto count = static_cast<double>(pairs);
  const double none = -static_cast<double>(__builtin_inf()), shift = sum.top == none ? 0 : sum.top;
  p.at(positive ? PairSum::positives : PairSum::negatives, i) = count;
  p.at(positive ? PairSum::admitted_positives : PairSum::admitted_negatives, i) = bounded ? sum.admitted : count;
  p.at(positive ? PairSum::positive_distance : PairSum::negative_distance, i) = sum.distance;
  p.at(positive ? PairSum::positive_lse : PairSum::negative_lse, i) = !curved ? 0
                                                                      : empty ? none
                                                                              : shift + logarithm(sum.mass);
  p.at(positive ? PairSum::positive_curve : PairSum::negative_curve, i) = !curved || empty ? 0 : sum.curve / sum.mass;
  const BatchHard& mined = p.rows.problem;
  (positive ? mined.positive_distance : mined.negative_distance)[i] = pairs > 0 ? sum.every_distance / count : 0;
  (positive ? mined.has_positive : mined.has_negative)[i] = pairs > 0;
}

/// One thread: an anchor; those that take part come first.
template <class W>
FASTMINE_KERNEL(kThreads, 1)
collect_sums(FASTMINE_PARAMETER SumsPlan<W> p) {
  FASTMINE_SHARED(double, shared, kWarps* kExtra);
  const Plan<W>& m = p.rows;
  const std::int64_t place = block_index() * kThreads + thread_index();
  double extra[kExtra] = {};
  if (place < p.problem.x.n) {
    const Tagged item = m.x.sorted[place];
    const std::int64_t i = item.row;
    const bool there = item.group != kSkippedRows, finite = item.group == kFiniteRows;
    const int references = m.counts->finite_y + m.counts->poisoned_y;
    const int bad = there ? count_poisoned(m, item.label) : 0;
    const int begin = begin_of_label(m.y, kFiniteRows, item.label);
    const int end = rank_of({item.label, kFiniteRows, kNoRow}, m.y.sorted, static_cast<int>(m.y.rows.n));
    const int same = end - begin + bad;
    const int positives = there ? same - (p.problem.self ? 1 : 0) : 0, negatives = there ? references - same : 0;
    const std::int64_t position = finite ? place : -1;
    const PairPart positive = collect(p, true, position, finite ? bad : positives);
    const PairPart negative = collect(p, false, position, finite ? m.counts->poisoned_y - bad : negatives);
    put_sums(p, i, true, positive, positives);
    put_sums(p, i, false, negative, negatives);
    p.at(PairSum::nce, i) = p.at(PairSum::nce_slope, i) = p.at(PairSum::nce_curve, i) = 0;
    p.level[place] = p.problem.level != nullptr ? p.problem.level[i] : p.at(PairSum::negative_lse, i);
    if (positives > 0 && negatives > 0) {
      extra[1] = p.at(PairSum::admitted_positives, i);
      extra[2] = p.at(PairSum::admitted_negatives, i);
      extra[0] = extra[1] + extra[2] > 0 ? 1 : 0;
    }
  }
  sum_columns(extra, shared, p.extra + block_index() * kExtra);
}

/// One thread: the rows of nce of an anchor. Poisoned positives make them NaN, where there are negatives at all.
template <class W>
FASTMINE_KERNEL(kThreads, 1)
collect_nce(FASTMINE_PARAMETER SumsPlan<W> p) {
  const Plan<W>& m = p.rows;
  const std::int64_t place = block_index() * kThreads + thread_index();
  if (place >= p.problem.x.n || m.x.sorted[place].group == kSkippedRows) {
    return;
  }
  const Tagged item = m.x.sorted[place];
  const bool finite = item.group == kFiniteRows;
  NcePart sum;
  for (std::int64_t slot = 0; slot < p.slots && finite; ++slot) {
    const NcePart part = p.nce[slot * p.problem.x.n + place];
    sum = {sum.sum + part.sum, sum.slope + part.slope, sum.curve + part.curve};
  }
  const bool bad = finite ? count_poisoned(m, item.label) > 0 : p.at(PairSum::positives, item.row) > 0;
  if (bad && p.level[place] != -static_cast<double>(__builtin_inf())) {
    sum.sum = sum.slope = sum.curve = static_cast<double>(__builtin_nan(""));
  }
  p.at(PairSum::nce, item.row) = sum.sum;
  p.at(PairSum::nce_slope, item.row) = sum.slope;
  p.at(PairSum::nce_curve, item.row) = sum.curve;
}

/// One block: the rest of the evidence.
template <class W>
FASTMINE_KERNEL(kThreads, 1)
tell_extra(FASTMINE_PARAMETER SumsPlan<W> p) {
  FASTMINE_SHARED(double, shared, kWarps* kExtra);
  double extra[kExtra] = {};
  for (std::int64_t block = thread_index(); block < divide_up(p.problem.x.n, kThreads); block += kThreads) {
    FASTMINE_UNROLL for (int k = 0; k < kExtra; ++k) { extra[k] += p.extra[block * kExtra + k]; }
  }
  sum_columns(extra, shared, p.problem.evidence + static_cast<int>(Mining::count));
}

template <class S>
cudaError_t run_sums(const PairSums& q, void* workspace, cudaStream_t stream) {
  using W = Working<S>;
  Arena arena(workspace);
  const SumsPlan<W> p = lay_out_sums<W>(q, arena);
  const std::int64_t anchors = divide_up(q.x.n, kThreads);
  Launches launches(stream);
  group_rows<S>(launches, p.rows);
  if (q.level == nullptr) {
    launches(&sum_pairs<W>, p.cut.blocks(), kThreads, p);
  }
  launches(&collect_sums<W>, anchors, kThreads, p);
  if (q.form == PairForm::nce) {
    launches(&sum_nce<W>, p.cut.blocks(), kThreads, p);
    launches(&collect_nce<W>, anchors, kThreads, p);
  }
  tell_evidence(launches, p.rows);
  launches(&tell_extra<W>, 1, kThreads, p);
  return launches.status();
}

}  // namespace

std::size_t pair_sums_workspace(const PairSums& q) noexcept {
  Arena arena(nullptr);
  if (q.x.dtype == DType::float64) {
    lay_out_sums<double>(q, arena);
  } else {
    lay_out_sums<float>(q, arena);
  }
  return arena.used();
}

cudaError_t pair_sums(const PairSums& q, void* workspace, cudaStream_t stream) noexcept {
  if (q.x.n > kMostSummedRows || q.y.n > kMostSummedRows) {
    return cudaErrorInvalidValue;
  }
  switch (q.x.dtype) {
    case DType::float32:
      return run_sums<float>(q, workspace, stream);
    case DType::float64:
      return run_sums<double>(q, workspace, stream);
    case DType::bfloat16:
      return run_sums<BFloat16>(q, workspace, stream);
    case DType::float16:
      return run_sums<Half>(q, workspace, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace fastmine::cuda
