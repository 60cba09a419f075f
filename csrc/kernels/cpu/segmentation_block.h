// Short runs of logits, targets and validity in one working type, whatever they are in memory.
//
// A kernel's inner loop sees full vectors and no mask. Where a run is shorter, or an item is invalid, it gets a neutral
// logit with target 0 instead, from which every sum and every gradient comes out as exactly 0.
#pragma once

#include "kernels/cpu/convert.h"
#include "kernels/cpu/math.h"
#include "kernels/cpu/segmentation_formula.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {

inline constexpr std::int64_t kBlock = 512;  // positions added in the working type before float64 takes over
static_assert(kBlock < 65536);

template <class T>
inline constexpr T kLargest = sizeof(T) == 4 ? static_cast<T>(__FLT_MAX__) : static_cast<T>(__DBL_MAX__);

template <class T>
inline constexpr DType kDType = sizeof(T) == 4 ? DType::float32 : DType::float64;

/// A run of positions of one sample; `row` numbers the pairs (sample, class) for sigmoid, the samples for softmax.
struct Run {
  std::int64_t sample, first_class, classes;
  std::int64_t begin, end;  // positions
};

FASTMINE_INLINE Run run_of(const SegmentationTasks& tasks, const SegmentationInputs& in, std::int64_t task) {
  const std::int64_t row = task / tasks.runs;
  const std::int64_t begin = task % tasks.runs * tasks.run;
  const std::int64_t end = begin + tasks.run < in.positions ? begin + tasks.run : in.positions;
  const bool softmax = in.mode == SegmentationMode::multiclass;
  return {softmax ? row : row / in.classes, softmax ? 0 : row % in.classes, tasks.classes, begin, end};
}

/// Positions of one (sample, class) of an array.
struct Row {
  const char* data;
  DType dtype;
  std::ptrdiff_t stride;
};

FASTMINE_INLINE Row row_of(const Grid& grid, std::int64_t sample, std::int64_t k) {
  const std::int64_t offset = sample * grid.stride[0] + k * grid.stride[1];
  return {static_cast<const char*>(grid.data) + offset * static_cast<std::int64_t>(size_of(grid.dtype)), grid.dtype,
          grid.stride[2]};
}

FASTMINE_INLINE const char* at(const Row& row, std::int64_t position) {
  return row.data + position * row.stride * static_cast<std::int64_t>(size_of(row.dtype));
}

template <class T>
FASTMINE_INLINE void read_positions(const Row& row, std::int64_t begin, std::int64_t n, T* out) {
  read(at(row, begin), row.dtype, row.stride, static_cast<std::size_t>(n), out);
}

/// Positions that an inner loop takes at a time.
template <class T>
inline constexpr auto kStep = static_cast<std::int64_t>(size<Wide<T>>);

/// The next multiple of that.
template <class T>
FASTMINE_INLINE std::int64_t padded(std::int64_t n) {
  return (n + kStep<T> - 1) / kStep<T> * kStep<T>;
}

/// Where a run looks up what is valid: in marks, and in targets of which one value is ignored. A row without data where
/// there is nothing to look up.
struct ValidRows {
  Row marks, target;
  std::int64_t ignore_index;
};

FASTMINE_INLINE ValidRows valid_rows_of(const SegmentationInputs& in, const Run& run) {
  constexpr Row kNothing{nullptr, DType::bool_, 0};
  const bool ignores = in.ignores && holds(in.target.dtype, in.ignore_index);
  return {in.valid.data == nullptr ? kNothing : row_of(in.valid, run.sample, run.first_class),
          ignores ? row_of(in.target, run.sample, run.first_class) : kNothing, in.ignore_index};
}

/// 1 where an element is not that value, else 0.
template <class T>
FASTMINE_INLINE void mark_others(const T* from, std::ptrdiff_t stride, std::int64_t n, T value, std::uint8_t* marks) {
  if (stride == 1) {
    for (std::int64_t i = 0; i < n; ++i) {
      marks[i] = from[i] != value;
    }
  } else {
    for (std::int64_t i = 0; i < n; ++i) {
      marks[i] = from[i * stride] != value;
    }
  }
}

