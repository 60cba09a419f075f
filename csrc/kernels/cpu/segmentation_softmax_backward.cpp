// Multiclass, backward: the gradient of each class's logits.
#include "kernels/cpu/segmentation_softmax.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {
namespace {

template <class T>
void clear(BlockSlopes<T>& slopes) {
  for (std::int64_t i = 0; i < kPositions; ++i) {
    slopes.on_target[i] = slopes.target[i] = slopes.largest[i] = slopes.others[i] = 0;
  }
}

template <class T>
void clear_own(BlockSlopes<T>& slopes) {
  for (std::int64_t i = 0; i < kPositions; ++i) {
    slopes.entropy[i] = slopes.focal[i] = 0;
    slopes.target_squares[i] = slopes.largest_squares[i] = slopes.others_squares[i] = 0;
  }
}

/// After the first two passes: with D_k the slope of class k about that of the largest, and M the mean of all D_k, the
/// gradient is p_k (D_k - M + what the entropies add), but for the target.
template <class T, bool kOwn>
FASTMINE_NOINLINE void find_gradients(const Positions<T>& at, Pointwise kind, T gamma, T linear, BlockSlopes<T>& with) {
  using V = Wide<T>;
  for (std::int64_t i = 0; i < at.n; i += kStep<T>) {
    const Target<V> target = target_of<V>(at, i);
    const auto is_largest = load_as<V>(at.target + i) == load_as<V>(at.largest_class + i);
    const V inverse = load_as<V>(at.inverse + i), on_target = load_as<V>(with.on_target + i);
    V largest = load_as<V>(with.largest + i), slope = load_as<V>(with.target + i);
    V others = load_as<V>(with.others + i);
    V cross_entropy = fill<V>(with.classes->entropy_on), focal_scale = fill<V>(with.classes->focal_on);
    if constexpr (kOwn) {
      largest += load_as<V>(with.largest_squares + i) * inverse;
      slope += load_as<V>(with.target_squares + i) * target.p;
      others += load_as<V>(with.others_squares + i) * inverse;
      cross_entropy = load_as<V>(with.entropy + i);
      focal_scale = load_as<V>(with.focal + i);
      store(with.largest + i, largest);
    }
    const V mean =
        inverse * (others - largest * load_as<V>(at.others + i)) + on_target * select(is_largest, -target.q, target.p);
    const V own = select(is_largest, V{}, slope - largest + on_target);
    V on = cross_entropy * target.q, off = cross_entropy;
    if (kind != Pointwise::entropy) {
      const V focal = focal_scale * focal_power(kind, target.q, gamma) * (target.q - gamma * target.p * target.log_p);
      on += focal;
      off += select(target.q > 0, focal / target.q, V{});
    }
    V gradient = target.p * (own - mean) - on;
    if constexpr (kOwn) {
      off = off + linear;
      gradient += target.p * linear;
    }
    store(with.scaled + i, inverse * (off - mean - select(is_largest, on_target, V{})));
    store(with.gradient + i, gradient);
  }
}

/// Third pass, one class: the gradient of its logits.
template <class T, bool kOwn>
FASTMINE_NOINLINE void class_gradient(const T* row, T k, const GroupSlopes<T>& slopes, const Positions<T>& at,
                                      const BlockSlopes<T>& with, T* gradient, bool streamed) {
  using V = Wide<T>;
  const V own = fill<V>(k), everywhere = fill<V>(slopes.everywhere);
  for (std::int64_t i = 0; i < at.n; i += kStep<T>) {
    const V e = load_as<V>(row + i), inverse = load_as<V>(at.inverse + i);
    V about = everywhere - load_as<V>(with.largest + i);
    if constexpr (kOwn) {
      // Exactly 0 for the largest, however the compiler rounds: its gradient may be smaller than that.
      about = select(load_as<V>(at.largest_class + i) == own, V{}, about + slopes.squares * (e * inverse));
    }
    V g = e * (about * inverse + load_as<V>(with.scaled + i));
    g = select(load_as<V>(at.target + i) == own, load_as<V>(with.gradient + i), g);
    if constexpr (kOwn) {
      g -= fill<V>(slopes.linear);
    }
    put(gradient + i, g, streamed);
  }
}

/// The gradient of one class's logits, in full.
template <class T, bool kOwn>
FASTMINE_INLINE void write_class(const Backward<T>& pass, const ClassBlock<T>& block, std::int64_t k, T* row,
                                 const Positions<T>& at, const BlockSlopes<T>& with) {
  const GradientRow<T> gradient(pass, block.run.sample, k, block.begin, block.n);
  T* g = gradient.room(block.validity, row);
  class_gradient<T, kOwn>(row, static_cast<T>(k), with.classes[k], at, with, g, gradient.streamed(g));
  gradient.finish(block.validity, g);
}

/// The share of one class in the gradient of the background that it is part of: that gradient by that of its
/// exponential.
template <class T>
FASTMINE_NOINLINE void write_share(const Backward<T>& pass, const ClassBlock<T>& block, std::int64_t k, T* row,
                                   const T* background, const T* background_gradient) {
  using V = Wide<T>;
  const std::int64_t n = padded<T>(block.n);
  for (std::int64_t i = block.n; i < n; ++i) {
    row[i] = 0;
  }
  block.read_raw(k, row);
  for (std::int64_t i = 0; i < n; i += kStep<T>) {
    const V share = exp_negative(load_as<V>(background + i) - load_as<V>(row + i));
    store(row + i, load_as<V>(background_gradient + i) * share);
  }
  GradientRow<T>(pass, block.run.sample, k, block.begin, block.n).finish(block.validity, row);
}

template <class T, bool kOwn>
void softmax_gradient_of(const Backward<T>& pass, const Run& run) {
  const SegmentationInputs& in = pass.in;
  const GroupSlopes<T>* slopes = pass.of(run.sample);
  const SampleSlopes<T>& sample = pass.samples[run.sample];
  const Pointwise kind = pointwise(true, sample.focal, pass.gamma);
  const T gamma = static_cast<T>(pass.gamma);
  Positions<T> at;
  BlockSlopes<T> with;
  alignas(64) T background[kPositions], background_gradient[kPositions];
  with.overlaps = pass.overlaps + run.sample * in.classes;
  with.classes = slopes;
  const auto fill_in = [&](const ClassBlock<T>& block) {
    read_targets(block, at);
    clear(with);
    if constexpr (kOwn) {
      clear_own(with);
    }
    if (block.merging) {
      merge_targets(block, at);
      block.logits_of(0, background);
    }
    softmax<T, kOwn ? Gather::own : Gather::shared>(block, at, &with, Vec<T>{});
    find_gradients<T, kOwn>(at, kind, gamma, sample.linear, with);
    for_exponentials(block, at, [&](std::int64_t k, T* row) {
      if (block.merging && k == 0) {
        class_gradient<T, kOwn>(row, T{0}, slopes[0], at, with, background_gradient, false);
      }
      if (block.merging && (k == 0 || is_merged(in, run, k))) {
        write_share(pass, block, k, row, background, background_gradient);
      } else {
        write_class<T, kOwn>(pass, block, k, row, at, with);
      }
    });
  };
  const auto zero = [&](std::int64_t begin, std::int64_t n) {
    for (std::int64_t k = 0; k < in.classes; ++k) {
      GradientRow<T>(pass, run.sample, k, begin, n).clear();
    }
  };
  for_blocks<T>(in, run, fill_in, zero);
}

}  // namespace

template <class T>
void softmax_gradient(const Backward<T>& pass, const Run& run) {
  (pass.samples[run.sample].own ? softmax_gradient_of<T, true> : softmax_gradient_of<T, false>)(pass, run);
}

template void softmax_gradient<float>(const Backward<float>&, const Run&);
template void softmax_gradient<double>(const Backward<double>&, const Run&);

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
