// Binary and multilabel: a sigmoid for every element, on its own.
#pragma once

#include <type_traits>

#include "kernels/cuda/segmentation_hard.cuh"

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

/// The first n of N targets. Those that are not valid become 0 and leave no trace; those to be ignored are not valid.
template <int N, class T>
FASTMINE_DEVICE void load_targets(const SegmentationInputs& in, const Task& task, std::int64_t position, std::int64_t n,
                                  unsigned& valid, TargetRange<T>& range, T (&targets)[N]) {
  with_type(in.target.dtype, [&](auto tag) {
    using S = decltype(tag);
    const auto pack = load<S, N>(at<S>(in.target, task.sample, task.first_class, position), in.target.stride[2], n);
    FASTMINE_UNROLL for (int i = 0; i < N; ++i) {
      targets[i] = 0;
      valid &= is_ignored(in, pack.item[i]) ? ~(1U << i) : ~0U;
      if ((valid >> i & 1U) != 0) {
        targets[i] = range.add(pack.item[i]);
      }
    }
  });
}

/// The sums of one thread. `kApart`: all of them, and entropies on and off the target; else together, in e1 and f1, the
/// focal ones weighted.
template <class T, bool kApart>
struct SigmoidSums {
  T sums[kSegmentationSums] = {};

  FASTMINE_DEVICE T& operator[](SegmentationSum which) { return sums[static_cast<int>(which)]; }

  FASTMINE_DEVICE void add(T x, T t, const Asked& asked, Power power) {
    using Sum = SegmentationSum;
    SigmoidSums& sum = *this;
    const Sigmoid<T> s = sigmoid(x, asked.entropy);
    sum[Sum::t] += t;
    sum[Sum::p] += s.p;
    sum[Sum::a] += s.p * t;
    if constexpr (kApart) {
      if (asked.shape) {
        const T slope = s.p * s.q;
        sum[Sum::pp] += s.p * s.p;
        sum[Sum::tt] += t * t;
        sum[Sum::g1] += slope * t;
        sum[Sum::g0] += slope * (1 - t);
      }
      if (asked.linear) {
        sum[Sum::x] += x;
        sum[Sum::tx] += t * x;
      }
    }
    if (!asked.entropy) {
      return;
    }
    const T log_p = smaller(x, T{0}) - s.rest, log_q = smaller(-x, T{0}) - s.rest;
    if constexpr (kApart) {
      sum[Sum::e1] -= t * log_p;
      sum[Sum::e0] -= (1 - t) * log_q;
    } else {
      // softplus(x) - t x: a target's x cancels before anything is added to it.
      sum[Sum::e1] += (larger(x, T{0}) - t * x) + s.rest;
    }
    if (!asked.focal) {
      return;
    }
    const T gamma = static_cast<T>(asked.alpha.gamma);
    const T alpha_on = static_cast<T>(asked.alpha.on_target), alpha_off = static_cast<T>(asked.alpha.off_target);
    constexpr Sum kOffTarget = kApart ? Sum::f0 : Sum::f1;
    if (t == 0 || t == 1) {
      const bool on = t != 0;
      const T term = raise(power, on ? s.q : s.p, on ? log_q : log_p, gamma) * -(on ? log_p : log_q);
      if constexpr (kApart) {
        sum[Sum::f1] += on ? term : T{0};
        sum[Sum::f0] += on ? T{0} : term;
      } else {
        sum[Sum::f1] += (on ? alpha_on : alpha_off) * term;
      }
    } else {
      sum[Sum::f1] -= alpha_on * t * raise(power, s.q, log_q, gamma) * log_p;
      sum[kOffTarget] -= alpha_off * (1 - t) * raise(power, s.p, log_p, gamma) * log_q;
    }
  }

  template <class S>
  FASTMINE_DEVICE void add(const SigmoidSums<S, kApart>& other) {
    FASTMINE_UNROLL for (int i = 0; i < kSegmentationSums; ++i) { sums[i] += static_cast<T>(other.sums[i]); }
  }
};