/// The same for up to kBlock targets of any type, which holds the value.
FASTMINE_NOINLINE inline void mark_others(const Row& row, std::int64_t begin, std::int64_t n, std::int64_t value,
                                          std::uint8_t* marks) {
  const auto mark = [&](auto of_type) {
    using S = decltype(of_type);
    mark_others(reinterpret_cast<const S*>(at(row, begin)), row.stride, n, static_cast<S>(value), marks);
  };
  switch (row.dtype) {
    case DType::uint8:
      return mark(std::uint8_t{});
    case DType::int8:
      return mark(std::int8_t{});
    case DType::int16:
      return mark(std::int16_t{});
    case DType::int32:
      return mark(std::int32_t{});
    case DType::int64:
      return mark(std::int64_t{});
    case DType::float64:
      return mark(double{});
    default: {  // halves, and what a bool counts as
      alignas(64) float values[kBlock];
      read_positions(row, begin, n, values);
      mark_others(values, 1, n, static_cast<float>(value), marks);
    }
  }
}

/// Which of up to kBlock positions are valid.
struct Validity {
  const std::uint8_t* flags = nullptr;  // null where all are
  std::int64_t items = 0;
  alignas(64) std::uint8_t buffer[kBlock];

  FASTMINE_NOINLINE void look(const ValidRows& rows, std::int64_t begin, std::int64_t n) {
    flags = nullptr;
    items = n;
    if (rows.marks.data != nullptr) {
      look_at_marks(rows.marks, begin, n);
    }
    if (rows.target.data != nullptr && items > 0) {
      leave_out(rows.target, rows.ignore_index, begin, n);
    }
  }

  bool all() const { return flags == nullptr; }

 private:
  void look_at_marks(const Row& row, std::int64_t begin, std::int64_t n) {
    const auto* from = reinterpret_cast<const std::uint8_t*>(at(row, begin));
    if (row.stride == 0) {  // one mark for a whole sample or class
      items = *from != 0 ? n : 0;
      return;
    }
    if (row.stride != 1) {
      for (std::int64_t i = 0; i < n; ++i) {
        buffer[i] = from[i * row.stride];
      }
      from = buffer;
    }
    take(from, n);
  }

  /// Of what is valid so far, those whose target is that value.
  void leave_out(const Row& target, std::int64_t value, std::int64_t begin, std::int64_t n) {
    alignas(64) std::uint8_t others[kBlock];
    mark_others(target, begin, n, value, others);
    for (std::int64_t i = 0; i < n; ++i) {
      buffer[i] = all() || flags[i] != 0 ? others[i] : 0;
    }
    take(buffer, n);
  }

  void take(const std::uint8_t* from, std::int64_t n) {
    std::uint16_t set = 0;  // no wider than it must be: the compiler counts in lanes of this size
    for (std::int64_t i = 0; i < n; ++i) {
      set = static_cast<std::uint16_t>(set + (from[i] != 0 ? 1 : 0));
    }
    items = set;
    flags = items == n ? nullptr : from;
  }
};

/// Put `neutral` where an item is invalid, and from n up to a full vector.
template <class T>
FASTMINE_NOINLINE inline void neutralise(T* values, std::int64_t n, const Validity& validity, T neutral) {
  if (!validity.all()) {
    for (std::int64_t i = 0; i < n; ++i) {
      values[i] = validity.flags[i] != 0 ? values[i] : neutral;
    }
  }
  for (std::int64_t i = n; i < padded<T>(n); ++i) {
    values[i] = neutral;
  }
}

/// n positions of a row, neutral where they should be: in place where they can be used there, else in the buffer.
template <class T>
FASTMINE_INLINE const T* block_of(const Row& row, std::int64_t begin, std::int64_t n, const Validity& validity,
                                  T neutral, T* buffer) {
  const bool whole = validity.all() && padded<T>(n) == n;
  if (whole && row.dtype == kDType<T> && row.stride == 1) {
    return reinterpret_cast<const T*>(at(row, begin));
  }
  read_positions(row, begin, n, buffer);
  if (!whole) {
    neutralise(buffer, n, validity, neutral);
  }
  return buffer;
}

/// The range of some values.
struct Range {
  double min = __builtin_inf();
  double max = -__builtin_inf();

  /// One more value; NaN makes the range NaN.
  FASTMINE_INLINE void add(double value) {
    min = value < min || value != value ? value : min;
    max = value > max || value != value ? value : max;
  }

