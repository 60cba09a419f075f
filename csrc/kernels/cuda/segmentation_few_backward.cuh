// The way back of segmentation_few.cuh. With D_k the slope of class k by its probability, the gradient is
// p_k (D_k - M) and what the entropies add, M the mean of all D_k; where one class is close to all, D_k - M keeps its
// digits only about the likeliest class, so the walk knows at every class which that is so far.
#pragma once

#include "kernels/cuda/segmentation_few.cuh"
#include "kernels/cuda/segmentation_softmax_backward.cuh"

namespace fastmine::cuda {

/// The classes of a position so far, the target from the start: by exponentials about its logit.
struct Likeliest {
  float slope;         // of the likeliest
  float e = 1;         // and its exponential
  float others = 0;    // s
  float weighted = 0;  // the sum of all exponentials, weighted by D_k less the slope of the likeliest

  FASTMINE_DEVICE void add(float other_e, float other_slope) {
    const bool more = other_e > e;
    weighted += (more ? -(1 + others) : other_e) * (other_slope - slope);  // all move, or one comes
    others += other_e;
    slope = more ? other_slope : slope;
    e = larger(e, other_e);
  }
};

/// Such positions as a thread meets them on the way back. S is the type of the logits.
template <class S>
class HardGradients {
 public:
  using Positions = FewPositions<S>;
  static constexpr int kItems = Positions::kItems;

  /// `of_class`: the slopes everywhere and on the target of each class.
  FASTMINE_DEVICE HardGradients(const Positions& positions, const float* of_class, const GroupSlopes<float>& scales,
                                S* out, std::int64_t stride)
      : positions_(positions),
        everywhere_(of_class),
        on_target_(of_class + positions.classes()),
        scales_(scales),
        out_(out),
        stride_(stride) {
    writable_ = stride % kItems == 0 && is_pack<S, kItems>(out, 1, kItems);
  }

  /// Write the gradient of the positions from `position` on. False, and nothing written, where they are not as they
  /// should be.
  FASTMINE_DEVICE bool write(std::int64_t position, Power power, float gamma) const {
    int target[kItems];
    if (!writable_ || !positions_.load_targets(position, target)) {
      return false;
    }
    float target_slope[kItems];
    Likeliest likeliest[kItems];
    FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
      likeliest[i].slope = target_slope[i] = everywhere_[target[i]] + on_target_[target[i]];
    }
    const auto nothing = [](const typename Positions::Chunk&) {};
    positions_.walk(position, target, nothing, [&](int k, int i, float e, bool is_target) {
      likeliest[i].add(is_target ? 0.0F : e, everywhere_[k]);
    });
    float most = 0;
    FASTMINE_UNROLL for (const Likeliest& one : likeliest) { most = upper(most, one.others); }
    if (!(most <= Positions::kMost)) {
      return false;
    }
    float inverse[kItems], off[kItems], of_target[kItems];
    FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
      const Likeliest& one = likeliest[i];
      const float p = reciprocal(1 + one.others), s = one.others, mean = one.weighted * p;
      const float log_p = scales_.focal_on != 0 ? -log1p_of_sum(s) : 0.0F;
      const EntropySlopes<float> entropies = entropy_slopes(scales_, p, s * p, log_p, power, gamma);
      inverse[i] = p;
      off[i] = entropies.off - mean;
      of_target[i] = p * ((target_slope[i] - one.slope) - mean) - entropies.on;
    }
    S* out = out_ + position;
    for (int k = 0; k < positions_.classes(); ++k, out += stride_) {
      const typename Positions::Exponentials each = positions_.exponentials(k);
      Pack<S, kItems> gradient;
      FASTMINE_UNROLL for (int i = 0; i < kItems; ++i) {
        const float g = each.item[i] * inverse[i] * ((everywhere_[k] - likeliest[i].slope) + off[i]);
        assign(gradient.item[i], k == target[i] ? of_target[i] : g);
      }
      store_pack<S, kItems>(gradient, out);
    }
    return true;
  }

 private:
  const Positions& positions_;
  const float *everywhere_, *on_target_;
  const GroupSlopes<float>& scales_;
  S* out_;
  std::int64_t stride_;
  bool writable_;
};

template <class S>
constexpr std::size_t few_gradient_bytes(std::int64_t classes) {
  return FewPositions<S>::bytes(classes) + static_cast<std::size_t>(2 * classes) * sizeof(float);
}

/// One block: the gradient of a run of positions of one sample, for its few classes.
template <class S>
FASTMINE_KERNEL(SoftmaxShape::kThreads, 4)
few_softmax_gradient(FASTMINE_PARAMETER BackwardWork<SegmentationLossBackward> work) {
  constexpr int kThreads = SoftmaxShape::kThreads, kItems = SoftmaxShape::kItems;
  const SegmentationLossBackward& problem = work.problem;
  const SegmentationInputs& in = problem.in;
  const Task task = task_of(work.cut, in);
  const Slopes<SegmentationLossBackward> slopes(problem, task.sample);
  FASTMINE_DYNAMIC_SHARED(unsigned char, memory, few_gradient_bytes<S>(in.classes));
  const FewPositions<S> positions(in, task, reinterpret_cast<typename FewPositions<S>::Exponentials*>(memory));
  auto* const of_class = reinterpret_cast<float*>(memory + FewPositions<S>::bytes(in.classes));
  if (thread_index() < in.classes) {
    const GroupSlopes<float> own = slopes.template at<float>(thread_index());
    of_class[thread_index()] = own.everywhere;
    of_class[in.classes + thread_index()] = own.on_target;
  }
  barrier();
  const GroupSlopes<float> scales = slopes.template at<float>(0);  // those of the entropies are the same for all
  const Power power = power_of(gamma_of(problem));
  const auto gamma = static_cast<float>(gamma_of(problem));
  S* const out = static_cast<S*>(problem.grad_logits) + task.sample * in.classes * in.positions;
  const HardGradients<S> hard(positions, of_class, scales, out, in.positions);
  for (std::int64_t position = task.begin + thread_index() * kItems; position < task.end;
       position += kThreads * kItems) {
    if (!hard.write(position, power, gamma)) {
      write_positions<S>(problem, slopes, task, position, false, 0.0F);
    }
  }
}

}  // namespace fastmine::cuda
