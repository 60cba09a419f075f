#include "kernels/cuda/mined_pairs.h"

#include "kernels/cuda/math.h"
#include "kernels/cuda/rough_keys.cuh"
#include "kernels/cuda/row_block.cuh"

namespace fastmine::cuda {
namespace {

using namespace mining;

constexpr std::int64_t kMostMinedRows = std::int64_t{1} << 29;
constexpr int kSetBits = 32;  // labels in a word
constexpr int kMinedExtra = sizeof kMinedExtraFields / sizeof *kMinedExtraFields;

/// A pair of an anchor in its list.
struct Mate {
  double value;  // what it is ranked by, ascending
  double key;
  std::int32_t row;
};

FASTMINE_DEVICE bool comes_before(double value, std::int32_t row, const Mate& other) {
  return value < other.value || (value == other.value && row < other.row);
}

/// The constants of distance-weighted sampling.
struct SampleWeights {
  double near, far;    // of the logarithms of d^2 and of 1 - d^2 / 4 in minus the log weight
  double least, most;  // the squares of the cutoffs
};

template <class W>
struct MinedPlan {
  MinedPairs problem;
  Plan<W> rows;  // in the sense that few pairs are compared directly
  SampleWeights weights;
  std::int64_t* alike;  // with sets of labels: one label for all rows
  std::int64_t words;   // of a set of labels; 0: a label for each row
  std::uint32_t* sets;  // [n, words]
  std::uint32_t* ref_sets;
  double* classes;  // [words]: labels that some anchor has
  std::int64_t blocks;
  Mate* lists;  // [blocks, 2, longest]
  std::int64_t longest;
};

template <class W>
MinedPlan<W> lay_out_mined(const MinedPairs& q, Arena& arena) {
  const std::int64_t n = q.x.n, m = q.y.n;
  MinedPlan<W> p{};
  p.problem = q;
  if (q.label_sets != nullptr) {
    p.words = divide_up(q.label_count, kSetBits);
    p.alike = arena.take<std::int64_t>(n > m ? n : m);
    p.problem.labels = p.problem.ref_labels = p.alike;
    p.sets = arena.take<std::uint32_t>(n * p.words);
    p.ref_sets = q.self ? p.sets : arena.take<std::uint32_t>(m * p.words);
    p.classes = arena.take<double>(p.words);
  }
  p.rows = lay_out_labelled<W>(p.problem, q.self_index, arena);
  p.rows.way = Way::directly;
  p.rows.problem.evidence = q.evidence;
  p.weights = {0.5 * static_cast<double>(q.x.d - 2), 0.5 * static_cast<double>(q.x.d - 3), q.cutoff * q.cutoff,
               q.nonzero_loss_cutoff * q.nonzero_loss_cutoff};
  p.blocks = n < kMostBlocks ? n : kMostBlocks;
  p.longest = q.positive.last > q.negative.last ? q.positive.last : q.negative.last;
  p.lists = arena.take<Mate>(p.blocks * 2 * p.longest);
  return p;
}

// --- sets of labels --------------------------------------------------------------------------------------------------

/// One thread: a word of the set of labels of a row of x or, after all of them, of y; and one label for all.
template <class W>
FASTMINE_KERNEL(kThreads, 1)
pack_sets(FASTMINE_PARAMETER MinedPlan<W> p) {
  const MinedPairs& q = p.problem;
  const std::int64_t task = block_index() * kThreads + thread_index();
  if (task < (q.x.n > q.y.n ? q.x.n : q.y.n)) {
    p.alike[task] = 0;
  }
  const bool anchor = task < q.x.n * p.words;
  const std::int64_t at = anchor ? task : task - q.x.n * p.words;
  if (!anchor && (q.self || at >= q.y.n * p.words)) {
    return;
  }
  const bool* const set = (anchor ? q.label_sets : q.ref_label_sets) + at / p.words * q.label_count;
  const std::int64_t first = at % p.words * kSetBits, rest = q.label_count - first;
  std::uint32_t word = 0;
  for (int bit = 0; bit < kSetBits && bit < rest; ++bit) {
    word |= static_cast<std::uint32_t>(set[first + bit] ? 1 : 0) << bit;
  }
  (anchor ? p.sets : p.ref_sets)[at] = word;
}

/// One block: how many labels of a word some anchor that takes part has.
template <class W>
FASTMINE_KERNEL(kThreads, 1)
count_labels(FASTMINE_PARAMETER MinedPlan<W> p) {
  FASTMINE_SHARED(std::uint32_t, shared, kThreads);
  std::uint32_t word = 0;
  for (std::int64_t i = thread_index(); i < p.problem.x.n; i += kThreads) {
    word |= takes_part(p.rows.x, i) ? p.sets[i * p.words + block_index()] : 0;
  }
  shared[thread_index()] = word;
  barrier();
  if (thread_index() == 0) {
    for (int other = 1; other < kThreads; ++other) {
      word |= shared[other];
    }
    p.classes[block_index()] = count_bits(word);
  }
}

// --- random numbers, those of cpu/mined_pairs_plan.h -----------------------------------------------------------------

constexpr double kRange = 0x1p31;

FASTMINE_DEVICE std::uint32_t mix(std::uint32_t x) {
  x = (x ^ (x >> 16)) * 0x85ebca6bU;
  x = (x ^ (x >> 13)) * 0xc2b2ae35U;
  return x ^ (x >> 16);
}

/// An integer of [0, kRange) for a pair.
FASTMINE_DEVICE std::uint32_t random_bits(std::uint64_t seed, std::int64_t i, std::int64_t j) {
  const auto low = static_cast<std::uint32_t>(seed), high = static_cast<std::uint32_t>(seed >> 32);
  const std::uint32_t own = mix(mix(static_cast<std::uint32_t>(i) + low) ^ high);
  const std::uint32_t other = mix(mix(static_cast<std::uint32_t>(j) + high) ^ (low ^ 0x9e3779b9U));
  return mix(own ^ other) >> 1;
}

// --- one anchor ------------------------------------------------------------------------------------------------------

/// Whether row j is a pair of this sign of anchor i, which takes part.
template <class W>
FASTMINE_DEVICE bool is_pair(const MinedPlan<W>& p, std::int64_t i, std::int64_t itself, std::int64_t j,
                             bool positive) {
  const MinedPairs& q = p.problem;
  if (!takes_part(p.rows.y, j) || j == itself) {
    return false;
  }
  bool same = p.words == 0 && q.labels[i] == q.ref_labels[j];
  for (std::int64_t w = 0; w < p.words && !same; ++w) {
    same = (p.sets[i * p.words + w] & p.ref_sets[j * p.words + w]) != 0;
  }
  const bool together = q.groups != nullptr && q.groups[i] == q.ref_groups[j];
  return same == positive && !(together && !(positive && q.group_positives));
}

/// How far: what orders as the key does, in the units of the distance.
FASTMINE_DEVICE double remoteness(double key, Metric metric) {
  return metric == Metric::euclidean ? root(key) : metric == Metric::sqeuclidean ? key : 0.5 * key;
}

/// Pairs of one sign of an anchor, and those within a window beyond `nearest` alone, unless that is NaN.
struct Wanted {
  std::int64_t anchor, itself;
  bool positive;
  double nearest;
};

/// What a pair is ranked by, from its key; false: it is none.
template <class W>
FASTMINE_DEVICE bool rank_pair(const MinedPlan<W>& p, const Wanted& wanted, std::int64_t j, double key, double& value) {
  const MinedPairs& q = p.problem;
  const double remote = remoteness(key, q.metric), infinity = static_cast<double>(__builtin_inf());
  if (remote <= wanted.nearest || remote >= wanted.nearest + q.window) {
    return false;
  }
  switch ((wanted.positive ? q.positive : q.negative).order) {
    case PairOrder::random:
      value = random_bits(*q.seed, wanted.anchor, j);
      break;
    case PairOrder::distance_weighted: {
      if (key >= p.weights.most) {
        return false;
      }
      const double low = random_bits(*q.seed, wanted.anchor, j) + 0.5, squared = larger(key, p.weights.least);
      value = logarithm(log1p_positive(low / (kRange - low))) + p.weights.near * logarithm(squared) +
              p.weights.far * logarithm(1 - 0.25 * squared);
      break;
    }
    case PairOrder::farthest:
      value = -key;
      break;
    default:
      value = key;
  }
  // A NaN comes first, and nothing else is as good.
  value = key != key ? -infinity : larger(smaller(value, kLargest<double>), -kLargest<double>);
  return true;
}

/// What a block works in: the candidates at hand, at most one for each thread.
struct Candidates {
  double* values;
  double* keys;
  std::int32_t* rows;    // -1: no candidate any more
  std::int32_t* spare;   // as many
  std::int32_t* counts;  // [3]: candidates, those that are taken, and those that the screen leaves
};

// --- the screen: float32 bounds on keys, so that few pairs of a full list are compared in float64 --------------------

/// Whether a pair comes after `last` for certain, by its rough key.
FASTMINE_DEVICE bool surely_after(const RowSet& x, std::int64_t i, const RowSet& y, std::int64_t j, PairOrder order,
                                  float key, const Mate& last) {
  const KeyRange range = rough_range(x, i, y, j, key);
  return (order == PairOrder::farthest ? -range.high : range.low) > last.value;
}

/// Leave out the candidates that come after the last of a full list for certain; returns how many are left, and where.
template <class S>
FASTMINE_DEVICE int screen_candidates(const Plan<Working<S>>& m, std::int64_t anchor, PairOrder order, const Mate& last,
                                      int count, Candidates& at) {
  constexpr int kTogether = 4;
  for (int first = warp_index() * kTogether; first < count; first += kWarps * kTogether) {
    std::int32_t rows[kTogether];
    float keys[kTogether];
    FASTMINE_UNROLL for (int c = 0; c < kTogether; ++c) { rows[c] = at.rows[first + c < count ? first + c : first]; }
    rough_keys<S>(m.x, anchor, m.y, rows, keys);
    FASTMINE_UNROLL for (int c = 0; c < kTogether; ++c) {
      const bool there = lane_index() == c && first + c < count;
      if (there && !surely_after(m.x, anchor, m.y, rows[c], order, keys[c], last)) {
        at.spare[atomic_next(&at.counts[2])] = rows[c];
      }
    }
  }
  barrier();
  std::int32_t* const left = at.spare;
  at.spare = at.rows;
  at.rows = left;
  return at.counts[2];
}

/// The keys of the candidates, four at a time by a warp, and what they are ranked by.
template <class S>
FASTMINE_DEVICE void compare_candidates(const MinedPlan<Working<S>>& p, const Wanted& wanted, int count,
                                        const Candidates& at) {
  constexpr int kTogether = 4;
  const Plan<Working<S>>& m = p.rows;
  const double nan = static_cast<double>(__builtin_nan(""));
  for (int first = warp_index() * kTogether; first < count; first += kWarps * kTogether) {
    std::int32_t rows[kTogether];
    double keys[kTogether];
    FASTMINE_UNROLL for (int c = 0; c < kTogether; ++c) { rows[c] = at.rows[first + c < count ? first + c : first]; }
    exact_keys<S>(m.x, wanted.anchor, m.y, rows, keys);
    warp_barrier();  // all lanes have read the rows
    FASTMINE_UNROLL for (int c = 0; c < kTogether; ++c) {
      if (lane_index() == c && first + c < count) {
        const double key = poisoned(m.x, wanted.anchor) || poisoned(m.y, rows[c]) ? nan : keys[c];
        at.keys[first + c] = key;
        at.rows[first + c] = rank_pair(p, wanted, rows[c], key, at.values[first + c]) ? rows[c] : -1;
      }
    }
  }
}

/// How many candidates come before a pair.
FASTMINE_DEVICE int candidates_before(const Candidates& at, int count, double value, std::int32_t row) {
  int before = 0;
  for (int c = 0; c < count; ++c) {
    const std::int32_t other = at.rows[c];
    before += other >= 0 && comes_before(at.values[c], other, {value, 0, row}) ? 1 : 0;
  }
  return before;
}

/// How many of a list come before a pair.
FASTMINE_DEVICE std::int64_t listed_before(const Mate* list, std::int64_t length, double value, std::int32_t row) {
  std::int64_t begin = 0, end = length;
  while (begin < end) {
    const std::int64_t middle = begin + (end - begin) / 2;
    if (comes_before(value, row, list[middle])) {
      end = middle;
    } else {
      begin = middle + 1;
    }
  }
  return begin;
}

/// The best pairs of an anchor, at most `last`, in order; returns where they are. `lists` has room for two lists.
template <class S>
FASTMINE_DEVICE Mate* find_pairs(const MinedPlan<Working<S>>& p, const Wanted& wanted, std::int64_t last, Candidates at,
                                 Mate* lists, std::int64_t& length) {
  const PairOrder order = (wanted.positive ? p.problem.positive : p.problem.negative).order;
  const bool by_distance = order == PairOrder::nearest || order == PairOrder::farthest;
  Mate* list = lists;
  Mate* next = lists + p.longest;
  length = 0;
  for (std::int64_t first = 0; first < p.problem.y.n; first += kThreads) {
    if (thread_index() == 0) {
      at.counts[0] = at.counts[1] = at.counts[2] = 0;
    }
    barrier();
    const std::int64_t j = first + thread_index();
    if (j < p.problem.y.n && is_pair(p, wanted.anchor, wanted.itself, j, wanted.positive)) {
      at.rows[atomic_next(&at.counts[0])] = static_cast<std::int32_t>(j);
    }
    barrier();
    int count = at.counts[0];
    if (sizeof(Working<S>) == 4 && by_distance && length == last && last > 0) {
      count = screen_candidates<S>(p.rows, wanted.anchor, order, list[last - 1], count, at);
    }
    compare_candidates<S>(p, wanted, count, at);
    barrier();
    const int own = thread_index();
    const std::int32_t row = own < count ? at.rows[own] : -1;
    const double value = row >= 0 ? at.values[own] : 0, key = row >= 0 ? at.keys[own] : 0;
    const bool taken = row >= 0 && (length < last || comes_before(value, row, list[last - 1]));
    if (taken) {
      atomic_next(&at.counts[1]);
    } else if (own < count) {
      at.rows[own] = -1;
    }
    barrier();
    const std::int64_t longer = length + at.counts[1];
    if (longer > length) {
      if (taken) {
        const std::int64_t place = listed_before(list, length, value, row) + candidates_before(at, count, value, row);
        if (place < last) {
          next[place] = {value, key, row};
        }
      }
      for (std::int64_t k = own; k < length; k += kThreads) {
        const Mate mate = list[k];
        const std::int64_t place = k + candidates_before(at, count, mate.value, mate.row);
        if (place < last) {
          next[place] = mate;
        }
      }
      length = longer < last ? longer : last;
      Mate* const before = list;
      list = next;
      next = before;
    }
    barrier();
  }
  return list;
}

/// The pairs of the wanted ranks, to their places; the first of them for the evidence.
template <class W>
FASTMINE_DEVICE void write_pairs(const MinedPlan<W>& p, bool positive, std::int64_t i, const Mate* list,
                                 std::int64_t length) {
  const MinedSign& sign = positive ? p.problem.positive : p.problem.negative;
  const BatchHard& first = p.rows.problem;
  const std::int64_t ranks = sign.last - sign.first;
  for (std::int64_t k = thread_index(); k < ranks; k += kThreads) {
    const bool found = sign.first + k < length;
    const Mate mate = found ? list[sign.first + k] : Mate{0, 0, 0};
    const double distance = found ? distance_of(mate.key, p.problem.metric) : 0;
    sign.index[i * ranks + k] = mate.row;
    sign.distance[i * ranks + k] = distance;
    sign.found[i * ranks + k] = found;
    if (k == 0) {
      (positive ? first.positive_distance : first.negative_distance)[i] = distance;
      (positive ? first.has_positive : first.has_negative)[i] = found;
    }
  }
}

/// One block: some anchors, one after the other.
template <class S>
FASTMINE_KERNEL(kThreads, 2)
mine_ranks(FASTMINE_PARAMETER MinedPlan<Working<S>> p) {
  FASTMINE_SHARED(double, values, kThreads);
  FASTMINE_SHARED(double, keys, kThreads);
  FASTMINE_SHARED(std::int32_t, rows, kThreads);
  FASTMINE_SHARED(std::int32_t, spare, kThreads);
  FASTMINE_SHARED(std::int32_t, counts, 3);
  const Candidates at{values, keys, rows, spare, counts};
  const MinedPairs& q = p.problem;
  Mate* const lists = p.lists + block_index() * 2 * p.longest;
  for (std::int64_t i = block_index(); i < q.x.n; i += p.blocks) {
    std::int64_t length = 0;
    Wanted wanted{i, own_row(p.rows.problem, i), true, static_cast<double>(__builtin_nan(""))};
    const bool there = takes_part(p.rows.x, i);
    const Mate* list = there ? find_pairs<S>(p, wanted, q.positive.last, at, lists, length) : lists;
    write_pairs(p, true, i, list, length);
    if (q.windowed && length > q.positive.first) {
      wanted.nearest = remoteness(list[q.positive.first].key, q.metric);
    }
    wanted.positive = false;
    length = 0;
    barrier();  // the positives are read
    list = there ? find_pairs<S>(p, wanted, q.negative.last, at, lists, length) : lists;
    write_pairs(p, false, i, list, length);
    barrier();
  }
}

/// One block: the rest of the evidence.
template <class W>
FASTMINE_KERNEL(kThreads, 1)
tell_mined(FASTMINE_PARAMETER MinedPlan<W> p) {
  FASTMINE_SHARED(double, shared, kWarps*(kMinedExtra + 1));
  const MinedPairs& q = p.problem;
  double sums[kMinedExtra + 1] = {};
  for (std::int64_t k = thread_index(); k < q.x.n * (q.positive.last - q.positive.first); k += kThreads) {
    sums[0] += q.positive.found[k] ? 1 : 0;
  }
  for (std::int64_t k = thread_index(); k < q.x.n * (q.negative.last - q.negative.first); k += kThreads) {
    sums[1] += q.negative.found[k] ? 1 : 0;
  }
  for (std::int64_t word = thread_index(); word < p.words; word += kThreads) {
    sums[2] += p.classes[word];
  }
  const double sum = combine_block(sums, shared, [](int, double a, double b) { return a + b; });
  if (thread_index() < kMinedExtra) {
    q.evidence[static_cast<int>(Mining::count) + thread_index()] = sum;
  } else if (thread_index() == kMinedExtra && p.words > 0) {
    q.evidence[static_cast<int>(Mining::classes)] = sum;
  }
}

template <class S>
cudaError_t run_mined(const MinedPairs& q, void* workspace, cudaStream_t stream) {
  using W = Working<S>;
  Arena arena(workspace);
  const MinedPlan<W> p = lay_out_mined<W>(q, arena);
  const std::int64_t n = q.x.n, m = q.y.n, wordy = (n + (q.self ? 0 : m)) * p.words, rows = n > m ? n : m;
  Launches launches(stream);
  if (q.label_sets != nullptr) {
    launches(&pack_sets<W>, divide_up(wordy > rows ? wordy : rows, kThreads), kThreads, p);
  }
  label_rows<S>(launches, p.rows);
  launches(&mine_ranks<S>, p.blocks, kThreads, p);
  launches(&count_labels<W>, p.words, kThreads, p);
  tell_evidence(launches, p.rows);
  launches(&tell_mined<W>, 1, kThreads, p);
  return launches.status();
}

}  // namespace

std::size_t mined_pairs_workspace(const MinedPairs& q) noexcept {
  Arena arena(nullptr);
  if (q.x.dtype == DType::float64) {
    lay_out_mined<double>(q, arena);
  } else {
    lay_out_mined<float>(q, arena);
  }
  return arena.used();
}

cudaError_t mined_pairs(const MinedPairs& q, void* workspace, cudaStream_t stream) noexcept {
  if (q.x.n > kMostMinedRows || q.y.n > kMostMinedRows) {
    return cudaErrorInvalidValue;
  }
  switch (q.x.dtype) {
    case DType::float32:
      return run_mined<float>(q, workspace, stream);
    case DType::float64:
      return run_mined<double>(q, workspace, stream);
    case DType::bfloat16:
      return run_mined<BFloat16>(q, workspace, stream);
    case DType::float16:
      return run_mined<Half>(q, workspace, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace fastmine::cuda
