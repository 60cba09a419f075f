// Multiclass: a softmax over the classes of each position. A thread keeps a few neighbouring positions and walks the
// classes; neighbouring threads read neighbouring positions.
//
// About the largest logit m: e_k = exp(x_k - m), s = the sum of all e_k but the largest itself, so that the total is
// 1 + s, and log(1 + s) and 1 - p_y keep their digits where one class takes all.
#pragma once

#include "kernels/cuda/segmentation_tasks.cuh"

namespace fastmine::cuda {

/// Positions of one thread. Where invalid, every logit counts as 0 and there is no target.
template <class S>
struct Positions {
  using T = Working<S>;
  static constexpr int kItems = SoftmaxShape::kItems;

  const SegmentationInputs& in;
  std::int64_t sample, position, n;
  unsigned valid;
  int target[kItems];  // class; -1 where invalid or no class
  T largest[kItems];
  int largest_class[kItems];  // -1 if all are NaN or -Inf
  T target_logit[kItems];
  T others[kItems];   // s
  T inverse[kItems];  // 1 / (1 + s)

  FASTMINE_DEVICE bool live(int i) const { return (valid >> i & 1U) != 0; }

  FASTMINE_DEVICE void load_logits(std::int64_t k, T (&x)[kItems]) const {
    const auto pack = load<S, kItems>(at<S>(in.logits, sample, k, position), in.logits.stride[2], n);
    FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) { x[i] = live(i) ? value_of<T>(pack.item[i]) : T{0}; }
  }
};

/// Class indices as a thread meets them.
struct ClassRange {
  std::int64_t low = INT64_MAX, high = INT64_MIN;
  int outside = 0;
};

/// The positions from `position` on that a thread works on, up to `end`, with their targets.
template <class S>
FASTMINE_DEVICE Positions<S> positions_of(const SegmentationInputs& in, const Task& task, std::int64_t position,
                                          ClassRange& range) {
  constexpr int kItems = SoftmaxShape::kItems;
  const std::int64_t n = task.end - position < 0 ? 0 : task.end - position;
  Positions<S> at_hand{
      in, task.sample, position, n, n == 0 ? 0U : validity<kItems>(in.valid, task.sample, 0, position, n), {}, {},
      {}, {},          {},       {}};
  if (n == 0) {
    FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) { at_hand.target[i] = -1; }
    return at_hand;
  }
  with_integer_type(in.target.dtype, [&](auto tag) {
    using Stored = decltype(tag);
    const auto pack = load<Stored, kItems>(at<Stored>(in.target, task.sample, 0, position), in.target.stride[2], n);
    FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
      at_hand.target[i] = -1;
      if (at_hand.live(i)) {
        const auto y = value_of<std::int64_t>(pack.item[i]);
        const bool inside = y >= 0 && y < in.classes;
        range.low = smaller(range.low, y);
        range.high = larger(range.high, y);
        range.outside += inside ? 0 : 1;
        at_hand.target[i] = inside ? static_cast<int>(y) : -1;
      }
    }
  });
  return at_hand;
}

/// First walk: the largest logit and that of the target; `see` gets every valid logit.
template <class S, class F>
FASTMINE_DEVICE void find_largest(Positions<S>& at_hand, F see) {
  using T = Working<S>;
  constexpr int kItems = SoftmaxShape::kItems;
  FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
    at_hand.largest[i] = -static_cast<T>(segmentation::kInf);
    at_hand.largest_class[i] = -1;
    at_hand.target_logit[i] = 0;
  }
  for (std::int64_t k = 0; k < at_hand.in.classes; ++k) {
    T x[kItems];
    at_hand.load_logits(k, x);
    FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
      if (x[i] > at_hand.largest[i]) {
        at_hand.largest[i] = x[i];
        at_hand.largest_class[i] = static_cast<int>(k);
      }
      at_hand.target_logit[i] = k == at_hand.target[i] ? x[i] : at_hand.target_logit[i];
      if (at_hand.live(i)) {
        see(x[i]);
      }
    }
  }
}

/// Second walk: the others' sum; `see(k, i, e)` gets every e_k but the largest.
template <class S, class F>
FASTMINE_DEVICE void add_others(Positions<S>& at_hand, F see) {
  using T = Working<S>;
  constexpr int kItems = SoftmaxShape::kItems;
  FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
    at_hand.others[i] = at_hand.largest[i] - at_hand.largest[i];  // NaN where the largest is infinite
  }
  for (std::int64_t k = 0; k < at_hand.in.classes; ++k) {
    T x[kItems];
    at_hand.load_logits(k, x);
    FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
      const T e = exponential(x[i] - at_hand.largest[i]);
      if (k != at_hand.largest_class[i]) {
        at_hand.others[i] += e;
        see(k, i, e);
      }
    }
  }
  FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) { at_hand.inverse[i] = reciprocal(1 + at_hand.others[i]); }
}

