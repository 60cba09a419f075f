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

/// exp(-a) for a >= 0, 0 from 88 on. What the argument of 2^ loses by rounding is put back afterwards: relative error
/// that of 2^ and 1e-7, which grows to 3.5e-7 at 87.
FASTMINE_DEVICE float exponential_below(float a) {
  const float argument = a * -1.44269504F, coarse = power_of_two(argument);
  return saturated_multiply_add(coarse, multiply_add(argument, -0.693147181F, -a), coarse);  // 0 for Inf, too
}

/// Of one element: the wrong side's and the right side's probability, and the cross entropy.
struct HardElement {
  float wrong, right, entropy;
};

/// log(1 + e) = log y is odd in log y, as (y - 1 / y) R(y + 1 / y - 2) is: R to 1.7e-8, all of it to 2e-7, as rounded.
template <HardTerms kTerms>
FASTMINE_DEVICE HardElement hard_element(float x, bool on) {
  const float magnitude = fabsf(x), e = exponential_below(magnitude);
  const float high = reciprocal(1 + e), low = e * high;
  const bool mistaken = (x >= 0) != on;
  HardElement element{mistaken ? high : low, mistaken ? low : high, 0};
  if constexpr (kTerms != HardTerms::none) {
    const float q = e * low;
    float ratio = q * 0.0006048961F - 0.003493717F;
    ratio = ratio * q + 0.01665319F;
    ratio = ratio * q - 0.0833325F;
    ratio = ratio * q + 0.49999999F;
    element.entropy = (e + low) * ratio + (mistaken ? magnitude : 0.0F);
  }
  return element;
}

/// A bit for each of a pack's targets, 1 where it is 1; and bits of `soft` if one is neither 0 nor 1.
FASTMINE_DEVICE unsigned hard_bits(const Pack<std::uint8_t, 8>& pack, std::uint32_t& soft) {
  std::uint32_t word[2];
  memcpy(word, &pack, sizeof word);
  soft |= (word[0] | word[1]) & 0xfefefefeU;
  return (word[0] + (word[1] << 4)) * 0x01020408U >> 24;  // bit 0 of byte i to bit 24 + i, bit 4 to 28 + i
}
FASTMINE_DEVICE std::uint32_t word_of(float x) {
  std::uint32_t word;
  memcpy(&word, &x, sizeof word);
  return word;
}
FASTMINE_DEVICE unsigned hard_bits(const Pack<float, 8>& pack, std::uint32_t& soft) {
  float sum = 8388608;  // 2^23: the low bits are a whole number
  FASTMINE_UNROLL for (int i = 0; i < 8; ++i) {
    const float t = pack.item[i];
    soft |= word_of(t * t - t);
    sum += t * static_cast<float>(1 << i);
  }
  return word_of(sum) & 0xffU;
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

  /// kPacks packs, kStep positions apart from `position` on: the logits, and a bit for each target. False if one of the
  /// targets is neither 0 nor 1.
  template <int kPacks, int kStep>
  FASTMINE_DEVICE bool load(std::int64_t position, Pack<S, kItems> (&logits)[kPacks], unsigned& on_target) const {
    FASTMINE_UNROLL for (int k = 0; k < kPacks; ++k) {
      logits[k] = load_pack<S, kItems>(logits_ + position + k * kStep);
    }
    return floating_ ? load_bits<float, kPacks, kStep>(position, on_target)
                     : load_bits<std::uint8_t, kPacks, kStep>(position, on_target);
  }

 private:
  template <class Target, int kPacks, int kStep>
  FASTMINE_DEVICE bool load_bits(std::int64_t position, unsigned& on_target) const {
    static_assert(kPacks * kItems <= 32);
    Pack<Target, kItems> packs[kPacks];
    FASTMINE_UNROLL for (int k = 0; k < kPacks; ++k) {
      packs[k] = load_pack<Target, kItems>(static_cast<const Target*>(target_) + position + k * kStep);
    }
    std::uint32_t soft = 0;
    on_target = 0;
    FASTMINE_UNROLL for (int k = 0; k < kPacks; ++k) { on_target |= hard_bits(packs[k], soft) << k * kItems; }
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
  FASTMINE_DEVICE void add(const Pack<S, kItems> (&logits)[kPacks], unsigned on_target) {
    FASTMINE_UNROLL for (int k = 0; k < kPacks; ++k) {
      float x[kItems];
      values_of(logits[k], x);
      FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) { add<kTerms>(x[i], has_bit(on_target, k * kItems + i)); }
    }
  }

 private:
  template <HardTerms kTerms>
  FASTMINE_DEVICE void add(float x, bool is_on) {
    const HardElement element = hard_element<kTerms>(x, is_on);
    if (is_on) {
      on += element.right;
    } else {
      off += element.wrong;
    }
    if constexpr (kTerms != HardTerms::none) {
      entropy += element.entropy;
    }
    if constexpr (kTerms == HardTerms::focal || kTerms == HardTerms::weighted_focal) {
      const float term = element.wrong * element.wrong * element.entropy;
      if (kTerms == HardTerms::weighted_focal && is_on) {
        focal_on += term;
      } else {
        focal_off += term;
      }
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
  FASTMINE_DEVICE Pack<S, kItems> gradient(const Pack<S, kItems>& logits, unsigned on_target) const {
    float x[kItems];
    values_of(logits, x);
    Pack<S, kItems> out;
    FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
      const bool is_on = has_bit(on_target, i);
      const HardElement element = hard_element<kFocal ? HardTerms::focal : HardTerms::none>(x[i], is_on);
      const float wrong = element.wrong, right = element.right;
      float slope = (is_on ? right_on : right_off) * right + entropy;
      if constexpr (kFocal) {
        slope += (is_on ? focal_on : focal_off) * wrong * (2 * right * element.entropy + wrong);
      }
      assign(out.item[i], slope * (is_on ? -wrong : wrong));
    }
    return out;
  }
};

}  // namespace fastmine::cuda