/// Hard packs as a thread meets them: a round of them at once, or one. Their sums go on in float32 over a few rounds.
template <class S>
class HardPacks {
 public:
  static constexpr int kItems = SigmoidShape::kItems, kRound = SigmoidShape::kRound;
  static constexpr int kStep = SigmoidShape::kThreads * kItems;

  FASTMINE_DEVICE HardPacks(const SegmentationInputs& in, const Task& task, const Asked& asked)
      : row_(in, task), terms_(hard_terms(asked)) {}

  /// Add whole rounds from `position` on, up to `end` or what is not hard, and move on to there. What they add goes to
  /// `total` whenever float32 has had enough.
  template <class Sums>
  FASTMINE_DEVICE void add_rounds(std::int64_t& position, std::int64_t end, Sums& total, const Asked& asked) {
    if (row_.readable()) {
      terms_ == HardTerms::none             ? add_rounds<HardTerms::none>(position, end, total, asked)
      : terms_ == HardTerms::entropy        ? add_rounds<HardTerms::entropy>(position, end, total, asked)
      : terms_ == HardTerms::focal          ? add_rounds<HardTerms::focal>(position, end, total, asked)
      : terms_ == HardTerms::weighted_focal ? add_rounds<HardTerms::weighted_focal>(position, end, total, asked)
                                            : void();
    }
  }
  /// Add one pack. False, and nothing added, where it is not whole or not hard.
  FASTMINE_DEVICE bool add_pack(std::int64_t position, std::int64_t left) {
    return left >= kItems && terms_ != HardTerms::others && row_.readable() &&
           add<HardTerms::weighted_focal, 1>(position);
  }

  /// Hand the sums over.
  template <class Sums>
  FASTMINE_DEVICE void give(Sums& total, const Asked& asked) {
    using Sum = SegmentationSum;
    total[Sum::p] += static_cast<double>(sums_.on + sums_.off);
    total[Sum::a] += static_cast<double>(sums_.on);
    if (asked.entropy) {
      total[Sum::e1] += static_cast<double>(sums_.entropy);
    }
    if (asked.focal) {
      total[Sum::f1] += asked.alpha.on_target * static_cast<double>(sums_.focal_on) +
                        asked.alpha.off_target * static_cast<double>(sums_.focal_off);
    }
    sums_ = {};
  }

  /// And what has been seen beside them.
  template <class Sums>
  FASTMINE_DEVICE void give_rest(Sums& total, int& items, TargetRange<float>& targets,
                                 LogitRange<float>& logits) const {
    if (items_ > 0) {
      total[SegmentationSum::t] += static_cast<double>(targets_);
      items += items_;
      targets.range.add(targets_ == static_cast<unsigned>(items_) ? 1.0F : 0.0F);
      targets.range.add(targets_ == 0 ? 0.0F : 1.0F);
      logits.range.add(logits_.least);
      logits.range.add(logits_.most);
    }
  }

 private:
  static constexpr int kRounds = 4;

  template <HardTerms kTerms, class Sums>
  FASTMINE_DEVICE void add_rounds(std::int64_t& position, std::int64_t end, Sums& total, const Asked& asked) {
    const std::int64_t last = end - ((kRound - 1) * kStep + kItems);
    for (int rounds = 1; position <= last && add<kTerms, kRound>(position); ++rounds) {
      position += kRound * kStep;
      if (rounds % kRounds == 0) {
        give(total, asked);
      }
    }
  }

  template <HardTerms kTerms, int kPacks>
  FASTMINE_DEVICE bool add(std::int64_t position) {
    Pack<S, kItems> logits[kPacks];
    HardTargets targets[kPacks];
    const bool hard = row_.template load<kPacks, kStep>(position, logits, targets);
    const Extremes seen = extremes_of(logits);
    if (!hard || !seen.finite()) {
      return false;
    }
    sums_.template add<kTerms, kPacks>(logits, targets);
    logits_ = {smaller(logits_.least, seen.least), larger(logits_.most, seen.most)};
    items_ += kPacks * kItems;
    FASTMINE_UNROLL for (const HardTargets& of_pack : targets) { targets_ = of_pack.count(targets_); }
    return true;
  }

