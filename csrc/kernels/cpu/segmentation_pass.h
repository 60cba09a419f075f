// The pass over logits and targets that the segmentation losses and their sums share: what it can be asked for, and
// where the gradient that it brings back comes from and goes to. One pass for each mode, in segmentation_sigmoid.cpp
// and segmentation_softmax.cpp; T is the working type.
#pragma once

#include "kernels/cpu/arena.h"
#include "kernels/cpu/segmentation_block.h"
#include "kernels/segmentation_sums.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {

/// Which pointwise terms an inner loop computes, and by which power; focal terms include the entropy.
enum class Pointwise : std::uint8_t { none, entropy, focal_0, focal_1, focal_2, focal };

FASTMINE_INLINE Pointwise pointwise(bool entropy, bool focal, double gamma) {
  if (!focal) {
    return entropy ? Pointwise::entropy : Pointwise::none;
  }
  if (gamma == 0) {
    return Pointwise::focal_0;
  }
  return gamma == 1 ? Pointwise::focal_1 : gamma == 2 ? Pointwise::focal_2 : Pointwise::focal;
}

/// u^gamma, given u and its logarithm (used by no other kind than Pointwise::focal).
template <Pointwise kKind, class V>
FASTMINE_INLINE V power(V u, V log_u, Lane<V> gamma) {
  if constexpr (kKind == Pointwise::focal_0) {
    return fill<V>(1);
  } else if constexpr (kKind == Pointwise::focal_1) {
    return u;
  } else if constexpr (kKind == Pointwise::focal_2) {
    return u * u;
  } else {
    return exp_negative(log_u * -gamma);
  }
}

// --- forward
// -----------------------------------------------------------------------------------------------------------

/// What a forward pass adds up beside t, p and a.
struct Asked {
  Pointwise pointwise;
  /// Entropies by group, on and off the target: e1, e0, f1, f0. Else together, in the part, the focal ones weighted.
  bool apart;
  bool shape;   // pp, tt, g1, g0
  bool linear;  // x, tx
  Focal focal;
};

/// One run of one group: the sums that were asked for, and a part without entropies where they are by group.
template <class T>
void sigmoid_sums(const SegmentationInputs& in, const Asked& asked, const Run& run, SegmentationPart& part,
                  SegmentationGroupSums& group);

/// One run of all groups of a sample. Group is SegmentationGroupSums where the entropies are asked for by group, and
/// SegmentationGroup where they are not, nor anything else.
template <class T, class Group>
void softmax_sums(const SegmentationInputs& in, const Asked& asked, const Run& run, SegmentationPart& part,
                  Group* groups);

// --- backward
// ----------------------------------------------------------------------------------------------------------

/// The gradient of what is computed from the sums of a group, by these sums.
template <class T>
struct GroupSlopes {
  T on_target = 0, everywhere = 0;  // by a and p: the slope by a probability is on_target t + everywhere,
  T entropy_on = 0, entropy_off = 0;
  T focal_on = 0, focal_off = 0;
  T squares = 0;  // and squares p: twice that by pp
  T linear = 0, linear_on = 0;
};

/// Those by a and p alone, next to each other: a softmax reads them at every step.
template <class T>
struct OverlapSlopes {
  T on_target, everywhere;
};

/// What is common to the groups of a sample.
template <class T>
struct SampleSlopes {
  /// Whether the shorter loops do not serve: there are squares or linear slopes, or entropies weigh differently on and
  /// off the target (sigmoid) or in different classes (softmax).
  bool own;
  bool focal;  // whether there is any
  T linear;    // over all classes
};

template <class T>
struct Backward {
  SegmentationInputs in;
  double gamma;
  void* grad_logits;
  SegmentationTasks tasks;
  GroupSlopes<T>* groups;      // [samples, classes]
  OverlapSlopes<T>* overlaps;  // [samples, classes]
  SampleSlopes<T>* samples;    // [samples]

  FASTMINE_INLINE const GroupSlopes<T>* of(std::int64_t sample) const { return groups + sample * in.classes; }
};

/// The pass without its slopes, which a first stage writes.
template <class T>
FASTMINE_INLINE Backward<T> lay_out_pass(const SegmentationInputs& in, double gamma, void* grad_logits, Arena& arena) {
  return {in,
          gamma,
          grad_logits,
          segmentation_tasks(in),
          arena.take<GroupSlopes<T>>(in.samples * in.classes),
          arena.take<OverlapSlopes<T>>(in.samples * in.classes),
          arena.take<SampleSlopes<T>>(in.samples)};
}

// Its stages: slopes, a task for each sample, which are an operation's own; and then the gradient.

template <class Plan>
std::int64_t slope_tasks(const void* plan) {
  return static_cast<const Plan*>(plan)->pass.in.samples;
}

template <class Plan>
std::int64_t slope_grain(const void* plan) {
  return 1 + 8192 / (1 + static_cast<const Plan*>(plan)->pass.in.classes);
}