/// p_y, 1 - p_y and log p_y at a position with a target.
template <class T>
struct TargetShare {
  T p, q, log_p;
};

template <class S>
FASTMINE_DEVICE TargetShare<Working<S>> target_share(const Positions<S>& at_hand, int i) {
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

/// One block: the sums over a run of positions of one sample, for all its classes.
template <class S>
FASTMINE_KERNEL(SoftmaxShape::kThreads, sizeof(Working<S>) == 8 ? 4 : 6)
softmax_sums(FASTMINE_PARAMETER ForwardWork work) {
  using T = Working<S>;
  constexpr int kThreads = SoftmaxShape::kThreads, kItems = SoftmaxShape::kItems, kWarps = kThreads / kWarp;
  constexpr int kTile = 32, kFound = kTile * kGroupColumns;  // classes at a time; numbers of those
  static_assert(kFound <= kThreads);
  FASTMINE_SHARED(T, found, kWarps * kFound);
  const SegmentationInputs& in = work.problem.in;
  const Task task = task_of(work.cut, in);
  double* const out = work.parts + block_index() * work.cut.columns;
  const bool focal = work.problem.weights[segmentation::kFocal] != 0;
  const bool entropy = focal || work.problem.weights[segmentation::index(SegmentationTerm::ce)] != 0;
  const Power power = power_of(work.problem.focal.gamma);
  const T gamma = static_cast<T>(work.problem.focal.gamma);
  const int lane = thread_index() % kWarp, warp = thread_index() / kWarp;
  double cross_entropy_sum = 0, focal_sum = 0;
  ClassRange targets;
  LogitRange<T> logits;
  int items = 0;
  // At least once, so that a row without positions leaves zeros.
  std::int64_t begin = task.begin;
  do {
    Positions<S> at_hand = positions_of<S>(in, task, begin + thread_index() * kItems, targets);
    if (at_hand.valid != 0) {
      find_largest(at_hand, [&](T x) { logits.add(x); });
      add_others(at_hand, [](std::int64_t, int, T) {});
    }
    FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
      items += at_hand.live(i) ? 1 : 0;
      if (entropy && at_hand.target[i] >= 0) {
        const TargetShare<T> share = target_share(at_hand, i);
        cross_entropy_sum -= static_cast<double>(share.log_p);
        if (focal) {
          focal_sum -= static_cast<double>(raise_complement(power, share.q, gamma) * share.log_p);
        }
      }
    }
    for (std::int64_t first = 0; first < in.classes; first += kTile) {
      const int classes = static_cast<int>(smaller(in.classes - first, static_cast<std::int64_t>(kTile)));
      for (int c = 0; c < classes; ++c) {
        T sums[kGroupColumns] = {};  // as in SegmentationGroup
        if (at_hand.valid != 0) {
          T x[kItems];
          at_hand.load_logits(first + c, x);
          FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
            const T p = at_hand.live(i) ? exponential(x[i] - at_hand.largest[i]) * at_hand.inverse[i] : T{0};
            const bool on = at_hand.target[i] == first + c;
            sums[0] += on ? T{1} : T{0};
            sums[1] += p;
            sums[2] += on ? p : T{0};
          }
        }
        FASTMINE_UNROLL for (int distance = kWarp / 2; distance > 0; distance /= 2) {
          T others[kGroupColumns];
          shuffle_down(sums, distance, others);
          FASTMINE_UNROLL for (int i = 0; i < kGroupColumns; ++i) { sums[i] += others[i]; }
        }
        if (lane == 0) {
          FASTMINE_UNROLL for (int i = 0; i < kGroupColumns; ++i) {
            found[warp * kFound + c * kGroupColumns + i] = sums[i];
          }
        }
      }
      barrier();
      if (thread_index() < classes * kGroupColumns) {
        double sum = 0;
        for (int w = 0; w < kWarps; ++w) {
          sum += static_cast<double>(found[w * kFound + thread_index()]);
        }
        double* const column = out + kPartColumns + first * kGroupColumns + thread_index();
        *column = begin == task.begin ? sum : *column + sum;
      }
      barrier();
    }
    begin += kThreads * kItems;
  } while (begin < task.end);
  double columns[kPartColumns] = {static_cast<double>(items),
                                  cross_entropy_sum,
                                  focal_sum,
                                  items > 0 ? static_cast<double>(targets.low) : segmentation::kInf,
                                  items > 0 ? static_cast<double>(targets.high) : -segmentation::kInf,
                                  logits.range.least(),
                                  logits.range.most(),
                                  static_cast<double>(logits.nonfinite),
                                  static_cast<double>(targets.outside)};
  add_threads<kThreads>(columns, out);
}