  HardRow<S> row_;
  HardTerms terms_;
  HardSums sums_;
  Extremes logits_{kLargest<float>, -kLargest<float>};
  int items_ = 0;
  unsigned targets_ = 0;
};

/// One block: the sums over a run of positions of one (sample, class). S is the type of the logits.
template <class S, class Group>
FASTMINE_KERNEL(SigmoidShape::kThreads, sizeof(Working<S>) == 8 ? 1 : 2)
sigmoid_sums(FASTMINE_PARAMETER ForwardWork work) {
  using T = Working<S>;
  constexpr bool kAll = kAllSums<Group>;
  constexpr int kItems = SigmoidShape::kItems, kStep = SigmoidShape::kThreads * kItems;
  const SegmentationInputs& in = work.in;
  const Task task = task_of(work.cut, in);
  const Power power = power_of(work.asked.alpha.gamma);
  SigmoidSums<double, kAll> total;
  TargetRange<T> targets;
  LogitRange<T> logits;
  int items = 0;
  constexpr bool kMayBeHard = std::is_same_v<T, float> && !kAll;
  [[maybe_unused]] HardPacks<S> hard(in, task, work.asked);
  std::int64_t position = task.begin + thread_index() * kItems;
  while (position < task.end) {
    if constexpr (kMayBeHard) {
      hard.add_rounds(position, task.end, total, work.asked);
    }
    SigmoidSums<T, kAll> sums;
    for (int round = 0; round < SigmoidShape::kRound && position < task.end; ++round, position += kStep) {
      const std::int64_t n = task.end - position;
      if constexpr (kMayBeHard) {
        if (hard.add_pack(position, n)) {
          continue;
        }
      }
      unsigned valid = validity<kItems>(in.valid, task.sample, task.first_class, position, n);
      const auto pack =
          load<S, kItems>(at<S>(in.logits, task.sample, task.first_class, position), in.logits.stride[2], n);
      T t[kItems];
      load_targets(in, task, position, n, valid, targets, t);
      FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
        if ((valid >> i & 1U) != 0) {
          const T x = value_of<T>(pack.item[i]);
          ++items;
          logits.add(x);
          sums.add(x, t[i], work.asked, power);
        }
      }
    }
    total.add(sums);
    if constexpr (kMayBeHard) {
      hard.give(total, work.asked);
    }
  }
  if constexpr (kMayBeHard) {
    hard.give_rest(total, items, targets, logits);
  }
  using Sum = SegmentationSum;
  double columns[kPartColumns + kGroupColumns<Group>] = {
      static_cast<double>(items),
      total[Sum::e1],
      total[Sum::f1],
      segmentation::lower(targets.range.least(), targets.wide.least()),
      segmentation::upper(targets.range.most(), targets.wide.most()),
      logits.range.least(),
      logits.range.most(),
      static_cast<double>(logits.nonfinite),
      static_cast<double>(targets.outside)};
  if constexpr (kAll) {
    FASTMINE_UNROLL for (int i = 0; i < kSegmentationSums; ++i) { columns[kPartColumns + i] = total.sums[i]; }
  } else {
    columns[kPartColumns] = total[Sum::t];
    columns[kPartColumns + 1] = total[Sum::p];
    columns[kPartColumns + 2] = total[Sum::a];
  }
  add_threads<SigmoidShape::kThreads>(columns, work.parts + block_index() * work.cut.columns);
}

/// -dFL by the logit of the right side, over alpha: u^g (u + g (1 - u) softplus). No division, finite for every g >= 0.
template <class T>
FASTMINE_DEVICE T focal_slope(Power power, T wrong, T right, T log_wrong, T entropy, T gamma) {
  return raise(power, wrong, log_wrong, gamma) * (wrong + gamma * right * entropy);
}

