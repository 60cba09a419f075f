// The nearest negative of every anchor (semi-hard: the nearest that is farther than the positive, else the farthest).
//
// Nearly always it is in the panel whose minimum is the least, and once it is known the other panels are ruled out. So
// every anchor first goes through its most promising panel, then through those that are not ruled out; each time
// together with the other anchors of its task that go through the same panel.
#pragma once

#include "kernels/cpu/batch_hard_choice.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::mining {

/// Positions that are looked at together: a value in float64 for each fills a register.
inline constexpr std::int64_t kTogether = static_cast<std::int64_t>(lanes<double>);

/// Positions some of which go through a panel: a mask of 0 and -1.
using Chosen = Vec<std::int64_t>;

template <class W>
Range negatives_of(const Plan<W>& p, std::int64_t anchor) {
  return {0, p.b.count, p.same_begin[anchor], p.same_end[anchor]};
}

/// Find the most promising panel of the positions [first, first + kTogether), and an upper bound on their nearest.
template <class W>
void choose_start(const Plan<W>& p, std::int64_t first) {
  using D = Vec<double>;
  const bool bounded = p.problem.semi_hard_negative;
  const Reach<D> reach = reach_of_vector(p, first);
  const D none = D{} + __builtin_inf();
  const D above = bounded ? load(p.bound + first) - load_double(p.a.c + first) : -none;
  D limit = none, start = D{} + static_cast<double>(p.b_panels());
  for (std::int64_t panel = 0; panel < p.b_panels(); ++panel) {
    const D value = load_double(p.nearest + panel * p.stride + first), error = panel_error(p, reach, panel);
    D at_most = value + error;
    if (bounded) {  // what may not be farther than the positive bounds nothing
      at_most = select(value - error > above, at_most, none);
    }
    const auto closer = at_most < limit;
    limit = select(closer, at_most, limit);
    start = select(closer, D{} + static_cast<double>(panel), start);
  }
  store(p.limit + first, limit);
  store<std::int32_t, lanes<double>>(p.start + first, convert<std::int32_t>(start));
}

template <class W>
Chosen starts_in(const Plan<W>& p, std::int64_t first, std::int64_t panel) {
  return convert<std::int64_t>(load<std::int32_t, lanes<double>>(p.start + first)) == panel;
}

/// Which positions must go on in another panel than they started in.
template <class W>
Chosen goes_on_in(const Plan<W>& p, std::int64_t first, std::int64_t panel) {
  using D = Vec<double>;
  const D value = load_double(p.nearest + panel * p.stride + first);
  const D error = panel_error(p, reach_of_vector(p, first), panel);
  const auto nothing = (value == __builtin_inf()) & (error < __builtin_inf());
  return ~(value - error > load(p.limit + first)) & ~nothing & ~starts_in(p, first, panel);
}

/// The search of an anchor as far as it is.
template <class W>
Search<W> resume(const Plan<W>& p, std::int64_t anchor, double sign) {
  const BatchHard& q = p.problem;
  const std::int64_t i = p.a.row(anchor);
  Search<W> s = search(p, anchor, sign);
  s.limit = p.limit[anchor];
  s.above = q.semi_hard_negative && sign > 0 ? p.bound[anchor] : s.above;
  s.best = {q.negative_distance[i], q.negative_index[i], q.has_negative[i]};
  return s;
}

template <class W>
void keep(const Search<W>& s) {
  const BatchHard& q = s.plan.problem;
  const std::int64_t i = s.plan.a.row(s.anchor);
  s.plan.limit[s.anchor] = s.limit;
  q.negative_distance[i] = s.best.key;
  q.negative_index[i] = s.best.index;
  q.has_negative[i] = s.best.found;
}

/// Have row i, or as much of it as makes the hardware expect more, on its way from memory.
inline void prefetch_row(const Rows& rows, std::int64_t i) {
  constexpr std::int64_t line = 64, most_lines = 16;
  const auto bytes = static_cast<std::int64_t>(size_of(rows.dtype));
  const char* row = static_cast<const char*>(rows.data) + i * rows.stride * bytes;
  for (std::int64_t at = 0; at < smaller(rows.d * bytes, most_lines * line); at += line) {
    __builtin_prefetch(row + at);
  }
}

/// Candidates to compare directly, once their rows have arrived from memory.
template <class W>
class Waiting {
 public:
  Waiting(const Plan<W>& plan, double sign) : plan_(plan), sign_(sign) {}

  /// `screened` is off by at most `error`.
  void add(std::int64_t anchor, std::int64_t position, double screened, double error) {
    prefetch_row(plan_.problem.y, plan_.b.row(position));
    if (count_ == kMost) {
      compare_all();
    }
    candidates_[count_++] = {anchor, position, sign_ * screened - error};
  }

  void compare_all() {
    for (std::int64_t k = 0; k < count_; ++k) {
      const Candidate& c = candidates_[k];
      if (!(c.at_least > plan_.limit[c.anchor])) {
        Search<W> s = resume(plan_, c.anchor, sign_);
        compare(s, c.position);
        keep(s);
      }
    }
    count_ = 0;
  }

