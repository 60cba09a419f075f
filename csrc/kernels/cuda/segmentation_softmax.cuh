// Multiclass: a softmax over the classes of each position. A thread keeps a few neighbouring positions and walks the
// classes; neighbouring threads read neighbouring positions.
//
// About the largest logit m: e_k = exp(x_k - m), s = the sum of all e_k but the largest itself, so that the total is
// 1 + s, and log(1 + s) and 1 - p_y keep their digits where one class takes all.
#pragma once

#include "kernels/cuda/segmentation_tasks.cuh"

namespace fastmine::cuda {

/// Positions of one thread. Where invalid, every logit counts as 0 and there is no target. `kMerges`: a class may be
/// merged into class 0, which then has the logit of all of them, and the class itself one of which no exponential is
/// left; nothing else knows.
template <class S, bool kMerges>
struct Positions {
  using T = Working<S>;
  static constexpr int kItems = SoftmaxShape::kItems;

  const SegmentationInputs& in;
  std::int64_t sample, position, n;
  unsigned valid;
  bool merging;                        // whether the sample has merged classes
  int target[kItems];                  // class; -1 where invalid or no class
  T background[kMerges ? kItems : 1];  // where merging: the logit of class 0
  T largest[kItems];
  int largest_class[kItems];  // -1 if all are NaN or -Inf
  T target_logit[kItems];
  T others[kItems];   // s
  T inverse[kItems];  // 1 / (1 + s)

  FASTMINE_DEVICE bool live(int i) const { return (valid >> i & 1U) != 0; }

  FASTMINE_DEVICE bool is_merged(std::int64_t k) const {
    return kMerges && merging && segmentation::is_merged(in, sample, k);
  }
  /// Whether the logit of class k is not its own.
  FASTMINE_DEVICE bool is_background(std::int64_t k) const { return kMerges && merging && (k == 0 || is_merged(k)); }

  FASTMINE_DEVICE void load_logits(std::int64_t k, T (&x)[kItems]) const {
    if constexpr (kMerges) {
      if (is_background(k)) {
        FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) { x[i] = k == 0 ? background[i] : -kLargest<T>; }
        return;
      }
    }
    load_raw(k, x);
  }

  FASTMINE_DEVICE void load_raw(std::int64_t k, T (&x)[kItems]) const {
    const auto pack = load<S, kItems>(at<S>(in.logits, sample, k, position), in.logits.stride[2], n);
    FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) { x[i] = live(i) ? value_of<T>(pack.item[i]) : T{0}; }
  }
};

/// Class indices as a thread meets them.
struct ClassRange {
  std::int64_t low = INT64_MAX, high = INT64_MIN;
  int outside = 0;
};

/// The positions from `position` on that a thread works on, up to the end of the task, with their targets.
template <class S, bool kMerges>
FASTMINE_DEVICE Positions<S, kMerges> positions_of(const SegmentationInputs& in, const Task& task,
                                                   std::int64_t position, bool merging, ClassRange& range) {
  constexpr int kItems = SoftmaxShape::kItems;
  const std::int64_t n = task.end - position < 0 ? 0 : task.end - position;
  const unsigned valid = n == 0 ? 0U : validity<kItems>(in.valid, task.sample, 0, position, n);
  Positions<S, kMerges> at_hand{in, task.sample, position, n, valid, merging, {}, {}, {}, {}, {}, {}, {}};
  if (n == 0) {
    FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) { at_hand.target[i] = -1; }
    return at_hand;
  }
  with_integer_type(in.target.dtype, [&](auto tag) {
    using Stored = decltype(tag);
    const auto pack = load<Stored, kItems>(at<Stored>(in.target, task.sample, 0, position), in.target.stride[2], n);
    FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
      at_hand.target[i] = -1;
      at_hand.valid &= is_ignored(in, pack.item[i]) ? ~(1U << i) : ~0U;
      if (at_hand.live(i)) {
        const auto y = value_of<std::int64_t>(pack.item[i]);
        const bool inside = y >= 0 && y < in.classes;
        range.low = smaller(range.low, y);
        range.high = larger(range.high, y);
        range.outside += inside ? 0 : 1;
        at_hand.target[i] = !inside ? -1 : at_hand.is_merged(y) ? 0 : static_cast<int>(y);
      }
    }
  });
  return at_hand;
}

