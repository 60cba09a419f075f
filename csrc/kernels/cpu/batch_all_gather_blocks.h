// The gradient by blocks: a row gathers all that it is due itself. What its negatives push it by, as anchor and as
// reference, comes from one block of distances; in the end, when all counts are known, its positives pull it, each by
// its difference.
#pragma once

#include "kernels/cpu/batch_all_gradient.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::batch_all {

// --- gather ----------------------------------------------------------------------------------------------------------

/// The rows of a sliver that a task owns, those across, and where what is gathered goes.
template <class W>
struct Side {
  End<W> own, across;
  const Columns<W>& columns;  // of the rows across
  double* sums;
  double* total;

  double* sums_of(std::int64_t sliver) const {
    return sums + sliver * slivers_of<W>(own.rows.set.rows.d) * kWidth<W> * kWidth<W>;
  }
};

/// f(c, r) for the pairs of a chunk.
template <class W, class F>
FASTMINE_INLINE void for_pairs(const Chunk<W>& chunk, F f) {
  for (std::int64_t c = 0; c < chunk.count; ++c) {
    for (std::int64_t r = 0; r < chunk.own.rows.height(chunk.sliver); ++r) {
      f(c, r);
    }
  }
}

/// Of cosine, a zero vector has no direction to turn.
template <class W>
FASTMINE_NOINLINE void drop_fixed(const Chunk<W>& chunk) {
  const LabelledRows<W>&own = chunk.own.rows, &across = chunk.across.rows;
  for_pairs(chunk, [&](std::int64_t c, std::int64_t r) {
    if (own.set.norm[own.order[chunk.place() + r]] == 0 || across.set.norm[across.order[chunk.first + c]] == 0) {
      chunk.slope[c * kWidth<W> + r] = 0;
    }
  });
}

/// The key of a closeness.
template <class V>
FASTMINE_INLINE V key_of(V closeness, Metric metric) {
  return metric == Metric::euclidean ? closeness * closeness : metric == Metric::cosine ? closeness * 2 : closeness;
}

/// Keys below are of close pairs, where the terms of a product would cancel; V is a vector of W or one number.
template <class W, class V>
FASTMINE_INLINE V close_limit(V squares) {
  constexpr W tiny = sizeof(W) == 8 ? 0x1p-900 : 0x1p-100;  // squares below have lost digits
  return squares * kClose<W> + tiny;
}

/// Close pairs pull by their difference at once, and have no weight left.
template <class W>
FASTMINE_NOINLINE void pull_close(const Chunk<W>& chunk, Metric metric, double* sums) {
  const LabelledRows<W>&own = chunk.own.rows, &across = chunk.across.rows;
  for_pairs(chunk, [&](std::int64_t c, std::int64_t r) {
    const std::int64_t i = chunk.place() + r, j = chunk.first + c;
    const W closeness = chunk.closeness[c * kWidth<W> + r];
    const W limit = close_limit<W>(own.packed.c[i] + across.packed.c[j]);
    W& slope = chunk.slope[c * kWidth<W> + r];
    if (slope != 0 && key_of(closeness, metric) < limit) {
      const double w = weight_of_pair(static_cast<double>(slope), static_cast<double>(closeness), metric);
      pull<W>(own.set, own.order[i], across.set, across.order[j], w, sums + r * kWidth<W>);
      slope = 0;
    }
  });
}

template <class W>
FASTMINE_NOINLINE bool has_close(const Chunk<W>& chunk, Metric metric) {
  auto close = Vec<W>{} != Vec<W>{};
  const std::int64_t height = chunk.own.rows.height(chunk.sliver);
  for (std::int64_t lane = 0; lane < height; lane += static_cast<std::int64_t>(lanes<W>)) {
    const Vec<W> own = load(chunk.own.rows.packed.c + chunk.place() + lane);
    for (std::int64_t c = 0; c < chunk.count; ++c) {
      const Vec<W> closeness = load(chunk.closeness + c * kWidth<W> + lane);
      close |= key_of(closeness, metric) < close_limit<W>(own + chunk.across.rows.packed.c[chunk.first + c]);
    }
  }
  return any(close);
}

/// Slopes become weights, in place of closeness.
template <class W>
FASTMINE_NOINLINE void weigh(const Gradient<W>& p, const Chunk<W>& chunk, double* sums) {
  const Metric metric = p.problem.metric;
  if (p.some_fixed) {
    drop_fixed(chunk);
  }
  if (metric != Metric::dot && has_close(chunk, metric)) {
    pull_close(chunk, metric, sums);
  }
  for (std::int64_t at = 0; at < chunk.count * kWidth<W>; at += static_cast<std::int64_t>(lanes<W>)) {
    store(chunk.closeness + at, weight_of_pair(load(chunk.slope + at), load(chunk.closeness + at), metric));
  }
}

template <class W>
void multiply(const Side<W>& side, Metric metric, std::int64_t sliver, std::int64_t first, std::int64_t count,
              const W* weights) {
  const std::int64_t d = side.own.rows.set.rows.d, height = side.own.rows.height(sliver);
  if constexpr (sizeof(W) == 4) {
    if (side.across.rows.digits.in_use()) {
      return add_products(side.across.rows.digits, metric, d, weights, height, first, count, side.sums_of(sliver));
    }
  }
  add_products(side.columns, metric, d, weights, height, first, count, side.sums_of(sliver));
}

