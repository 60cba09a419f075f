// How the work on segmentation losses is cut into blocks, and what each block can look up.
#pragma once

#include "kernels/cuda/load.h"
#include "kernels/cuda/math.h"
#include "kernels/segmentation_formula.h"

namespace fastmine::cuda {

/// The type in which logits of type S are computed.
template <class S>
struct WorkingType {
  using type = float;
};
template <>
struct WorkingType<double> {
  using type = double;
};
template <class S>
using Working = typename WorkingType<S>::type;

template <class T>
inline constexpr T kLargest = static_cast<T>(__DBL_MAX__);
template <>
inline constexpr float kLargest<float> = __FLT_MAX__;

/// Threads of a block, positions of a thread at a time, and how often before float64 takes over.
struct SigmoidShape {
  static constexpr int kThreads = 256, kItems = 8, kRound = 4;
};
struct SoftmaxShape {
  static constexpr int kThreads = 128, kItems = 4;
};

/// A task is a run of positions of one row, done by one block: a (sample, class) for sigmoid, a sample for softmax.
struct Cut {
  std::int64_t rows;
  std::int64_t classes;  // of one task
  std::int64_t run;      // positions of one task, but for the last of a row
  std::int64_t runs;     // tasks of one row, at least 1
  std::int64_t columns;  // numbers that a task finds: SegmentationPart, then its SegmentationGroups
};

inline constexpr int kPartColumns = sizeof(SegmentationPart) / sizeof(double);
inline constexpr int kGroupColumns = sizeof(SegmentationGroup) / sizeof(double);

/// Enough to keep every multiprocessor busy, few enough to add up; in the emulator so few that long runs are tested.
#ifdef FASTMINE_EMULATE_CUDA
inline constexpr std::int64_t kTasks = 80;
#else
inline constexpr std::int64_t kTasks = 2048;
#endif

inline Cut cut(const SegmentationInputs& in) noexcept {
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
  c.columns = kPartColumns + c.classes * kGroupColumns;
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

struct ForwardWork {
  SegmentationLoss problem;
  Cut cut;
  double* parts;    // [rows, runs, columns]
  double* rows;     // [rows, columns]
  double* samples;  // [samples, kSummaryColumns]
};

struct BackwardWork {
  SegmentationLossBackward problem;
  Cut cut;
};

/// The upstream gradient of a sample's loss.
FASTMINE_DEVICE double upstream(const SegmentationLossBackward& problem, std::int64_t sample) {
  double grad = 0;
  with_type(problem.grad_dtype, [&](auto tag) {
    using S = decltype(tag);
    grad = value_of<double>(static_cast<const S*>(problem.grad)[sample * problem.grad_stride]);
  });
  return grad;
}

}  // namespace fastmine::cuda
