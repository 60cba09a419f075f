// Binary and multilabel: a sigmoid for every element, on its own.
#pragma once

#include <type_traits>

#include "kernels/cuda/segmentation_tasks.cuh"

namespace fastmine::cuda {

/// Targets as a thread meets them: their range, and how many lie outside [0, 1]. What float32 would round is looked at
/// in float64, unless it is 0 or 1.
template <class T>
struct TargetRange {
  Range<T> range;
  Range<double> wide;
  int outside = 0;

  template <class S>
  FASTMINE_DEVICE T add(S stored) {
    constexpr bool kExact = sizeof(T) == sizeof(double) ||
                            !(std::is_same_v<S, double> || std::is_same_v<S, int32_t> || std::is_same_v<S, int64_t>);
    const T value = value_of<T>(stored);
    if constexpr (kExact) {
      range.add(value);
      outside += value >= 0 && value <= 1 ? 0 : 1;
    } else if (stored == 0 || stored == 1) {
      range.add(value);
    } else {
      const auto exact = static_cast<double>(stored);
      wide.add(exact);
      outside += exact >= 0 && exact <= 1 ? 0 : 1;
    }
    return value;
  }
};

/// The first n of N targets. Those that are not valid become 0 and leave no trace.
template <int N, class T>
FASTMINE_DEVICE void load_targets(const SegmentationInputs& in, const Task& task, std::int64_t position, std::int64_t n,
                                  unsigned valid, TargetRange<T>& range, T (&targets)[N]) {
  with_type(in.target.dtype, [&](auto tag) {
    using S = decltype(tag);
    const auto pack = load<S, N>(at<S>(in.target, task.sample, task.first_class, position), in.target.stride[2], n);
    FASTMINE_UNROLL for (int i = 0; i < N; ++i) {
      targets[i] = 0;
      if ((valid >> i & 1U) != 0) {
        targets[i] = range.add(pack.item[i]);
      }
    }
  });
}

template <class T>
struct SigmoidTerms {
  bool entropy, focal;
  Power power;
  T on_target, off_target, gamma;
};

template <class T>
struct SigmoidSums {
  T target{}, prediction{}, overlap{}, cross_entropy{}, focal{};

  FASTMINE_DEVICE void add(T x, T t, const SigmoidTerms<T>& terms) {
    const Sigmoid<T> s = sigmoid(x, terms.entropy);
    target += t;
    prediction += s.p;
    overlap += s.p * t;
    if (!terms.entropy) {
      return;
    }
    // softplus(x) - t x: a target's x cancels before anything is added to it.
    const T entropy = (larger(x, T{0}) - t * x) + s.rest;
    cross_entropy += entropy;
    if (!terms.focal) {
      return;
    }
    const T log_p = smaller(x, T{0}) - s.rest, log_q = smaller(-x, T{0}) - s.rest;
    if (t == 0 || t == 1) {
      const bool on = t != 0;
      focal += (on ? terms.on_target : terms.off_target) *
               raise(terms.power, on ? s.q : s.p, on ? log_q : log_p, terms.gamma) * entropy;
    } else {
      focal -= terms.on_target * t * raise(terms.power, s.q, log_q, terms.gamma) * log_p;
      focal -= terms.off_target * (1 - t) * raise(terms.power, s.p, log_p, terms.gamma) * log_q;
    }
  }
};

template <class T>
FASTMINE_DEVICE SigmoidTerms<T> sigmoid_terms(const SegmentationLoss& problem) {
  const bool focal = problem.weights[segmentation::kFocal] != 0;
  return {focal || problem.weights[segmentation::index(SegmentationTerm::bce)] != 0,
          focal,
          power_of(problem.focal.gamma),
          static_cast<T>(problem.focal.on_target),
          static_cast<T>(problem.focal.off_target),
          static_cast<T>(problem.focal.gamma)};
}

/// One block: the sums over a run of positions of one (sample, class). S is the type of the logits.
template <class S>
FASTMINE_KERNEL(SigmoidShape::kThreads, 2)
sigmoid_sums(FASTMINE_PARAMETER ForwardWork work) {
  using T = Working<S>;
  constexpr int kItems = SigmoidShape::kItems, kStep = SigmoidShape::kThreads * kItems;
  const SegmentationInputs& in = work.problem.in;
  const Task task = task_of(work.cut, in);
  const SigmoidTerms<T> terms = sigmoid_terms<T>(work.problem);
  double target = 0, prediction = 0, overlap = 0, cross_entropy = 0, focal = 0;
  TargetRange<T> targets;
  LogitRange<T> logits;
  int items = 0;
  std::int64_t position = task.begin + thread_index() * kItems;
  while (position < task.end) {
    SigmoidSums<T> sums;
    for (int round = 0; round < SigmoidShape::kRound && position < task.end; ++round, position += kStep) {
      const std::int64_t n = task.end - position;
      const unsigned valid = validity<kItems>(in.valid, task.sample, task.first_class, position, n);
      const auto pack =
          load<S, kItems>(at<S>(in.logits, task.sample, task.first_class, position), in.logits.stride[2], n);
      T t[kItems];
      load_targets(in, task, position, n, valid, targets, t);
      FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
        if ((valid >> i & 1U) != 0) {
          const T x = value_of<T>(pack.item[i]);
          ++items;
          logits.add(x);
          sums.add(x, t[i], terms);
        }
      }
    }
    target += static_cast<double>(sums.target);
    prediction += static_cast<double>(sums.prediction);
    overlap += static_cast<double>(sums.overlap);
    cross_entropy += static_cast<double>(sums.cross_entropy);
    focal += static_cast<double>(sums.focal);
  }
  double columns[kPartColumns + kGroupColumns] = {static_cast<double>(items),
                                                  cross_entropy,
                                                  focal,
                                                  segmentation::lower(targets.range.least(), targets.wide.least()),
                                                  segmentation::upper(targets.range.most(), targets.wide.most()),
                                                  logits.range.least(),
                                                  logits.range.most(),
                                                  static_cast<double>(logits.nonfinite),
                                                  static_cast<double>(targets.outside),
                                                  target,
                                                  prediction,
                                                  overlap};
  add_threads<SigmoidShape::kThreads>(columns, work.parts + block_index() * work.cut.columns);
}

