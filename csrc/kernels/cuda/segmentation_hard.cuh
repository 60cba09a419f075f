// The usual case of a sigmoid: whole packs of valid elements whose targets are 0 or 1, no focal term or one of gamma 2.
// Such an element has a wrong side, the sigmoid u of z = (target ? -x : x), and a right one, v = 1 - u; its cross
// entropy is softplus(z) and its focal term u^2 softplus(z). Half the arithmetic of a target in between, and none on
// it.
//
// What is not so, down to a logit that is not finite, is left to segmentation_sigmoid.cuh as it lies in memory: these
// functions say so before they have done anything.
#pragma once

#include <type_traits>

#include "kernels/cuda/segmentation_tasks.cuh"

namespace fastmine::cuda {

/// What is computed of an element beside its probability; a focal term weighs the same on and off the target, or not.
enum class HardTerms : std::uint8_t { none, entropy, focal, weighted_focal, others };

FASTMINE_DEVICE HardTerms hard_terms(const Asked& asked) {
  return !asked.focal                                      ? (asked.entropy ? HardTerms::entropy : HardTerms::none)
         : asked.alpha.gamma != 2                          ? HardTerms::others
         : asked.alpha.on_target != asked.alpha.off_target ? HardTerms::weighted_focal
                                                           : HardTerms::focal;
}

/// Of one element: the wrong side's and the right side's probability; e = exp(-|x|) and the smaller probability; and
/// |x| where the sign is mistaken, else 0.
struct HardElement {
  float wrong, right, e, low, excess;
};

/// The argument of 2^x is rounded, and nothing else of x: e is as exact as if the logit had been rounded once more.
FASTMINE_DEVICE HardElement hard_element(float x, bool on) {
  const float magnitude = fabsf(x), e = power_of_two(magnitude * -1.44269504F);
  const float high = reciprocal(1 + e), low = e * high;
  const bool mistaken = (x >= 0) != on;
  return {mistaken ? high : low, mistaken ? low : high, e, low, mistaken ? magnitude : 0.0F};
}

/// Its cross entropy: log(1 + e) = log y is odd in log y, as (y - 1 / y) R(y + 1 / y - 2) is; R to 1.7e-8, all of it to
/// 2e-7 of that of e.
FASTMINE_DEVICE float entropy_of(const HardElement& element) {
  const float q = element.e * element.low;
  float ratio = q * 0.0006048961F - 0.003493717F;
  ratio = ratio * q + 0.01665319F;
  ratio = ratio * q - 0.0833325F;
  ratio = ratio * q + 0.49999999F;
  return (element.e + element.low) * ratio + element.excess;
}

/// Targets of a pack, a byte each, whose lowest bit is 1 where the target is; and bits of `soft` if one is neither 0
/// nor 1. In bytes they are what was read.
struct HardTargets {
  std::uint32_t word[2];

  FASTMINE_DEVICE bool on(int i) const { return has_bit(word[i / 4], i % 4 * 8); }
  FASTMINE_DEVICE unsigned count(unsigned sum) const { return add_bytes(word[0], add_bytes(word[1], sum)); }
};

FASTMINE_DEVICE HardTargets hard_targets(const Pack<std::uint8_t, 8>& pack, std::uint32_t& soft) {
  HardTargets targets;
  memcpy(targets.word, &pack, sizeof targets.word);
  soft |= (targets.word[0] | targets.word[1]) & 0xfefefefeU;
  return targets;
}
FASTMINE_DEVICE HardTargets hard_targets(const Pack<float, 8>& pack, std::uint32_t& soft) {
  std::uint32_t bits[8];
  memcpy(bits, &pack, sizeof bits);
  FASTMINE_UNROLL for (int i = 0; i < 8; ++i) {
    const float t = pack.item[i], between = t * t - t;
    std::uint32_t rest;
    memcpy(&rest, &between, sizeof rest);
    soft |= rest;
  }
  // 1 is 0x3f800000.
  return {{top_bytes(bits[0], bits[1], bits[2], bits[3]) & 0x01010101U,
           top_bytes(bits[4], bits[5], bits[6], bits[7]) & 0x01010101U}};
}

/// The row of a task, if its packs may be hard and lie so that they can be read whole.
template <class S>
class HardRow {
 public:
  static constexpr int kItems = SigmoidShape::kItems;

