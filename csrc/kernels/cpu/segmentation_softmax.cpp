// Multiclass: a softmax over the classes of each position, walked class by class over a block that stays in cache.
//
// About the largest logit m: e_k = exp(x_k - m), s = the sum of all e_k but the largest itself, so that the total is
// 1 + s, and log(1 + s) and 1 - p_y keep their digits where one class takes all.
#include "kernels/cpu/segmentation_block.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kPositions = 256;  // of a block, at most
constexpr std::int64_t kCached = 24576;   // bytes of logits in a block, if the vectors allow
constexpr std::int64_t kBuffer = 65536;   // bytes of the buffer; with more classes than fit, exp is taken twice

/// All about the positions of a block. Dead ones (invalid, or there to fill a vector) have no target, and their logits
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
  std::int64_t n;                     // full vectors
};

/// A block of positions: each class has its own row of the buffer or, if they do not fit, all share one.
template <class T>
struct Block {
  const SegmentationInputs& in;
  const Run& run;
  const Validity& validity;
  std::int64_t begin, n;
  bool cached;
  T* buffer;

  bool whole() const { return validity.all() && padded<T>(n) == n; }

  T* row(std::int64_t k) const { return cached ? buffer + k * padded<T>(n) : buffer; }

  FASTMINE_NOINLINE T* read_logits(std::int64_t k) const {
    T* logits = row(k);
    read_positions(row_of(in.logits, run.sample, k), begin, n, logits);
    if (!whole()) {
      neutralise(logits, n, validity, kLargest<T>);
    }
    return logits;
  }
};

/// Positions of a block with that many classes.
template <class T>
std::int64_t block_length(std::int64_t classes) {
  constexpr auto kLanes = static_cast<std::int64_t>(lanes<T>);
  constexpr auto kRoom = kBuffer / static_cast<std::int64_t>(sizeof(T)), kShort = 4 * kLanes;
  std::int64_t n = kCached / static_cast<std::int64_t>(sizeof(T)) / classes / kLanes * kLanes;
  n = n < kShort ? kShort : n;  // adding lanes up is not free
  if (n * classes > kRoom) {
    n = kRoom / classes / kLanes * kLanes;
  }
  return n < kLanes || n > kPositions ? kPositions : n;
}

