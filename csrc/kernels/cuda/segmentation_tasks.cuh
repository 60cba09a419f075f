// How the work on segmentation losses is cut into blocks, and what each block can look up.
#pragma once

#include <type_traits>

#include "kernels/cuda/load.h"
#include "kernels/cuda/math.h"
#include "kernels/segmentation_formula.h"

namespace fastmine::cuda {

/// Threads of a block, positions of a thread at a time, and how often before float64 takes over (softmax: of few
/// classes); in the emulator fewer threads, which take longest to take turns, and fewer steps.
struct SigmoidShape {
#ifdef FASTMINE_EMULATE_CUDA
  static constexpr int kThreads = 64;
#else
  static constexpr int kThreads = 256;
#endif
  static constexpr int kItems = 8, kRound = 4;
};
struct SoftmaxShape {
#ifdef FASTMINE_EMULATE_CUDA
  static constexpr int kSteps = 4;
#else
  static constexpr int kSteps = 16;
#endif
  static constexpr int kThreads = 128, kItems = 4;
};

/// A task is a run of positions of one row, done by one block: a (sample, class) for sigmoid, a sample for softmax.
struct Cut {
  std::int64_t rows;
  std::int64_t classes;  // of one task
  std::int64_t run;      // positions of one task, but for the last of a row
  std::int64_t runs;     // tasks of one row, at least 1
  std::int64_t columns;  // numbers that a task finds: SegmentationPart, then a Group for each of its classes
};

inline constexpr int kPartColumns = sizeof(SegmentationPart) / sizeof(double);
/// Group is SegmentationGroup for the fused loss, SegmentationGroupSums for all sums.
template <class Group>
inline constexpr int kGroupColumns = sizeof(Group) / sizeof(double);
template <class Group>
inline constexpr bool kAllSums = sizeof(Group) == sizeof(SegmentationGroupSums);

/// Enough to keep every multiprocessor busy, few enough to add up; in the emulator so few that long runs are tested.
#ifdef FASTMINE_EMULATE_CUDA
inline constexpr std::int64_t kTasks = 40;
#else
inline constexpr std::int64_t kTasks = 2048;
#endif

/// `group_columns` are those of one class; 0 for a backward pass.
inline Cut cut(const SegmentationInputs& in, int group_columns) noexcept {
  const bool softmax = in.mode == SegmentationMode::multiclass;
  const std::int64_t step =
      softmax ? SoftmaxShape::kThreads * SoftmaxShape::kItems : SigmoidShape::kThreads * SigmoidShape::kItems;
  Cut c{};
  c.rows = softmax ? in.samples : in.samples * in.classes;
  c.classes = softmax ? in.classes : 1;
  const std::int64_t steps = (c.rows * in.positions + kTasks * step - 1) / (kTasks * step);
  c.run = step * (steps > 1 ? steps : 1);
  c.runs = (in.positions + c.run - 1) / c.run;
  c.runs = c.runs > 1 ? c.runs : 1;
  c.columns = kPartColumns + c.classes * group_columns;
  return c;
}

/// What the block at hand works on.
struct Task {
  std::int64_t sample, first_class, begin, end;
};

FASTMINE_DEVICE Task task_of(const Cut& c, const SegmentationInputs& in) {
  const std::int64_t row = block_index() / c.runs, begin = block_index() % c.runs * c.run;
  const std::int64_t end = begin + c.run < in.positions ? begin + c.run : in.positions;
  const bool softmax = in.mode == SegmentationMode::multiclass;
  return {softmax ? row : row / in.classes, softmax ? 0 : row % in.classes, begin, end};
}

/// Positions of one (sample, class) of an array, from `position` on.
template <class S>
FASTMINE_DEVICE const S* at(const Grid& grid, std::int64_t sample, std::int64_t k, std::int64_t position) {
  return static_cast<const S*>(grid.data) + (sample * grid.stride[0] + k * grid.stride[1] + position * grid.stride[2]);
}

/// A bit for each of the first n of N positions, 0 where invalid.
template <int N>
FASTMINE_DEVICE unsigned validity(const Grid& valid, std::int64_t sample, std::int64_t k, std::int64_t position,
                                  std::int64_t n) {
  unsigned mask = n < N ? (1U << n) - 1U : (1U << N) - 1U;
  if (valid.data != nullptr) {
    const Pack<std::uint8_t, N> flags =
        load<std::uint8_t, N>(at<std::uint8_t>(valid, sample, k, position), valid.stride[2], n);
    FASTMINE_UNROLL for (int i = 0; i < N; ++i) { mask &= flags.item[i] != 0 ? ~0U : ~(1U << i); }
  }
  return mask;
}

/// Whether a target is the index to ignore: as it is stored, since float32 would round it.
template <class S>
FASTMINE_DEVICE bool is_ignored(const SegmentationInputs& in, S stored) {
  if constexpr (std::is_floating_point_v<S> || std::is_same_v<S, BFloat16> || std::is_same_v<S, Half>) {
    return in.ignores && value_of<double>(stored) == static_cast<double>(in.ignore_index);
  } else {
    return in.ignores && value_of<std::int64_t>(stored) == in.ignore_index;
  }
}

/// The smallest and largest of some values; NaN if one of them is.
template <class T>
struct Range {
  T low = kLargest<T>, high = -kLargest<T>;
  bool any = false;

