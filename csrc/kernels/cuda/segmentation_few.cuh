// The usual case of a softmax: few classes, and positions that are all valid and whose target no class outdoes by far.
// About the target's logit y: e_k = exp(x_k - x_y), s = the sum of all e_k but its own, which is 1; so p_k is
// e_k / (1 + s), its cross entropy log(1 + s), and 1 - p_y is s / (1 + s), all with all their digits. The exponentials
// wait in shared memory until s is known, and each thread adds up its own sums of each class there.
//
// What is not so is left to segmentation_softmax.cuh, a thread's positions at a time.
#pragma once

#include <type_traits>

#include "kernels/cuda/segmentation_hard.cuh"
#include "kernels/cuda/segmentation_softmax.cuh"

namespace fastmine::cuda {

inline constexpr std::int64_t kFewClasses = 24;  // 84 KB of shared memory, which every GPU has

/// A thread's positions with their targets, and a walk over their few classes. S is the type of the logits.
template <class S>
class FewPositions {
 public:
  static constexpr int kThreads = SoftmaxShape::kThreads, kItems = SoftmaxShape::kItems;
  static constexpr int kChunk = 4;         // classes whose logits are read at a time
  static constexpr float kMost = 0x1p29F;  // e_k and s of a position: a product of kItems of them is a float
  using Exponentials = Pack<float, kItems>;
  using Chunk = Pack<S, kItems>[kChunk];

  /// Of shared memory.
  static constexpr std::size_t bytes(std::int64_t classes) {
    return static_cast<std::size_t>(classes * kThreads) * sizeof(Exponentials);
  }

  FASTMINE_DEVICE FewPositions(const SegmentationInputs& in, const Task& task, Exponentials* memory)
      : in_(in),
        task_(task),
        exponentials_(memory + thread_index()),
        logits_(at<S>(in.logits, task.sample, 0, 0)),
        stride_(in.logits.stride[1] * static_cast<std::int64_t>(sizeof(S))),
        classes_(static_cast<int>(in.classes)) {
    readable_ = in.valid.data == nullptr && !(in.ignores && in.ignore_index >= 0 && in.ignore_index < in.classes) &&
                in.logits.stride[1] % kItems == 0 && stride_ == static_cast<int>(stride_) &&
                is_pack<S, kItems>(logits_, in.logits.stride[2], kItems);
    with_integer_type(in.target.dtype, [&](auto tag) {
      using Stored = decltype(tag);
      readable_ =
          readable_ && is_pack<Stored, kItems>(at<Stored>(in.target, task.sample, 0, 0), in.target.stride[2], kItems);
    });
  }

  FASTMINE_DEVICE int classes() const { return classes_; }
  FASTMINE_DEVICE Exponentials& exponentials(int k) const { return exponentials_[k * kThreads]; }

  /// The targets from `position` on. False unless there are so many and each is a class; that to be ignored is none.
  FASTMINE_DEVICE bool load_targets(std::int64_t position, int (&target)[kItems]) const {
    bool hard = readable_ && task_.end - position >= kItems;
    if (!hard) {
      return false;
    }
    with_integer_type(in_.target.dtype, [&](auto tag) {
      using Stored = decltype(tag);
      using Unsigned = std::conditional_t<sizeof(Stored) == 8, std::uint64_t, std::uint32_t>;
      const auto pack = load_pack<Stored, kItems>(at<Stored>(in_.target, task_.sample, 0, position));
      FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
        const auto k = value_of<std::int64_t>(pack.item[i]);
        hard = hard && static_cast<Unsigned>(k) < static_cast<Unsigned>(classes_);
        target[i] = static_cast<int>(k);
      }
    });
    return hard;
  }

  /// Walk through the classes once, the logits of the next being under way: `look` gets them chunk by chunk, and
  /// `see(k, i, e, is_target)` each exponential, which is kept.
  template <class Look, class See>
  FASTMINE_DEVICE void walk(std::int64_t position, const int (&target)[kItems], Look look, See see) const {
    const S* const from = logits_ + position;
    Chunk chunk, next;
    load_chunk(from, 0, next);
    float of_target[kItems];
    FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) { of_target[i] = value_of<float>(logits_of(target[i], from)[i]); }
    for (int first = 0; first < classes_; first += kChunk) {
      FASTMINE_UNROLL for (int j = 0; j < kChunk; ++j) { chunk[j] = next[j]; }
      if (first + kChunk < classes_) {
        load_chunk(from, first + kChunk, next);
      }
      look(chunk);
      FASTMINE_UNROLL for (int j = 0; j < kChunk; ++j) {
        const int k = first + j;
        if (k < classes_) {
          float x[kItems];
          values_of(chunk[j], x);
          Exponentials each;
          FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
            each.item[i] = power_of_two((x[i] - of_target[i]) * 1.44269504F);
            see(k, i, each.item[i], k == target[i]);
          }
          exponentials(k) = each;
        }
      }
    }
  }

 private:
  /// The logits of a class, by those of class 0.
  FASTMINE_DEVICE const S* logits_of(int k, const S* first) const {
    const char* bytes = reinterpret_cast<const char*>(first) + static_cast<std::int64_t>(k) * static_cast<int>(stride_);
    return reinterpret_cast<const S*>(bytes);
  }

  /// The classes from k on; for those beyond the last, that again.
  FASTMINE_DEVICE void load_chunk(const S* from, int k, Chunk& chunk) const {
    FASTMINE_UNROLL for (int j = 0; j < kChunk; ++j) {
      chunk[j] = load_pack<S, kItems>(logits_of(smaller(k + j, classes_ - 1), from));
    }
  }

  const SegmentationInputs& in_;
  const Task& task_;
  Exponentials* exponentials_;  // of this thread
  const S* logits_;
  std::int64_t stride_;  // of the classes, in bytes; 32 bits of it where readable
  int classes_;
  bool readable_;
};

