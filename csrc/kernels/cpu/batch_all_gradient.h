// Where the gradient of the batch-all triplet loss lies while it is gathered.
//
// With H[i, j] the derivative of the loss by half the squared distance of anchor i to reference j, the gradient at the
// anchor is (sum over j of H[i, j]) x[i] - (sum of H[i, j] y[j]), and so at the reference with i and j exchanged; of a
// similarity, with H the derivative by it, it is the sum of H[i, j] y[j].
#pragma once

#include "kernels/cpu/batch_all_blocks.h"
#include "kernels/cpu/batch_all_tiles.h"
#include "kernels/cpu/gradient_rows.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::batch_all {

/// A multiple to which a tile's width is filled up with zeros: whole tiles of products.
inline constexpr std::int64_t kRoundedUp = 8;

/// Elements of a panel of one row.
template <class W>
FASTMINE_INLINE W* panel_of(const Columns<W>& columns, std::int64_t panel, std::int64_t row) {
  return columns.data + (panel * columns.count + row) * kWidth<W>;
}

template <class W>
struct Gradient : Plan<W> {
  BatchAllBackward outer;
  Tiles<W> tiles;
  Columns<W> anchors, references;
  std::int64_t* x_position;  // per row of x its position in a, -1 without one; per row of y in b
  std::int64_t* y_position;
  double* x_sums;   // by tiles [x.n, wide]: of each anchor in use, by row; with one set of all, in the end
  double* x_total;  // [x.n]: the sum of its row of H
  double* y_sums;   // the same of y, by tiles in the end; null with one set
  double* y_block_total;
  Columns<W> partial[kMostParts];  // per part: sums of the references, by position
  double* y_total[kMostParts];
  bool some_fixed;  // some row is a zero vector, and the metric cosine
  bool spoiled;     // some anchor sees a NaN: the gradient of all that it sees is NaN

  std::int64_t panels() const { return divide_up(this->problem.x.d, kWidth<W>); }
  std::int64_t wide() const { return panels() * kWidth<W>; }
};

template <class W>
Gradient<W> lay_out(const BatchAllBackward& outer, Arena& arena) {
  const BatchAll& q = outer.problem;
  const std::int64_t n = q.x.n, m = q.y.n, panels = divide_up(q.x.d, kWidth<W>);
  const std::int64_t padded = divide_up(m, kReferences) * kReferences + kRoundedUp;
  const std::int64_t parts = parts_of(q, padded * panels * kWidth<W> * static_cast<std::int64_t>(sizeof(W)));
  Gradient<W> p{};
  static_cast<Plan<W>&>(p) = lay_out_plan<W>(q, arena);
  p.blocks = lay_out_blocks<W>(p, arena, true);
  p.tiles = lay_out_tiles<W>(q, arena, parts, true);
  p.outer = outer;
  p.anchors = lay_out_columns<W>(arena, q.x);
  p.references = lay_out_columns<W>(arena, q.y);
  p.x_position = arena.take<std::int64_t>(n);
  p.y_position = arena.take<std::int64_t>(m);
  p.x_sums = lay_out_sums<W>(arena, q.x);
  p.x_total = arena.take<double>(slivers_of<W>(n) * kWidth<W>);
  p.y_sums = q.self ? nullptr : lay_out_sums<W>(arena, q.y);
  p.y_block_total = q.self ? nullptr : arena.take<double>(slivers_of<W>(m) * kWidth<W>);
  for (std::int64_t part = 0; part < parts; ++part) {
    p.partial[part] = {arena.take<W>(panels * padded * kWidth<W>), nullptr, padded};
    p.y_total[part] = arena.take<double>(padded);
  }
  return p;
}

template <class W>
const Gradient<W>& as_gradient(const void* plan) {
  return *static_cast<const Gradient<W>*>(plan);
}

/// From the derivative by closeness to that by half the squared distance, for dot by the similarity; V is a vector or
/// one number.
template <class V>
FASTMINE_INLINE V weight_of_pair(V slope, V closeness, Metric metric) {
  return metric == Metric::euclidean     ? select((slope == 0) | (closeness == 0), V{}, slope / closeness)
         : metric == Metric::sqeuclidean ? slope * 2
         : metric == Metric::dot         ? -slope
                                         : slope;
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::batch_all
