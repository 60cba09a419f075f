// Batch-all by row blocks (row_block.h): how many thresholds of an anchor are above each of its negatives, with a
// sliver of rows in the lanes, be they anchors or the references of anchors across.
//
// A threshold is known in W to a rounding bound: below `low` is below it, above `high` is not. Counting with either
// tells whether any closeness of a chunk lies in between: then the two counts differ, and what lies there is compared
// directly. So the counts are those of direct differences in float64.
#pragma once

#include "kernels/cpu/batch_all_plan.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::batch_all {

inline constexpr std::int64_t kChunkRows = 64;  // rows across at a time: distances and slopes stay in the first cache
inline constexpr std::int64_t kLimitsAtATime = 4;  // and so many limits, which stay in registers

/// What is no negative: neither below a threshold nor above one.
template <class W>
inline constexpr W kNoNegative = static_cast<W>(__builtin_nan(""));

// --- laying out, grouping, packing -----------------------------------------------------------------------------------

template <class W>
Blocks<W> lay_out_blocks(const Plan<W>& p, Arena& arena, bool gradient) {
  const BatchAll& q = p.problem;
  const std::int64_t n = q.x.n, m = q.y.n, most = few_positives(q.x.d);
  Blocks<W> s{};
  s.digits = by_digits<W>(q);
  const auto labelled = [&](const RowSet& set, const std::int64_t* labels, const Packed<W>& packed) {
    LabelledRows<W> rows{};
    rows.set = set;
    rows.labels = labels;
    rows.packed = packed;
    if (s.digits) {
      rows.digits = lay_out_digits(arena, set.rows.n, set.rows.d, gradient);
    }
    return rows;
  };
  s.y = labelled(p.y, q.ref_labels, p.b);
  s.x = q.self ? s.y : labelled(p.x, q.labels, p.a);
  s.order = arena.take<std::int64_t>(q.self ? m : 0);
  s.place = arena.take<std::int64_t>(m);
  s.anchor = arena.take<std::int64_t>(m);
  s.stride = slivers_of<W>(n) * kWidth<W>;
  s.y_class = arena.take<Position<W>>(slivers_of<W>(m) * kWidth<W>);
  s.x_class = q.self ? s.y_class : arena.take<Position<W>>(s.stride);
  s.own_place = arena.take<std::int64_t>(n);
  s.found = arena.take<std::int64_t>(s.stride);
  s.positive = arena.take<double>(n * most);
  s.below = arena.take<double>(most * s.stride);
  for (std::int64_t set = 0; set < (q.kind == Triplets::semi_hard ? 2 : 1); ++set) {
    s.limits[set] = {set == 0 ? outer_margin(q) : 0, static_cast<W>(set == 0 ? 1 : -1), arena.take<W>(most * s.stride),
                     arena.take<W>(most * s.stride)};
  }
  s.each = arena.take<W>(s.stride);
  s.always = arena.take<W>(s.stride);
  return s;
}