/// The sums of SegmentationGroup of each thread and class, in shared memory.
class FewSums {
 public:
  static constexpr int kThreads = SoftmaxShape::kThreads;

  static constexpr std::size_t bytes(std::int64_t classes) {
    return static_cast<std::size_t>(classes * kThreads) * (sizeof(Targets) + sizeof(float));
  }

  FASTMINE_DEVICE FewSums(void* memory, int classes)
      : targets_(static_cast<Targets*>(memory)),
        predictions_(reinterpret_cast<float*>(targets_ + classes * kThreads)),
        classes_(classes) {
    for (int k = 0; k < classes; ++k) {
      targets_[at(k)] = {};
      predictions_[at(k)] = 0;
    }
  }

  FASTMINE_DEVICE void add_prediction(int k, float p) const { predictions_[at(k)] += p; }
  /// So many positions with this target, and its probability at them.
  FASTMINE_DEVICE void add_targets(int k, float n, float p) const {
    Targets targets = targets_[at(k)];
    targets.n += n;
    targets.p += p;
    targets_[at(k)] = targets;
  }

  /// Add what all threads have to `out`, or start it, and begin anew.
  FASTMINE_DEVICE void give(SegmentationGroup* out, bool first) const {
    barrier();
    for (int k = thread_index() / kWarp; k < classes_; k += kThreads / kWarp) {
      float sums[4] = {};  // add_columns wants a power of two
      for (int i = k * kThreads + thread_index() % kWarp; i < (k + 1) * kThreads; i += kWarp) {
        sums[0] += targets_[i].n;
        sums[1] += predictions_[i];
        sums[2] += targets_[i].p;
        targets_[i] = {};
        predictions_[i] = 0;
      }
      const auto found = static_cast<double>(add_columns(sums));
      const int lane = thread_index() % kWarp, column = lane / (kWarp / 4);
      if (lane % (kWarp / 4) == 0 && column < kGroupColumns<SegmentationGroup>) {
        double& total = reinterpret_cast<double*>(out + k)[column];
        total = first ? found : total + found;
      }
    }
    barrier();
  }

 private:
  struct alignas(8) Targets {
    float n, p;
  };

  FASTMINE_DEVICE static int at(int k) { return k * kThreads + thread_index(); }

  Targets* targets_;
  float* predictions_;
  int classes_;
};

/// Such positions as a thread meets them. S is the type of the logits.
template <class S>
class HardPositions {
 public:
  using Positions = FewPositions<S>;
  static constexpr int kItems = Positions::kItems;

  FASTMINE_DEVICE HardPositions(const Positions& positions, const FewSums& sums) : positions_(positions), sums_(sums) {}

  /// Add the positions from `position` on. False, and nothing added, where they are not as they should be.
  FASTMINE_DEVICE bool add(std::int64_t position, const Asked& asked, Power power) {
    int target[kItems];
    if (!positions_.load_targets(position, target)) {
      return false;
    }
    float others[kItems] = {};
    Extremes seen{kLargest<float>, -kLargest<float>};
    const auto look = [&](const typename Positions::Chunk& chunk) {
      const Extremes found = extremes_of(chunk);
      seen = {lower(seen.least, found.least), upper(seen.most, found.most)};
    };
    positions_.walk(position, target, look, [&](int, int i, float e, bool is_target) {
      if (!is_target) {
        others[i] += e;
      }
    });
    float most = 0;
    FASTMINE_UNROLL for (const float of_one : others) { most = upper(most, of_one); }
    if (!seen.finite() || !(most <= Positions::kMost)) {
      return false;
    }
    add_classes(target, others);
    add_entropies(others, asked, power);
    logits_seen_ = {smaller(logits_seen_.least, seen.least), larger(logits_seen_.most, seen.most)};
    FASTMINE_UNROLL for (const int k : target) {
      lowest_ = smaller(lowest_, k);
      highest_ = larger(highest_, k);
    }
    items_ += kItems;
    return true;
  }

