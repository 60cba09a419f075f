// The way back of segmentation_softmax.cuh.
#pragma once

#include "kernels/cuda/segmentation_softmax.cuh"

namespace fastmine::cuda {

/// What the gradient of some positions needs to know about them: with D_k the slope of class k by its probability about
/// that of the likeliest class, and M the mean of all D_k, it is p_k (D_k - M) and what the entropies add.
template <class T>
struct PositionSlopes {
  static constexpr int kItems = SoftmaxShape::kItems;

  T largest[kItems] = {}, squares[kItems] = {};  // of the likeliest class; what its own squares add to the former
  T mean[kItems] = {};
  T on[kItems] = {}, off[kItems] = {};  // entropies: minus derivative by the target's logit; by any other's, over p_k
};

/// Of the entropies at a position: minus the derivative by the logit of its target, and by any other's, over p_k.
template <class T>
struct EntropySlopes {
  T on, off;
};

template <class T>
FASTMINE_DEVICE EntropySlopes<T> entropy_slopes(const GroupSlopes<T>& own, T p, T q, T log_p, Power power, T gamma) {
  EntropySlopes<T> found{own.entropy_on * q, own.entropy_on};
  if (own.focal_on != 0) {
    const T focal = raise_complement(power, q, gamma) * (q - gamma * p * log_p);
    found.on += own.focal_on * focal;
    found.off += own.focal_on * (q > 0 ? focal / q : T{0});
  }
  return found;
}

/// The first two walks over the classes, and what the third needs.
template <class Problem, class S, bool kMerges>
FASTMINE_DEVICE PositionSlopes<Working<S>> slopes_of(const Problem& problem, const Slopes<Problem>& slopes,
                                                     Positions<S, kMerges>& at_hand) {
  using T = Working<S>;
  constexpr bool kAll = Slopes<Problem>::kAll;
  constexpr int kItems = SoftmaxShape::kItems;
  const Power power = power_of(gamma_of(problem));
  const T gamma = static_cast<T>(gamma_of(problem));
  PositionSlopes<T> found;
  find_largest(at_hand, [](T) {});
  FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
    if (at_hand.largest_class[i] >= 0) {
      const GroupSlopes<T> own = slopes.template at<T>(at_hand.largest_class[i]);
      found.largest[i] = own.everywhere + (at_hand.largest_class[i] == at_hand.target[i] ? own.on_target : T{0});
      found.squares[i] = own.squares;
    }
  }
  T squares[kAll ? kItems : 1] = {};  // weighted by e_k^2
  const auto look_up = [&](std::int64_t k) { return slopes.template at<T>(k); };
  add_others(at_hand, look_up, [&](std::int64_t k, int i, T e, const GroupSlopes<T>& own) {
    found.mean[i] += e * (own.everywhere + (k == at_hand.target[i] ? own.on_target : T{0}) - found.largest[i]);
    if constexpr (kAll) {
      squares[i] += e * e * own.squares;
    }
  });
  FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
    if constexpr (kAll) {
      found.squares[i] *= at_hand.inverse[i];  // the probability of the likeliest class
      found.mean[i] += squares[i] * at_hand.inverse[i] - found.squares[i] * at_hand.others[i];
    }
    found.mean[i] *= at_hand.inverse[i];
    if (at_hand.target[i] >= 0) {
      const GroupSlopes<T> own = slopes.template at<T>(at_hand.target[i]);
      const TargetShare<T> share = target_share(at_hand, i);
      const EntropySlopes<T> entropies = entropy_slopes(own, share.p, share.q, share.log_p, power, gamma);
      found.on[i] = entropies.on;
      found.off[i] = entropies.off;
    }
  }
  return found;
}

