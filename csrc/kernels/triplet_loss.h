// The small formula of the triplet loss: from two distances and two bits per anchor to a loss and its slopes.
//
// violation = d_p - d_n + margin (of a similarity: d_n - d_p + margin). hinge max(0, v), soft log(1 + e^v), leaky
// max(leak v, v). The mean is over valid anchors, those with a positive and a negative, by their weights. Where none is
// valid, `pull` takes the mean positive distance and `push` the mean softplus(margin - negative distance) over the
// anchors that have one. All in float64, in the order of the anchors.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/embeddings.h"
#include "kernels/reduction.h"

namespace fastmine {

enum class TripletShape : std::uint8_t { hinge, soft, leaky };
enum class OnEmpty : std::uint8_t { zero, pull, push };

struct TripletLoss {
  std::int64_t n;
  const double* positive_distance;  // [n] each
  const double* negative_distance;
  const bool* has_positive;
  const bool* has_negative;
  const double* weight;  // [n]: of each anchor, or null: all are 1
  Metric metric;
  TripletShape shape;
  double margin;
  double leak;
  OnEmpty on_empty;
  Reduction reduction;

  // Out.
  void* loss;         // of type `loss_dtype`: [n] for Reduction::none, else [1]
  DType loss_dtype;   // float32 or float64
  double* slopes;     // [2, n]: the loss by the distance to the positive, and to the negative
  double* active;     // evidence: valid anchors whose loss is not flat
  double* semi_hard;  // evidence: valid anchors with d_p <= d_n < d_p + margin
};

namespace cpu {
void triplet_loss(const TripletLoss& problem) noexcept;
}  // namespace cpu

}  // namespace fastmine
