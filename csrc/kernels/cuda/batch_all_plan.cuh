// What the batch-all triplet loss and its gradient share: the positives of an anchor in order, and the ranks of its
// negatives among them.
//
// An anchor's distances are spoken of as closeness: the distance, or minus a similarity.
#pragma once

#include "kernels/batch_all.h"
#include "kernels/cuda/math.h"
#include "kernels/cuda/rough_keys.cuh"
#include "kernels/cuda/row_block.cuh"

namespace fastmine::cuda::mining {

/// Fewer blocks at work than this leave multiprocessors idle; in the emulator few, so that there are several waves.
#ifdef FASTMINE_EMULATE_CUDA
inline constexpr std::int64_t kFewestWorkers = 17, kWorkerBytes = 1;
#else
inline constexpr std::int64_t kFewestWorkers = 132, kWorkerBytes = std::int64_t{256} << 20;
#endif

/// A positive of an anchor.
struct Near {
  double closeness;
  std::int32_t row;
};

/// What each of some blocks, numbered from 0, works in.
struct Workers {
  std::int64_t count, references;
  Near* unsorted;          // [count, references]
  Near* sorted;            // [count, references]: ascending
  std::uint64_t* changes;  // [count, references + 1]: what the count below a threshold has more than that before it
};

inline Workers lay_out_workers(Arena& arena, std::int64_t anchors, std::int64_t references) {
  constexpr std::int64_t kBytes = 2 * sizeof(Near) + sizeof(std::uint64_t);
  const std::int64_t room = kWorkerBytes / (kBytes * (references > 0 ? references : 1));
  const std::int64_t most = room < kFewestWorkers ? kFewestWorkers : room < kMostBlocks ? room : kMostBlocks;
  Workers w{};
  w.count = anchors < most ? anchors : most;
  w.references = references;
  w.unsorted = arena.take<Near>(w.count * references);
  w.sorted = arena.take<Near>(w.count * references);
  w.changes = arena.take<std::uint64_t>(w.count * (references + 1));
  return w;
}

/// Shared memory of a block.
struct RankMemory {
  std::int32_t* rows;    // [kThreads]: references at hand
  double* keys;          // [kThreads]
  std::int32_t* counts;  // [kWarps]: of those, by the warp that found them
  std::int32_t* places;  // [kThreads]: where those are that float32 does not settle
  std::int32_t* open;    // how many these are
};

/// An anchor and its candidates so far.
struct Ranked {
  std::int64_t anchor;
  const Near* positives;  // ascending
  std::int64_t count;