/// A group's coefficients times the gradient of its loss.
template <class T>
struct SigmoidSlopes {
  T on_target, everywhere, cross_entropy, focal_on_target, focal_off_target, gamma;
  Power power;
  bool focal;
};

/// -dFL by the logit of the right side, over alpha: u^g (u + g (1 - u) softplus). No division, finite for every g >= 0.
template <class T>
FASTMINE_DEVICE T focal_slope(Power power, T wrong, T right, T log_wrong, T entropy, T gamma) {
  return raise(power, wrong, log_wrong, gamma) * (wrong + gamma * right * entropy);
}

template <class T>
FASTMINE_DEVICE T sigmoid_gradient_of(T x, T t, const SigmoidSlopes<T>& slopes) {
  const Sigmoid<T> s = sigmoid(x, slopes.focal);
  // p - t keeps no digits where p is close to t.
  T g = (slopes.on_target * t + slopes.everywhere) * (s.p * s.q) + slopes.cross_entropy * ((1 - t) * s.p - t * s.q);
  if (slopes.focal) {
    const T log_p = smaller(x, T{0}) - s.rest, log_q = smaller(-x, T{0}) - s.rest;
    if (t != 1) {
      g += slopes.focal_off_target * (1 - t) * focal_slope(slopes.power, s.p, s.q, log_p, -log_q, slopes.gamma);
    }
    if (t != 0) {
      g -= slopes.focal_on_target * t * focal_slope(slopes.power, s.q, s.p, log_q, -log_p, slopes.gamma);
    }
  }
  return g;
}

template <class T>
FASTMINE_DEVICE SigmoidSlopes<T> sigmoid_slopes(const SegmentationLossBackward& problem, const Task& task) {
  const double* c = problem.coefficients + (task.sample * problem.in.classes + task.first_class) * 4;
  const double grad = upstream(problem, task.sample);
  const T on_target = static_cast<T>(c[3] * problem.focal.on_target * grad);
  const T off_target = static_cast<T>(c[3] * problem.focal.off_target * grad);
  return {static_cast<T>(c[0] * grad),
          static_cast<T>(c[1] * grad),
          static_cast<T>(c[2] * grad),
          on_target,
          off_target,
          static_cast<T>(problem.focal.gamma),
          power_of(problem.focal.gamma),
          on_target != 0 || off_target != 0};
}

/// One block: the gradient of a run of positions of one (sample, class).
template <class S>
FASTMINE_KERNEL(SigmoidShape::kThreads, sizeof(Working<S>) == 8 ? 2 : 4)
sigmoid_gradient(FASTMINE_PARAMETER BackwardWork work) {
  using T = Working<S>;
  constexpr int kItems = SigmoidShape::kItems, kStep = SigmoidShape::kThreads * kItems;
  const SegmentationInputs& in = work.problem.in;
  const Task task = task_of(work.cut, in);
  const SigmoidSlopes<T> slopes = sigmoid_slopes<T>(work.problem, task);
  S* out = static_cast<S*>(work.problem.grad_logits) + (task.sample * in.classes + task.first_class) * in.positions;
  for (std::int64_t position = task.begin + thread_index() * kItems; position < task.end; position += kStep) {
    const std::int64_t n = task.end - position;
    const unsigned valid = validity<kItems>(in.valid, task.sample, task.first_class, position, n);
    const auto pack =
        load<S, kItems>(at<S>(in.logits, task.sample, task.first_class, position), in.logits.stride[2], n);
    T t[kItems];
    TargetRange<T> unused;
    load_targets(in, task, position, n, valid, unused, t);
    Pack<S, kItems> gradient{};
    FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
      if ((valid >> i & 1U) != 0) {
        assign(gradient.item[i], sigmoid_gradient_of(value_of<T>(pack.item[i]), t[i], slopes));
      }
    }
    store<S, kItems>(gradient, out + position, n);
  }
}

}  // namespace fastmine::cuda