/// What follows for a sample from the slopes of its groups, once they are written.
template <class T>
FASTMINE_INLINE void finish_slopes(const Backward<T>& pass, std::int64_t sample) {
  const bool softmax = pass.in.mode == SegmentationMode::multiclass;
  GroupSlopes<T>* groups = pass.groups + sample * pass.in.classes;
  SampleSlopes<T> all{};
  for (std::int64_t k = 0; k < pass.in.classes; ++k) {
    GroupSlopes<T>& g = groups[k];
    if (pass.gamma == 0) {  // there the focal term is the entropy
      g.entropy_on += g.focal_on;
      g.entropy_off += g.focal_off;
      g.focal_on = g.focal_off = 0;
    }
    const bool uneven = softmax ? g.entropy_on != groups[0].entropy_on || g.focal_on != groups[0].focal_on
                                : g.entropy_on != g.entropy_off;
    all.own = all.own || uneven || g.squares != 0 || g.linear != 0 || g.linear_on != 0;
    all.focal = all.focal || g.focal_on != 0 || g.focal_off != 0;
    all.linear += g.linear;
    pass.overlaps[sample * pass.in.classes + k] = {g.on_target, g.everywhere};
  }
  pass.samples[sample] = all;
}

template <class T>
void sigmoid_gradient(const Backward<T>& pass, const Run& run);
template <class T>
void softmax_gradient(const Backward<T>& pass, const Run& run);

template <class Plan>
std::int64_t gradient_tasks(const void* plan) {
  const SegmentationTasks& tasks = static_cast<const Plan*>(plan)->pass.tasks;
  return tasks.rows * tasks.runs;
}

template <class Plan>
std::int64_t gradient_grain(const void* plan) {
  return static_cast<const Plan*>(plan)->pass.tasks.grain;
}

template <class T, class Plan>
void write_gradient(void* plan, std::int64_t begin, std::int64_t end) {
  const Backward<T>& pass = static_cast<const Plan*>(plan)->pass;
  const bool softmax = pass.in.mode == SegmentationMode::multiclass;
  for (std::int64_t task = begin; task < end; ++task) {
    (softmax ? softmax_gradient<T> : sigmoid_gradient<T>)(pass, run_of(pass.tasks, pass.in, task));
  }
  stream_end();
}

/// The stages of a backward pass whose Plan<T> holds it as `pass`, and whose slopes are written by `slopes`.
template <class T, template <class> class Plan, void (*slopes)(void*, std::int64_t, std::int64_t)>
inline constexpr Stage kBackward[] = {
    {&slope_tasks<Plan<T>>, &slope_grain<Plan<T>>, slopes},
    {&gradient_tasks<Plan<T>>, &gradient_grain<Plan<T>>, &write_gradient<T, Plan<T>>},
};

/// Gradients of more bytes are written past the caches, which saves reading each line first. Measured on a softmax of
/// 14 classes (AVX-512, 2 MB of second cache, a busy machine), backward and a sum over the gradient, time of cached
/// stores over streamed: 0.46 to 0.96 at 1 MiB, 0.95 at 4, 1.08 to 1.33 at 8, 0.84 to 1.22 from 16 to 64.
inline constexpr std::int64_t kStreamed = std::int64_t{1} << 22;

template <class T, class V>
FASTMINE_INLINE void put(T* p, V v, bool streamed) {
  if (streamed) {
    stream(p, v);
  } else {
    store(p, v);
  }
}

/// Where the gradient of a few positions of one class goes.
template <class T>
class GradientRow {
 public:
  GradientRow(const Backward<T>& pass, std::int64_t sample, std::int64_t k, std::int64_t begin, std::int64_t n)
      : dtype_(pass.in.logits.dtype), n_(n) {
    const auto& in = pass.in;
    const auto bytes = static_cast<std::int64_t>(size_of(dtype_));
    out_ = static_cast<char*>(pass.grad_logits) + ((sample * in.classes + k) * in.positions + begin) * bytes;
    streamed_ = in.samples * in.classes * in.positions * bytes > kStreamed;
    aligned_ = reinterpret_cast<std::uintptr_t>(out_) % kVectorBytes == 0;
  }

  void clear() const { __builtin_memset(out_, 0, static_cast<std::size_t>(n_) * size_of(dtype_)); }

  /// Room for full steps: the place itself if it can be written there, else the buffer. Then finish().
  T* room(const Validity& validity, T* buffer) const {
    const bool direct = dtype_ == kDType<T> && validity.all() && padded<T>(n_) == n_ && (aligned_ || !streamed_);
    return direct ? reinterpret_cast<T*>(out_) : buffer;
  }

  /// Whether that room is to be written past the caches.
  bool streamed(const T* room) const { return streamed_ && reinterpret_cast<const char*>(room) == out_; }

  /// A poisoned coefficient must not reach what is invalid.
  void finish(const Validity& validity, T* values) const {
    if (reinterpret_cast<char*>(values) != out_) {
      neutralise(values, n_, validity, T{0});
      write(values, static_cast<std::size_t>(n_), out_, dtype_, streamed_);
    }
  }

 private:
  char* out_;
  DType dtype_;
  std::int64_t n_;
  bool streamed_, aligned_;
};

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
