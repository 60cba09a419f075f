// Mining by rank: of each anchor's positives and negatives those of a range of ranks, in order of distance or of a
// random number for each pair.
//
// Who is a pair. Rows that their mask admits; not the anchor itself (with one set its own row, else the reference that
// `self_index` names). A pair is positive if both have the same label or, with sets of labels, share one; else
// negative. Rows of the same group are never a negative pair and, without `group_positives`, no positive one. A window
// admits the negatives alone that are farther than the anchor's first mined positive, by less than `window`; an anchor
// without a positive has no such bound.
//
// In what order. Of the random number h, a hash of the seed and the indices of both rows, `random` takes the least
// first. `distance_weighted` (arXiv:1706.07567; negatives alone, and not for dot) takes the least log(-log u) - log w
// first, u of (0, 1) from h: a sample without replacement with weights w = d^(2 - D) (1 - d^2 / 4)^((3 - D) / 2), d the
// distance of the unit vectors but not less than `cutoff`; pairs from `nonzero_loss_cutoff` on are none. A pair with a
// NaN or an Inf row is at distance NaN and comes first in every order; equal ones follow in the order of their indices.
//
// How. Rows are grouped by label (sets of labels are not) and packed. A task owns a sliver of anchors and walks the
// slivers across: products in the working type, of these an order or a bound on it, with the anchors in the lanes. What
// may be among the first `last` so far, by a rigorous rounding bound, is compared by direct difference in float64. So
// the pairs are those of the float64 distances.
//
// Cost: n m d multiply-adds, twice with sets of labels; about last log(m / last) direct comparisons for each anchor,
// all m where rows have collapsed; workspace of the packed rows and n last numbers and indices for each sign. No n x m
// matrix. Deterministic at any number of threads.
#pragma once

#include "kernels/batch_hard.h"

namespace fastmine {

enum class PairOrder : std::uint8_t { nearest, farthest, random, distance_weighted };

/// The pairs of one sign: what is asked for, and found.
struct MinedSign {
  PairOrder order;
  std::int64_t first, last;  // ranks from 0

  // Out, each [x.n, last - first]; what is absent has index 0 and distance 0.
  std::int64_t* index;
  double* distance;
  bool* found;
};

struct MinedPairs {
  Rows x;
  const std::int64_t* labels;  // [x.n], or null
  const bool* label_sets;      // [x.n, label_count] instead
  const bool* valid;           // [x.n], or null: all
  const std::int64_t* groups;  // [x.n], or null: each row is alone
  Rows y;                      // with `self`, the same as x, as are the next four
  const std::int64_t* ref_labels;
  const bool* ref_label_sets;
  const bool* ref_valid;
  const std::int64_t* ref_groups;
  std::int64_t label_count;
  bool self;
  const std::int64_t* self_index;  // as for BatchHard
  Metric metric;
  bool group_positives;
  bool windowed;
  double window;
  double cutoff, nonzero_loss_cutoff;
  const std::uint64_t* seed;  // [1]; null unless an order is random
  MinedSign positive, negative;

  double* evidence;  // the fields of mining, then kMinedExtraFields
};

inline constexpr const char* kMinedExtraFields[] = {"positive_pairs", "negative_pairs"};

using MinedPairsKernel = StagedKernel<MinedPairs>;

}  // namespace fastmine
