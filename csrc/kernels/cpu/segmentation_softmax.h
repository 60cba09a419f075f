// Multiclass: a softmax over the classes of each position, a block of positions at a time. What both directions share:
// reading a block, and the passes over its classes that find the largest logit and the exponentials about it.
//
// About the largest logit m: e_k = exp(x_k - m), s = the sum of all e_k but the largest itself, so that the total is
// 1 + s, and log(1 + s) and 1 - p_y keep their digits where one class takes all.
//
// A block of positions stays in cache. What is summed over the classes is kept in registers, a step of positions at a
// time; what is summed over the positions, or written, goes class by class.
//
// Where classes are merged into class 0, the row of class 0 holds the logit of all of them from the moment it is read,
// and theirs hold what no exponential is left of: nothing else knows. Their gradient is a share of that of class 0.
#pragma once

#include "kernels/cpu/segmentation_pass.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {

inline constexpr std::int64_t kPositions = 256;  // of a block, at most
inline constexpr std::int64_t kShortest = 32;    // and at least; a whole number of steps
inline constexpr std::int64_t kBuffer = 262144;  // bytes of logits, then exponentials, in cache

/// All about the positions of a block. Dead ones (invalid, or there to fill a step) have no target, and their logits
/// are read as one large number: it is never the smallest, and the same in all classes.
template <class T>
struct Positions {
  alignas(64) T target[kPositions];  // class; -1 where dead
  alignas(64) T live[kPositions];    // 1, or 0 where dead
  alignas(64) T largest[kPositions];
  alignas(64) T largest_class[kPositions];
  alignas(64) T target_logit[kPositions];
  alignas(64) T others[kPositions];   // s
  alignas(64) T inverse[kPositions];  // 1 / (1 + s), 0 where dead
  std::int64_t n;                     // full steps
};

/// What the gradient needs to know about the positions of a block.
template <class T>
struct BlockSlopes {
  const OverlapSlopes<T>* overlaps;  // of the classes of the sample
  const GroupSlopes<T>* classes;
  alignas(64) T on_target[kPositions];  // of the target's class
  alignas(64) T target[kPositions];     // slope everywhere of the target's class,
  alignas(64) T largest[kPositions];    // of the class with the largest probability,
  alignas(64) T others[kPositions];     // and of all others, weighted by e_k
  alignas(64) T scaled[kPositions];     // what the gradients of all but the target have in common, over 1 + s
  alignas(64) T gradient[kPositions];   // by the logit of the target

  // Only where classes have slopes of their own.
  alignas(64) T entropy[kPositions];  // of the target's class
  alignas(64) T focal[kPositions];
  alignas(64) T target_squares[kPositions];
  alignas(64) T largest_squares[kPositions];
  alignas(64) T others_squares[kPositions];  // weighted by e_k^2
};

/// Whether class k of a run's sample is part of class 0.
FASTMINE_INLINE bool is_merged(const SegmentationInputs& in, const Run& run, std::int64_t k) {
  return in.merged != nullptr && k > 0 && in.merged[run.sample * in.classes + k] != 0;
}

inline bool any_merged(const SegmentationInputs& in, const Run& run) {
  for (std::int64_t k = 1; in.merged != nullptr && k < in.classes; ++k) {
    if (is_merged(in, run, k)) {
      return true;
    }
  }
  return false;
}

/// Add n more logits x to those of a class: m becomes the larger of both, and 1 + s the sum of exponentials about it.
template <class T>
FASTMINE_NOINLINE void merge(const T* x, std::int64_t n, T* m, T* s) {
  using V = Vec<T>;
  for (std::int64_t i = 0; i < n; i += static_cast<std::int64_t>(size<V>)) {
    const V more = load(x + i), before = load(m + i), sum = load(s + i);
    const auto larger = more > before;
    const V e = exp_negative(absolute(more - before));
    store(m + i, select(larger, more, before));
    store(s + i, select(larger, (1 + sum) * e, sum + e));
  }
}

/// A block of positions, and as many classes at a time as fit: all of them, up to kBuffer bytes for one step.
template <class T>
struct ClassBlock {
  const SegmentationInputs& in;
  const Run& run;
  const Validity& validity;
  std::int64_t begin, n;
  std::int64_t classes;  // at a time
  bool merging;          // whether the sample has merged classes
  T* buffer;

  bool whole() const { return validity.all() && padded<T>(n) == n; }
  bool cached() const { return classes >= in.classes; }