  /// How many positives, each plus the margin, a closeness has met, so that they are not above it.
  FASTMINE_DEVICE std::int64_t met(double closeness, double margin) const {
    std::int64_t begin = 0, end = count;
    while (begin < end) {
      const std::int64_t middle = begin + (end - begin) / 2;
      if (positives[middle].closeness + margin <= closeness) {
        begin = middle + 1;
      } else {
        end = middle;
      }
    }
    return begin;
  }
};

/// What a negative must be farther than a positive by, for their triplet not to count.
FASTMINE_DEVICE double margin_of(const BatchAll& q) { return q.kind == Triplets::hard ? 0 : q.margin; }

FASTMINE_DEVICE double closeness_of(double key, Metric metric) {
  return metric == Metric::dot ? 0.5 * key : distance_of(key, metric);
}

/// The keys of some candidates in float64, four at a time by a warp: of those whose places are listed or, without a
/// list, of the first `count`.
template <class S>
FASTMINE_DEVICE void compare_exactly(const Plan<Working<S>>& m, std::int64_t i, const std::int32_t* list, int count,
                                     const RankMemory& at) {
  constexpr int kTogether = 4;
  const auto place = [list](int c) { return list == nullptr ? c : list[c]; };
  for (int c = warp_index() * kTogether; c < count; c += kWarps * kTogether) {
    std::int32_t rows[kTogether];
    double keys[kTogether];
    FASTMINE_UNROLL for (int k = 0; k < kTogether; ++k) { rows[k] = at.rows[place(c + k < count ? c + k : c)]; }
    exact_keys<S>(m.x, i, m.y, rows, keys);
    FASTMINE_UNROLL for (int k = 0; k < kTogether; ++k) {
      if (lane_index() == k && c + k < count) {
        at.keys[place(c + k)] = keys[k];
      }
    }
  }
  barrier();
}

/// The same in float32.
template <class S>
FASTMINE_DEVICE void compare_roughly(const Plan<Working<S>>& m, std::int64_t i, int count, const RankMemory& at) {
  constexpr int kTogether = 4;
  for (int c = warp_index() * kTogether; c < count; c += kWarps * kTogether) {
    std::int32_t rows[kTogether];
    float keys[kTogether];
    FASTMINE_UNROLL for (int k = 0; k < kTogether; ++k) { rows[k] = at.rows[c + k < count ? c + k : c]; }
    rough_keys<S>(m.x, i, m.y, rows, keys);
    FASTMINE_UNROLL for (int k = 0; k < kTogether; ++k) {
      if (lane_index() == k && c + k < count) {
        at.keys[c + k] = static_cast<double>(keys[k]);
      }
    }
  }
  barrier();
}

/// How far a rough key may be from the key, by its bound, as a part of it, to be taken instead.
inline constexpr double kPrecise = 0x1p-16;

/// Whether distances may be taken in float32 where that settles what they count for. Similarities may be far larger
/// than their differences.
template <class S>
FASTMINE_DEVICE bool may_be_rough(Metric metric) {
  return sizeof(Working<S>) == 4 && metric != Metric::dot;
}

/// f(row, closeness) for each positive of anchor i, or each negative: by one thread each, and always the same one. All
/// threads call it; it begins and ends with a barrier. Where settled(low, high) holds of the bounds on a closeness,
/// float32 is enough.
template <class S, class G, class F>
FASTMINE_DEVICE void each_candidate(const Plan<Working<S>>& m, std::int64_t i, bool positive, const RankMemory& at,
                                    G settled, F f) {
  const BatchHard& q = m.problem;
  const std::int64_t label = q.labels[i], itself = own_row(q, i);
  const bool rough = !positive && may_be_rough<S>(q.metric);
  for (std::int64_t first = 0; first < q.y.n; first += kThreads) {
    const std::int64_t j = first + thread_index();
    const bool there =
        j < q.y.n && takes_part(m.y, j) && (q.ref_labels[j] == label) == positive && !(positive && j == itself);
    const unsigned found = ballot(there);
    barrier();
    if (lane_index() == 0) {
      at.counts[warp_index()] = count_bits(found);
    }
    if (thread_index() == 0) {
      *at.open = 0;
    }
    barrier();
    int place = count_bits(found & ((1U << lane_index()) - 1)), count = 0;
    for (int warp = 0; warp < kWarps; ++warp) {
      place += warp < warp_index() ? at.counts[warp] : 0;
      count += at.counts[warp];
    }
    if (there) {
      at.rows[place] = static_cast<std::int32_t>(j);
    }
    barrier();
    if (rough) {
      compare_roughly<S>(m, i, count, at);
      if (thread_index() < count) {
        const double key = at.keys[thread_index()];
        const KeyRange range = rough_range(m.x, i, m.y, at.rows[thread_index()], static_cast<float>(key));
        const bool precise = range.high - key <= kPrecise * key;
        if (!precise || !settled(closeness_of(range.low, q.metric), closeness_of(range.high, q.metric))) {
          at.places[atomic_next(at.open)] = thread_index();
        }
      }
      barrier();
    }
    compare_exactly<S>(m, i, rough ? at.places : nullptr, rough ? *at.open : count, at);
    if (thread_index() < count) {
      f(at.rows[thread_index()], closeness_of(at.keys[thread_index()], q.metric));
    }
  }
  barrier();
}

/// The negatives of an anchor: settled where both bounds have met the same positives.
template <class S, class F>
FASTMINE_DEVICE void each_negative(const Plan<Working<S>>& m, const BatchAll& q, const Ranked& anchor,
                                   const RankMemory& at, F f) {
  const auto settled = [&](double low, double high) {
    return anchor.met(low, margin_of(q)) == anchor.met(high, margin_of(q)) &&
           (q.kind != Triplets::semi_hard || anchor.met(low, 0) == anchor.met(high, 0));
  };
  each_candidate<S>(m, anchor.anchor, false, at, settled, f);
}

/// The positives of anchor i, in order, by a block; and no negative ranked yet.
template <class S>
FASTMINE_DEVICE Ranked find_positives(const Plan<Working<S>>& m, const Workers& w, std::int64_t worker, std::int64_t i,
                                      std::int32_t* found, const RankMemory& at) {
  Near* const unsorted = w.unsorted + worker * w.references;
  Near* const sorted = w.sorted + worker * w.references;
  std::uint64_t* const changes = w.changes + worker * (w.references + 1);
  barrier();
  if (thread_index() == 0) {
    *found = 0;
  }
  each_candidate<S>(
      m, i, true, at, [](double, double) { return false; },
      [&](std::int32_t row, double closeness) { unsorted[atomic_next(found)] = {closeness, row}; });
  const std::int64_t count = *found;
  for (std::int64_t k = thread_index(); k < count; k += kThreads) {
    const Near own = unsorted[k];
    std::int64_t place = 0;
    for (std::int64_t other = 0; other < count; ++other) {
      const Near& near = unsorted[other];
      place += near.closeness < own.closeness || (near.closeness == own.closeness && near.row < own.row) ? 1 : 0;
    }
    sorted[place] = own;
  }
  for (std::int64_t k = thread_index(); k <= count; k += kThreads) {
    changes[k] = 0;
  }
  barrier();
  return {i, sorted, count};
}

/// In how many triplets that count a negative of this closeness is; they are entered in the changes.
FASTMINE_DEVICE std::int64_t rank_negative(const BatchAll& q, const Ranked& anchor, std::uint64_t* changes,
                                           double closeness) {
  const std::int64_t met = anchor.met(closeness, margin_of(q));
  atomic_count(changes + met, 1);
  if (q.kind != Triplets::semi_hard) {
    return anchor.count - met;
  }
  const std::int64_t nearer = anchor.met(closeness, 0);
  atomic_count(changes + nearer, -1);
  return nearer - met;
}

/// f(k, in how many triplets that count it is) for the positives, by some thread each; all threads call it, after a
/// barrier. `sums` is shared, [kThreads].
template <class F>
FASTMINE_DEVICE void each_positive(const Ranked& anchor, const std::uint64_t* changes, std::uint64_t* sums, F f) {
  const std::int64_t share = divide_up(anchor.count, kThreads), begin = thread_index() * share;
  const std::int64_t end = begin + share < anchor.count ? begin + share : anchor.count;
  std::uint64_t sum = 0;
  for (std::int64_t k = begin; k < end; ++k) {
    sum += changes[k];
  }
  sums[thread_index()] = sum;
  barrier();
  std::uint64_t below = 0;
  for (int thread = 0; thread < thread_index(); ++thread) {
    below += sums[thread];
  }
  for (std::int64_t k = begin; k < end; ++k) {
    below += changes[k];
    f(k, static_cast<std::int64_t>(below));
  }
  barrier();
}

}  // namespace fastmine::cuda::mining