  FASTMINE_DEVICE void add(T value) {
    low = value < low || value != value ? value : low;
    high = value > high || value != value ? value : high;
    any = true;
  }
  FASTMINE_DEVICE double least() const { return any ? static_cast<double>(low) : segmentation::kInf; }
  FASTMINE_DEVICE double most() const { return any ? static_cast<double>(high) : -segmentation::kInf; }
};

/// Logits as a thread meets them: their range, and how many are NaN or infinite.
template <class T>
struct LogitRange {
  Range<T> range;
  int nonfinite = 0;

  FASTMINE_DEVICE void add(T x) {
    range.add(x);
    nonfinite += x >= -kLargest<T> && x <= kLargest<T> ? 0 : 1;
  }
};

/// How a column of a part is added to another: the ranges are not sums.
FASTMINE_DEVICE double combine(std::int64_t column, double a, double b) {
  switch (column) {
    case offsetof(SegmentationPart, target_min) / sizeof(double):
    case offsetof(SegmentationPart, logit_min) / sizeof(double):
      return segmentation::lower(a, b);
    case offsetof(SegmentationPart, target_max) / sizeof(double):
    case offsetof(SegmentationPart, logit_max) / sizeof(double):
      return segmentation::upper(a, b);
    default:
      return a + b;
  }
}

/// The sum over the warp of N columns, N a power of two: each lane returns that of column lane / (32 / N). At every
/// step two lanes share what is left between them, so a column costs about one shuffle and not five.
template <int N, int kDistance = kWarp / 2, class T>
FASTMINE_DEVICE T add_columns(T (&columns)[N]) {
  static_assert(N <= 2 * kDistance);
  constexpr int kKept = N > 1 ? N / 2 : 1;
  const bool upper = (thread_index() & kDistance) != 0;
  T kept[kKept], given[kKept], taken[kKept];
  FASTMINE_UNROLL for (int i = 0; i < kKept; ++i) {
    kept[i] = N > 1 && upper ? columns[N - kKept + i] : columns[i];
    given[i] = N > 1 && !upper ? columns[N - kKept + i] : columns[i];
  }
  shuffle_xor(given, kDistance, taken);
  FASTMINE_UNROLL for (int i = 0; i < kKept; ++i) { kept[i] += taken[i]; }
  if constexpr (kDistance > 1) {
    return add_columns<kKept, kDistance / 2>(kept);
  } else {
    return kept[0];
  }
}

/// Add up the columns of all threads, in a fixed order, and write them to `out`.
template <int kThreads, int kColumns>
FASTMINE_DEVICE void add_threads(double (&columns)[kColumns], double* out) {
  constexpr int kWarps = kThreads / kWarp;
  static_assert(kColumns <= kThreads);
  FASTMINE_SHARED(double, found, kWarps* kColumns);
  FASTMINE_UNROLL for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    double others[kColumns];
    shuffle_down(columns, distance, others);
    FASTMINE_UNROLL for (int column = 0; column < kColumns; ++column) {
      columns[column] = combine(column, columns[column], others[column]);
    }
  }
  if (thread_index() % kWarp == 0) {
    FASTMINE_UNROLL for (int column = 0; column < kColumns; ++column) {
      found[thread_index() / kWarp * kColumns + column] = columns[column];
    }
  }
  barrier();
  if (thread_index() < kColumns) {
    double sum = found[thread_index()];
    for (int warp = 1; warp < kWarps; ++warp) {
      sum = combine(thread_index(), sum, found[warp * kColumns + thread_index()]);
    }
    out[thread_index()] = sum;
  }
}

/// What a forward pass adds up beside t, p and a. The focal terms need the entropies.
struct Asked {
  bool entropy, focal;
  bool shape;   // pp, tt, g1, g0
  bool linear;  // x, tx
  Focal alpha;
};