  /// Values between low and high; NaN is passed over.
  FASTMINE_INLINE void cover(double low, double high) {
    min = low < min ? low : min;
    max = high > max ? high : max;
  }

  template <class V>
  FASTMINE_INLINE void cover_lanes(V low, V high) {
    cover(static_cast<double>(min_lanes(low)), static_cast<double>(max_lanes(high)));
  }
};

/// The range of the valid ones of n values; NaN is passed over.
template <class T>
FASTMINE_NOINLINE inline void add_range(const T* values, std::int64_t n, const Validity& validity, Range& range) {
  using V = Vec<T>;
  constexpr auto kLanes = static_cast<std::int64_t>(size<V>);
  V low = fill<V>(kLargest<T>), high = -low;
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const V v = load(values + i);
    if (validity.all()) {
      low = minimum(v, low);
      high = maximum(v, high);
    } else {
      const auto flags = convert<Bits<V>>(load<std::uint8_t, size<V>>(validity.flags + i)) != 0;
      low = minimum(select(flags, v, low), low);
      high = maximum(select(flags, v, high), high);
    }
  }
  range.cover_lanes(low, high);
  for (; i < n; ++i) {
    if (validity.all() || validity.flags[i] != 0) {
      range.cover(static_cast<double>(values[i]), static_cast<double>(values[i]));
    }
  }
}

// A second look at a run, in float64 and item by item: only where the first found something odd, or might have missed
// it.

inline void inspect_targets(const SegmentationInputs& in, const Run& run, SegmentationPart& part) {
  const Row row = row_of(in.target, run.sample, run.first_class);
  const ValidRows valid = valid_rows_of(in, run);
  const double largest = in.mode == SegmentationMode::multiclass ? static_cast<double>(in.classes - 1) : 1.0;
  Validity validity;
  double values[kBlock];
  Range range;
  part.out_of_range = 0;
  for (std::int64_t begin = run.begin; begin < run.end; begin += kBlock) {
    const std::int64_t n = run.end - begin < kBlock ? run.end - begin : kBlock;
    validity.look(valid, begin, n);
    read_positions(row, begin, n, values);
    for (std::int64_t i = 0; i < n; ++i) {
      if (validity.all() || validity.flags[i] != 0) {
        range.add(values[i]);
        part.out_of_range += values[i] >= 0 && values[i] <= largest ? 0 : 1;
      }
    }
  }
  part.target_min = range.min;
  part.target_max = range.max;
}

inline void inspect_logits(const SegmentationInputs& in, const Run& run, SegmentationPart& part) {
  const ValidRows valid = valid_rows_of(in, run);
  Validity validity;
  double values[kBlock];
  Range range;
  part.nonfinite = 0;
  for (std::int64_t k = 0; k < run.classes; ++k) {
    const Row row = row_of(in.logits, run.sample, run.first_class + k);
    for (std::int64_t begin = run.begin; begin < run.end; begin += kBlock) {
      const std::int64_t n = run.end - begin < kBlock ? run.end - begin : kBlock;
      validity.look(valid, begin, n);
      read_positions(row, begin, n, values);
      for (std::int64_t i = 0; i < n; ++i) {
        if (validity.all() || validity.flags[i] != 0) {
          range.add(values[i]);
          part.nonfinite += __builtin_isfinite(values[i]) ? 0 : 1;
        }
      }
    }
  }
  part.logit_min = range.min;
  part.logit_max = range.max;
}

/// Count what is not finite or out of range, if there can be any: given the sums of a run's predictions and targets,
/// and a part whose ranges pass over NaN. Targets in float64 may have been rounded into their domain.
template <class T>
inline void look_again(const SegmentationInputs& in, const Run& run, double prediction, double target,
                       SegmentationPart& part) {
  constexpr double kInf = __builtin_inf();
  const double largest = in.mode == SegmentationMode::multiclass ? static_cast<double>(in.classes - 1) : 1.0;
  const bool any = part.items > 0;
  if (any && !(prediction == prediction && part.logit_min > -kInf && part.logit_max < kInf)) {
    inspect_logits(in, run, part);
  }
  const bool rounded = in.target.dtype == DType::float64 && sizeof(T) == sizeof(float);
  if (any && !(!rounded && target == target && part.target_min >= 0 && part.target_max <= largest)) {
    inspect_targets(in, run, part);
  }
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
