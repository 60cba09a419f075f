// Multiclass: a softmax over the classes of each position.
//
// About the largest logit m: e_k = exp(x_k - m), s = the sum of all e_k but the largest itself, so that the total is
// 1 + s, and log(1 + s) and 1 - p_y keep their digits where one class takes all.
//
// A block of positions stays in cache. What is summed over the classes is kept in registers, a step of positions at a
// time; what is summed over the positions, or written, goes class by class.
#include "kernels/cpu/segmentation_block.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kPositions = 256;  // of a block, at most
constexpr std::int64_t kShortest = 32;    // and at least; a whole number of steps
constexpr std::int64_t kBuffer = 262144;  // bytes of logits, then exponentials, in cache

/// Classes of a block that fit.
template <class T>
constexpr std::int64_t kClasses = kBuffer / static_cast<std::int64_t>(sizeof(T)) / kShortest;

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

/// A class's coefficients times the gradient of the loss: its slope by a probability is on_target t + everywhere.
template <class T>
struct ClassSlope {
  T on_target, everywhere;
};

/// What the gradient needs to know about the classes and positions of a block.
template <class T>
struct BlockSlopes {
  const double* coefficients;  // of the sample
  double grad;
  ClassSlope<T> classes[kClasses<T>];
  std::int64_t first = -1;              // of the classes above
  alignas(64) T on_target[kPositions];  // of the target's class
  alignas(64) T target[kPositions];     // slope everywhere of the target's class,
  alignas(64) T largest[kPositions];    // of the class with the largest probability,
  alignas(64) T others[kPositions];     // and of all others, weighted by e_k
  alignas(64) T scaled[kPositions];     // what the gradients of all but the target have in common, over 1 + s
  alignas(64) T gradient[kPositions];   // by the logit of the target

  FASTMINE_INLINE ClassSlope<T> of(std::int64_t k) const {
    return {static_cast<T>(coefficients[4 * k] * grad), static_cast<T>(coefficients[4 * k + 1] * grad)};
  }

  FASTMINE_INLINE void load_classes(std::int64_t from, std::int64_t to) {
    if (first != from) {
      for (std::int64_t k = from; k < to; ++k) {
        classes[k - from] = of(k);
      }
      first = from;
    }
  }
};

/// A block of positions, and as many classes at a time as fit: all of them, up to kBuffer bytes for one step.
template <class T>
struct Block {
  const SegmentationInputs& in;
  const Run& run;
  const Validity& validity;
  std::int64_t begin, n;
  std::int64_t classes;  // at a time
  T* buffer;

  bool whole() const { return validity.all() && padded<T>(n) == n; }
  bool cached() const { return classes >= in.classes; }