/// Third walk: the gradient of the logit of class k, 0 where invalid. `linear`: the sum of those slopes over all
/// classes.
template <bool kAll, class S>
FASTMINE_DEVICE void class_gradient(const Positions<S, kAll>& at_hand, std::int64_t k,
                                    const GroupSlopes<Working<S>>& own, const PositionSlopes<Working<S>>& with,
                                    Working<S> linear, Working<S> (&gradient)[SoftmaxShape::kItems]) {
  using T = Working<S>;
  constexpr int kItems = SoftmaxShape::kItems;
  T x[kItems];
  at_hand.load_logits(k, x);
  FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
    const bool is_target = k == at_hand.target[i];
    const T p = exponential(x[i] - at_hand.largest[i]) * at_hand.inverse[i];
    T slope = own.everywhere + (is_target ? own.on_target : T{0}) - with.largest[i];
    if constexpr (kAll) {
      // Exactly 0 for the likeliest, however the compiler rounds: its gradient may be smaller than that.
      slope += k == at_hand.largest_class[i] ? T{0} : own.squares * p - with.squares[i];
    }
    T g = p * (slope - with.mean[i]) + (is_target ? -with.on[i] : p * with.off[i]);
    if constexpr (kAll) {
      g += p * linear - own.linear;
    }
    gradient[i] = at_hand.live(i) ? g : T{0};
  }
}

/// The gradient of a thread's positions from `position` on, for all classes. `linear`: the sum of those slopes.
template <class S, class Problem>
FASTMINE_DEVICE void write_positions(const Problem& problem, const Slopes<Problem>& slopes, const Task& task,
                                     std::int64_t position, bool merging, Working<S> linear) {
  using T = Working<S>;
  constexpr bool kAll = Slopes<Problem>::kAll;
  constexpr int kItems = SoftmaxShape::kItems;
  const SegmentationInputs& in = problem.in;
  S* const out = static_cast<S*>(problem.grad_logits) + task.sample * in.classes * in.positions;
  ClassRange unused;
  auto at_hand = positions_of<S, kAll>(in, task, position, merging, unused);
  PositionSlopes<T> with;
  if (at_hand.valid != 0) {
    with = slopes_of(problem, slopes, at_hand);
  }
  T background[kAll ? kItems : 1] = {};  // the gradient of the logit of class 0 and what is merged into it
  for (std::int64_t k = 0; k < in.classes; ++k) {
    T g[kItems] = {};
    if (at_hand.valid != 0) {
      class_gradient<kAll>(at_hand, k, slopes.template at<T>(k), with, linear, g);
    }
    if constexpr (kAll) {
      if (at_hand.valid != 0 && at_hand.is_background(k)) {  // each class has a share of it
        T x[kItems];
        at_hand.load_raw(k, x);
        FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
          background[i] = k == 0 ? g[i] : background[i];
          g[i] = background[i] * exponential(x[i] - at_hand.background[i]);
        }
      }
    }
    Pack<S, kItems> gradient;
    FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) { assign(gradient.item[i], g[i]); }
    store<S, kItems>(gradient, out + k * in.positions + position, at_hand.n);
  }
}

/// One block: the gradient of a run of positions of one sample, for all its classes.
template <class S, class Problem>
FASTMINE_KERNEL(SoftmaxShape::kThreads, Slopes<Problem>::kAll || sizeof(Working<S>) == 8 ? 3 : 6)
softmax_gradient(FASTMINE_PARAMETER BackwardWork<Problem> work) {
  using T = Working<S>;
  constexpr bool kAll = Slopes<Problem>::kAll;
  constexpr int kItems = SoftmaxShape::kItems;
  const SegmentationInputs& in = work.problem.in;
  const Task task = task_of(work.cut, in);
  const Slopes<Problem> slopes(work.problem, task.sample);
  const bool merging = kAll && any_merged(in, task.sample);
  T linear = 0;
  for (std::int64_t k = 0; kAll && k < in.classes; ++k) {
    linear += slopes.template at<T>(k).linear;
  }
  for (std::int64_t position = task.begin + thread_index() * kItems; position < task.end;
       position += SoftmaxShape::kThreads * kItems) {
    write_positions<S>(work.problem, slopes, task, position, merging, linear);
  }
}
}  // namespace fastmine::cuda