/// f(block) for each block of a run that has a valid position, and skip(begin, n) for the others.
template <class T, class F, class G>
FASTMINE_INLINE void for_blocks(const SegmentationInputs& in, const Run& run, F f, G skip) {
  alignas(64) T buffer[static_cast<std::size_t>(kBuffer) / sizeof(T)];
  const std::int64_t length = block_length<T>(in.classes);
  const bool cached = length * in.classes * static_cast<std::int64_t>(sizeof(T)) <= kBuffer;
  const Row valid = validity_of(in, run);
  Validity validity;
  for (std::int64_t begin = run.begin; begin < run.end; begin += length) {
    const std::int64_t n = run.end - begin < length ? run.end - begin : length;
    validity.look(valid, begin, n);
    if (validity.items == 0) {
      skip(begin, n);
    } else {
      f(Block<T>{in, run, validity, begin, n, cached, buffer});
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

/// First pass, one class: the largest logit, and that of the target. Returns the smallest that was seen.
template <class T>
FASTMINE_NOINLINE Vec<T> find_largest(const T* row, T k, Positions<T>& at, Vec<T> low) {
  using V = Vec<T>;
  const V own = fill<V>(k);
  for (std::int64_t i = 0; i < at.n; i += static_cast<std::int64_t>(size<V>)) {
    const V x = load(row + i), largest = load(at.largest + i);
    const auto larger = x > largest;
    store(at.largest + i, select(larger, x, largest));
    store(at.largest_class + i, select(larger, own, load(at.largest_class + i)));
    store(at.target_logit + i, select(load(at.target + i) == own, x, load(at.target_logit + i)));
    low = minimum(x, low);
  }
  return low;
}

/// The row becomes e_k.
template <class T>
FASTMINE_NOINLINE void exponentiate(T* row, const Positions<T>& at) {
  using V = Vec<T>;
  for (std::int64_t i = 0; i < at.n; i += static_cast<std::int64_t>(size<V>)) {
    store(row + i, exp_nonpositive(load(row + i) - load(at.largest + i)));
  }
}

/// Second pass, one class: the row becomes e_k, and all but the largest are added up.
template <class T>
FASTMINE_NOINLINE void exponentiate_and_add(T* row, T k, Positions<T>& at) {
  using V = Vec<T>;
  const V own = fill<V>(k);
  for (std::int64_t i = 0; i < at.n; i += static_cast<std::int64_t>(size<V>)) {
    const V e = exp_nonpositive(load(row + i) - load(at.largest + i));
    store(row + i, e);
    store(at.others + i, load(at.others + i) + select(load(at.largest_class + i) == own, V{}, e));
  }
}

/// The first two passes over a block. Returns the smallest logit.
template <class T>
FASTMINE_INLINE Vec<T> softmax(const Block<T>& block, Positions<T>& at, Vec<T> low) {
  using V = Vec<T>;
  for (std::int64_t k = 0; k < block.in.classes; ++k) {
    low = find_largest(block.read_logits(k), static_cast<T>(k), at, low);
  }
  for (std::int64_t k = 0; k < block.in.classes; ++k) {
    exponentiate_and_add(block.cached ? block.row(k) : block.read_logits(k), static_cast<T>(k), at);
  }
  for (std::int64_t i = 0; i < at.n; i += static_cast<std::int64_t>(size<V>)) {
    const V largest = load(at.largest + i);
    const V others = load(at.others + i) + (largest - largest);  // NaN where the largest is infinite
    store(at.others + i, others);
    store(at.inverse + i, load(at.live + i) / (1 + others));
  }
  return low;
}

/// The row of e_k, for the third pass.
template <class T>
FASTMINE_INLINE T* exponentials(const Block<T>& block, std::int64_t k, const Positions<T>& at) {
  if (!block.cached) {
    exponentiate(block.read_logits(k), at);
  }
  return block.row(k);
}

/// p_y, 1 - p_y and log p_y at a vector of positions.
template <class V>
struct Target {
  V p, q, log_p;
};

template <class T>
FASTMINE_INLINE Target<Vec<T>> target_of(const Positions<T>& at, std::int64_t i) {
  using V = Vec<T>;
  const V s = load(at.others + i), below = load(at.target_logit + i) - load(at.largest + i);
  const V e = exp_nonpositive(below);
  const V others = select(load(at.target + i) == load(at.largest_class + i), s, 1 + s - e);
  return {e / (1 + s), others / (1 + s), below - log1p_positive(s)};
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
      return exp_nonpositive(minimum(log_positive(q), V{}) * gamma);
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
  using V = Vec<T>;
  V cross_entropy{}, focal{};
  for (std::int64_t i = 0; i < at.n; i += static_cast<std::int64_t>(size<V>)) {
    const V y = load(at.target + i);
    const auto known = (y >= 0) & (y <= last_class);
    const Target<V> target = target_of(at, i);
    const V entropy = select(known, -target.log_p, V{});
    cross_entropy += entropy;
    if (kind != Pointwise::entropy) {
      focal += focal_power(kind, target.q, gamma) * entropy;
    }
  }
  part.cross_entropy += static_cast<double>(sum_lanes(cross_entropy));
  part.focal += static_cast<double>(sum_lanes(focal));
}

/// Third pass, one class: its sums over the positions.
template <class T>
FASTMINE_NOINLINE void add_class(const T* row, T k, const Positions<T>& at, SegmentationGroup& group) {
  using V = Vec<T>;
  const V own = fill<V>(k), one = fill<V>(1);
  V target{}, prediction{}, overlap{};
  for (std::int64_t i = 0; i < at.n; i += static_cast<std::int64_t>(size<V>)) {
    const V p = load(row + i) * load(at.inverse + i);
    const V t = select(load(at.target + i) == own, one, V{});
    prediction += p;
    overlap += p * t;
    target += t;
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

/// A class's coefficients times the gradient of the loss: its slope by a probability is on_target t + everywhere.
template <class T>
struct Slopes {
  T on_target, everywhere, cross_entropy, focal;
};

template <class T>
FASTMINE_INLINE Slopes<T> slopes_of(const SegmentationLossBackward& problem, const Run& run, std::int64_t k,
                                    double grad) {
  const double* c = problem.coefficients + (run.sample * problem.in.classes + k) * 4;
  return {static_cast<T>(c[0] * grad), static_cast<T>(c[1] * grad), static_cast<T>(c[2] * grad),
          static_cast<T>(c[3] * grad * problem.focal.on_target)};
}

/// What the gradient needs to know about the positions of a block.
template <class T>
struct PositionSlopes {
  alignas(64) T largest[kPositions];      // slope of the class with the largest probability
  alignas(64) T mean[kPositions];         // of all slopes about that one, weighted by probability
  alignas(64) T q[kPositions];            // 1 - p_y
  alignas(64) T focal[kPositions];        // -dFL by the logit of the target, before its scale
  alignas(64) T focal_share[kPositions];  // the same over 1 - p_y: times p_k, the derivative by any other logit
};

template <class T>
FASTMINE_INLINE Vec<T> slope_at(const Positions<T>& at, std::int64_t i, T k, const Slopes<T>& slopes) {
  using V = Vec<T>;
  return slopes.everywhere + select(load(at.target + i) == k, fill<V>(slopes.on_target), V{});
}

template <class T>
FASTMINE_NOINLINE void find_slope(T k, const Slopes<T>& slopes, const Positions<T>& at, PositionSlopes<T>& out) {
  using V = Vec<T>;
  for (std::int64_t i = 0; i < at.n; i += static_cast<std::int64_t>(size<V>)) {
    const V slope = slope_at(at, i, k, slopes);
    store(out.largest + i, select(load(at.largest_class + i) == k, slope, load(out.largest + i)));
  }
}

template <class T>
FASTMINE_NOINLINE void add_slope(const T* row, T k, const Slopes<T>& slopes, const Positions<T>& at,
                                 PositionSlopes<T>& out) {
  using V = Vec<T>;
  for (std::int64_t i = 0; i < at.n; i += static_cast<std::int64_t>(size<V>)) {
    const V p = load(row + i) * load(at.inverse + i);
    const V slope = slope_at(at, i, k, slopes) - load(out.largest + i);
    store(out.mean + i, load(out.mean + i) + p * slope);
  }
}

template <class T>
FASTMINE_NOINLINE void find_pointwise(const Positions<T>& at, Pointwise kind, T gamma, PositionSlopes<T>& out) {
  using V = Vec<T>;
  for (std::int64_t i = 0; i < at.n; i += static_cast<std::int64_t>(size<V>)) {
    const Target<V> target = target_of(at, i);
    store(out.q + i, target.q);
    if (kind == Pointwise::entropy) {
      continue;
    }
    const V focal = focal_power(kind, target.q, gamma) * (target.q - gamma * target.p * target.log_p);
    store(out.focal + i, focal);
    store(out.focal_share + i, select(target.q > 0, focal / target.q, V{}));
  }
}

/// Third pass, one class: the gradient of its logits.
template <class T>
FASTMINE_NOINLINE void class_gradient(const T* row, T k, const Slopes<T>& slopes, const Positions<T>& at,
                                      const PositionSlopes<T>& with, T* gradient) {
  using V = Vec<T>;
  for (std::int64_t i = 0; i < at.n; i += static_cast<std::int64_t>(size<V>)) {
    const V p = load(row + i) * load(at.inverse + i);
    const V slope = slope_at(at, i, k, slopes) - load(with.largest + i) - load(with.mean + i);
    const V on = slopes.cross_entropy * load(with.q + i) + slopes.focal * load(with.focal + i);
    const V off = slopes.cross_entropy + slopes.focal * load(with.focal_share + i);
    store(gradient + i, p * slope + select(load(at.target + i) == k, -on, p * off));
  }
}

template <class T>
void clear(PositionSlopes<T>& slopes) {
  for (std::int64_t i = 0; i < kPositions; ++i) {
    slopes.largest[i] = slopes.mean[i] = slopes.q[i] = slopes.focal[i] = slopes.focal_share[i] = 0;
  }
}

/// Which of a sample's coefficients are not all zero.
struct Wanted {
  bool overlap = false, cross_entropy = false, focal = false;
};

template <class T>
Wanted wanted(const SegmentationLossBackward& problem, const Run& run, double grad) {
  Wanted found;
  for (std::int64_t k = 0; k < problem.in.classes; ++k) {
    const Slopes<T> slopes = slopes_of<T>(problem, run, k, grad);
    found.overlap = found.overlap || slopes.on_target != 0 || slopes.everywhere != 0;
    found.cross_entropy = found.cross_entropy || slopes.cross_entropy != 0;
    found.focal = found.focal || slopes.focal != 0;
  }
  return found;
}

template <class T>
FASTMINE_INLINE void write_gradient(const SegmentationLossBackward& problem, const Block<T>& block, std::int64_t k,
                                    const Slopes<T>& slopes, const Positions<T>& at, const PositionSlopes<T>& with) {
  char* out = gradient_at(problem, block.run.sample, k, block.begin);
  T* row = exponentials(block, k, at);
  const bool direct = block.whole() && problem.in.logits.dtype == kDType<T>;
  T* gradient = direct ? reinterpret_cast<T*>(out) : row;
  class_gradient(row, static_cast<T>(k), slopes, at, with, gradient);
  if (!direct) {
    neutralise(gradient, block.n, block.validity, T{0});  // a poisoned coefficient must not reach what is invalid
    write(gradient, static_cast<std::size_t>(block.n), out, problem.in.logits.dtype);
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
    low = softmax(block, at, low);
    part.items += static_cast<double>(block.validity.items);
    add_ranges(at, targets, logits);
    if (kind != Pointwise::none) {
      add_entropies(at, kind, static_cast<T>(problem.focal.gamma), static_cast<T>(in.classes - 1), part);
    }
    for (std::int64_t k = 0; k < in.classes; ++k) {
      add_class(exponentials(block, k, at), static_cast<T>(k), at, groups[k]);
    }
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
  const Wanted want = wanted<T>(problem, run, grad);
  const Pointwise kind = pointwise(want.cross_entropy, want.focal, problem.focal.gamma);
  const auto slopes = [&](std::int64_t k) { return slopes_of<T>(problem, run, k, grad); };
  Positions<T> at;
  PositionSlopes<T> with;
  clear(with);
  const auto fill_in = [&](const Block<T>& block) {
    read_targets(block, at);
    softmax(block, at, Vec<T>{});
    if (want.overlap) {
      __builtin_memset(with.mean, 0, sizeof with.mean);
      for (std::int64_t k = 0; k < in.classes; ++k) {
        find_slope(static_cast<T>(k), slopes(k), at, with);
      }
      for (std::int64_t k = 0; k < in.classes; ++k) {
        add_slope(exponentials(block, k, at), static_cast<T>(k), slopes(k), at, with);
      }
    }
    if (kind != Pointwise::none) {
      find_pointwise(at, kind, static_cast<T>(problem.focal.gamma), with);
    }
    for (std::int64_t k = 0; k < in.classes; ++k) {
      write_gradient(problem, block, k, slopes(k), at, with);
    }
  };
  const auto zero = [&](std::int64_t begin, std::int64_t n) {
    for (std::int64_t k = 0; k < in.classes; ++k) {
      __builtin_memset(gradient_at(problem, run.sample, k, begin), 0,
                       static_cast<std::size_t>(n) * size_of(in.logits.dtype));
    }
  };
  for_blocks<T>(in, run, fill_in, zero);
}

template void softmax_sums<float>(const SegmentationLoss&, const Run&, SegmentationPart&, SegmentationGroup*);
template void softmax_sums<double>(const SegmentationLoss&, const Run&, SegmentationPart&, SegmentationGroup*);
template void softmax_gradient<float>(const SegmentationLossBackward&, const Run&);
template void softmax_gradient<double>(const SegmentationLossBackward&, const Run&);

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