  /// Read the logits of classes [first, last).
  FASTMINE_NOINLINE void read_logits(std::int64_t first, std::int64_t last) const {
    for (std::int64_t k = first; k < last; ++k) {
      prefetch_after(k);
      T* row = buffer + (k - first) * padded<T>(n);
      read_class(k, row);
      if (!whole()) {
        neutralise(row, n, validity, kLargest<T>);
      }
    }
  }

  /// The logits of one class, of the larger class 0 where others are merged into it, and of none that is merged.
  FASTMINE_INLINE void read_class(std::int64_t k, T* row) const {
    if (merging && k == 0) {
      read_background(row);
    } else if (merging && is_merged(in, run, k)) {
      for (std::int64_t i = 0; i < padded<T>(n); ++i) {
        row[i] = -kLargest<T>;
      }
    } else {
      read_raw(k, row);
    }
  }

  /// The same, dead ones neutral: in place where they can be used there, else in the buffer.
  FASTMINE_INLINE const T* logits_of(std::int64_t k, T* to) const {
    if (!merging) {
      return block_of(row_of(in.logits, run.sample, k), begin, n, validity, kLargest<T>, to);
    }
    read_class(k, to);
    neutralise(to, n, validity, kLargest<T>);
    return to;
  }

  FASTMINE_INLINE void read_raw(std::int64_t k, T* row) const {
    read_positions(row_of(in.logits, run.sample, k), begin, n, row);
  }

  /// The logit of class 0 and all classes that are merged into it.
  FASTMINE_NOINLINE void read_background(T* row) const {
    alignas(64) T more[kPositions], sum[kPositions];
    for (std::int64_t i = 0; i < padded<T>(n); ++i) {
      row[i] = more[i] = sum[i] = 0;
    }
    read_raw(0, row);
    for (std::int64_t k = 1; k < in.classes; ++k) {
      if (is_merged(in, run, k)) {
        read_raw(k, more);
        merge(more, padded<T>(n), row, sum);
      }
    }
    using V = Vec<T>;
    for (std::int64_t i = 0; i < padded<T>(n); i += static_cast<std::int64_t>(size<V>)) {
      store(row + i, load(row + i) + log1p_positive(load(sum + i)));
    }
  }

  /// The ranges of all logits, as they are.
  FASTMINE_NOINLINE void add_raw_ranges(Range& range) const {
    alignas(64) T row[kPositions];
    for (std::int64_t k = 0; k < in.classes; ++k) {
      read_raw(k, row);
      add_range(row, n, validity, range);
    }
  }

  /// The same class of the next block: with many classes there are more streams than the hardware follows.
  FASTMINE_INLINE void prefetch_after(std::int64_t k) const {
    const Row row = row_of(in.logits, run.sample, k);
    const std::int64_t more = run.end - begin - n < n ? run.end - begin - n : n;
    for (std::int64_t i = 0; i < more; i += 64 / static_cast<std::int64_t>(size_of(row.dtype))) {
      __builtin_prefetch(at(row, begin + n + i), 0, 2);
    }
  }

  /// f(first, last) for all classes, a buffer at a time.
  template <class F>
  FASTMINE_INLINE void for_classes(F f) const {
    for (std::int64_t first = 0; first < in.classes; first += classes) {
      f(first, first + classes < in.classes ? first + classes : in.classes);
    }
  }
};

/// Positions of a block with that many classes.
template <class T>
std::int64_t block_length(std::int64_t classes) {
  const std::int64_t n = kBuffer / static_cast<std::int64_t>(sizeof(T)) / classes / kShortest * kShortest;
  return n == 0 || n > kPositions ? kPositions : n;
}

/// f(block) for each block of a run that has a valid position, and skip(begin, n) for the others.
template <class T, class F, class G>
FASTMINE_INLINE void for_blocks(const SegmentationInputs& in, const Run& run, F f, G skip) {
  alignas(64) T buffer[static_cast<std::size_t>(kBuffer) / sizeof(T)];
  const std::int64_t length = block_length<T>(in.classes);
  const std::int64_t classes = kBuffer / static_cast<std::int64_t>(sizeof(T)) / length;
  const ValidRows valid = valid_rows_of(in, run);
  const bool merging = any_merged(in, run);
  Validity validity;
  for (std::int64_t begin = run.begin; begin < run.end; begin += length) {
    const std::int64_t n = run.end - begin < length ? run.end - begin : length;
    validity.look(valid, begin, n);
    if (validity.items == 0) {
      skip(begin, n);
    } else {
      f(ClassBlock<T>{in, run, validity, begin, n, classes, merging, buffer});
    }
  }
}

