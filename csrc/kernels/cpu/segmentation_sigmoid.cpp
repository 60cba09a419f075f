// Binary and multilabel: a sigmoid for every element, on its own.
#include "kernels/cpu/segmentation_block.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {
namespace {

template <class T>
inline constexpr T kNeutral = -kLargest<T>;  // probability, entropy and all gradients are exactly 0 where the target is

/// The larger and the smaller of sigmoid(x) and sigmoid(-x), and e^-|x|, from which both come without cancellation.
template <class V>
struct Sigmoid {
  V larger, smaller, e;

  /// sigmoid(z) for z = x or -x.
  FASTMINE_INLINE V of(V z) const { return select(z >= 0, larger, smaller); }
};

template <class V>
FASTMINE_INLINE Sigmoid<V> sigmoid(V x) {
  const V e = exp_negative(absolute(x));
  const V larger = 1 / (1 + e);
  return {larger, e * larger, e};
}

template <Pointwise kKind>
inline constexpr bool kIsFocal = kKind != Pointwise::none && kKind != Pointwise::entropy;

// --- forward
// -----------------------------------------------------------------------------------------------------------

template <class T>
struct FocalConstants {
  T on_target, off_target, gamma;
};

template <class T>
struct BlockSums {
  Vec<T> target{}, prediction{}, overlap{}, cross_entropy{}, focal{};
  Vec<T> low = fill<Vec<T>>(kLargest<T>), high = fill<Vec<T>>(-kLargest<T>);  // NaN is passed over
};

/// The sums over n elements, full steps. `kHard`: every target is 0 or 1, which halves the focal term.
template <class T, Pointwise kKind, bool kHard>
FASTMINE_NOINLINE void add_block(const T* logits, const T* targets, std::int64_t n, const FocalConstants<T>& focal,
                                 BlockSums<T>& out) {
  using V = Wide<T>;
  BlockSums<T> sums;
  for (std::int64_t i = 0; i < n; i += kStep<T>) {
    const V x = load_as<V>(logits + i), t = load_as<V>(targets + i);
    const Sigmoid<V> sides = sigmoid(x);
    const V p = sides.of(x);
    sums.target += fold(t);
    sums.prediction += fold(p);
    sums.overlap += fold(p * t);
    sums.low = fold_minimum(x, sums.low);
    sums.high = fold_maximum(x, sums.high);
    if constexpr (kKind != Pointwise::none) {
      const V rest = log1p_unit(sides.e);
      if constexpr (kIsFocal<kKind> && kHard) {
        const V z = x * (1 - 2 * t);  // the logit of the wrong side
        const V wrong = sides.of(z), entropy = maximum(V{}, z) + rest;
        const V alpha = focal.off_target + (focal.on_target - focal.off_target) * t;
        sums.cross_entropy += fold(entropy);
        sums.focal += fold(alpha * power<kKind>(wrong, minimum(V{}, z) - rest, focal.gamma) * entropy);
      } else {
        // softplus(x) - t x: a target's x cancels before anything is added to it.
        sums.cross_entropy += fold((maximum(V{}, x) - t * x) + rest);
      }
      if constexpr (kIsFocal<kKind> && !kHard) {
        const V log_p = minimum(V{}, x) - rest, log_q = minimum(V{}, -x) - rest;
        sums.focal -= fold(focal.on_target * t * power<kKind>(sides.of(-x), log_q, focal.gamma) * log_p);
        sums.focal -= fold(focal.off_target * (1 - t) * power<kKind>(p, log_p, focal.gamma) * log_q);
      }
    }
  }
  out = sums;
}

template <class T>
using AddBlock = void (*)(const T*, const T*, std::int64_t, const FocalConstants<T>&, BlockSums<T>&);

/// In float64, where nothing is fast anyway, one focal loop serves all powers and targets.
template <class T>
constexpr bool kSpecial = sizeof(T) == sizeof(float);

template <class T, bool kHardTargets>
AddBlock<T> add_block_for(Pointwise kind) {
  constexpr bool kHard = kHardTargets && kSpecial<T>;
  switch (kind) {
    case Pointwise::none:
      return &add_block<T, Pointwise::none, false>;
    case Pointwise::entropy:
      return &add_block<T, Pointwise::entropy, false>;
    case Pointwise::focal_0:
      return &add_block < T, kSpecial<T> ? Pointwise::focal_0 : Pointwise::focal, kHard > ;
    case Pointwise::focal_1:
      return &add_block < T, kSpecial<T> ? Pointwise::focal_1 : Pointwise::focal, kHard > ;
    case Pointwise::focal_2:
      return &add_block < T, kSpecial<T> ? Pointwise::focal_2 : Pointwise::focal, kHard > ;
    case Pointwise::focal:
      return &add_block<T, Pointwise::focal, kHard>;
  }
  return nullptr;
}

/// Sums of blocks, lane by lane in float64, which cost less than adding lanes up after every block.
template <class T>
struct RunSums {
  static constexpr std::size_t kLanes = lanes<T>;
  Vec<double, kLanes> target{}, prediction{}, overlap{}, cross_entropy{}, focal{};
  Vec<T> low = fill<Vec<T>>(kLargest<T>), high = fill<Vec<T>>(-kLargest<T>);

