// Multiclass, forward: the sums of each class.
#include "kernels/cpu/segmentation_softmax.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {
namespace {

/// Cross entropy and focal term of each position; 0 where it has no target.
template <class T>
struct Entropies {
  alignas(64) T cross_entropy[kPositions];
  alignas(64) T focal[kPositions];
};

/// Cross entropy and focal term of the positions, added to the part; or each of them, for their classes.
template <class T, bool kEach>
FASTMINE_NOINLINE void add_entropies(const Positions<T>& at, Pointwise kind, T gamma, T last_class,
                                     SegmentationPart& part, Entropies<T>& each) {
  using V = Wide<T>;
  Vec<T> cross_entropy{}, focal{};
  for (std::int64_t i = 0; i < at.n; i += kStep<T>) {
    const V y = load_as<V>(at.target + i);
    const Target<V> target = target_of<V>(at, i);
    const V entropy = select((y >= 0) & (y <= last_class), -target.log_p, V{});
    if constexpr (kEach) {
      store(each.cross_entropy + i, entropy);
    } else {
      cross_entropy += fold(entropy);
    }
    if (kind != Pointwise::entropy) {
      const V focal_term = focal_power(kind, target.q, gamma) * entropy;
      if constexpr (kEach) {
        store(each.focal + i, focal_term);
      } else {
        focal += fold(focal_term);
      }
    }
  }
  part.cross_entropy += static_cast<double>(sum_lanes(cross_entropy));
  part.focal += static_cast<double>(sum_lanes(focal));
}

/// Third pass, one class: what its group gains. q keeps its digits where p is close to 1, which only the largest is.
template <class T, bool kEntropy, bool kFocal, bool kShape>
FASTMINE_NOINLINE void sum_class(const T* row, T k, const Positions<T>& at, const Entropies<T>& each,
                                 SegmentationGroupSums& out) {
  using V = Wide<T>;
  const V own = fill<V>(k), one = fill<V>(1);
  Vec<T> target{}, prediction{}, overlap{}, entropy{}, focal{}, squares{}, slope_on{}, slope_off{};
  for (std::int64_t i = 0; i < at.n; i += kStep<T>) {
    const V inverse = load_as<V>(at.inverse + i), p = load_as<V>(row + i) * inverse;
    const auto hit = load_as<V>(at.target + i) == own;
    prediction += fold(p);
    overlap += fold(select(hit, p, V{}));
    target += fold(select(hit, one, V{}));
    if constexpr (kEntropy) {
      entropy += fold(select(hit, load_as<V>(each.cross_entropy + i), V{}));
    }
    if constexpr (kFocal) {
      focal += fold(select(hit, load_as<V>(each.focal + i), V{}));
    }
    if constexpr (kShape) {
      const V q = select(load_as<V>(at.largest_class + i) == own, load_as<V>(at.others + i) * inverse, 1 - p);
      const V slope = p * q;
      squares += fold(p * p);
      slope_on += fold(select(hit, slope, V{}));
      slope_off += fold(select(hit, V{}, slope));
    }
  }
  const auto total = [](Vec<T> sum) { return static_cast<double>(sum_lanes(sum)); };
  out = {};
  out.t = total(target);
  out.p = total(prediction);
  out.a = total(overlap);
  if constexpr (kEntropy) {
    out.e1 = total(entropy);
  }
  if constexpr (kFocal) {
    out.f1 = total(focal);
  }
  if constexpr (kShape) {
    out.pp = total(squares);
    out.g1 = total(slope_on);
    out.g0 = total(slope_off);
  }
}

template <class T>
using SumClass = void (*)(const T*, T, const Positions<T>&, const Entropies<T>&, SegmentationGroupSums&);

template <class T, bool kShape>
SumClass<T> sum_class_of(const Asked& asked) {
  if (!asked.apart || asked.pointwise == Pointwise::none) {
    return &sum_class<T, false, false, kShape>;
  }
  return asked.pointwise == Pointwise::entropy ? &sum_class<T, true, false, kShape> : &sum_class<T, true, true, kShape>;
}

template <class T>
SumClass<T> sum_class_for(const Asked& asked) {
  return asked.shape ? sum_class_of<T, true>(asked) : sum_class_of<T, false>(asked);
}

FASTMINE_INLINE void add(SegmentationGroup& group, const SegmentationGroupSums& more) {
  group.target += more.t;
  group.prediction += more.p;
  group.overlap += more.a;
}

FASTMINE_INLINE void add(SegmentationGroupSums& group, const SegmentationGroupSums& more) {
  group.t += more.t;
  group.p += more.p;
  group.a += more.a;
  group.pp += more.pp;
  group.e1 += more.e1;
  group.f1 += more.f1;
  group.g1 += more.g1;
  group.g0 += more.g0;
}

/// log(1 + s) of each position.
template <class T>
FASTMINE_NOINLINE void find_log_total(const Positions<T>& at, T* log_total) {
  using V = Vec<T>;
  for (std::int64_t i = 0; i < at.n; i += static_cast<std::int64_t>(size<V>)) {
    store(log_total + i, log1p_positive(load(at.others + i)));
  }
}

/// -log p of a class, from its logits: nothing of it is left in an exponential that is 0.
template <class T>
FASTMINE_NOINLINE double sum_linear(const ClassBlock<T>& block, std::int64_t k, const Positions<T>& at,
                                    const T* log_total) {
  using V = Wide<T>;
  alignas(64) T buffer[kPositions];
  const T* logits = block.logits_of(k, buffer);
  Vec<T> sum{};
  for (std::int64_t i = 0; i < at.n; i += kStep<T>) {
    const V entropy = (load_as<V>(at.largest + i) - load_as<V>(logits + i)) + load_as<V>(log_total + i);
    sum += fold(select(load_as<V>(at.live + i) != 0, entropy, V{}));
  }
  return static_cast<double>(sum_lanes(sum));
}

/// The ranges of targets and largest logits over the live positions.
template <class T>
FASTMINE_NOINLINE void add_ranges(const Positions<T>& at, Range& targets, Range& logits) {
  using V = Vec<T>;
  V first = fill<V>(kLargest<T>), last = -first, high = -first;
  for (std::int64_t i = 0; i < at.n; i += static_cast<std::int64_t>(size<V>)) {
    const auto live = load(at.live + i) != 0;
    const V y = load(at.target + i);
    first = minimum(select(live, y, first), first);
    last = maximum(select(live, y, last), last);
    high = maximum(select(live, load(at.largest + i), high), high);
  }
  targets.cover_lanes(first, last);
  logits.cover_lanes(fill<V>(kLargest<T>), high);
}

}  // namespace

