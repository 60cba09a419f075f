// A softmax over the cosines of rows to class vectors, with a margin on the own class (ArcFace, arXiv:1801.07698;
// CosFace, arXiv:1801.09414), and its slopes by all of these logits.
//
// With s the scale and m the margin, the loss of a row is log(1 + e^(L - s phi)), L the log-sum-exp of the logits of
// all other classes. phi is cos - m, or for the angle cos(theta + m), and beyond pi - m, where that would rise again,
// cos - (1 - cos m). The sine is the length of what is left of a row beside its class vector; below 16 roundings, where
// there is no direction to turn a row by, the slope stays finite. NaN for a row whose label is of no class; 0 for one
// that takes no part.
//
// Cost: O(n (classes + d)); sums and the formula in float64, exponentials in the type of the logits. Deterministic at
// any number of threads.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/reduction.h"
#include "kernels/stage.h"

namespace fastmine {

enum class MarginKind : std::uint8_t { cosine, angular };

struct MarginSoftmax {
  std::int64_t n, classes, d;
  DType dtype;                  // of all numbers: float32 or float64
  const void* logits;           // [n, classes]: scale x cosine
  const void* unit;             // [n + vectors, d]: rows, and below them class vectors, at length 1
  const std::int64_t* labels;   // [n]
  const std::int64_t* nearest;  // [n]: the vector of the own class that counts; or null: there is one for each class
  const bool* valid;            // [n], or null: all
  const void* weight;           // [n], or null: 1 for what takes part
  MarginKind kind;
  double scale;
  double margin;
  Reduction reduction;

  // Out.
  void* loss;           // [n] for Reduction::none, else [1]
  void* slopes;         // [n, classes]: of the loss, for Reduction::none of each row's own, by cosines
  void* cosine;         // [n]: to the own class,
  void* nearest_other;  // [n]: to the nearest other one
  bool* active;         // [n]: rows whose loss is not 0
};

using MarginSoftmaxKernel = StagedKernel<MarginSoftmax>;

}  // namespace fastmine