  FASTMINE_DEVICE HardRow(const SegmentationInputs& in, const Task& task)
      : logits_(at<S>(in.logits, task.sample, task.first_class, 0)), floating_(in.target.dtype == DType::float32) {
    const bool bytes = in.target.dtype == DType::uint8 || in.target.dtype == DType::bool_;
    target_ = floating_ ? static_cast<const void*>(at<float>(in.target, task.sample, task.first_class, 0))
                        : at<std::uint8_t>(in.target, task.sample, task.first_class, 0);
    readable_ = in.valid.data == nullptr && (bytes || floating_) &&
                !(in.ignores && (in.ignore_index == 0 || in.ignore_index == 1)) &&
                is_pack<S, kItems>(logits_, in.logits.stride[2], kItems) &&
                (floating_ ? is_pack<float, kItems>(target_, in.target.stride[2], kItems)
                           : is_pack<std::uint8_t, kItems>(target_, in.target.stride[2], kItems));
  }

  FASTMINE_DEVICE bool readable() const { return readable_; }

  /// kPacks packs, kStep positions apart from `position` on. False if one of the targets is neither 0 nor 1.
  template <int kPacks, int kStep>
  FASTMINE_DEVICE bool load(std::int64_t position, Pack<S, kItems> (&logits)[kPacks],
                            HardTargets (&targets)[kPacks]) const {
    FASTMINE_UNROLL for (int k = 0; k < kPacks; ++k) {
      logits[k] = load_pack<S, kItems>(logits_ + position + k * kStep);
    }
    return floating_ ? load_targets<float, kPacks, kStep>(position, targets)
                     : load_targets<std::uint8_t, kPacks, kStep>(position, targets);
  }

 private:
  template <class Target, int kPacks, int kStep>
  FASTMINE_DEVICE bool load_targets(std::int64_t position, HardTargets (&targets)[kPacks]) const {
    Pack<Target, kItems> packs[kPacks];
    FASTMINE_UNROLL for (int k = 0; k < kPacks; ++k) {
      packs[k] = load_pack<Target, kItems>(static_cast<const Target*>(target_) + position + k * kStep);
    }
    std::uint32_t soft = 0;
    FASTMINE_UNROLL for (int k = 0; k < kPacks; ++k) { targets[k] = hard_targets(packs[k], soft); }
    return soft == 0;
  }

  const S* logits_;
  const void* target_;
  bool floating_, readable_;
};

/// The values of a pack. Those of bfloat16 are the halves of words, each one instruction away.
template <class S, int kItems>
FASTMINE_DEVICE void values_of(const Pack<S, kItems>& pack, float (&values)[kItems]) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    std::uint32_t pairs[kItems / 2], bits[kItems];
    memcpy(pairs, &pack, sizeof pairs);
    FASTMINE_UNROLL for (int i = 0; i < kItems; i += 2) {
      bits[i] = pairs[i / 2] << 16;
      bits[i + 1] = pairs[i / 2] & 0xffff0000U;
    }
    memcpy(values, bits, sizeof bits);
  } else {
    FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) { values[i] = value_of<float>(pack.item[i]); }
  }
}

/// The smallest and the largest of some logits; both NaN if one is.
struct Extremes {
  float least, most;

  FASTMINE_DEVICE bool finite() const { return least >= -kLargest<float> && most <= kLargest<float>; }
};