template <class T, class Group>
void softmax_sums(const SegmentationInputs& in, const Asked& asked, const Run& run, SegmentationPart& part,
                  Group* groups) {
  constexpr bool kMore = sizeof(Group) == sizeof(SegmentationGroupSums);
  using V = Vec<T>;
  V low = fill<V>(kLargest<T>);
  Range targets, logits;
  Positions<T> at;
  Entropies<T> each;
  alignas(64) T log_total[kPositions];
  part = {};
  for (std::int64_t k = 0; k < in.classes; ++k) {
    groups[k] = {};
  }
  const SumClass<T> sum_class = sum_class_for<T>(asked);
  const auto add_block = [&](const ClassBlock<T>& block) {
    read_targets(block, at);
    if (block.merging) {  // ranges are those of what was given
      Range none;
      add_ranges(at, targets, none);
      block.add_raw_ranges(logits);
      merge_targets(block, at);
    }
    const V smallest = softmax<T, Gather::none>(block, at, nullptr, low);
    if (!block.merging) {
      low = smallest;
      add_ranges(at, targets, logits);
    }
    part.items += static_cast<double>(block.validity.items);
    if (asked.pointwise != Pointwise::none) {
      add_entropies<T, kMore>(at, asked.pointwise, static_cast<T>(asked.focal.gamma), static_cast<T>(in.classes - 1),
                              part, each);
    }
    if (kMore && asked.linear) {
      find_log_total(at, log_total);
    }
    for_exponentials(block, at, [&](std::int64_t k, const T* row) {
      if (block.merging && is_merged(in, run, k)) {
        return;
      }
      SegmentationGroupSums more;
      sum_class(row, static_cast<T>(k), at, each, more);
      add(groups[k], more);
      if constexpr (kMore) {
        groups[k].x += asked.linear ? sum_linear(block, k, at, log_total) : 0;
      }
    });
  };
  for_blocks<T>(in, run, add_block, [](std::int64_t, std::int64_t) {});
  logits.cover_lanes(low, fill<V>(-kLargest<T>));
  double prediction = 0;
  for (std::int64_t k = 0; k < in.classes; ++k) {
    if constexpr (kMore) {
      prediction += groups[k].p;
    } else {
      prediction += groups[k].prediction;
    }
  }
  part.target_min = targets.min;
  part.target_max = targets.max;
  part.logit_min = logits.min;
  part.logit_max = logits.max;
  look_again<T>(in, run, prediction, 0, part);
}

template void softmax_sums<float>(const SegmentationInputs&, const Asked&, const Run&, SegmentationPart&,
                                  SegmentationGroup*);
template void softmax_sums<double>(const SegmentationInputs&, const Asked&, const Run&, SegmentationPart&,
                                   SegmentationGroup*);
template void softmax_sums<float>(const SegmentationInputs&, const Asked&, const Run&, SegmentationPart&,
                                  SegmentationGroupSums*);
template void softmax_sums<double>(const SegmentationInputs&, const Asked&, const Run&, SegmentationPart&,
                                   SegmentationGroupSums*);

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