/// Put the rows of both sides in their order.
template <class W>
void arrange(Plan<W>& p) {
  Blocks<W>& s = p.blocks;
  const BatchAll& q = p.problem;
  const std::int64_t anchors = p.a.count, references = p.b.count;
  for (std::int64_t k = 0; k < references; ++k) {
    s.place[p.y_order[k]] = k;
    s.anchor[k] = anchors;
  }
  for (std::int64_t k = anchors; k-- > 0;) {
    const std::int64_t own = itself(q, p.x_order[k]);
    const bool present = own >= 0 && own < q.y.n && (p.y.kind[own] & kSkipped) == 0;
    s.own_place[k] = present ? s.place[own] : -1;
    s.anchor[p.same_begin[k]] = k;
    s.x_class[k] = static_cast<Position<W>>(p.same_begin[k]);
  }
  std::int64_t begin = 0, count = 0;
  for (std::int64_t k = 0; q.self && k < anchors; ++k) {
    s.order[count++] = p.x_order[k];
  }
  for (std::int64_t k = 0; k < references; ++k) {
    const std::int64_t row = p.y_order[k];
    begin = q.ref_labels[row] == q.ref_labels[p.y_order[begin]] ? begin : k;
    if (!q.self || !q.use[row]) {
      if (q.self) {
        s.order[count] = row;
      }
      s.y_class[count++] = static_cast<Position<W>>(begin);
    }
  }
  p.b.order = q.self ? s.order : p.y_order;
  s.y.order = q.self ? s.order : p.y_order;
  s.y.packed.order = p.b.order;
  s.y.packed.count = references;
  if (q.self) {
    s.x = s.y;
  } else {
    s.x.order = p.x_order;
    s.x.packed.order = p.x_order;
    s.x.packed.count = anchors;
  }
  const auto fill_up = [](const LabelledRows<W>& rows, Position<W>* classes) {
    for (std::int64_t k = rows.count(); k < rows.slivers() * kWidth<W>; ++k) {
      classes[k] = -1;
    }
  };
  fill_up(s.x, s.x_class);
  fill_up(s.y, s.y_class);
}

template <class P>
void group(void* plan, std::int64_t, std::int64_t) {
  P& p = *static_cast<P*>(plan);
  group_rows(p);
  if (p.in_blocks()) {
    arrange(p);
  }
}

template <class W>
FASTMINE_INLINE bool packs_anchors(const Plan<W>& p) {
  return !(p.problem.self && p.in_blocks());
}

template <class P>
std::int64_t pack_tasks(const void* plan) {
  const P& p = *static_cast<const P*>(plan);
  return p.b.slivers() + (packs_anchors(p) ? p.a.slivers() : 0);
}

template <class P>
void pack(void* plan, std::int64_t begin, std::int64_t end) {
  using W = typename P::Type;
  const P& p = *static_cast<const P*>(plan);
  for (std::int64_t t = begin; t < end; ++t) {
    const bool of_y = t < p.b.slivers();
    const std::int64_t sliver = of_y ? t : t - p.b.slivers();
    pack_sliver(of_y ? p.y : p.x, p.centre, of_y ? p.b : p.a, sliver);
    if constexpr (sizeof(W) == 4) {
      if (p.blocks.digits && p.in_blocks()) {
        const LabelledRows<W>& rows = of_y ? p.blocks.y : p.blocks.x;
        split_sliver(rows.packed, p.problem.x.d, sliver, rows.digits);
      }
    }
  }
}

// --- thresholds ------------------------------------------------------------------------------------------------------

/// The largest norm and the largest unit of references.
template <class P>
void find_largest(void* plan, std::int64_t, std::int64_t) {
  P& p = *static_cast<P*>(plan);
  p.widest = p.blocks.coarsest = 0;
  for (std::int64_t s = 0; s < p.b.slivers(); ++s) {
    p.widest = larger(p.widest, static_cast<double>(p.b.radius[s]));
  }
  for (std::int64_t k = 0; p.in_blocks() && p.blocks.digits && k < p.b.count; ++k) {
    p.blocks.coarsest = larger(p.blocks.coarsest, static_cast<double>(p.blocks.y.digits.unit[k]));
  }
}

/// The closeness of the positives of an anchor in use, by direct difference.
template <class W>
void measure_positives(const Plan<W>& p, std::int64_t k) {
  std::int64_t rows[kMostPositives], count = 0;
  for (std::int64_t place = p.same_begin[k]; place < p.same_end[k]; ++place) {
    if (place != p.blocks.own_place[k]) {
      rows[count++] = p.y_order[place];
    }
  }
  p.blocks.found[k] = count;
  compare_directly(p, p.a.row(k), rows, count, p.blocks.positive + k * p.most_positives);
}