  /// Hand over what was added, but for the sums of the classes; those of the entropies as often as float32 needs it.
  FASTMINE_DEVICE void give(double& cross_entropy, double& focal) {
    cross_entropy += static_cast<double>(entropy_);
    focal += static_cast<double>(focal_);
    entropy_ = focal_ = 0;
  }
  FASTMINE_DEVICE void give_rest(int& items, ClassRange& targets, LogitRange<float>& logits) const {
    if (items_ > 0) {
      items += items_;
      targets.low = smaller(targets.low, static_cast<std::int64_t>(lowest_));
      targets.high = larger(targets.high, static_cast<std::int64_t>(highest_));
      logits.range.add(logits_seen_.least);
      logits.range.add(logits_seen_.most);
    }
  }

 private:
  /// The sums of the classes.
  FASTMINE_DEVICE void add_classes(const int (&target)[kItems], const float (&others)[kItems]) const {
    float inverse[kItems];
    FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) { inverse[i] = reciprocal(1 + others[i]); }
    for (int k = 0; k < positions_.classes(); ++k) {
      const typename Positions::Exponentials each = positions_.exponentials(k);
      float sum = 0;
      FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) { sum += each.item[i] * inverse[i]; }
      sums_.add_prediction(k, sum);
    }
    FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) { sums_.add_targets(target[i], 1, inverse[i]); }
  }

  /// The product of all 1 + s, but for its 1, has the sum of the cross entropies for its logarithm.
  FASTMINE_DEVICE void add_entropies(const float (&others)[kItems], const Asked& asked, Power power) {
    if (asked.focal) {
      FASTMINE_UNROLL for (const float s : others) {
        const float each = log1p_of_sum(s);
        entropy_ += each;
        focal_ += raise_complement(power, s * reciprocal(1 + s), static_cast<float>(asked.alpha.gamma)) * each;
      }
    } else if (asked.entropy) {
      float rest = 0;
      FASTMINE_UNROLL for (const float s : others) { rest = rest * s + (rest + s); }
      entropy_ += log1p_of_sum(rest);
    }
  }

  const Positions& positions_;
  const FewSums& sums_;
  Extremes logits_seen_{kLargest<float>, -kLargest<float>};
  int items_ = 0, lowest_ = INT32_MAX, highest_ = INT32_MIN;
  float entropy_ = 0, focal_ = 0;
};

template <class S>
constexpr std::size_t few_sums_bytes(std::int64_t classes) {
  return FewPositions<S>::bytes(classes) + FewSums::bytes(classes);
}

/// One block: the sums over a run of positions of one sample, for its few classes.
template <class S>
FASTMINE_KERNEL(SoftmaxShape::kThreads, 4)
few_softmax_sums(FASTMINE_PARAMETER ForwardWork work) {
  constexpr int kThreads = SoftmaxShape::kThreads, kItems = SoftmaxShape::kItems;
  const SegmentationInputs& in = work.in;
  const Task task = task_of(work.cut, in);
  double* const out = work.parts + block_index() * work.cut.columns;
  const Power power = power_of(work.asked.alpha.gamma);
  FASTMINE_DYNAMIC_SHARED(unsigned char, memory, few_sums_bytes<S>(in.classes));
  const FewPositions<S> positions(in, task, reinterpret_cast<typename FewPositions<S>::Exponentials*>(memory));
  const FewSums classes(memory + FewPositions<S>::bytes(in.classes), static_cast<int>(in.classes));
  HardPositions<S> hard(positions, classes);
  double cross_entropy_sum = 0, focal_sum = 0;
  ClassRange targets;
  LogitRange<float> logits;
  int items = 0;
  std::int64_t begin = task.begin;
  bool first = true;
  do {  // at least once, so that a row without positions leaves zeros
    for (int step = 0; step < SoftmaxShape::kSteps && begin < task.end; ++step, begin += kThreads * kItems) {
      const std::int64_t position = begin + thread_index() * kItems;
      if (position >= task.end || hard.add(position, work.asked, power)) {
        continue;
      }
      auto at_hand = positions_of<S, false>(in, task, position, false, targets);
      if (at_hand.valid == 0) {
        continue;
      }
      find_largest(at_hand, [&](float x) { logits.add(x); });
      add_others(at_hand);
      const Entropies<float> entropies = entropies_of(at_hand, work.asked, power);
      FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
        items += at_hand.live(i) ? 1 : 0;
        cross_entropy_sum += static_cast<double>(entropies.cross_entropy[i]);
        focal_sum += static_cast<double>(entropies.focal[i]);
      }
      for (int k = 0; k < in.classes; ++k) {
        float sums[kGroupColumns<SegmentationGroup>] = {};
        add_class<SegmentationGroup>(at_hand, k, entropies, work.asked, sums);
        classes.add_targets(k, sums[0], sums[2]);
        classes.add_prediction(k, sums[1]);
      }
    }
    hard.give(cross_entropy_sum, focal_sum);
    classes.give(reinterpret_cast<SegmentationGroup*>(out + kPartColumns), first);
    first = false;
  } while (begin < task.end);
  hard.give_rest(items, targets, logits);
  write_part(items, cross_entropy_sum, focal_sum, targets, logits, out);
}

}  // namespace fastmine::cuda
