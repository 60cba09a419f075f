// What the batch-all triplet loss and its gradient share: rows by label, who is whose positive, and which way to go.
//
// An anchor's distances are spoken of as closeness: the distance, or minus a similarity. Positions are those of rows in
// `a` (the anchors in use, by label) and in `b` (the references that take part). There are two ways:
//
//   blocks (batch_all_blocks.h), where no anchor has more than a few positives: the thresholds of all anchors are at
//   hand, so that a row gathers what it is due as anchor and as reference from one block of distances;
//   tiles (batch_all_tiles.h), for larger classes: those of 48 anchors at a time, and partial sums of the references.
#pragma once

#include "kernels/batch_all.h"
#include "kernels/cpu/order.h"
#include "kernels/cpu/row_block.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::batch_all {

inline constexpr std::int64_t kMostPositives = 128;  // by blocks

/// By blocks up to so many: then thresholds take no more memory than a few copies of the rows.
FASTMINE_INLINE std::int64_t few_positives(std::int64_t d) {
  return smaller(kMostPositives, larger<std::int64_t>(48, d));
}

/// One threshold above each positive of each anchor in use: [k, position], NaN where an anchor has fewer positives.
template <class W>
struct Limits {
  double margin;  // of the thresholds above the positives
  W by;           // what a negative below a threshold counts
  W* low;         // a closeness below it is below the threshold,
  W* high;        // and one above it is not
};

/// The way by blocks. With one set, x is y, and the anchors in use come first.
template <class W>
struct Blocks {
  LabelledRows<W> x, y;
  std::int64_t* order;   // with one set, of its rows
  std::int64_t* place;   // per row of y, in y_order
  std::int64_t* anchor;  // per first place of a label, the first anchor in use that has it; the number of anchors: none
  Position<W>* x_class;  // per position the first place of its label in y_order
  Position<W>* y_class;
  std::int64_t stride;      // of positions of anchors, in whole slivers
  std::int64_t* own_place;  // per anchor in use: its own place in y_order, -1 without one
  std::int64_t* found;      // its positives
  double* positive;         // [anchors, most_positives]: closeness, in the order of y_order
  double* below;            // [most_positives, stride]: the triplets of each that count
  Limits<W> limits[2];      // the outer and, of semi-hard triplets, the inner ones
  W* each;                  // [stride]: what each triplet of an anchor that counts pulls by, less ...
  W* always;                // ... what all of those of a negative do, counted or not
  double coarsest;          // with digits, the largest unit of y
  bool digits;              // products are of digits
};

template <class W>
struct Plan {
  using Type = W;

  BatchAll problem;
  RowSet x, y;  // with one set, y is x
  double* centre;
  std::int64_t* x_order;
  std::int64_t* y_order;  // by label
  std::int64_t* spare;
  std::int64_t* same_begin;  // per position of a: the references of its label are [begin, end) of y_order
  std::int64_t* same_end;
  std::int64_t most_positives;  // of any anchor in use
  Packed<W> a, b;
  double widest;  // the largest norm in b
  Blocks<W> blocks;

  std::int64_t negatives(std::int64_t anchor) const { return b.count - (same_end[anchor] - same_begin[anchor]); }
  bool in_blocks() const { return most_positives <= few_positives(problem.x.d); }
};

template <class W>
Plan<W> lay_out_plan(const BatchAll& problem, Arena& arena) {
  const std::int64_t n = problem.x.n, m = problem.y.n;
  Plan<W> p{};
  p.problem = problem;
  p.x = lay_out_rows(arena, problem.x, problem.valid, problem.metric);
  p.y = problem.self ? p.x : lay_out_rows(arena, problem.y, problem.ref_valid, problem.metric);
  p.centre = arena.take<double>(problem.x.d);
  p.x_order = arena.take<std::int64_t>(n);
  p.y_order = arena.take<std::int64_t>(m);
  p.spare = arena.take<std::int64_t>(larger(n, m));
  p.same_begin = arena.take<std::int64_t>(n);
  p.same_end = arena.take<std::int64_t>(n);
  p.a = lay_out_packed<W>(arena, n, problem.x.d);
  p.b = lay_out_packed<W>(arena, m, problem.x.d);
  return p;
}

// --- rows by label ---------------------------------------------------------------------------------------------------

// The first stages, for both kernels: P is the plan of one of them.

template <class P>
std::int64_t look_tasks(const void* plan) {
  const P& p = *static_cast<const P*>(plan);
  return p.x.blocks() + (p.problem.self ? 0 : p.y.blocks());
}

template <class P>
void look(void* plan, std::int64_t begin, std::int64_t end) {
  const P& p = *static_cast<const P*>(plan);
  const std::int64_t own = p.x.blocks();
  for (std::int64_t t = begin; t < end; ++t) {
    t < own ? look_at_block<typename P::Type>(p.x, t) : look_at_block<typename P::Type>(p.y, t - own);
  }
}

inline std::int64_t sort_admitted(const RowSet& set, const std::int64_t* labels, std::int64_t* order,
                                  std::int64_t* spare) {
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < set.rows.n; ++i) {
    if ((set.kind[i] & kSkipped) == 0) {
      order[count++] = i;
    }
  }
  sort_by_label(labels, order, spare, count);
  return count;
}