/// Bounds the error of the closeness of an anchor, before a root is taken. A product of digits is off by at most 3/2
/// 2^24 units of both rows for each element (digits.h), and by what float32 loses of no more than a few terms.
template <class W>
double closeness_error_of(const Plan<W>& p, std::int64_t k) {
  const Blocks<W>& s = p.blocks;
  const double norm = static_cast<double>(s.x.packed.norm[k]);
  if (!s.digits) {
    return closeness_error(p, norm, p.problem.x.d, 0);
  }
  constexpr double of_units = 3 * 0x1p24 / 0x1p16;  // twice as much in a key; the units are kept times 256
  const double beyond = of_units * static_cast<double>(p.problem.x.d) * s.coarsest;
  return closeness_error(p, norm, 0, beyond * static_cast<double>(s.x.digits.unit[k]));
}

/// The limits of an anchor.
template <class W>
void limit(const Plan<W>& p, const Limits<W>& limits, std::int64_t k) {
  const Blocks<W>& s = p.blocks;
  const double error = closeness_error_of(p, k);
  for (std::int64_t t = 0; t < p.most_positives; ++t) {
    W low = kNoNegative<W>, high = low;
    if (t < s.found[k]) {
      const double threshold = s.positive[k * p.most_positives + t] + limits.margin;
      const double room = room_at<W>(threshold, error, p.problem.metric);
      low = static_cast<W>(threshold - room);
      high = static_cast<W>(threshold + room);
    }
    limits.low[t * s.stride + k] = low;
    limits.high[t * s.stride + k] = high;
  }
}

/// Of slivers of anchors; the lanes that are none have no positives.
template <class W>
void measure(const Plan<W>& p, std::int64_t begin, std::int64_t end) {
  const Blocks<W>& s = p.blocks;
  for (std::int64_t k = begin * kWidth<W>; k < end * kWidth<W>; ++k) {
    s.found[k] = 0;
    if (k < p.a.count) {
      measure_positives(p, k);
    }
    for (std::int64_t t = 0; t < p.most_positives; ++t) {
      s.below[t * s.stride + k] = 0;
    }
    for (const Limits<W>& limits : s.limits) {
      if (limits.low != nullptr) {
        limit(p, limits, k);
      }
    }
  }
}

template <class P>
std::int64_t measure_tasks(const void* plan) {
  const P& p = *static_cast<const P*>(plan);
  return p.in_blocks() ? p.a.slivers() : 0;
}

// --- counting --------------------------------------------------------------------------------------------------------

/// The first `anchors` positions of some rows are those of anchors; of the others none is asked for.
template <class W>
struct End {
  const LabelledRows<W>& rows;
  const Position<W>* classes;
  std::int64_t anchors;
};

/// Some rows across and a sliver of rows: the closeness of each to each, and what they pull by, at [c, r].
template <class W>
struct Chunk {
  End<W> own, across;
  std::int64_t sliver;
  std::int64_t first, count;  // positions across
  W* closeness;
  W* slope;

  std::int64_t place() const { return sliver * kWidth<W>; }
  std::int64_t anchors_in_lanes() const { return smaller(kWidth<W>, own.anchors - place()); }
  std::int64_t anchors_across() const { return smaller(count, across.anchors - first); }
};

/// Distances become closeness, that of what is no negative kNoNegative; slopes are at first those of no triplet above
/// its kink.
template <class W>
FASTMINE_NOINLINE void prepare(const Plan<W>& p, const Chunk<W>& chunk) {
  const W sign = p.problem.metric == Metric::dot ? -1 : 1;
  const bool leak = p.problem.leak > 0;
  const W* always = p.blocks.always;
  const std::int64_t in_lanes = chunk.anchors_in_lanes(), across = chunk.anchors_across();
  for (std::int64_t c = 0; c < chunk.count; ++c) {
    const Position<W> its_class = chunk.across.classes[chunk.first + c];
    const W base = leak && c < across ? always[chunk.first + c] : 0;
    for (std::int64_t lane = 0; lane < kWidth<W>; lane += static_cast<std::int64_t>(lanes<W>)) {
      const auto same = load(chunk.own.classes + chunk.place() + lane) == its_class;
      W* closeness = chunk.closeness + c * kWidth<W> + lane;
      store(closeness, select(same, broadcast(kNoNegative<W>), load(closeness) * sign));
      Vec<W> slope = broadcast(base);
      if (leak && in_lanes > 0) {
        slope += load(always + chunk.place() + lane);
      }
      store(chunk.slope + c * kWidth<W> + lane, select(same, Vec<W>{}, slope));
    }
  }
}