  FASTMINE_INLINE void add(const BlockSums<T>& block) {
    target += convert<double>(block.target);
    prediction += convert<double>(block.prediction);
    overlap += convert<double>(block.overlap);
    cross_entropy += convert<double>(block.cross_entropy);
    focal += convert<double>(block.focal);
  }

  FASTMINE_INLINE void add_range(const BlockSums<T>& block) {
    low = minimum(block.low, low);
    high = maximum(block.high, high);
  }
};

/// Whether every one of n targets, full vectors, is exactly 0 or 1.
template <class T>
FASTMINE_NOINLINE bool all_hard(const T* targets, std::int64_t n) {
  using V = Vec<T>;
  auto odd = bitcast<Bits<V>>(V{});
  for (std::int64_t i = 0; i < n; i += static_cast<std::int64_t>(size<V>)) {
    const V t = load(targets + i);
    odd |= bitcast<Bits<V>>(t * t - t);
  }
  bool hard = true;
  for (std::size_t i = 0; i < size<V>; ++i) {
    hard = hard && odd[i] == 0;
  }
  return hard;
}

/// The range of the valid ones of n values; NaN is passed over.
template <class T>
FASTMINE_NOINLINE void add_range(const T* values, std::int64_t n, const Validity& validity, Range& range) {
  using V = Vec<T>;
  constexpr auto kLanes = static_cast<std::int64_t>(size<V>);
  V low = fill<V>(kLargest<T>), high = -low;
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const V v = load(values + i);
    if (validity.all()) {
      low = minimum(v, low);
      high = maximum(v, high);
    } else {
      const auto flags = convert<Bits<V>>(load<std::uint8_t, size<V>>(validity.flags + i)) != 0;
      low = minimum(select(flags, v, low), low);
      high = maximum(select(flags, v, high), high);
    }
  }
  range.cover_lanes(low, high);
  for (; i < n; ++i) {
    if (validity.all() || validity.flags[i] != 0) {
      range.cover(static_cast<double>(values[i]), static_cast<double>(values[i]));
    }
  }
}

/// What a run of positions adds up to, before it is written down.
template <class T>
struct RunState {
  RunSums<T> sums;
  Range targets, logits;
  std::int64_t items = 0;
};

template <class T>
void add_positions(const SegmentationInputs& in, const Run& run, Pointwise kind, const FocalConstants<T>& focal,
                   RunState<T>& state) {
  const Row logits = row_of(in.logits, run.sample, run.first_class);
  const Row target = row_of(in.target, run.sample, run.first_class);
  const Row valid = validity_of(in, run);
  const AddBlock<T> hard_block = add_block_for<T, true>(kind), soft_block = add_block_for<T, false>(kind);
  alignas(64) T x_buffer[kBlock], t_buffer[kBlock];
  Validity validity;
  BlockSums<T> block;
  for (std::int64_t begin = run.begin; begin < run.end; begin += kBlock) {
    const std::int64_t n = run.end - begin < kBlock ? run.end - begin : kBlock;
    validity.look(valid, begin, n);
    if (validity.items == 0) {
      continue;
    }
    const T* x = block_of(logits, begin, n, validity, kNeutral<T>, x_buffer);
    const T* t = block_of(target, begin, n, validity, T{0}, t_buffer);
    const bool hard = target.dtype == DType::bool_ || all_hard(t, padded<T>(n));
    (hard ? hard_block : soft_block)(x, t, padded<T>(n), focal, block);
    state.items += validity.items;
    state.sums.add(block);
    if (hard) {
      const auto ones = static_cast<std::int64_t>(sum_lanes(block.target));
      state.targets.cover(ones < validity.items ? 0.0 : 1.0, ones > 0 ? 1.0 : 0.0);
    } else {
      add_range(t, n, validity, state.targets);
    }
    if (validity.all() && padded<T>(n) == n) {
      state.sums.add_range(block);
    } else {
      add_range(x, n, validity, state.logits);
    }
  }
  state.logits.cover_lanes(state.sums.low, state.sums.high);
}