 private:
  struct Candidate {
    std::int64_t anchor, position;
    double at_least;  // as the limit
  };
  static constexpr std::int64_t kMost = 256;

  const Plan<W>& plan_;
  double sign_;
  std::int64_t count_ = 0;
  Candidate candidates_[kMost];
};

/// An anchor on its way through a panel: how far its screened values may be off, and what they must not surpass.
template <class W>
struct Passing {
  std::int64_t anchor;
  double error;
  W highest;
};

template <class W>
Passing<W> enter(const Plan<W>& p, std::int64_t anchor, std::int64_t panel) {
  const double error = panel_error(p, reach_of(p, anchor), panel);
  return {anchor, error, rounded<W>(p.limit[anchor] + error, 1)};
}

/// Go on with the positions from `first` on, whose values are as scan() takes them.
template <std::size_t Vectors, class W>
FASTMINE_INLINE void pass(const Plan<W>& p, const Passing<W>& a, double sign, std::int64_t first, const W* values,
                          W unit, Waiting<W>& waiting) {
  if (!all_above<Vectors>(values, static_cast<W>(sign) * unit, a.highest)) {
    scan<Vectors>(resume(p, a.anchor, sign), first, values, unit, a.error, negatives_of(p, a.anchor),
                  [&](std::int64_t position, double screened) { waiting.add(a.anchor, position, screened, a.error); });
  }
}

/// Takes anchors through a panel in register tiles.
template <class W>
struct ByTiles {
  static constexpr std::int64_t most = static_cast<std::int64_t>(kTileRows<W>);  // anchors at a time

  void operator()(const Plan<W>& p, std::int64_t panel, const std::int64_t* anchors, std::int64_t count, double sign) {
    constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<W>);
    constexpr std::size_t row_step = static_cast<std::size_t>(kStagedRow<W>);
    alignas(64) W rows[kTileRows<W> * kStagedRow<W>];
    alignas(64) W dots[kTileRows<W> * kSliver<W>];
    Passing<W> passing[kTileRows<W>];
    for (std::int64_t r = 0; r < count; ++r) {
      passing[r] = enter(p, anchors[r], panel);
    }
    Waiting<W> waiting(p, sign);
    const std::int64_t d = p.problem.x.d, first = panel * p.panel;
    for (std::int64_t s = first; s < smaller(p.b.slivers(), first + p.panel); ++s) {
      for (std::int64_t from = 0; from < d; from += kChunk) {
        const std::int64_t length = smaller(kChunk, d - from);
        if (s == first || d > kChunk) {
          for (std::int64_t r = 0; r < count; ++r) {
            centre_row(p.x, p.centre, p.a.row(anchors[r]), from, length, rows + r * kStagedRow<W>);
          }
        }
        const auto multiply = from == 0 ? &dot_tile<W, kTileRows<W>, kSliverVectors, false, row_step, 1>
                                        : &dot_tile<W, kTileRows<W>, kSliverVectors, true, row_step, 1>;
        multiply(rows, p.b.sliver(s, d) + from * sliver, static_cast<std::size_t>(length), dots);
      }
      for (std::int64_t r = 0; r < count; ++r) {
        screen_products(p, s, dots + r * sliver);
        pass<kSliverVectors>(p, passing[r], sign, s * sliver, dots + r * sliver, W{1}, waiting);
      }
    }
    waiting.compare_all();
  }
};

/// An anchor as it is in p.x_rounded, where it lies scattered, made anew and negated.
inline void round_anchor(const Plan<float>& p, std::int64_t anchor, std::uint16_t* out) {
  alignas(64) float row[kChunk];
  for (std::int64_t from = 0; from < p.problem.x.d; from += kChunk) {
    const std::int64_t count = smaller(kChunk, p.problem.x.d - from);
    centre_row(p.x, p.centre, p.a.row(anchor), from, count, row);
    round_negated(row, count, out + from);
  }
}

/// The same in blocks of rounded rows.
struct ByBlocks {
  static constexpr std::int64_t most = kBlockRows;

  Block block;
  [[maybe_unused]] MatrixUnit unit;

  explicit ByBlocks(std::int64_t depth) {  // a block need not be full
    __builtin_memset(block.data, 0, static_cast<std::size_t>(kBlockRows * depth) * sizeof *block.data);
  }

  void operator()(const Plan<float>& p, std::int64_t panel, const std::int64_t* anchors, std::int64_t count,
                  double sign) {
    Passing<float> passing[kBlockRows];
    for (std::int64_t r = 0; r < count; ++r) {
      passing[r] = enter(p, anchors[r], panel);
      round_anchor(p, anchors[r], block.data + r * p.x_rounded.depth);
    }
    Waiting<float> waiting(p, sign);
    const std::int64_t end = panel_end(p, p.y_rounded, panel);
    std::int64_t column = panel * p.panel_rows();
    for (; column + 2 * kGroup <= end; column += 2 * kGroup) {
      multiply<2>(p, passing, count, sign, column, waiting);
    }
    if (column < end) {
      multiply<1>(p, passing, count, sign, column, waiting);
    }
    waiting.compare_all();
  }