/// A count in each lane, one more where the mask is set: in one masked instruction where there are such, else in two.
template <class M, class V>
FASTMINE_INLINE V one_more(M mask, V count) {
  if constexpr (kVectorBytes == 64) {
    return select(mask, count + 1, count);
  } else {
    return count + bitcast<Lane<V>>(mask & bitcast<Bits<V>>(V{} + 1));
  }
}

/// slope[c][r] += each[r] times how many of `Count` limits of anchor r, from `from` on, closeness [c][r] is surely
/// below; found[k][r] = how many closenesses are perhaps below limit k. Whether that differs anywhere.
template <int Count, class W>
FASTMINE_NOINLINE bool count_among(const Blocks<W>& s, const Limits<W>& limits, std::int64_t from,
                                   const Chunk<W>& chunk, W* found) {
  auto unsure = Vec<W>{} != Vec<W>{};
  for (std::int64_t lane = 0; lane < kWidth<W>; lane += static_cast<std::int64_t>(lanes<W>)) {
    const std::int64_t place = chunk.place() + lane;
    const Vec<W> each = load(s.each + place) * limits.by;
    Vec<W> low[Count], high[Count], perhaps[Count] = {}, surely{};
    for (int k = 0; k < Count; ++k) {
      low[k] = load(limits.low + (from + k) * s.stride + place);
      high[k] = load(limits.high + (from + k) * s.stride + place);
    }
    for (std::int64_t c = 0; c < chunk.count; ++c) {
      const Vec<W> closeness = load(chunk.closeness + c * kWidth<W> + lane);
      Vec<W> rank{};
      for (int k = 0; k < Count; ++k) {
        rank = one_more(closeness < low[k], rank);
        perhaps[k] = one_more(closeness <= high[k], perhaps[k]);
      }
      W* slope = chunk.slope + c * kWidth<W> + lane;
      store(slope, load(slope) + each * rank);
      surely += rank;
    }
    for (int k = 0; k < Count; ++k) {
      store(found + k * kWidth<W> + lane, perhaps[k]);
      surely -= perhaps[k];
    }
    unsure |= surely != 0;
  }
  return any(unsure);
}

/// The same of the anchors across, as many as `found` says, for whom the rows in the lanes are references.
template <class W>
FASTMINE_NOINLINE bool count_across(const Blocks<W>& s, const Limits<W>& limits, const Chunk<W>& chunk) {
  Vec<W> surplus[kSliverVectors] = {};
  for (std::int64_t c = 0; c < chunk.anchors_across(); ++c) {
    const std::int64_t anchor = chunk.first + c;
    const Vec<W> each = broadcast(s.each[anchor] * limits.by);
    Vec<W> closeness[kSliverVectors], rank[kSliverVectors] = {};
    for (std::size_t v = 0; v < kSliverVectors; ++v) {
      closeness[v] = load(chunk.closeness + c * kWidth<W> + v * lanes<W>);
    }
    for (std::int64_t k = 0; k < s.found[anchor]; ++k) {
      const Vec<W> low = broadcast(limits.low[k * s.stride + anchor]),
                   high = broadcast(limits.high[k * s.stride + anchor]);
      for (std::size_t v = 0; v < kSliverVectors; ++v) {
        rank[v] = one_more(closeness[v] < low, rank[v]);
        surplus[v] = one_more(closeness[v] <= high, surplus[v]);
      }
    }
    for (std::size_t v = 0; v < kSliverVectors; ++v) {
      W* slope = chunk.slope + c * kWidth<W> + v * lanes<W>;
      store(slope, load(slope) + each * rank[v]);
      surplus[v] -= rank[v];
    }
  }
  bool unsure = false;
  for (std::size_t v = 0; v < kSliverVectors; ++v) {
    unsure |= any(surplus[v] != 0);
  }
  return unsure;
}