/// Before the first walk, where classes are merged: the logit of all that are class 0, the logarithm of the sum of
/// their exponentials. `see` gets every valid logit of them.
template <class S, class F>
FASTMINE_DEVICE void find_background(Positions<S, true>& at_hand, F see) {
  using T = Working<S>;
  constexpr int kItems = SoftmaxShape::kItems;
  T sum[kItems] = {};  // about the largest, without it
  for (std::int64_t k = 0; k < at_hand.in.classes; ++k) {
    if (k > 0 && !at_hand.is_merged(k)) {
      continue;
    }
    T x[kItems];
    at_hand.load_raw(k, x);
    FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
      if (at_hand.live(i)) {
        see(x[i]);
      }
      if (k == 0) {
        at_hand.background[i] = x[i];
        continue;
      }
      const T before = at_hand.background[i];
      const bool more = x[i] > before;
      const T e = exponential(more ? before - x[i] : x[i] - before);
      at_hand.background[i] = more ? x[i] : before;
      sum[i] = more ? (1 + sum[i]) * e : sum[i] + e;
    }
  }
  FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) { at_hand.background[i] += log1p_positive(sum[i]); }
}

/// First walk: the largest logit and that of the target; `see` gets every valid logit.
template <class S, bool kMerges, class F>
FASTMINE_DEVICE void find_largest(Positions<S, kMerges>& at_hand, F see) {
  using T = Working<S>;
  constexpr int kItems = SoftmaxShape::kItems;
  if constexpr (kMerges) {
    if (at_hand.merging) {
      find_background(at_hand, see);
    }
  }
  FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
    at_hand.largest[i] = -static_cast<T>(segmentation::kInf);
    at_hand.largest_class[i] = -1;
    at_hand.target_logit[i] = 0;
  }
  for (std::int64_t k = 0; k < at_hand.in.classes; ++k) {
    const bool seen = at_hand.is_background(k);
    T x[kItems];
    at_hand.load_logits(k, x);
    FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
      if (x[i] > at_hand.largest[i]) {
        at_hand.largest[i] = x[i];
        at_hand.largest_class[i] = static_cast<int>(k);
      }
      at_hand.target_logit[i] = k == at_hand.target[i] ? x[i] : at_hand.target_logit[i];
      if (at_hand.live(i) && !seen) {
        see(x[i]);
      }
    }
  }
}

/// Second walk: the others' sum; `see(k, i, e, look_up(k))` gets every e_k but the largest.
template <class S, bool kMerges, class F, class G>
FASTMINE_DEVICE void add_others(Positions<S, kMerges>& at_hand, F look_up, G see) {
  using T = Working<S>;
  constexpr int kItems = SoftmaxShape::kItems;
  FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
    at_hand.others[i] = at_hand.largest[i] - at_hand.largest[i];  // NaN where the largest is infinite
  }
  for (std::int64_t k = 0; k < at_hand.in.classes; ++k) {
    T x[kItems];
    at_hand.load_logits(k, x);
    const auto own = look_up(k);
    FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
      const T e = exponential(x[i] - at_hand.largest[i]);
      if (k != at_hand.largest_class[i]) {
        at_hand.others[i] += e;
        see(k, i, e, own);
      }
    }
  }
  FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) { at_hand.inverse[i] = reciprocal(1 + at_hand.others[i]); }
}

template <class S, bool kMerges>
FASTMINE_DEVICE void add_others(Positions<S, kMerges>& at_hand) {
  add_others(at_hand, [](std::int64_t) { return 0; }, [](std::int64_t, int, Working<S>, int) {});
}

/// p_y, 1 - p_y and log p_y at a position with a target.
template <class T>
struct TargetShare {
  T p, q, log_p;
};

