// The selectively contrastive loss of mined pairs (arXiv:2007.12749), one positive and one negative to an anchor.
//
// With s the similarities, 1 - distance or the product: hard_weight s_n where s_n > s_p, else log(1 + e^((s_n - s_p) /
// temperature)). A NaN goes through the second, and stays. Where no anchor has both: by the policy for an empty batch
// the distance to the positive (of a similarity, minus it), or log(1 + e^(s_n / temperature)). All in float64, in the
// order of the anchors.
//
// Cost: O(n). Deterministic.
#pragma once

#include "kernels/triplet_loss.h"

namespace fastmine {

struct SelectiveTerms {
  std::int64_t n;
  const double* positive_distance;  // [n] each
  const double* negative_distance;
  const bool* has_positive;
  const bool* has_negative;
  const double* weight;  // or null: all are 1
  Metric metric;         // cosine or dot
  double temperature;
  double hard_weight;
  OnEmpty on_empty;
  Reduction reduction;

  // Out.
  void* loss;        // of type `loss_dtype`: [n] for Reduction::none, else [1]
  DType loss_dtype;  // float32 or float64
  double* slopes;    // the loss by the distances to the positives [n], then to the negatives [n]
  double* active;    // [1]: anchors with both
};

namespace cpu {
void selective_terms(const SelectiveTerms& problem) noexcept;
}  // namespace cpu

}  // namespace fastmine