/// f(k, whether closeness is below threshold k) for those limits of an anchor between which a closeness lies; the truth
/// is that of row j of y.
template <class W, class F>
FASTMINE_NOINLINE void settle(const Plan<W>& p, const Limits<W>& limits, std::int64_t anchor, std::int64_t j,
                              W closeness, F f) {
  const Blocks<W>& s = p.blocks;
  bool compared = false;
  double exact = 0;
  for (std::int64_t k = 0; k < s.found[anchor]; ++k) {
    const std::int64_t at = k * s.stride + anchor;
    if (closeness <= limits.high[at] && !(closeness < limits.low[at])) {
      if (!compared) {
        compare_directly(p, p.a.row(anchor), &j, 1, &exact);
        compared = true;
      }
      f(k, exact < s.positive[anchor * p.most_positives + k] + limits.margin);
    }
  }
}

/// f(lane) for those lanes of a vector where closeness lies between any of `count` limits; those of k are low(k),
/// high(k).
template <class W, class Low, class High, class F>
FASTMINE_INLINE void for_unsure(Vec<W> closeness, std::int64_t count, Low low, High high, F f) {
  auto unsure = Vec<W>{} != Vec<W>{};
  for (std::int64_t k = 0; k < count; ++k) {
    unsure |= (closeness >= low(k)) & (closeness <= high(k));
  }
  for (std::size_t lane = 0; any(unsure) && lane < lanes<W>; ++lane) {
    if (unsure[lane] != 0) {
      f(static_cast<std::int64_t>(lane));
    }
  }
}

template <class W>
FASTMINE_NOINLINE void settle_lanes(const Plan<W>& p, const Limits<W>& limits, const Chunk<W>& chunk, std::int64_t most,
                                    W* found) {
  const Blocks<W>& s = p.blocks;
  for (std::int64_t first = 0; first < chunk.anchors_in_lanes(); first += static_cast<std::int64_t>(lanes<W>)) {
    const std::int64_t place = chunk.place() + first;
    const auto low = [&](std::int64_t k) { return load(limits.low + k * s.stride + place); };
    const auto high = [&](std::int64_t k) { return load(limits.high + k * s.stride + place); };
    for (std::int64_t c = 0; c < chunk.count; ++c) {
      const std::int64_t j = chunk.across.rows.order[chunk.first + c];
      for_unsure<W>(load(chunk.closeness + c * kWidth<W> + first), most, low, high, [&](std::int64_t lane) {
        const std::int64_t r = first + lane, at = c * kWidth<W> + r, anchor = place + lane;
        settle(p, limits, anchor, j, chunk.closeness[at], [&](std::int64_t k, bool below) {
          chunk.slope[at] += below ? s.each[anchor] * limits.by : 0;
          found[k * kWidth<W> + r] -= below ? 0 : 1;
        });
      });
    }
  }
}