/// `kAll`: with squares and linear slopes.
template <bool kAll, class T>
FASTMINE_DEVICE T sigmoid_gradient_of(T x, T t, const GroupSlopes<T>& slopes, Power power, T gamma) {
  const bool focal = slopes.focal_on != 0 || slopes.focal_off != 0;
  const Sigmoid<T> s = sigmoid(x, focal);
  T by_probability = slopes.on_target * t + slopes.everywhere;
  if constexpr (kAll) {
    by_probability += slopes.squares * s.p;
  }
  T g = by_probability * (s.p * s.q);
  // p - t keeps no digits where p is close to t.
  g += slopes.entropy_off * ((1 - t) * s.p) - slopes.entropy_on * (t * s.q);
  if (focal) {
    const T log_p = smaller(x, T{0}) - s.rest, log_q = smaller(-x, T{0}) - s.rest;
    if (t != 1) {
      g += slopes.focal_off * (1 - t) * focal_slope(power, s.p, s.q, log_p, -log_q, gamma);
    }
    if (t != 0) {
      g -= slopes.focal_on * t * focal_slope(power, s.q, s.p, log_q, -log_p, gamma);
    }
  }
  if constexpr (kAll) {
    g += slopes.linear_on * t + slopes.linear;
  }
  return g;
}

/// One block: the gradient of a run of positions of one (sample, class).
template <class S, class Problem>
FASTMINE_KERNEL(SigmoidShape::kThreads, sizeof(Working<S>) == 8 ? 2 : 4)
sigmoid_gradient(FASTMINE_PARAMETER BackwardWork<Problem> work) {
  using T = Working<S>;
  constexpr int kItems = SigmoidShape::kItems, kStep = SigmoidShape::kThreads * kItems;
  const SegmentationInputs& in = work.problem.in;
  const Task task = task_of(work.cut, in);
  const GroupSlopes<T> slopes = Slopes<Problem>(work.problem, task.sample).template at<T>(task.first_class);
  const Power power = power_of(gamma_of(work.problem));
  const T gamma = static_cast<T>(gamma_of(work.problem));
  S* out = static_cast<S*>(work.problem.grad_logits) + (task.sample * in.classes + task.first_class) * in.positions;
  constexpr bool kMayBeHard = std::is_same_v<T, float> && !Slopes<Problem>::kAll;
  [[maybe_unused]] const HardRow<S> hard(in, task);
  for (std::int64_t position = task.begin + thread_index() * kItems; position < task.end; position += kStep) {
    const std::int64_t n = task.end - position;
    if constexpr (kMayBeHard) {
      const bool focal = slopes.focal_on != 0 || slopes.focal_off != 0;
      Pack<S, kItems> logits[1];
      HardTargets targets[1];
      if (hard.readable() && (!focal || power == Power::two) && n >= kItems &&
          hard.template load<1, kStep>(position, logits, targets)) {
        const HardSlopes by(slopes);
        const auto gradient = focal ? by.template gradient<true>(logits[0], targets[0])
                                    : by.template gradient<false>(logits[0], targets[0]);
        store<S, kItems>(gradient, out + position, n);
        continue;
      }
    }
    unsigned valid = validity<kItems>(in.valid, task.sample, task.first_class, position, n);
    const auto pack =
        load<S, kItems>(at<S>(in.logits, task.sample, task.first_class, position), in.logits.stride[2], n);
    T t[kItems];
    TargetRange<T> unused;
    load_targets(in, task, position, n, valid, unused, t);
    Pack<S, kItems> gradient{};
    FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
      if ((valid >> i & 1U) != 0) {
        assign(gradient.item[i],
               sigmoid_gradient_of<Slopes<Problem>::kAll>(value_of<T>(pack.item[i]), t[i], slopes, power, gamma));
      }
    }
    store<S, kItems>(gradient, out + position, n);
  }
}

}  // namespace fastmine::cuda