template <class T>
FASTMINE_NOINLINE void read_targets(const ClassBlock<T>& block, Positions<T>& at) {
  at.n = padded<T>(block.n);
  for (std::int64_t i = 0; i < at.n; ++i) {
    at.live[i] = 1;
    at.largest[i] = -static_cast<T>(__builtin_inf());
    at.largest_class[i] = -1;
    at.target_logit[i] = 0;
    at.others[i] = 0;
  }
  neutralise(at.live, block.n, block.validity, T{0});
  read_positions(row_of(block.in.target, block.run.sample, 0), block.begin, block.n, at.target);
  neutralise(at.target, block.n, block.validity, T{-1});
}

/// Targets of a merged class are of class 0.
template <class T>
FASTMINE_NOINLINE void merge_targets(const ClassBlock<T>& block, Positions<T>& at) {
  for (std::int64_t i = 0; i < block.n; ++i) {
    const T y = at.target[i];
    if (y > 0 && y < static_cast<T>(block.in.classes) && is_merged(block.in, block.run, static_cast<std::int64_t>(y))) {
      at.target[i] = 0;
    }
  }
}

/// Which slopes the first two passes gather for the third: for a forward pass none.
enum class Gather : std::uint8_t { none, shared, own };

/// First pass, classes [first, last): the largest logit, and that of the target; and the slopes of both. Returns the
/// smallest logit that was seen.
template <class T, Gather kGather>
FASTMINE_NOINLINE Vec<T> find_largest(const T* logits, std::int64_t first, std::int64_t last, Positions<T>& at,
                                      BlockSlopes<T>* slopes, Vec<T> low) {
  using V = Wide<T>;
  for (std::int64_t i = 0; i < at.n; i += kStep<T>) {
    const V target = load_as<V>(at.target + i);
    V largest = load_as<V>(at.largest + i), largest_class = load_as<V>(at.largest_class + i);
    V target_logit = load_as<V>(at.target_logit + i);
    V largest_slope{}, target_slope{}, on_target{}, entropy{}, focal{}, largest_squares{}, target_squares{};
    if constexpr (kGather != Gather::none) {
      largest_slope = load_as<V>(slopes->largest + i);
      target_slope = load_as<V>(slopes->target + i);
      on_target = load_as<V>(slopes->on_target + i);
    }
    if constexpr (kGather == Gather::own) {
      entropy = load_as<V>(slopes->entropy + i);
      focal = load_as<V>(slopes->focal + i);
      largest_squares = load_as<V>(slopes->largest_squares + i);
      target_squares = load_as<V>(slopes->target_squares + i);
    }
    const T* row = logits + i;
    for (std::int64_t k = first; k < last; ++k, row += at.n) {
      const V x = load_as<V>(row), own = fill<V>(static_cast<T>(k));
      const auto larger = x > largest;
      const auto hit = target == own;
      largest = select(larger, x, largest);
      largest_class = select(larger, own, largest_class);
      target_logit = select(hit, x, target_logit);
      if constexpr (kGather != Gather::none) {
        const OverlapSlopes<T> slope = slopes->overlaps[k];
        largest_slope = select(larger, fill<V>(slope.everywhere), largest_slope);
        target_slope = select(hit, fill<V>(slope.everywhere), target_slope);
        on_target = select(hit, fill<V>(slope.on_target), on_target);
      }
      if constexpr (kGather == Gather::own) {
        const GroupSlopes<T>& slope = slopes->classes[k];
        entropy = select(hit, fill<V>(slope.entropy_on), entropy);
        focal = select(hit, fill<V>(slope.focal_on), focal);
        largest_squares = select(larger, fill<V>(slope.squares), largest_squares);
        target_squares = select(hit, fill<V>(slope.squares), target_squares);
      }
      if constexpr (kGather == Gather::none) {
        low = fold_minimum(x, low);
      }
    }
    store(at.largest + i, largest);
    store(at.largest_class + i, largest_class);
    store(at.target_logit + i, target_logit);
    if constexpr (kGather != Gather::none) {
      store(slopes->largest + i, largest_slope);
      store(slopes->target + i, target_slope);
      store(slopes->on_target + i, on_target);
    }
    if constexpr (kGather == Gather::own) {
      store(slopes->entropy + i, entropy);
      store(slopes->focal + i, focal);
      store(slopes->largest_squares + i, largest_squares);
      store(slopes->target_squares + i, target_squares);
    }
  }
  return low;
}

/// The logits of some classes become e_k.
template <class T>
FASTMINE_NOINLINE void exponentiate(T* logits, std::int64_t first, std::int64_t last, const Positions<T>& at) {
  using V = Wide<T>;
  for (std::int64_t i = 0; i < at.n; i += kStep<T>) {
    const V largest = load_as<V>(at.largest + i);
    T* row = logits + i;
    for (std::int64_t k = first; k < last; ++k, row += at.n) {
      store(row, exp_negative(largest - load_as<V>(row)));
    }
  }
}

