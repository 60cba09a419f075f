// Everything against everything, a block at a time: what losses over all pairs of a batch are built on.
//
// Rows that take part are grouped by label, centred and packed; from then on they are known by their position in that
// order, so that the references of an anchor's label are one range. A task owns a sliver of rows and walks the rows
// across in panels: their distances to the sliver are computed into a block that stays in the cache, and a functor
// reads it, with the rows of the sliver in the lanes. So a per-anchor sum is a sum of vectors, and the block of weights
// that a functor leaves there is at once what the product with the rows across reads (gradient_rows.h). Nothing is
// written to another task's rows: where a pair teaches both of its ends, each end computes it. The distance of a pair
// has the same bits in whichever task and on whichever side.
#pragma once

#include "kernels/cpu/digits.h"
#include "kernels/cpu/distance_row.h"
#include "kernels/cpu/gradient_rows.h"
#include "kernels/cpu/order.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {

/// An integer of W's size, so that comparisons of positions select among values.
template <class W>
using Position = Bits<Vec<W>>;

/// One side: its rows that take part, by label.
template <class W>
struct LabelledRows {
  RowSet set;
  const std::int64_t* labels;
  std::int64_t* order;  // position -> row
  Packed<W> packed;
  DigitRows digits;    // of the packed rows, where these are multiplied
  Position<W>* begin;  // per position, to whole slivers: the rows across of its label are [begin, end)
  Position<W>* end;

  std::int64_t count() const { return packed.count; }
  std::int64_t slivers() const { return packed.slivers(); }
  std::int64_t first(std::int64_t sliver) const { return sliver * kWidth<W>; }
  /// Rows of a sliver.
  std::int64_t height(std::int64_t sliver) const { return smaller(kWidth<W>, count() - first(sliver)); }
  /// The rows across that have a label of this sliver are all in [same_begin, same_end).
  std::int64_t same_begin(std::int64_t sliver) const { return begin[first(sliver)]; }
  std::int64_t same_end(std::int64_t sliver) const { return end[first(sliver) + height(sliver) - 1]; }
};

/// Both sides; with one set (`self`), y is x.
template <class W>
struct RowBlocks {
  bool self;
  LabelledRows<W> x, y;
  double* centre;
  double* total;         // [d]: sum of the anchors that take part and are finite, as they are
  std::int64_t* spare;   // [the larger of n and m]
  std::int64_t classes;  // distinct labels among the anchors that take part
};

/// What is multiplied: rows with rows as they are, as digits, or as digits and with weights too.
enum class Multiply { floats, digits, digits_and_weights };

/// Whether the rows of a problem are multiplied as digits, forward and backward alike.
template <class W, class P>
bool by_digits(const P& problem) {
  const std::int64_t d = problem.x.d;
  const bool large = d >= 48 && problem.x.n * problem.y.n * d >= 8'000'000;
  return sizeof(W) == 4 && d <= kDeepest &&
         (problem.products == Products::digits || (problem.products == Products::automatic && kMatrixUnit && large));
}

template <class W>
LabelledRows<W> lay_out_labelled(Arena& arena, const Rows& rows, const std::int64_t* labels, const bool* valid,
                                 Metric metric, Multiply multiply) {
  LabelledRows<W> side{};
  side.set = lay_out_rows(arena, rows, valid, metric);
  side.labels = labels;
  side.order = arena.take<std::int64_t>(rows.n);
  side.packed = lay_out_packed<W>(arena, rows.n, rows.d);
  if (multiply != Multiply::floats) {
    side.digits = lay_out_digits(arena, rows.n, rows.d, multiply == Multiply::digits_and_weights);
  }
  side.begin = arena.take<Position<W>>(slivers_of<W>(rows.n) * kWidth<W>);
  side.end = arena.take<Position<W>>(slivers_of<W>(rows.n) * kWidth<W>);
  return side;
}

/// `P` is a problem with x, labels, valid, y, ref_labels, ref_valid, self and metric, as BatchHard has them.
template <class W, class P>
RowBlocks<W> lay_out_row_blocks(Arena& arena, const P& problem, Multiply multiply = Multiply::floats) {
  RowBlocks<W> blocks{};
  blocks.self = problem.self;
  blocks.centre = arena.take<double>(problem.x.d);
  blocks.total = arena.take<double>(problem.x.d);
  blocks.spare = arena.take<std::int64_t>(larger(problem.x.n, problem.y.n));
  blocks.x = lay_out_labelled<W>(arena, problem.x, problem.labels, problem.valid, problem.metric, multiply);
  blocks.y = problem.self ? blocks.x
                          : lay_out_labelled<W>(arena, problem.y, problem.ref_labels, problem.ref_valid, problem.metric,
                                                multiply);
  return blocks;
}

