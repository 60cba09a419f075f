// The first stages of batch-hard mining: look at every row, group them by label, centre and pack them.
#pragma once

#include "kernels/cpu/batch_hard_plan.h"
#include "kernels/cpu/order.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::mining {

// --- look at every row -------------------------------------------------------------------------------------

template <class W>
std::int64_t look_tasks(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  return p.x.blocks() + (p.problem.self ? 0 : p.y.blocks());
}

template <class W>
void look(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  const std::int64_t own = p.x.blocks();
  for (std::int64_t t = begin; t < end; ++t) {
    t < own ? look_at_block<W>(p.x, t) : look_at_block<W>(p.y, t - own);
  }
}

// --- group by label ----------------------------------------------------------------------------------------

/// Rows that take part, by label; their distinct labels. In the end those that are finite come first, by label, and the
/// others after them, in order.
struct Grouped {
  std::int64_t finite, poisoned, classes;
};

inline Grouped group_rows(const RowSet& set, const std::int64_t* labels, std::int64_t* order, std::int64_t* spare) {
  Grouped g{};
  std::int64_t taking_part = 0;
  for (std::int64_t i = 0; i < set.rows.n; ++i) {
    if (takes_part(set, i)) {
      order[taking_part++] = i;
    }
  }
  sort_by_label(labels, order, spare, taking_part);
  for (std::int64_t k = 0; k < taking_part; ++k) {
    g.classes += k == 0 || labels[order[k]] != labels[order[k - 1]];
  }
  for (std::int64_t k = 0; k < taking_part; ++k) {
    if (!poisoned(set, order[k])) {
      order[g.finite++] = order[k];
    }
  }
  for (std::int64_t i = 0; g.finite + g.poisoned < taking_part; ++i) {
    if (takes_part(set, i) && poisoned(set, i)) {
      order[g.finite + g.poisoned++] = i;
    }
  }
  return g;
}

/// For every anchor position its references of the same label, and class numbers that a and b share.
template <class W>
void match_classes(Plan<W>& p) {
  using Id = typename Plan<W>::Id;
  const std::int64_t* x_labels = p.problem.labels;
  const std::int64_t* y_labels = p.problem.ref_labels;
  std::int64_t begin = 0, number = 0, numbered = 0;  // references before `numbered` have their class number
  for (std::int64_t k = 0; k < p.a.count;) {
    const std::int64_t label = x_labels[p.x_order[k]];
    while (begin < p.b.count && y_labels[p.y_order[begin]] < label) {
      ++begin;
    }
    std::int64_t end = begin;
    while (end < p.b.count && y_labels[p.y_order[end]] == label) {
      ++end;
    }
    for (; numbered < begin; ++numbered) {  // labels without an anchor share the number between its neighbours
      p.b_class[numbered] = static_cast<Id>(number);
    }
    ++number;
    for (; numbered < end; ++numbered) {
      p.b_class[numbered] = static_cast<Id>(number);
    }
    for (; k < p.a.count && x_labels[p.x_order[k]] == label; ++k) {
      p.a_class[k] = static_cast<Id>(number);
      p.same_begin[k] = begin;
      p.same_end[k] = end;
    }
    ++number;
    begin = end;
  }
  for (; numbered < p.b.count; ++numbered) {
    p.b_class[numbered] = static_cast<Id>(number);
  }
}

template <class W>
void group(void* plan, std::int64_t, std::int64_t) {
  using Id = typename Plan<W>::Id;
  Plan<W>& p = as_plan<W>(plan);
  const bool self = p.problem.self;
  find_centre(p.x, self ? nullptr : &p.y, p.centre);
  for (std::int64_t k = 0; k < p.problem.x.d; ++k) {
    p.total[k] = 0;
  }
  add_blocks(p.x, p.x.raw_sums, p.total);

  const Grouped x = group_rows(p.x, p.problem.labels, p.x_order, p.spare);
  const Grouped y = self ? x : group_rows(p.y, p.problem.ref_labels, p.y_order, p.spare);
  p.classes = x.classes;
  p.x_poisoned_count = x.poisoned;
  p.y_poisoned_count = y.poisoned;
  p.a.count = x.finite;
  p.a.order = p.x_order;
  p.b.count = y.finite;
  p.b.order = p.y_order;
  p.x_rounded.count = x.finite;
  p.y_rounded.count = y.finite;
  match_classes(p);
  for (std::int64_t k = p.a.count; k < round_up(p.a.count, kBlockRows); ++k) {
    p.a_class[k] = static_cast<Id>(-1);
  }
  for (std::int64_t k = p.b.count; k < round_up(p.b.count, kBlockRows); ++k) {
    p.b_class[k] = static_cast<Id>(-1);
  }
  clear_pairs(p.problem);
}

// --- centre and pack ---------------------------------------------------------------------------------------

template <class W>
std::int64_t pack_tasks(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  return p.a.slivers() + (p.problem.self ? 0 : p.b.slivers());
}

template <class W>
void pack(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  const std::int64_t own = p.a.slivers();
  for (std::int64_t t = begin; t < end; ++t) {
    t < own ? pack_sliver(p.x, p.centre, p.a, t) : pack_sliver(p.y, p.centre, p.b, t - own);
  }
}

/// Task: a block of rows to round.

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::mining