  template <std::int64_t Groups>
  void multiply(const Plan<float>& p, Passing<float>* passing, std::int64_t count, double sign, std::int64_t column,
                Waiting<float>& waiting) {
    constexpr std::int64_t width = Groups * kGroup;
    alignas(64) float products[kBlockRows * width];
    const Rounded& y = p.y_rounded;
    multiply_block<Groups>(block.data, y.group(column / kGroup), y.depth, y.half + column, products);
    for (std::int64_t r = 0; r < count; ++r) {
      pass<static_cast<std::size_t>(width) / lanes<float>>(p, passing[r], sign, column, products + r * width, 2.0F,
                                                           waiting);
    }
  }
};

/// Take those of the positions [begin, end) that chosen(first, panel) names through every panel.
template <class W, class Through, class F>
void go_through_panels(const Plan<W>& p, std::int64_t begin, std::int64_t end, Through& through, double sign,
                       F chosen) {
  std::int64_t anchors[Through::most];
  for (std::int64_t panel = 0; panel < p.b_panels(); ++panel) {
    std::int64_t count = 0;
    for (std::int64_t first = begin; first < end; first += kTogether) {
      const Chosen in = chosen(first, panel);
      if (!any(in)) {
        continue;
      }
      for (std::int64_t anchor = first; anchor < smaller(end, first + kTogether); ++anchor) {
        if (in[anchor - first] != 0) {
          prefetch_row(p.problem.x, p.a.row(anchor));
          anchors[count++] = anchor;
        }
        if (count == Through::most) {
          through(p, panel, anchors, count, sign);
          count = 0;
        }
      }
    }
    if (count > 0) {
      through(p, panel, anchors, count, sign);
    }
  }
}

/// Semi-hard: those of the positions [begin, end) without a negative farther than their positive take the farthest.
template <class W, class Through>
void take_farthest(const Plan<W>& p, std::int64_t begin, std::int64_t end, Through& through) {
  constexpr std::int32_t none = -1;
  bool some = false;
  for (std::int64_t anchor = begin; anchor < end; ++anchor) {
    if (!p.problem.has_negative[p.a.row(anchor)]) {
      p.start[anchor] = none;
      p.limit[anchor] = __builtin_inf();
      some = true;
    }
  }
  if (some) {
    go_through_panels(p, begin, end, through, -1,
                      [&](std::int64_t first, std::int64_t) { return starts_in(p, first, none); });
    for (std::int64_t anchor = begin; anchor < end; ++anchor) {
      const std::int64_t i = p.a.row(anchor);
      if (p.start[anchor] == none && p.problem.has_negative[i]) {
        p.problem.negative_distance[i] *= -1;  // it was sign x key
      }
    }
  }
}

template <class W, class Through>
void search_negatives(const Plan<W>& p, std::int64_t begin, std::int64_t end, Through& through) {
  for (std::int64_t first = begin; first < end; first += kTogether) {
    choose_start(p, first);
  }
  go_through_panels(p, begin, end, through, 1,
                    [&](std::int64_t first, std::int64_t panel) { return starts_in(p, first, panel); });
  go_through_panels(p, begin, end, through, 1,
                    [&](std::int64_t first, std::int64_t panel) { return goes_on_in(p, first, panel); });
  if (p.problem.semi_hard_negative) {
    take_farthest(p, begin, end, through);
  }
}

/// From the key that the search left to the distance.
template <class W>
void settle_negative(const Plan<W>& p, std::int64_t anchor) {
  const BatchHard& q = p.problem;
  const std::int64_t i = p.a.row(anchor), bad = first_poisoned(p, i, false);
  if (bad >= 0) {
    settle_poisoned(i, bad, q.negative_index, q.negative_distance, q.has_negative);
  } else if (q.has_negative[i]) {
    q.negative_distance[i] = distance_of(q.negative_distance[i], q.metric);
  }
}

/// Task: kTogether positions.
template <class W>
std::int64_t negative_tasks(const void* plan) {
  return divide_up(as_plan<W>(plan).a.count, kTogether);
}

template <class W>
void find_negatives(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  const std::int64_t first = begin * kTogether, last = smaller(p.a.count, end * kTogether);
  if constexpr (sizeof(W) == 4) {
    if (p.rounded) {
      ByBlocks by_blocks(p.x_rounded.depth);
      search_negatives(p, first, last, by_blocks);
    }
  }
  if (!p.rounded) {
    ByTiles<W> by_tiles;
    search_negatives(p, first, last, by_tiles);
  }
  for (std::int64_t anchor = first; anchor < last; ++anchor) {
    settle_negative(p, anchor);
  }
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::mining