struct ForwardWork {
  SegmentationInputs in;
  Asked asked;
  Cut cut;
  double* parts;  // [rows, runs, columns]
  double* rows;   // [rows, columns]
};

template <class Problem>
struct BackwardWork {
  Problem problem;
  Cut cut;
};

/// The gradient of what is computed from the sums of a group, by these sums.
template <class T>
struct GroupSlopes {
  T on_target = 0, everywhere = 0;  // by a and p: the slope by a probability is on_target t + everywhere,
  T entropy_on = 0, entropy_off = 0;
  T focal_on = 0, focal_off = 0;
  T squares = 0;  // and squares p: twice that by pp
  T linear = 0, linear_on = 0;
};

/// Where a block reads the slopes of the groups of a sample. What is not used of them is not read.
template <class Problem>
class Slopes;

/// The coefficients times the gradient of the loss. Those of the entropies belong to a position of all classes of a
/// softmax, and are read at class 0.
template <>
class Slopes<SegmentationLossBackward> {
 public:
  /// Whether there are squares or linear slopes, or merged classes.
  static constexpr bool kAll = false;

  FASTMINE_DEVICE Slopes(const SegmentationLossBackward& problem, std::int64_t sample)
      : coefficients_(problem.coefficients + sample * problem.in.classes * 4),
        softmax_(segmentation::is_softmax(problem.in)),
        alpha_{softmax_ ? Focal{1, 1, 0} : problem.focal} {
    with_type(problem.grad_dtype, [&](auto tag) {
      using S = decltype(tag);
      upstream_ = value_of<double>(static_cast<const S*>(problem.grad)[sample * problem.grad_stride]);
    });
  }

  template <class T>
  FASTMINE_DEVICE GroupSlopes<T> at(std::int64_t k) const {
    const double *own = coefficients_ + k * 4, *scales = softmax_ ? coefficients_ : own;
    const auto scaled = [&](double value) { return static_cast<T>(value * upstream_); };
    GroupSlopes<T> slopes;
    slopes.on_target = scaled(own[0]);
    slopes.everywhere = scaled(own[1]);
    slopes.entropy_on = slopes.entropy_off = scaled(scales[2]);
    slopes.focal_on = scaled(scales[3] * alpha_.on_target);
    slopes.focal_off = scaled(scales[3] * alpha_.off_target);
    return slopes;
  }

 private:
  const double* coefficients_;
  bool softmax_;
  Focal alpha_;
  double upstream_ = 0;
};

/// The gradients by the sums of a group that are wanted, and that depend on its logits. A merged class has no sums.
template <>
class Slopes<SegmentationSumsBackward> {
 public:
  static constexpr bool kAll = true;

  FASTMINE_DEVICE Slopes(const SegmentationSumsBackward& problem, std::int64_t sample)
      : problem_(problem), sample_(sample) {}

  template <class T>
  FASTMINE_DEVICE GroupSlopes<T> at(std::int64_t k) const {
    const double* grad = problem_.grad + (sample_ * problem_.in.classes + k) * kSegmentationSums;
    const bool softmax = segmentation::is_softmax(problem_.in);
    const SegmentationSumSet read = softmax && segmentation::is_merged(problem_.in, sample_, k) ? 0
                                    : softmax ? problem_.wanted & segmentation::kSpoiled
                                              : problem_.wanted;
    const auto by = [&](SegmentationSum sum) {
      return segmentation::has(read, static_cast<int>(sum)) ? static_cast<T>(grad[static_cast<int>(sum)]) : T{0};
    };
    GroupSlopes<T> slopes;
    slopes.on_target = by(SegmentationSum::a);
    slopes.everywhere = by(SegmentationSum::p);
    slopes.entropy_on = by(SegmentationSum::e1);
    slopes.entropy_off = by(SegmentationSum::e0);
    slopes.focal_on = by(SegmentationSum::f1);
    slopes.focal_off = by(SegmentationSum::f0);
    slopes.squares = 2 * by(SegmentationSum::pp);
    slopes.linear = by(SegmentationSum::x);
    slopes.linear_on = by(SegmentationSum::tx);
    return slopes;
  }

 private:
  const SegmentationSumsBackward& problem_;
  std::int64_t sample_;
};

FASTMINE_DEVICE double gamma_of(const SegmentationLossBackward& problem) { return problem.focal.gamma; }
FASTMINE_DEVICE double gamma_of(const SegmentationSumsBackward& problem) { return problem.gamma; }

}  // namespace fastmine::cuda