template <class S, bool kMerges>
FASTMINE_DEVICE TargetShare<Working<S>> target_share(const Positions<S, kMerges>& at_hand, int i) {
  using T = Working<S>;
  const T s = at_hand.others[i], below = at_hand.target_logit[i] - at_hand.largest[i];
  const T e = exponential(below);
  const T others = at_hand.target[i] == at_hand.largest_class[i] ? s : 1 + s - e;
  return {e * at_hand.inverse[i], others * at_hand.inverse[i], below - log1p_positive(s)};
}

template <class T>
FASTMINE_DEVICE T raise_complement(Power power, T q, T gamma) {
  return raise(power, q, power == Power::any ? smaller(logarithm(q), T{0}) : T{0}, gamma);
}

/// Whether any class of a sample is part of its class 0.
FASTMINE_DEVICE bool any_merged(const SegmentationInputs& in, std::int64_t sample) {
  for (std::int64_t k = 1; in.merged != nullptr && k < in.classes; ++k) {
    if (segmentation::is_merged(in, sample, k)) {
      return true;
    }
  }
  return false;
}

/// Cross entropy and focal term of the positions of a thread, 0 where there is no target; and log(1 + s) of each.
template <class T>
struct Entropies {
  T cross_entropy[SoftmaxShape::kItems] = {}, focal[SoftmaxShape::kItems] = {}, log_total[SoftmaxShape::kItems] = {};
};

template <class S, bool kMerges>
FASTMINE_DEVICE Entropies<Working<S>> entropies_of(const Positions<S, kMerges>& at_hand, const Asked& asked,
                                                   Power power) {
  using T = Working<S>;
  Entropies<T> each;
  FASTMINE_UNROLL for (int i = 0; i < SoftmaxShape::kItems; ++i) {
    if (asked.entropy && at_hand.target[i] >= 0) {
      const TargetShare<T> share = target_share(at_hand, i);
      each.cross_entropy[i] = -share.log_p;
      if (asked.focal) {
        each.focal[i] = raise_complement(power, share.q, static_cast<T>(asked.alpha.gamma)) * -share.log_p;
      }
    }
    if (asked.linear && at_hand.valid != 0) {
      each.log_total[i] = log1p_positive(at_hand.others[i]);
    }
  }
  return each;
}

/// Third walk: what the positions of a thread add to the sums of class k, in the order of Group.
template <class Group, class S, bool kMerges>
FASTMINE_DEVICE void add_class(const Positions<S, kMerges>& at_hand, std::int64_t k,
                               const Entropies<Working<S>>& entropies, const Asked& asked,
                               Working<S> (&sums)[kGroupColumns<Group>]) {
  using T = Working<S>;
  constexpr int kItems = SoftmaxShape::kItems;
  using Sum = SegmentationSum;
  constexpr int kFirst = kAllSums<Group> ? static_cast<int>(Sum::t) : 0;
  const auto sum = [&](Sum which) -> T& { return sums[static_cast<int>(which)]; };
  T x[kItems];
  at_hand.load_logits(k, x);
  FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
    const T p = at_hand.live(i) ? exponential(x[i] - at_hand.largest[i]) * at_hand.inverse[i] : T{0};
    const bool on = at_hand.target[i] == k;
    sums[kFirst] += on ? T{1} : T{0};
    sums[kFirst + 1] += p;
    sums[kFirst + 2] += on ? p : T{0};
    if constexpr (kAllSums<Group>) {
      sum(Sum::e1) += on ? entropies.cross_entropy[i] : T{0};
      sum(Sum::f1) += on ? entropies.focal[i] : T{0};
      if (asked.shape) {
        // Only the largest p is close to 1, and 1 - p keeps its digits there.
        const T q = k == at_hand.largest_class[i] ? at_hand.others[i] * at_hand.inverse[i] : 1 - p;
        sum(Sum::pp) += p * p;
        sum(Sum::g1) += on ? p * q : T{0};
        sum(Sum::g0) += on ? T{0} : p * q;
      }
      if (asked.linear && at_hand.live(i)) {
        sum(Sum::x) += (at_hand.largest[i] - x[i]) + entropies.log_total[i];
      }
    }
  }
}

