// Binary and multilabel: a sigmoid for every element, on its own.
#include "kernels/cpu/segmentation_pass.h"

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

/// Which sums a loop computes.
enum class Sums : std::uint8_t {
  together,  // t, p, a, and entropies whatever the target
  apart,     // t, p, a, and entropies on and off the target
  all,       // and pp, tt, g1, g0
};

template <class T>
struct BlockSums {
  Vec<T> target{}, prediction{}, overlap{};
  Vec<T> entropy_on{}, entropy_off{}, focal_on{}, focal_off{};  // together: all of it on
  Vec<T> squares{}, target_squares{}, slope_on{}, slope_off{};
  Vec<T> low = fill<Vec<T>>(kLargest<T>), high = fill<Vec<T>>(-kLargest<T>);  // NaN is passed over
};

/// value, which belongs to the target's side of each element: to `on` where that is the target, else to `off`. The
/// difference is exact, since a hard target is 0 or 1.
template <class T, class V>
FASTMINE_INLINE void add_side(V value, V t, Vec<T>& on, Vec<T>& off) {
  const V on_target = value * t;
  on += fold(on_target);
  off += fold(value - on_target);
}

/// The sums over n elements, full steps. `kHard`: every target is 0 or 1, which halves the focal term.
template <class T, Pointwise kKind, bool kHard, Sums kSums>
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
    if constexpr (kSums == Sums::all) {
      const V slope = sides.larger * sides.smaller;
      sums.squares += fold(p * p);
      sums.target_squares += fold(t * t);
      sums.slope_on += fold(slope * t);
      sums.slope_off += fold(slope * (1 - t));
    }
    if constexpr (kKind != Pointwise::none) {
      const V rest = log1p_unit(sides.e);
      if constexpr (kHard && (kIsFocal<kKind> || kSums != Sums::together)) {
        const V z = x * (1 - 2 * t), entropy = maximum(V{}, z) + rest;  // z: the logit of the wrong side
        V focal_term{};
        if constexpr (kIsFocal<kKind>) {
          focal_term = power<kKind>(sides.of(z), minimum(V{}, z) - rest, focal.gamma) * entropy;
        }
        if constexpr (kSums == Sums::together) {
          const V alpha = focal.off_target + (focal.on_target - focal.off_target) * t;
          sums.entropy_on += fold(entropy);
          sums.focal_on += fold(alpha * focal_term);
        } else {
          add_side<T>(entropy, t, sums.entropy_on, sums.entropy_off);
          if constexpr (kIsFocal<kKind>) {
            add_side<T>(focal_term, t, sums.focal_on, sums.focal_off);
          }
        }
      } else {
        const V log_p = minimum(V{}, x) - rest, log_q = minimum(V{}, -x) - rest;
        if constexpr (kSums == Sums::together) {
          // softplus(x) - t x: a target's x cancels before anything is added to it.
          sums.entropy_on += fold((maximum(V{}, x) - t * x) + rest);
        } else {
          sums.entropy_on -= fold(t * log_p);
          sums.entropy_off -= fold((1 - t) * log_q);
        }
        if constexpr (kIsFocal<kKind>) {
          const V on = t * power<kKind>(sides.of(-x), log_q, focal.gamma) * log_p;
          const V off = (1 - t) * power<kKind>(p, log_p, focal.gamma) * log_q;
          if constexpr (kSums == Sums::together) {
            sums.focal_on -= fold(focal.on_target * on);
            sums.focal_on -= fold(focal.off_target * off);
          } else {
            sums.focal_on -= fold(on);
            sums.focal_off -= fold(off);
          }
        }
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

template <class T, Pointwise kKind>
constexpr Pointwise kPower = kSpecial<T> ? kKind : Pointwise::focal;

template <class T, bool kHardTargets, Sums kSums>
AddBlock<T> add_block_of(Pointwise kind) {
  constexpr bool kHard = kHardTargets && kSpecial<T>;
  switch (kind) {
    case Pointwise::none:
      return &add_block<T, Pointwise::none, false, kSums>;
    case Pointwise::entropy:
      return &add_block < T, Pointwise::entropy, kHard && kSums != Sums::together, kSums > ;
    case Pointwise::focal_0:
      return &add_block<T, kPower<T, Pointwise::focal_0>, kHard, kSums>;
    case Pointwise::focal_1:
      return &add_block<T, kPower<T, Pointwise::focal_1>, kHard, kSums>;
    case Pointwise::focal_2:
      return &add_block<T, kPower<T, Pointwise::focal_2>, kHard, kSums>;
    case Pointwise::focal:
      return &add_block<T, Pointwise::focal, kHard, kSums>;
  }
  return nullptr;
}

template <class T, bool kHard>
AddBlock<T> add_block_for(const Asked& asked) {
  return asked.shape   ? add_block_of<T, kHard, Sums::all>(asked.pointwise)
         : asked.apart ? add_block_of<T, kHard, Sums::apart>(asked.pointwise)
                       : add_block_of<T, kHard, Sums::together>(asked.pointwise);
}

/// Sums of blocks, lane by lane in float64, which cost less than adding lanes up after every block.
template <class T>
struct RunSums {
  using D = Vec<double, lanes<T>>;
  D target{}, prediction{}, overlap{};
  D entropy_on{}, entropy_off{}, focal_on{}, focal_off{};
  D squares{}, target_squares{}, slope_on{}, slope_off{};
  Vec<T> low = fill<Vec<T>>(kLargest<T>), high = fill<Vec<T>>(-kLargest<T>);

  FASTMINE_INLINE void add(const BlockSums<T>& block, const Asked& asked) {
    target += convert<double>(block.target);
    prediction += convert<double>(block.prediction);
    overlap += convert<double>(block.overlap);
    entropy_on += convert<double>(block.entropy_on);
    focal_on += convert<double>(block.focal_on);
    if (asked.apart) {
      entropy_off += convert<double>(block.entropy_off);
      focal_off += convert<double>(block.focal_off);
    }
    if (asked.shape) {
      squares += convert<double>(block.squares);
      target_squares += convert<double>(block.target_squares);
      slope_on += convert<double>(block.slope_on);
      slope_off += convert<double>(block.slope_off);
    }
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

/// The sums of x and of t x over the valid ones of n elements.
template <class T>
FASTMINE_NOINLINE void add_linear(const T* logits, const T* targets, std::int64_t n, const Validity& validity,
                                  SegmentationGroupSums& group) {
  using V = Vec<T>;
  constexpr auto kLanes = static_cast<std::int64_t>(size<V>);
  V sum{}, on_target{};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    V x = load(logits + i);
    if (!validity.all()) {
      x = select(convert<Bits<V>>(load<std::uint8_t, size<V>>(validity.flags + i)) != 0, x, V{});
    }
    sum += x;
    on_target += x * load(targets + i);
  }
  group.x += static_cast<double>(sum_lanes(sum));
  group.tx += static_cast<double>(sum_lanes(on_target));
  for (; i < n; ++i) {
    const T x = validity.all() || validity.flags[i] != 0 ? logits[i] : T{0};
    group.x += static_cast<double>(x);
    group.tx += static_cast<double>(x * targets[i]);
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
void add_positions(const SegmentationInputs& in, const Asked& asked, const Run& run, RunState<T>& state,
                   SegmentationGroupSums& group) {
  const Row logits = row_of(in.logits, run.sample, run.first_class);
  const Row target = row_of(in.target, run.sample, run.first_class);
  const ValidRows valid = valid_rows_of(in, run);
  const AddBlock<T> hard_block = add_block_for<T, true>(asked), soft_block = add_block_for<T, false>(asked);
  const FocalConstants<T> focal{static_cast<T>(asked.focal.on_target), static_cast<T>(asked.focal.off_target),
                                static_cast<T>(asked.focal.gamma)};
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
    state.sums.add(block, asked);
    if (asked.linear) {
      add_linear(x, t, n, validity, group);
    }
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

/// -dFL by the logit of the right side, over alpha: u^g (u + g (1 - u) softplus). No division, finite for every g >= 0.
template <Pointwise kKind, class V>
FASTMINE_INLINE V focal_slope(V wrong, V right, V log_wrong, V entropy, Lane<V> gamma) {
  return power<kKind>(wrong, log_wrong, gamma) * (wrong + gamma * right * entropy);
}

/// on or off, by a target that is 0 or 1, without a difference of the two.
template <class V>
FASTMINE_INLINE V by_side(V t, Lane<V> on, Lane<V> off) {
  return select(t != 0, fill<V>(on), fill<V>(off));
}

/// The gradient of n elements, full steps. `kOwn`: with all slopes, and not the same on and off the target.
template <class T, Pointwise kKind, bool kHard, bool kOwn>
FASTMINE_NOINLINE void gradient_block(const T* logits, const T* targets, std::int64_t n, const GroupSlopes<T>& slopes,
                                      T gamma, T* gradient, bool streamed) {
  using V = Wide<T>;
  for (std::int64_t i = 0; i < n; i += kStep<T>) {
    const V x = load_as<V>(logits + i), t = load_as<V>(targets + i);
    const Sigmoid<V> sides = sigmoid(x);
    V by_probability = slopes.on_target * t + slopes.everywhere;
    if constexpr (kOwn) {
      by_probability += slopes.squares * sides.of(x);
    }
    V g = by_probability * (sides.larger * sides.smaller);
    V rest{};
    if constexpr (kIsFocal<kKind>) {
      rest = log1p_unit(sides.e);
    }
    if constexpr (kIsFocal<kKind> && kHard) {
      const V side = 1 - 2 * t, z = x * side;  // the logit of the wrong side
      const V wrong = sides.of(z), right = sides.of(-z);
      const V slope = focal_slope<kKind>(wrong, right, minimum(V{}, z) - rest, maximum(V{}, z) + rest, gamma);
      const V entropy = kOwn ? by_side(t, slopes.entropy_on, slopes.entropy_off) : fill<V>(slopes.entropy_on);
      g += side * (entropy * wrong + by_side(t, slopes.focal_on, slopes.focal_off) * slope);
    } else {
      const V p = sides.of(x), q = sides.of(-x);
      if constexpr (kOwn) {
        g += slopes.entropy_off * ((1 - t) * p) - slopes.entropy_on * (t * q);
      } else {
        g += slopes.entropy_on * ((1 - t) * p - t * q);  // p - t keeps no digits where p is close to t
      }
      if constexpr (kIsFocal<kKind>) {
        const V log_p = minimum(V{}, x) - rest, log_q = minimum(V{}, -x) - rest;
        g += slopes.focal_off * (1 - t) * focal_slope<kKind>(p, q, log_p, -log_q, gamma);
        g -= slopes.focal_on * t * focal_slope<kKind>(q, p, log_q, -log_p, gamma);
      }
    }
    if constexpr (kOwn) {
      g += slopes.linear_on * t + slopes.linear;
    }
    put(gradient + i, g, streamed);
  }
}

template <class T>
using GradientBlock = void (*)(const T*, const T*, std::int64_t, const GroupSlopes<T>&, T, T*, bool);

template <class T, bool kHardTargets, bool kOwn>
GradientBlock<T> gradient_block_of(Pointwise kind) {
  constexpr bool kHard = kHardTargets && kSpecial<T>;
  switch (kind) {
    case Pointwise::none:
    case Pointwise::entropy:
    case Pointwise::focal_0:  // is part of the entropies
      return &gradient_block<T, Pointwise::entropy, false, kOwn>;
    case Pointwise::focal_1:
      return &gradient_block<T, kPower<T, Pointwise::focal_1>, kHard, kOwn>;
    case Pointwise::focal_2:
      return &gradient_block<T, kPower<T, Pointwise::focal_2>, kHard, kOwn>;
    case Pointwise::focal:
      return &gradient_block<T, Pointwise::focal, kHard, kOwn>;
  }
  return nullptr;
}

template <class T, bool kHard>
GradientBlock<T> gradient_block_for(Pointwise kind, bool own) {
  return own ? gradient_block_of<T, kHard, true>(kind) : gradient_block_of<T, kHard, false>(kind);
}

}  // namespace

template <class T>
void sigmoid_sums(const SegmentationInputs& in, const Asked& asked, const Run& run, SegmentationPart& part,
                  SegmentationGroupSums& group) {
  group = {};
  RunState<T> state;
  add_positions(in, asked, run, state, group);
  const RunSums<T>& sums = state.sums;
  group.t = sum_lanes(sums.target);
  group.p = sum_lanes(sums.prediction);
  group.a = sum_lanes(sums.overlap);
  group.pp = sum_lanes(sums.squares);
  group.tt = sum_lanes(sums.target_squares);
  group.e1 = sum_lanes(sums.entropy_on);
  group.e0 = sum_lanes(sums.entropy_off);
  group.f1 = sum_lanes(sums.focal_on);
  group.f0 = sum_lanes(sums.focal_off);
  group.g1 = sum_lanes(sums.slope_on);
  group.g0 = sum_lanes(sums.slope_off);
  part = {static_cast<double>(state.items),
          group.e1,
          group.f1,
          state.targets.min,
          state.targets.max,
          state.logits.min,
          state.logits.max,
          0,
          0};
  look_again<T>(in, run, group.p, group.t, part);
}

template <class T>
void sigmoid_gradient(const Backward<T>& pass, const Run& run) {
  const SegmentationInputs& in = pass.in;
  const Row logits = row_of(in.logits, run.sample, run.first_class);
  const Row target = row_of(in.target, run.sample, run.first_class);
  const ValidRows valid = valid_rows_of(in, run);
  const GroupSlopes<T> slopes = pass.of(run.sample)[run.first_class];
  const bool own = pass.samples[run.sample].own;
  const Pointwise kind = pointwise(true, slopes.focal_on != 0 || slopes.focal_off != 0, pass.gamma);
  const GradientBlock<T> hard_block = gradient_block_for<T, true>(kind, own),
                         soft_block = gradient_block_for<T, false>(kind, own);
  const T gamma = static_cast<T>(pass.gamma);
  alignas(64) T x_buffer[kBlock], t_buffer[kBlock], g_buffer[kBlock];
  Validity validity;
  for (std::int64_t begin = run.begin; begin < run.end; begin += kBlock) {
    const std::int64_t n = run.end - begin < kBlock ? run.end - begin : kBlock;
    const GradientRow<T> gradient(pass, run.sample, run.first_class, begin, n);
    validity.look(valid, begin, n);
    if (validity.items == 0) {
      gradient.clear();
      continue;
    }
    const T* x = block_of(logits, begin, n, validity, kNeutral<T>, x_buffer);
    const T* t = block_of(target, begin, n, validity, T{0}, t_buffer);
    const bool hard = target.dtype == DType::bool_ || hard_block == soft_block || all_hard(t, padded<T>(n));
    T* g = gradient.room(validity, g_buffer);
    (hard ? hard_block : soft_block)(x, t, padded<T>(n), slopes, gamma, g, gradient.streamed(g));
    gradient.finish(validity, g);
  }
}

template void sigmoid_sums<float>(const SegmentationInputs&, const Asked&, const Run&, SegmentationPart&,
                                  SegmentationGroupSums&);
template void sigmoid_sums<double>(const SegmentationInputs&, const Asked&, const Run&, SegmentationPart&,
                                   SegmentationGroupSums&);
template void sigmoid_gradient<float>(const Backward<float>&, const Run&);
template void sigmoid_gradient<double>(const Backward<double>&, const Run&);

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