template <class S, int kItems, int kPacks>
FASTMINE_DEVICE Extremes extremes_of(const Pack<S, kItems> (&packs)[kPacks]) {
  if constexpr (std::is_same_v<S, float>) {
    Extremes found{packs[0].item[0], packs[0].item[0]};
    FASTMINE_UNROLL for (int k = 0; k < kPacks; ++k) {
      FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
        found = {lower(found.least, packs[k].item[i]), upper(found.most, packs[k].item[i])};
      }
    }
    return found;
  } else {
    constexpr bool kBFloat16 = std::is_same_v<S, BFloat16>;
    std::uint32_t pairs[kPacks * kItems / 2];
    memcpy(pairs, packs, sizeof pairs);
    std::uint32_t least = pairs[0], most = pairs[0];
    FASTMINE_UNROLL for (const std::uint32_t pair : pairs) {
      least = kBFloat16 ? lower_bfloat16s(least, pair) : lower_halves(least, pair);
      most = kBFloat16 ? upper_bfloat16s(most, pair) : upper_halves(most, pair);
    }
    S low[2], high[2];
    memcpy(low, &least, sizeof low);
    memcpy(high, &most, sizeof high);
    return {lower(value_of<float>(low[0]), value_of<float>(low[1])),
            upper(value_of<float>(high[0]), value_of<float>(high[1]))};
  }
}

/// The sums over hard packs: of probabilities on and off the target, and of the terms.
struct HardSums {
  float on = 0, off = 0, entropy = 0, focal_on = 0, focal_off = 0;

  template <HardTerms kTerms, int kPacks, class S, int kItems>
  FASTMINE_DEVICE void add(const Pack<S, kItems> (&logits)[kPacks], const HardTargets (&targets)[kPacks]) {
    float rest = 0;  // the product of all 1 + e, but for its 1: the sum of the cross entropies takes one logarithm
    FASTMINE_UNROLL for (int k = 0; k < kPacks; ++k) {
      float x[kItems];
      values_of(logits[k], x);
      FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
        const bool is_on = targets[k].on(i);
        const HardElement element = hard_element(x[i], is_on);
        add_probability(element, is_on);
        if constexpr (kTerms == HardTerms::entropy) {
          static_assert(kPacks * kItems <= 120);  // a float has 2^120
          rest = rest * element.e + (rest + element.e);
          entropy += element.excess;
        } else if constexpr (kTerms != HardTerms::none) {
          add_focal<kTerms == HardTerms::weighted_focal>(element, is_on);
        }
      }
    }
    if constexpr (kTerms == HardTerms::entropy) {
      entropy += log1p_of_sum(rest);
    }
  }

 private:
  FASTMINE_DEVICE void add_probability(const HardElement& element, bool is_on) {
    if (is_on) {
      on += element.right;
    } else {
      off += element.wrong;
    }
  }

  template <bool kWeighted>
  FASTMINE_DEVICE void add_focal(const HardElement& element, bool is_on) {
    const float each = entropy_of(element), term = element.wrong * element.wrong * each;
    entropy += each;
    if (kWeighted && is_on) {
      focal_on += term;
    } else {
      focal_off += term;
    }
  }
};

/// The gradient at a hard element, but for its sign, which is that of the wrong side:
/// u (s v + entropy + focal u (u + 2 v softplus)), with s and focal those of its target.
struct HardSlopes {
  float right_on, right_off, entropy, focal_on, focal_off;

  FASTMINE_DEVICE explicit HardSlopes(const GroupSlopes<float>& slopes)
      : right_on(-(slopes.on_target + slopes.everywhere)),
        right_off(slopes.everywhere),
        entropy(slopes.entropy_on),
        focal_on(slopes.focal_on),
        focal_off(slopes.focal_off) {}

  template <bool kFocal, class S, int kItems>
  FASTMINE_DEVICE Pack<S, kItems> gradient(const Pack<S, kItems>& logits, const HardTargets& targets) const {
    float x[kItems];
    values_of(logits, x);
    Pack<S, kItems> out;
    FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
      const bool is_on = targets.on(i);
      const HardElement element = hard_element(x[i], is_on);
      const float wrong = element.wrong, right = element.right;
      float slope = (is_on ? right_on : right_off) * right + entropy;
      if constexpr (kFocal) {
        slope += (is_on ? focal_on : focal_off) * wrong * (2 * right * entropy_of(element) + wrong);
      }
      assign(out.item[i], slope * (is_on ? -wrong : wrong));
    }
    return out;
  }
};

}  // namespace fastmine::cuda