// --- the stages that come first: look at every row, group them by label, centre and pack them ------------------------

template <class W>
std::int64_t look_tasks(const RowBlocks<W>& b) {
  return b.x.set.blocks() + (b.self ? 0 : b.y.set.blocks());
}

template <class W>
void look(const RowBlocks<W>& b, std::int64_t task) {
  const std::int64_t own = b.x.set.blocks();
  task < own ? look_at_block<W>(b.x.set, task) : look_at_block<W>(b.y.set, task - own);
}

/// The rows that take part, by label and by index within a label; those with a NaN or an Inf among them, at distance
/// NaN from all.
template <class W>
void order_rows(LabelledRows<W>& side, std::int64_t* spare) {
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < side.set.rows.n; ++i) {
    if ((side.set.kind[i] & kSkipped) == 0) {
      side.order[count++] = i;
    }
  }
  sort_by_label(side.labels, side.order, spare, count);
  side.packed.count = count;
  side.packed.order = side.order;
}

/// For every position of `own` the range across of its label.
template <class W>
void match_labels(LabelledRows<W>& own, const LabelledRows<W>& across) {
  std::int64_t begin = 0, end = 0;
  for (std::int64_t k = 0; k < own.count(); ++k) {
    const std::int64_t label = own.labels[own.order[k]];
    if (k == 0 || label != own.labels[own.order[k - 1]]) {
      begin = end;
      while (begin < across.count() && across.labels[across.order[begin]] < label) {
        ++begin;
      }
      end = begin;
      while (end < across.count() && across.labels[across.order[end]] == label) {
        ++end;
      }
    }
    own.begin[k] = static_cast<Position<W>>(begin);
    own.end[k] = static_cast<Position<W>>(end);
  }
  for (std::int64_t k = own.count(); k < own.slivers() * kWidth<W>; ++k) {
    own.begin[k] = own.end[k] = 0;
  }
}

template <class W>
void group(RowBlocks<W>& b) {
  find_centre(b.x.set, b.self ? nullptr : &b.y.set, b.centre);
  for (std::int64_t k = 0; k < b.x.set.rows.d; ++k) {
    b.total[k] = 0;
  }
  add_blocks(b.x.set, b.x.set.raw_sums, b.total);
  order_rows(b.x, b.spare);
  if (b.self) {
    b.y = b.x;
  } else {
    order_rows(b.y, b.spare);
    match_labels(b.y, b.x);
  }
  match_labels(b.x, b.y);
  b.classes = 0;
  for (std::int64_t k = 0; k < b.x.count(); ++k) {
    b.classes += k == 0 || b.x.labels[b.x.order[k]] != b.x.labels[b.x.order[k - 1]];
  }
}

template <class W>
std::int64_t pack_tasks(const RowBlocks<W>& b) {
  return b.x.slivers() + (b.self ? 0 : b.y.slivers());
}

template <class W>
void pack(const RowBlocks<W>& b, std::int64_t task) {
  const LabelledRows<W>& side = task < b.x.slivers() ? b.x : b.y;
  const std::int64_t sliver = task < b.x.slivers() ? task : task - b.x.slivers();
  pack_sliver(side.set, b.centre, side.packed, sliver);
  if constexpr (sizeof(W) == 4) {
    if (side.digits.in_use()) {
      split_sliver(side.packed, side.set.rows.d, sliver, side.digits);
    }
  }
}

/// These steps of a plan that keeps its row blocks in `rows`; grouping, which fixes what follows, is the plan's own
/// step.
template <class Plan>
constexpr Stage kLookStage = {
    [](const void* plan) { return look_tasks(static_cast<const Plan*>(plan)->rows); },
    [](const void*) { return std::int64_t{4}; },
    [](void* plan, std::int64_t begin, std::int64_t end) {
      for (std::int64_t task = begin; task < end; ++task) {
        look(static_cast<const Plan*>(plan)->rows, task);
      }
    },
};

template <class Plan>
constexpr Stage kPackStage = {
    [](const void* plan) { return pack_tasks(static_cast<const Plan*>(plan)->rows); },
    [](const void*) { return std::int64_t{4}; },
    [](void* plan, std::int64_t begin, std::int64_t end) {
      for (std::int64_t task = begin; task < end; ++task) {
        pack(static_cast<const Plan*>(plan)->rows, task);
      }
    },
};

// --- blocks ----------------------------------------------------------------------------------------------------------

inline constexpr std::int64_t kPanelSlivers = 8;  // slivers across in a panel: the block and they stay in the cache