// --- backward
// ----------------------------------------------------------------------------------------------------------

/// A group's coefficients times the gradient of its loss.
template <class T>
struct Slopes {
  T on_target, everywhere, cross_entropy, focal_on_target, focal_off_target, gamma;
};

/// -dFL by the logit of the right side, over alpha: u^g (u + g (1 - u) softplus). No division, finite for every g >= 0.
template <Pointwise kKind, class V>
FASTMINE_INLINE V focal_slope(V wrong, V right, V log_wrong, V entropy, Lane<V> gamma) {
  if constexpr (kKind == Pointwise::focal_0) {
    return wrong;
  } else {
    return power<kKind>(wrong, log_wrong, gamma) * (wrong + gamma * right * entropy);
  }
}

/// The gradient of n elements, full steps.
template <class T, Pointwise kKind, bool kHard>
FASTMINE_NOINLINE void gradient_block(const T* logits, const T* targets, std::int64_t n, const Slopes<T>& slopes,
                                      T* gradient, bool streamed) {
  using V = Wide<T>;
  for (std::int64_t i = 0; i < n; i += kStep<T>) {
    const V x = load_as<V>(logits + i), t = load_as<V>(targets + i);
    const Sigmoid<V> sides = sigmoid(x);
    const V overlap = (slopes.on_target * t + slopes.everywhere) * (sides.larger * sides.smaller);
    V rest{};
    if constexpr (kIsFocal<kKind> && kKind != Pointwise::focal_0) {
      rest = log1p_unit(sides.e);
    }
    if constexpr (kIsFocal<kKind> && kHard) {
      const V side = 1 - 2 * t, z = x * side;  // the logit of the wrong side
      const V wrong = sides.of(z), right = sides.of(-z);
      const V alpha = slopes.focal_off_target + (slopes.focal_on_target - slopes.focal_off_target) * t;
      const V slope = focal_slope<kKind>(wrong, right, minimum(V{}, z) - rest, maximum(V{}, z) + rest, slopes.gamma);
      put(gradient + i, overlap + side * (slopes.cross_entropy * wrong + alpha * slope), streamed);
    } else {
      const V p = sides.of(x), q = sides.of(-x);
      V g = overlap + slopes.cross_entropy * ((1 - t) * p - t * q);  // p - t keeps no digits where p is close to t
      if constexpr (kIsFocal<kKind>) {
        const V log_p = minimum(V{}, x) - rest, log_q = minimum(V{}, -x) - rest;
        g += slopes.focal_off_target * (1 - t) * focal_slope<kKind>(p, q, log_p, -log_q, slopes.gamma);
        g -= slopes.focal_on_target * t * focal_slope<kKind>(q, p, log_q, -log_p, slopes.gamma);
      }
      put(gradient + i, g, streamed);
    }
  }
}

template <class T>
using GradientBlock = void (*)(const T*, const T*, std::int64_t, const Slopes<T>&, T*, bool);

template <class T, bool kHardTargets>
GradientBlock<T> gradient_block_for(Pointwise kind) {
  constexpr bool kHard = kHardTargets && kSpecial<T>;
  switch (kind) {
    case Pointwise::none:
    case Pointwise::entropy:
      return &gradient_block<T, Pointwise::entropy, false>;
    case Pointwise::focal_0:
      return &gradient_block < T, kSpecial<T> ? Pointwise::focal_0 : Pointwise::focal, kHard > ;
    case Pointwise::focal_1:
      return &gradient_block < T, kSpecial<T> ? Pointwise::focal_1 : Pointwise::focal, kHard > ;
    case Pointwise::focal_2:
      return &gradient_block < T, kSpecial<T> ? Pointwise::focal_2 : Pointwise::focal, kHard > ;
    case Pointwise::focal:
      return &gradient_block<T, Pointwise::focal, kHard>;
  }
  return nullptr;
}