/// Order both sides, match the labels, count every anchor's triplets, and keep the anchors in use. Some reference is
/// not finite only where no anchor is in use, and then no position is looked at.
template <class W>
void group_rows(Plan<W>& p) {
  const BatchAll& q = p.problem;
  find_centre(p.x, q.self ? nullptr : &p.y, p.centre);
  const std::int64_t anchors = sort_admitted(p.x, q.labels, p.x_order, p.spare);
  const std::int64_t references = sort_admitted(p.y, q.ref_labels, p.y_order, p.spare);
  for (std::int64_t i = 0; q.triplets != nullptr && i < q.x.n; ++i) {
    q.triplets[i] = q.sum[i] = q.active[i] = 0;
  }
  p.most_positives = 0;
  std::int64_t used = 0, begin = 0, end = 0;
  for (std::int64_t k = 0; k < anchors; ++k) {
    const std::int64_t i = p.x_order[k], label = q.labels[i];
    for (begin = end; begin < references && q.ref_labels[p.y_order[begin]] < label; end = ++begin) {
    }
    for (; end < references && q.ref_labels[p.y_order[end]] == label; ++end) {
    }
    for (; k < anchors && q.labels[p.x_order[k]] == label; ++k) {
      const std::int64_t row = p.x_order[k], own = itself(q, row);
      const bool present = own >= 0 && own < q.y.n && q.ref_labels[own] == label && (p.y.kind[own] & kSkipped) == 0;
      const std::int64_t positives = end - begin - (present ? 1 : 0), negatives = references - (end - begin);
      if (q.triplets != nullptr) {
        q.triplets[row] = static_cast<double>(positives) * static_cast<double>(negatives);
      }
      if (q.use[row]) {
        p.most_positives = larger(p.most_positives, positives);
        p.x_order[used] = row;
        p.same_begin[used] = begin;
        p.same_end[used++] = end;
      }
    }
    --k;
  }
  p.a.count = used;
  p.a.order = p.x_order;
  p.b.count = used > 0 ? references : 0;
  p.b.order = p.y_order;
}

/// out[k] = the closeness of row i of x to row rows[k] of y by direct difference, for k < count.
template <class W>
FASTMINE_NOINLINE void compare_directly(const Plan<W>& p, std::int64_t i, const std::int64_t* rows, std::int64_t count,
                                        double* out) {
  const Metric metric = p.problem.metric;
  exact_keys<W>(p.problem.x, i, p.x.norm, p.problem.y, rows, count, p.y.norm, metric, out);
  for (std::int64_t k = 0; k < count; ++k) {
    out[k] = metric == Metric::dot ? 0.5 * out[k] : distance_of(out[k], metric);
  }
}

/// How far in W a closeness whose key has an error of at most `error`, and a threshold, may be from where they are.
template <class W>
FASTMINE_INLINE double room_at(double threshold, double error, Metric metric) {
  constexpr double roundings = sizeof(W) == 8 ? 0x1p-51 : 0x1p-22;  // of a root, and of the threshold in W
  const double size = ::fabs(threshold);
  // Where roots a and b have a threshold between them, |a - b| <= |a^2 - b^2| / threshold; and always its root.
  const double root = ::sqrt(error);
  const double of_key = metric != Metric::euclidean ? error : size * root > error ? error / size : root;
  return of_key + roundings * size;
}

/// Bounds the error of the closeness to any reference of a row of this norm, before a root is taken, where products are
/// sums of d terms in W, and keys by `beyond` further off.
template <class W>
FASTMINE_INLINE double closeness_error(const Plan<W>& p, double norm, std::int64_t d, double beyond) {
  const double halved = p.problem.metric == Metric::cosine || p.problem.metric == Metric::dot ? 0.5 : 1;
  return halved * (key_error<W>(d, norm, p.widest) + beyond);
}

/// The margin above the positives that a negative must lie within to count; of semi-hard triplets it is not to lie
/// below the positive itself.
FASTMINE_INLINE double outer_margin(const BatchAll& problem) {
  return problem.kind == Triplets::hard ? 0 : problem.margin;
}

/// The sum over the triplets of an anchor that count, and how many do. A positive plus the margin counts once for each
/// such triplet, a negative minus once; with a leak, in all other triplets that much.
struct AnchorSum {
  double thresholds = 0;  // the sum over positives of threshold x negatives below
  double plain = 0;       // of thresholds
  double active = 0;      // of negatives below
  double ranked = 0;      // the sum over negatives of closeness x thresholds above
  double pushed = 0;      // of closeness

  FASTMINE_INLINE void add_positive(double threshold, double below) {
    thresholds += threshold * below;
    plain += threshold;
    active += below;
  }
  FASTMINE_INLINE void write(const BatchAll& problem, std::int64_t i, std::int64_t positives,
                             std::int64_t negatives) const {
    const double all = plain * static_cast<double>(negatives) - pushed * static_cast<double>(positives);
    const double leak = problem.leak, above = thresholds - ranked;
    problem.sum[i] = leak == 0 ? above : leak * all + (1 - leak) * above;
    problem.active[i] = active;
  }
};

inline std::int64_t once(const void*) { return 1; }
inline std::int64_t few(const void*) { return 4; }

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::batch_all