/// Rows across in a panel, at most.
template <class W>
inline constexpr std::int64_t kPanelRows = kPanelSlivers * kWidth<W>;

/// Rows across in a panel.
template <class W>
FASTMINE_INLINE std::int64_t panel_rows(const LabelledRows<W>& across) {
  return across.digits.in_use() ? kDigitRows : kPanelRows<W>;
}

/// Rows across that are multiplied with a sliver at a time.
template <class W>
FASTMINE_INLINE std::int64_t rows_at_a_time(const LabelledRows<W>& across) {
  return across.digits.in_use() ? 2 * kTile : kWidth<W>;
}

/// block[c][r] = the product of row r of a sliver with position first + c across, for c < count, the rows at a time.
template <class W>
void multiply_sliver(const LabelledRows<W>& own, std::int64_t sliver, const LabelledRows<W>& across, std::int64_t first,
                     std::int64_t count, W* block) {
  if constexpr (sizeof(W) == 4) {
    if (across.digits.in_use()) {
      for (std::int64_t v = 0; v < kTilesOfSliver; ++v) {
        multiply_rows(across.digits, first / kTile, own.digits, sliver * kTilesOfSliver + v, block + v * kTile,
                      kWidth<W>);
      }
      return;
    }
  }
  const std::int64_t d = own.set.rows.d;
  dot_block(across.packed.sliver(first / kWidth<W>, d), own.packed.sliver(sliver, d), static_cast<std::size_t>(d),
            static_cast<std::size_t>(count), kSliver<W>, block);
}

/// block[c][r] = the distance of row r of a sliver to position first + c across, for c < count; that of a row to itself
/// means nothing. `first` and `count` are of whole slivers, but for the last one across. What is computed beyond the
/// rows of a sliver means nothing.
template <class W>
void fill_block(const LabelledRows<W>& own, std::int64_t sliver, const LabelledRows<W>& across, std::int64_t first,
                std::int64_t count, W* block) {
  const std::int64_t width = own.height(sliver), step = rows_at_a_time(across);
  const bool self = own.packed.data == across.packed.data;
  const Sides<W> sides{across.set, own.set, across.packed, own.packed};
  for (std::int64_t c = 0; c < count; c += step) {
    const std::int64_t height = smaller(step, count - c);
    multiply_sliver(own, sliver, across, first + c, height, block + c * kWidth<W>);
    for (std::int64_t r = c; r < c + height; ++r) {
      const std::int64_t itself = self ? first + r - own.first(sliver) : -1;
      distances_of_row(sides, first + r, sliver, width, block + r * kWidth<W>, itself);
    }
  }
}

/// Walk the panels across: f(first, count, block), with the block of their distances to the sliver.
template <class W, class F>
void walk(const LabelledRows<W>& own, std::int64_t sliver, const LabelledRows<W>& across, std::int64_t from,
          std::int64_t to, W* block, F f) {
  for (std::int64_t first = from / kWidth<W> * kWidth<W>; first < to; first += panel_rows(across)) {
    const std::int64_t count = smaller(panel_rows(across), across.count() - first);
    fill_block(own, sliver, across, first, count, block);
    f(first, count, block);
  }
}

/// Slivers of a task that goes through each panel together, while it is in the cache: one, until the rows across are
/// too many to stay there from one sliver to the next. No result depends on it.
inline constexpr std::int64_t kMostTogether = 4;

FASTMINE_INLINE std::int64_t together(std::int64_t slivers) {
  return slivers >= 512 ? kMostTogether : slivers >= 256 ? 2 : 1;
}

/// Walk all panels across with the slivers of a task: f(sliver, first, count, block).
template <class W, class F>
void walk_together(const LabelledRows<W>& own, std::int64_t begin, std::int64_t end, const LabelledRows<W>& across,
                   W* block, F f) {
  for (std::int64_t first = 0; first < across.count(); first += panel_rows(across)) {
    const std::int64_t count = smaller(panel_rows(across), across.count() - first);
    for (std::int64_t sliver = begin; sliver < end; ++sliver) {
      fill_block(own, sliver, across, first, count, block);
      f(sliver, first, count, block);
    }
  }
}

/// A panel, cut by label: rows across that have a label of the sliver can only be in [same_begin, same_end), relative
/// to the panel.
template <class W>
struct Cut {
  std::int64_t same_begin, same_end;
};

template <class W>
Cut<W> cut_panel(const LabelledRows<W>& own, std::int64_t sliver, std::int64_t first, std::int64_t count) {
  const auto within = [=](std::int64_t position) { return larger<std::int64_t>(0, smaller(count, position - first)); };
  return {within(own.same_begin(sliver)), within(own.same_end(sliver))};
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