/// A class's coefficients times the gradient of the loss: its slope by a probability is on_target t + everywhere.
template <class T>
struct SoftmaxSlopes {
  T on_target, everywhere;

  FASTMINE_DEVICE T at(bool on) const { return everywhere + (on ? on_target : T{0}); }
};

template <class T>
FASTMINE_DEVICE SoftmaxSlopes<T> softmax_slopes(const double* coefficients, std::int64_t k, double grad) {
  return {static_cast<T>(coefficients[k * 4] * grad), static_cast<T>(coefficients[k * 4 + 1] * grad)};
}

/// One block: the gradient of a run of positions of one sample, for all its classes.
template <class S>
FASTMINE_KERNEL(SoftmaxShape::kThreads, sizeof(Working<S>) == 8 ? 4 : 6)
softmax_gradient(FASTMINE_PARAMETER BackwardWork work) {
  using T = Working<S>;
  constexpr int kItems = SoftmaxShape::kItems;
  const SegmentationInputs& in = work.problem.in;
  const Task task = task_of(work.cut, in);
  const double* const coefficients = work.problem.coefficients + task.sample * in.classes * 4;
  const double grad = upstream(work.problem, task.sample);
  // The scales of the pointwise terms are those of the sample: the same for all its classes.
  const T cross_entropy = static_cast<T>(coefficients[2] * grad);
  const T focal_scale = static_cast<T>(coefficients[3] * grad);
  const Power power = power_of(work.problem.focal.gamma);
  const T gamma = static_cast<T>(work.problem.focal.gamma);
  S* const out = static_cast<S*>(work.problem.grad_logits) + task.sample * in.classes * in.positions;
  for (std::int64_t position = task.begin + thread_index() * kItems; position < task.end;
       position += SoftmaxShape::kThreads * kItems) {
    ClassRange unused;
    Positions<S> at_hand = positions_of<S>(in, task, position, unused);
    T largest[kItems] = {}, mean[kItems] = {};  // slope of the likeliest class; mean of the others' about that one
    T on[kItems] = {}, off[kItems] = {};        // pointwise: derivative by the target's logit; by any other's, over p_k
    if (at_hand.valid != 0) {
      find_largest(at_hand, [](T) {});
      FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
        if (at_hand.largest_class[i] >= 0) {
          largest[i] = softmax_slopes<T>(coefficients, at_hand.largest_class[i], grad)
                           .at(at_hand.largest_class[i] == at_hand.target[i]);
        }
      }
      add_others(at_hand, [&](std::int64_t k, int i, T e) {
        mean[i] += e * (softmax_slopes<T>(coefficients, k, grad).at(k == at_hand.target[i]) - largest[i]);
      });
      FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
        mean[i] *= at_hand.inverse[i];
        if (at_hand.target[i] >= 0) {
          const TargetShare<T> share = target_share(at_hand, i);
          on[i] = cross_entropy * share.q;
          off[i] = cross_entropy;
          if (focal_scale != 0) {
            const T focal = raise_complement(power, share.q, gamma) * (share.q - gamma * share.p * share.log_p);
            on[i] += focal_scale * focal;
            off[i] += focal_scale * (share.q > 0 ? focal / share.q : T{0});
          }
        }
      }
    }
    for (std::int64_t k = 0; k < in.classes; ++k) {
      const SoftmaxSlopes<T> slopes = softmax_slopes<T>(coefficients, k, grad);
      Pack<S, kItems> gradient{};
      if (at_hand.valid != 0) {
        T x[kItems];
        at_hand.load_logits(k, x);
        FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
          const bool is_target = k == at_hand.target[i];
          const T p = exponential(x[i] - at_hand.largest[i]) * at_hand.inverse[i];
          const T slope = slopes.at(is_target) - largest[i] - mean[i];
          if (at_hand.live(i)) {
            assign(gradient.item[i], p * slope + (is_target ? -on[i] : p * off[i]));
          }
        }
      }
      store<S, kItems>(gradient, out + k * in.positions + position, at_hand.n);
    }
  }
}

}  // namespace fastmine::cuda