template <class W>
FASTMINE_NOINLINE void settle_across(const Plan<W>& p, const Limits<W>& limits, const Chunk<W>& chunk) {
  const Blocks<W>& s = p.blocks;
  const std::int64_t height = chunk.own.rows.height(chunk.sliver);
  for (std::int64_t c = 0; c < chunk.anchors_across(); ++c) {
    const std::int64_t anchor = chunk.first + c;
    const auto low = [&](std::int64_t k) { return broadcast(limits.low[k * s.stride + anchor]); };
    const auto high = [&](std::int64_t k) { return broadcast(limits.high[k * s.stride + anchor]); };
    for (std::int64_t first = 0; first < height; first += static_cast<std::int64_t>(lanes<W>)) {
      const Vec<W> closeness = load(chunk.closeness + c * kWidth<W> + first);
      for_unsure<W>(closeness, s.found[anchor], low, high, [&](std::int64_t lane) {
        const std::int64_t r = first + lane, at = c * kWidth<W> + r;
        if (r < height) {
          settle(p, limits, anchor, chunk.own.rows.order[chunk.place() + r], chunk.closeness[at],
                 [&](std::int64_t, bool below) { chunk.slope[at] += below ? s.each[anchor] * limits.by : 0; });
        }
      });
    }
  }
}

/// What the anchors in the lanes count of a chunk, added to `below` and to the slopes.
template <class W>
void count_lanes(const Plan<W>& p, const Limits<W>& limits, const Chunk<W>& chunk) {
  const Blocks<W>& s = p.blocks;
  alignas(64) W found[kMostPositives * kSliver<W>];
  std::int64_t most = 0;
  for (std::int64_t r = 0; r < kWidth<W>; ++r) {
    most = larger(most, s.found[chunk.place() + r]);
  }
  bool unsure = false;
  for (std::int64_t k = 0; k < most; k += kLimitsAtATime) {
    const auto count = most - k == 1   ? &count_among<1, W>
                       : most - k == 2 ? &count_among<2, W>
                       : most - k == 3 ? &count_among<3, W>
                                       : &count_among<kLimitsAtATime, W>;
    unsure |= count(s, limits, k, chunk, found + k * kWidth<W>);
  }
  if (unsure) {
    settle_lanes(p, limits, chunk, most, found);
  }
  for (std::int64_t k = 0; k < most; ++k) {
    double* below = s.below + k * s.stride + chunk.place();
    for (std::int64_t r = 0; r < kWidth<W>; r += static_cast<std::int64_t>(lanes<double>)) {
      store(below + r, load(below + r) + load_double(found + k * kWidth<W> + r) * static_cast<double>(limits.by));
    }
  }
}

/// Closeness and slopes of a chunk, from its distances.
template <class W>
void count_chunk(const Plan<W>& p, const Chunk<W>& chunk) {
  prepare(p, chunk);
  for (const Limits<W>& limits : p.blocks.limits) {
    if (limits.low == nullptr) {
      continue;
    }
    if (chunk.anchors_in_lanes() > 0) {
      count_lanes(p, limits, chunk);
    }
    if (chunk.anchors_across() > 0 && count_across(p.blocks, limits, chunk)) {
      settle_across(p, limits, chunk);
    }
  }
}

/// Walk the rows across that have a pair to count with a sliver: f(chunk) once a chunk is counted, and with all of a
/// panel g(first, count, block), whose block holds what f left in place of closeness.
template <class W, class F, class G>
void for_chunks(const Plan<W>& p, const End<W>& own, std::int64_t sliver, const End<W>& across, F f, G g) {
  alignas(64) W block[static_cast<std::size_t>(kPanelRows<W>) * kSliver<W>];
  alignas(64) W slope[static_cast<std::size_t>(kChunkRows) * kSliver<W>];
  const std::int64_t last = own.rows.first(sliver) < own.anchors ? across.rows.count() : across.anchors;
  walk(own.rows, sliver, across.rows, 0, last, block, [&](std::int64_t first, std::int64_t count, W* distances) {
    for (std::int64_t c = 0; c < count; c += kChunkRows) {
      const std::int64_t rows = smaller(kChunkRows, count - c);
      const Chunk<W> chunk{own, across, sliver, first + c, rows, distances + c * kWidth<W>, slope};
      count_chunk(p, chunk);
      f(chunk);
    }
    g(first, count, distances);
  });
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::batch_all