/// Second pass: the logits become e_k, and all but the largest are added up; and their slopes too.
template <class T, Gather kGather>
FASTMINE_NOINLINE void exponentiate_and_add(T* logits, std::int64_t first, std::int64_t last, Positions<T>& at,
                                            BlockSlopes<T>* slopes) {
  using V = Wide<T>;
  for (std::int64_t i = 0; i < at.n; i += kStep<T>) {
    const V largest = load_as<V>(at.largest + i), largest_class = load_as<V>(at.largest_class + i);
    V others = load_as<V>(at.others + i), weighted{}, squares{};
    if constexpr (kGather != Gather::none) {
      weighted = load_as<V>(slopes->others + i);
    }
    if constexpr (kGather == Gather::own) {
      squares = load_as<V>(slopes->others_squares + i);
    }
    T* row = logits + i;
    for (std::int64_t k = first; k < last; ++k, row += at.n) {
      const V e = exp_negative(largest - load_as<V>(row));
      const auto is_largest = largest_class == fill<V>(static_cast<T>(k));
      store(row, e);
      others = select(is_largest, others, others + e);
      if constexpr (kGather != Gather::none) {
        weighted = select(is_largest, weighted, weighted + e * slopes->overlaps[k].everywhere);
      }
      if constexpr (kGather == Gather::own) {
        squares = select(is_largest, squares, squares + (e * e) * slopes->classes[k].squares);
      }
    }
    store(at.others + i, others);
    if constexpr (kGather != Gather::none) {
      store(slopes->others + i, weighted);
    }
    if constexpr (kGather == Gather::own) {
      store(slopes->others_squares + i, squares);
    }
  }
}

/// The first two passes over a block. Returns the smallest logit.
template <class T, Gather kGather>
FASTMINE_INLINE Vec<T> softmax(const ClassBlock<T>& block, Positions<T>& at, BlockSlopes<T>* slopes, Vec<T> low) {
  using V = Wide<T>;
  block.for_classes([&](std::int64_t first, std::int64_t last) {
    block.read_logits(first, last);
    low = find_largest<T, kGather>(block.buffer, first, last, at, slopes, low);
  });
  block.for_classes([&](std::int64_t first, std::int64_t last) {
    if (!block.cached()) {
      block.read_logits(first, last);
    }
    exponentiate_and_add<T, kGather>(block.buffer, first, last, at, slopes);
  });
  for (std::int64_t i = 0; i < at.n; i += kStep<T>) {
    const V largest = load_as<V>(at.largest + i);
    const V others = load_as<V>(at.others + i) + (largest - largest);  // NaN where the largest is infinite
    store(at.others + i, others);
    store(at.inverse + i, load_as<V>(at.live + i) / (1 + others));
  }
  return low;
}

/// Third pass: f(k, row of e_k) for each class.
template <class T, class F>
FASTMINE_INLINE void for_exponentials(const ClassBlock<T>& block, const Positions<T>& at, F f) {
  block.for_classes([&](std::int64_t first, std::int64_t last) {
    if (!block.cached()) {
      block.read_logits(first, last);
      exponentiate(block.buffer, first, last, at);
    }
    for (std::int64_t k = first; k < last; ++k) {
      f(k, block.buffer + (k - first) * at.n);
    }
  });
}

/// p_y, 1 - p_y and log p_y at some positions.
template <class V>
struct Target {
  V p, q, log_p;
};

template <class V, class T>
FASTMINE_INLINE Target<V> target_of(const Positions<T>& at, std::int64_t i) {
  const V s = load_as<V>(at.others + i), below = load_as<V>(at.largest + i) - load_as<V>(at.target_logit + i);
  const V e = exp_negative(below);
  const V others = select(load_as<V>(at.target + i) == load_as<V>(at.largest_class + i), s, 1 + s - e);
  const V inverse = 1 / (1 + s);
  return {e * inverse, others * inverse, -below - log1p_positive(s)};
}

/// q^gamma, the kind decided at run time: this is per position, not per class.
template <class V>
FASTMINE_INLINE V focal_power(Pointwise kind, V q, Lane<V> gamma) {
  switch (kind) {
    case Pointwise::focal_1:
      return q;
    case Pointwise::focal_2:
      return q * q;
    case Pointwise::focal:
      return exp_negative(minimum(log_positive(q), V{}) * -gamma);
    default:
      return fill<V>(1);
  }
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