/// What a block found beside the sums of its classes: the part of its run.
template <class T>
FASTMINE_DEVICE void write_part(int items, double cross_entropy_sum, double focal_sum, const ClassRange& targets,
                                const LogitRange<T>& logits, double* out) {
  double columns[kPartColumns] = {static_cast<double>(items),
                                  cross_entropy_sum,
                                  focal_sum,
                                  items > 0 ? static_cast<double>(targets.low) : segmentation::kInf,
                                  items > 0 ? static_cast<double>(targets.high) : -segmentation::kInf,
                                  logits.range.least(),
                                  logits.range.most(),
                                  static_cast<double>(logits.nonfinite),
                                  static_cast<double>(targets.outside)};
  add_threads<SoftmaxShape::kThreads>(columns, out);
}

/// One block: the sums over a run of positions of one sample, for all its classes.
template <class S, class Group>
FASTMINE_KERNEL(SoftmaxShape::kThreads, kAllSums<Group>           ? 3
                                        : sizeof(Working<S>) == 8 ? 4
                                                                  : 6)
softmax_sums(FASTMINE_PARAMETER ForwardWork work) {
  using T = Working<S>;
  constexpr bool kMerges = kAllSums<Group>;
  constexpr int kThreads = SoftmaxShape::kThreads, kItems = SoftmaxShape::kItems, kWarps = kThreads / kWarp;
  constexpr int kColumns = kGroupColumns<Group>, kPadded = kAllSums<Group> ? 16 : 4;
  constexpr int kTile = kThreads / kPadded;  // classes at a time
  FASTMINE_SHARED(T, found, kWarps * kThreads);
  const SegmentationInputs& in = work.in;
  const Task task = task_of(work.cut, in);
  double* const out = work.parts + block_index() * work.cut.columns;
  const Power power = power_of(work.asked.alpha.gamma);
  const bool merging = kMerges && any_merged(in, task.sample);
  const int lane = thread_index() % kWarp, warp = thread_index() / kWarp;
  double cross_entropy_sum = 0, focal_sum = 0;
  ClassRange targets;
  LogitRange<T> logits;
  int items = 0;
  // At least once, so that a row without positions leaves zeros.
  std::int64_t begin = task.begin;
  do {
    auto at_hand = positions_of<S, kMerges>(in, task, begin + thread_index() * kItems, merging, targets);
    if (at_hand.valid != 0) {
      find_largest(at_hand, [&](T x) { logits.add(x); });
      add_others(at_hand);
    }
    const Entropies<T> entropies = entropies_of(at_hand, work.asked, power);
    FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
      items += at_hand.live(i) ? 1 : 0;
      cross_entropy_sum += static_cast<double>(entropies.cross_entropy[i]);
      focal_sum += static_cast<double>(entropies.focal[i]);
    }
    for (std::int64_t first = 0; first < in.classes; first += kTile) {
      const int classes = static_cast<int>(smaller(in.classes - first, static_cast<std::int64_t>(kTile)));
      for (int c = 0; c < classes; ++c) {
        T sums[kColumns] = {};
        if (at_hand.valid != 0 && !at_hand.is_merged(first + c)) {
          add_class<Group>(at_hand, first + c, entropies, work.asked, sums);
        }
        T columns[kPadded] = {};
        FASTMINE_UNROLL for (int i = 0; i < kColumns; ++i) { columns[i] = sums[i]; }
        const T sum = add_columns(columns);
        if (lane % (kWarp / kPadded) == 0) {
          found[warp * kThreads + c * kPadded + lane / (kWarp / kPadded)] = sum;
        }
      }
      barrier();
      const int column = thread_index() % kPadded;
      if (thread_index() < classes * kPadded && column < kColumns) {
        double sum = 0;
        for (int w = 0; w < kWarps; ++w) {
          sum += static_cast<double>(found[w * kThreads + thread_index()]);
        }
        double* const total = out + kPartColumns + (first + thread_index() / kPadded) * kColumns + column;
        *total = begin == task.begin ? sum : *total + sum;
      }
      barrier();
    }
    begin += kThreads * kItems;
  } while (begin < task.end);
  write_part(items, cross_entropy_sum, focal_sum, targets, logits, out);
}

}  // namespace fastmine::cuda