template <class W>
void gather_sliver(const Gradient<W>& p, const Side<W>& side, std::int64_t sliver) {
  double* sums = side.sums_of(sliver);
  double* total = side.total + sliver * kWidth<W>;
  __builtin_memset(sums, 0, static_cast<std::size_t>(side.sums_of(sliver + 1) - sums) * sizeof(double));
  __builtin_memset(total, 0, kSliver<W> * sizeof(double));
  for_chunks(
      p, side.own, sliver, side.across, [&](const Chunk<W>& chunk) { weigh(p, chunk, sums); },
      [&](std::int64_t first, std::int64_t count, const W* weights) {
        add_weights(weights, count, total);
        multiply(side, p.problem.metric, sliver, first, count, weights);
      });
}

template <class W>
void gather_blocks(const Gradient<W>& p, std::int64_t task) {
  const Blocks<W>& s = p.blocks;
  const std::int64_t anchors = p.a.count, own = s.x.slivers();
  if (p.problem.self) {
    const End<W> end{s.x, s.x_class, anchors};
    gather_sliver(p, Side<W>{end, end, p.references, p.x_sums, p.x_total}, task);
  } else if (task < own) {
    gather_sliver(p, Side<W>{{s.x, s.x_class, anchors}, {s.y, s.y_class, 0}, p.references, p.x_sums, p.x_total}, task);
  } else {
    gather_sliver(p, Side<W>{{s.y, s.y_class, 0}, {s.x, s.x_class, anchors}, p.anchors, p.y_sums, p.y_block_total},
                  task - own);
  }
}

/// Of slivers of anchors: what their triplets pull by.
template <class W>
void measure_pulls(void* plan, std::int64_t begin, std::int64_t end) {
  const Gradient<W>& p = as_gradient<W>(plan);
  const double leak = p.problem.leak;
  measure<W>(p, begin, end);
  for (std::int64_t k = begin * kWidth<W>; k < end * kWidth<W>; ++k) {
    const double weight = k < p.a.count ? p.outer.weight[p.a.row(k)] : 0;
    p.blocks.each[k] = static_cast<W>(-weight * (1 - leak));
    p.blocks.always[k] = static_cast<W>(-weight * leak * static_cast<double>(p.blocks.found[k]));
  }
}

// --- finish ----------------------------------------------------------------------------------------------------------

/// sums += what anchor k and its positive t, row j of y, pull each other by, of the anchor or of the other: as much as
/// there are triplets of the two that count, and with a leak the others that much.
template <class W>
void pull_positive(const Gradient<W>& p, std::int64_t k, std::int64_t t, std::int64_t j, bool anchor, double* sums) {
  const Blocks<W>& s = p.blocks;
  const double leak = p.problem.leak;
  const std::int64_t i = p.a.row(k);
  const double triplets = leak * static_cast<double>(p.negatives(k)) + (1 - leak) * s.below[t * s.stride + k];
  const double w = weight_of_pair(p.outer.weight[i] * triplets, s.positive[k * p.most_positives + t], p.problem.metric);
  const bool fixed = p.some_fixed && (p.x.norm[i] == 0 || p.y.norm[j] == 0);
  if (w != 0 && !fixed) {
    anchor ? pull<W>(p.x, i, p.y, j, w, sums) : pull<W>(p.y, j, p.x, i, w, sums);
  }
}

/// sums += what all its positives pull anchor k by.
template <class W>
void pull_anchor(const Gradient<W>& p, std::int64_t k, double* sums) {
  std::int64_t t = 0;
  for (std::int64_t place = p.same_begin[k]; place < p.same_end[k]; ++place) {
    if (place != p.blocks.own_place[k]) {
      pull_positive(p, k, t++, p.y_order[place], true, sums);
    }
  }
}

/// sums += what row j of y is pulled by all anchors of whom it is a positive.
template <class W>
void pull_reference(const Gradient<W>& p, std::int64_t j, std::int64_t label, double* sums) {
  const Blocks<W>& s = p.blocks;
  const std::int64_t place = s.place[j];
  for (std::int64_t k = s.anchor[label]; k < p.a.count && p.same_begin[k] == label; ++k) {
    const std::int64_t own = s.own_place[k], skipped = own >= label && own < place ? 1 : 0;
    if (own != place) {
      pull_positive(p, k, place - label - skipped, j, false, sums);
    }
  }
}

/// The row at a position of one side.
template <class W>
void finish_position(const Gradient<W>& p, const LabelledRows<W>& rows, std::int64_t position, bool anchor,
                     bool reference, double* sums, const double* total, void* out) {
  const std::int64_t i = rows.order[position];
  double* own = sums + position / kWidth<W> * p.panels() * kWidth<W> * kWidth<W> + position % kWidth<W> * kWidth<W>;
  if (anchor) {
    pull_anchor(p, position, own);
  }
  if (reference) {
    pull_reference(p, i, static_cast<std::int64_t>(p.blocks.y_class[position]), own);
  }
  write_gradient<W>(rows.set, p.centre, i, total[position], own, out);
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::batch_all