  /// Read the logits of classes [first, last).
  FASTMINE_NOINLINE void read_logits(std::int64_t first, std::int64_t last) const {
    for (std::int64_t k = first; k < last; ++k) {
      prefetch_after(k);
      T* row = buffer + (k - first) * padded<T>(n);
      read_positions(row_of(in.logits, run.sample, k), begin, n, row);
      if (!whole()) {
        neutralise(row, n, validity, kLargest<T>);
      }
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
  const Row valid = validity_of(in, run);
  Validity validity;
  for (std::int64_t begin = run.begin; begin < run.end; begin += length) {
    const std::int64_t n = run.end - begin < length ? run.end - begin : length;
    validity.look(valid, begin, n);
    if (validity.items == 0) {
      skip(begin, n);
    } else {
      f(Block<T>{in, run, validity, begin, n, classes, buffer});
    }
  }
}

template <class T>
FASTMINE_NOINLINE void read_targets(const Block<T>& block, Positions<T>& at) {
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

/// First pass, classes [first, last): the largest logit, and that of the target; with kSlopes, the slopes of both.
/// Returns the smallest logit that was seen.
template <class T, bool kSlopes>
FASTMINE_NOINLINE Vec<T> find_largest(const T* logits, std::int64_t first, std::int64_t last, Positions<T>& at,
                                      BlockSlopes<T>* slopes, Vec<T> low) {
  using V = Wide<T>;
  for (std::int64_t i = 0; i < at.n; i += kStep<T>) {
    const V target = load_as<V>(at.target + i);
    V largest = load_as<V>(at.largest + i), largest_class = load_as<V>(at.largest_class + i);
    V target_logit = load_as<V>(at.target_logit + i);
    V largest_slope{}, target_slope{}, on_target{};
    if constexpr (kSlopes) {
      largest_slope = load_as<V>(slopes->largest + i);
      target_slope = load_as<V>(slopes->target + i);
      on_target = load_as<V>(slopes->on_target + i);
    }
    const T* row = logits + i;
    for (std::int64_t k = first; k < last; ++k, row += at.n) {
      const V x = load_as<V>(row), own = fill<V>(static_cast<T>(k));
      const auto larger = x > largest;
      const auto hit = target == own;
      largest = select(larger, x, largest);
      largest_class = select(larger, own, largest_class);
      target_logit = select(hit, x, target_logit);
      if constexpr (kSlopes) {
        const ClassSlope<T> slope = slopes->classes[k - first];
        largest_slope = select(larger, fill<V>(slope.everywhere), largest_slope);
        target_slope = select(hit, fill<V>(slope.everywhere), target_slope);
        on_target = select(hit, fill<V>(slope.on_target), on_target);
      } else {
        low = fold_minimum(x, low);
      }
    }
    store(at.largest + i, largest);
    store(at.largest_class + i, largest_class);
    store(at.target_logit + i, target_logit);
    if constexpr (kSlopes) {
      store(slopes->largest + i, largest_slope);
      store(slopes->target + i, target_slope);
      store(slopes->on_target + i, on_target);
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

/// Second pass: the logits become e_k, and all but the largest are added up; with kSlopes, their slopes too.
template <class T, bool kSlopes>
FASTMINE_NOINLINE void exponentiate_and_add(T* logits, std::int64_t first, std::int64_t last, Positions<T>& at,
                                            BlockSlopes<T>* slopes) {
  using V = Wide<T>;
  for (std::int64_t i = 0; i < at.n; i += kStep<T>) {
    const V largest = load_as<V>(at.largest + i), largest_class = load_as<V>(at.largest_class + i);
    V others = load_as<V>(at.others + i), weighted{};
    if constexpr (kSlopes) {
      weighted = load_as<V>(slopes->others + i);
    }
    T* row = logits + i;
    for (std::int64_t k = first; k < last; ++k, row += at.n) {
      const V e = exp_negative(largest - load_as<V>(row));
      const auto is_largest = largest_class == fill<V>(static_cast<T>(k));
      store(row, e);
      others = select(is_largest, others, others + e);
      if constexpr (kSlopes) {
        weighted = select(is_largest, weighted, weighted + e * slopes->classes[k - first].everywhere);
      }
    }
    store(at.others + i, others);
    if constexpr (kSlopes) {
      store(slopes->others + i, weighted);
    }
  }
}

/// The first two passes over a block. Returns the smallest logit.
template <class T, bool kSlopes>
FASTMINE_INLINE Vec<T> softmax(const Block<T>& block, Positions<T>& at, BlockSlopes<T>* slopes, Vec<T> low) {
  using V = Wide<T>;
  block.for_classes([&](std::int64_t first, std::int64_t last) {
    block.read_logits(first, last);
    if constexpr (kSlopes) {
      slopes->load_classes(first, last);
    }
    low = find_largest<T, kSlopes>(block.buffer, first, last, at, slopes, low);
  });
  block.for_classes([&](std::int64_t first, std::int64_t last) {
    if (!block.cached()) {
      block.read_logits(first, last);
    }
    if constexpr (kSlopes) {
      slopes->load_classes(first, last);
    }
    exponentiate_and_add<T, kSlopes>(block.buffer, first, last, at, slopes);
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
FASTMINE_INLINE void for_exponentials(const Block<T>& block, const Positions<T>& at, F f) {
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

// --- forward
// -----------------------------------------------------------------------------------------------------------

/// Cross entropy and focal term of the positions, added to the part.
template <class T>
FASTMINE_NOINLINE void add_entropies(const Positions<T>& at, Pointwise kind, T gamma, T last_class,
                                     SegmentationPart& part) {
  using V = Wide<T>;
  Vec<T> cross_entropy{}, focal{};
  for (std::int64_t i = 0; i < at.n; i += kStep<T>) {
    const V y = load_as<V>(at.target + i);
    const Target<V> target = target_of<V>(at, i);
    const V entropy = select((y >= 0) & (y <= last_class), -target.log_p, V{});
    cross_entropy += fold(entropy);
    if (kind != Pointwise::entropy) {
      focal += fold(focal_power(kind, target.q, gamma) * entropy);
    }
  }
  part.cross_entropy += static_cast<double>(sum_lanes(cross_entropy));
  part.focal += static_cast<double>(sum_lanes(focal));
}

/// Third pass, one class: its sums over the positions.
template <class T>
FASTMINE_NOINLINE void add_class(const T* row, T k, const Positions<T>& at, SegmentationGroup& group) {
  using V = Wide<T>;
  const V own = fill<V>(k), one = fill<V>(1);
  Vec<T> target{}, prediction{}, overlap{};
  for (std::int64_t i = 0; i < at.n; i += kStep<T>) {
    const V p = load_as<V>(row + i) * load_as<V>(at.inverse + i);
    const auto hit = load_as<V>(at.target + i) == own;
    prediction += fold(p);
    overlap += fold(select(hit, p, V{}));
    target += fold(select(hit, one, V{}));
  }
  group.target += static_cast<double>(sum_lanes(target));
  group.prediction += static_cast<double>(sum_lanes(prediction));
  group.overlap += static_cast<double>(sum_lanes(overlap));
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

// --- backward
// ----------------------------------------------------------------------------------------------------------

/// The scales of cross entropy and focal term of a sample times the gradient of the loss; the same for all classes.
template <class T>
struct PointwiseSlopes {
  T cross_entropy, focal, gamma;
  Pointwise kind;
};

template <class T>
PointwiseSlopes<T> pointwise_slopes(const SegmentationLossBackward& problem, const Run& run, double grad) {
  const double* c = problem.coefficients + run.sample * problem.in.classes * 4;
  const T cross_entropy = static_cast<T>(c[2] * grad), focal = static_cast<T>(c[3] * grad * problem.focal.on_target);
  return {cross_entropy, focal, static_cast<T>(problem.focal.gamma), pointwise(true, focal != 0, problem.focal.gamma)};
}

template <class T>
void clear(BlockSlopes<T>& slopes) {
  for (std::int64_t i = 0; i < kPositions; ++i) {
    slopes.on_target[i] = slopes.target[i] = slopes.largest[i] = slopes.others[i] = 0;
  }
}

/// After the first two passes: with D_k the slope of class k about that of the largest, and M the mean of all D_k, the
/// gradient is p_k (D_k - M + what the entropies add), but for the target.
template <class T>
FASTMINE_NOINLINE void find_gradients(const Positions<T>& at, const PointwiseSlopes<T>& slopes, BlockSlopes<T>& with) {
  using V = Wide<T>;
  for (std::int64_t i = 0; i < at.n; i += kStep<T>) {
    const Target<V> target = target_of<V>(at, i);
    const auto is_largest = load_as<V>(at.target + i) == load_as<V>(at.largest_class + i);
    const V inverse = load_as<V>(at.inverse + i), largest = load_as<V>(with.largest + i);
    const V on_target = load_as<V>(with.on_target + i);
    const V mean = inverse * (load_as<V>(with.others + i) - largest * load_as<V>(at.others + i)) +
                   on_target * select(is_largest, -target.q, target.p);
    const V own = select(is_largest, V{}, load_as<V>(with.target + i) - largest + on_target);
    V on = slopes.cross_entropy * target.q, off = fill<V>(slopes.cross_entropy);
    if (slopes.kind != Pointwise::entropy) {
      const V focal = slopes.focal * focal_power(slopes.kind, target.q, slopes.gamma) *
                      (target.q - slopes.gamma * target.p * target.log_p);
      on += focal;
      off += select(target.q > 0, focal / target.q, V{});
    }
    store(with.scaled + i, inverse * (off - mean - select(is_largest, on_target, V{})));
    store(with.gradient + i, target.p * (own - mean) - on);
  }
}

/// Third pass, one class: the gradient of its logits.
template <class T>
FASTMINE_NOINLINE void class_gradient(const T* row, T k, T slope, const Positions<T>& at, const BlockSlopes<T>& with,
                                      T* gradient, bool streamed) {
  using V = Wide<T>;
  const V own = fill<V>(k), everywhere = fill<V>(slope);
  for (std::int64_t i = 0; i < at.n; i += kStep<T>) {
    const V about = everywhere - load_as<V>(with.largest + i);
    const V off = load_as<V>(row + i) * (about * load_as<V>(at.inverse + i) + load_as<V>(with.scaled + i));
    put(gradient + i, select(load_as<V>(at.target + i) == own, load_as<V>(with.gradient + i), off), streamed);
  }
}

}  // namespace

template <class T>
void softmax_sums(const SegmentationLoss& problem, const Run& run, SegmentationPart& part, SegmentationGroup* groups) {
  const SegmentationInputs& in = problem.in;
  const auto weight = [&](SegmentationTerm term) { return problem.weights[static_cast<int>(term)]; };
  const Pointwise kind =
      pointwise(weight(SegmentationTerm::ce) != 0, weight(SegmentationTerm::focal) != 0, problem.focal.gamma);
  using V = Vec<T>;
  V low = fill<V>(kLargest<T>);
  Range targets, logits;
  Positions<T> at;
  part = {};
  for (std::int64_t k = 0; k < in.classes; ++k) {
    groups[k] = {};
  }
  const auto add = [&](const Block<T>& block) {
    read_targets(block, at);
    low = softmax<T, false>(block, at, nullptr, low);
    part.items += static_cast<double>(block.validity.items);
    add_ranges(at, targets, logits);
    if (kind != Pointwise::none) {
      add_entropies(at, kind, static_cast<T>(problem.focal.gamma), static_cast<T>(in.classes - 1), part);
    }
    for_exponentials(block, at,
                     [&](std::int64_t k, const T* row) { add_class(row, static_cast<T>(k), at, groups[k]); });
  };
  for_blocks<T>(in, run, add, [](std::int64_t, std::int64_t) {});
  logits.cover_lanes(low, fill<V>(-kLargest<T>));
  double prediction = 0;
  for (std::int64_t k = 0; k < in.classes; ++k) {
    prediction += groups[k].prediction;
  }
  part.target_min = targets.min;
  part.target_max = targets.max;
  part.logit_min = logits.min;
  part.logit_max = logits.max;
  look_again<T>(in, run, prediction, 0, part);
}

template <class T>
void softmax_gradient(const SegmentationLossBackward& problem, const Run& run) {
  const SegmentationInputs& in = problem.in;
  const double grad = upstream(problem, run.sample);
  const PointwiseSlopes<T> pointwise = pointwise_slopes<T>(problem, run, grad);
  Positions<T> at;
  BlockSlopes<T> with;
  with.coefficients = problem.coefficients + run.sample * in.classes * 4;
  with.grad = grad;
  const auto fill_in = [&](const Block<T>& block) {
    read_targets(block, at);
    clear(with);
    softmax<T, true>(block, at, &with, Vec<T>{});
    find_gradients(at, pointwise, with);
    for_exponentials(block, at, [&](std::int64_t k, T* row) {
      const GradientRow<T> gradient(problem, run.sample, k, block.begin, block.n);
      T* g = gradient.room(block.validity, row);
      class_gradient(row, static_cast<T>(k), with.of(k).everywhere, at, with, g, gradient.streamed(g));
      gradient.finish(block.validity, g);
    });
  };
  const auto zero = [&](std::int64_t begin, std::int64_t n) {
    for (std::int64_t k = 0; k < in.classes; ++k) {
      GradientRow<T>(problem, run.sample, k, begin, n).clear();
    }
  };
  for_blocks<T>(in, run, fill_in, zero);
}

template void softmax_sums<float>(const SegmentationLoss&, const Run&, SegmentationPart&, SegmentationGroup*);
template void softmax_sums<double>(const SegmentationLoss&, const Run&, SegmentationPart&, SegmentationGroup*);
template void softmax_gradient<float>(const SegmentationLossBackward&, const Run&);
template void softmax_gradient<double>(const SegmentationLossBackward&, const Run&);

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