template <class T>
Slopes<T> slopes_of(const SegmentationLossBackward& problem, const Run& run) {
  const double* c = problem.coefficients + (run.sample * problem.in.classes + run.first_class) * 4;
  const double grad = upstream(problem, run.sample);
  const auto scaled = [&](double value) { return static_cast<T>(value * grad); };
  return {scaled(c[0]),
          scaled(c[1]),
          scaled(c[2]),
          scaled(c[3] * problem.focal.on_target),
          scaled(c[3] * problem.focal.off_target),
          static_cast<T>(problem.focal.gamma)};
}

}  // namespace

template <class T>
void sigmoid_sums(const SegmentationLoss& problem, const Run& run, SegmentationPart& part, SegmentationGroup* group) {
  const auto weight = [&](SegmentationTerm term) { return problem.weights[static_cast<int>(term)]; };
  const Pointwise kind =
      pointwise(weight(SegmentationTerm::bce) != 0, weight(SegmentationTerm::focal) != 0, problem.focal.gamma);
  const FocalConstants<T> focal{static_cast<T>(problem.focal.on_target), static_cast<T>(problem.focal.off_target),
                                static_cast<T>(problem.focal.gamma)};
  RunState<T> state;
  add_positions(problem.in, run, kind, focal, state);
  group->target = sum_lanes(state.sums.target);
  group->prediction = sum_lanes(state.sums.prediction);
  group->overlap = sum_lanes(state.sums.overlap);
  part = {static_cast<double>(state.items),
          sum_lanes(state.sums.cross_entropy),
          sum_lanes(state.sums.focal),
          state.targets.min,
          state.targets.max,
          state.logits.min,
          state.logits.max,
          0,
          0};
  look_again<T>(problem.in, run, group->prediction, group->target, part);
}

template <class T>
void sigmoid_gradient(const SegmentationLossBackward& problem, const Run& run) {
  const SegmentationInputs& in = problem.in;
  const Row logits = row_of(in.logits, run.sample, run.first_class);
  const Row target = row_of(in.target, run.sample, run.first_class);
  const Row valid = validity_of(in, run);
  const Slopes<T> slopes = slopes_of<T>(problem, run);
  const Pointwise kind =
      pointwise(true, slopes.focal_on_target != 0 || slopes.focal_off_target != 0, problem.focal.gamma);
  const GradientBlock<T> hard_block = gradient_block_for<T, true>(kind),
                         soft_block = gradient_block_for<T, false>(kind);
  alignas(64) T x_buffer[kBlock], t_buffer[kBlock], g_buffer[kBlock];
  Validity validity;
  for (std::int64_t begin = run.begin; begin < run.end; begin += kBlock) {
    const std::int64_t n = run.end - begin < kBlock ? run.end - begin : kBlock;
    const GradientRow<T> gradient(problem, run.sample, run.first_class, begin, n);
    validity.look(valid, begin, n);
    if (validity.items == 0) {
      gradient.clear();
      continue;
    }
    const T* x = block_of(logits, begin, n, validity, kNeutral<T>, x_buffer);
    const T* t = block_of(target, begin, n, validity, T{0}, t_buffer);
    const bool hard = target.dtype == DType::bool_ || hard_block == soft_block || all_hard(t, padded<T>(n));
    T* g = gradient.room(validity, g_buffer);
    (hard ? hard_block : soft_block)(x, t, padded<T>(n), slopes, g, gradient.streamed(g));
    gradient.finish(validity, g);
  }
}

template void sigmoid_sums<float>(const SegmentationLoss&, const Run&, SegmentationPart&, SegmentationGroup*);
template void sigmoid_sums<double>(const SegmentationLoss&, const Run&, SegmentationPart&, SegmentationGroup*);
template void sigmoid_gradient<float>(const SegmentationLossBackward&, const Run&);
template void sigmoid_gradient<double>(const SegmentationLossBackward&, const Run&);

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
