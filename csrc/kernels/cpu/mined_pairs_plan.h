// What mining by rank prepares: who is a pair of whom, so that a vector of anchors can ask, and the random numbers.
#pragma once

#include "kernels/cpu/math.h"
#include "kernels/cpu/row_block.h"
#include "kernels/mined_pairs.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::mined {

inline constexpr std::size_t kVectors = kSliverVectors;

template <class W>
using Positions = Vec<Position<W>>;

/// What decides on pairs besides labels, of one side: per position, to whole slivers.
template <class W>
struct Marks {
  Position<W>* group;  // a number of its group, the same on both sides
  Position<W>* words;  // [slivers, words, kSliver]: the bits of its set of labels
};

/// The best pairs of each anchor so far, in order.
struct Lists {
  double* values;  // [n, last], per position
  std::int64_t* rows;
};

template <class W>
struct Plan {
  MinedPairs problem;
  RowBlocks<W> rows;
  std::int64_t* alike;  // with sets of labels: one label for all rows, so that they keep their order
  std::int64_t words;   // of a set of labels; 0: a label for each row
  Position<W>* itself;  // per position, to whole slivers: the position across that is the anchor itself, -1 for none
  std::int64_t* place;  // [m]: the position of every row across
  std::int64_t* numbers[2];
  std::int64_t* by_group[2];
  Marks<W> x, y;
  std::uint32_t* anchor_hash;     // per position, to whole slivers, where random numbers are asked for
  std::uint32_t* candidate_hash;  // the same across
  Lists lists[2];
  double* first_distance[2];  // per anchor, for the evidence
  bool* first_found[2];
};

template <class W>
Plan<W>& as_plan(void* plan) {
  return *static_cast<Plan<W>*>(plan);
}
template <class W>
const Plan<W>& as_plan(const void* plan) {
  return *static_cast<const Plan<W>*>(plan);
}

inline bool is_random(PairOrder order) { return order == PairOrder::random || order == PairOrder::distance_weighted; }
inline bool is_random(const MinedPairs& q) { return is_random(q.positive.order) || is_random(q.negative.order); }

template <class W>
Marks<W> lay_out_marks(Arena& arena, const MinedPairs& q, std::int64_t padded, std::int64_t words) {
  return {arena.take<Position<W>>(q.groups == nullptr ? 0 : padded), arena.take<Position<W>>(padded * words)};
}

template <class W>
Plan<W> lay_out(const MinedPairs& problem, Arena& arena) {
  const std::int64_t n = problem.x.n, m = problem.y.n;
  const std::int64_t padded_n = slivers_of<W>(n) * kWidth<W>, padded_m = slivers_of<W>(m) * kWidth<W>;
  Plan<W> p{};
  p.problem = problem;
  if (problem.label_sets != nullptr) {
    p.words = divide_up(problem.label_count, 8 * sizeof(Position<W>));
    p.alike = arena.take<std::int64_t>(larger(n, m));
    p.problem.labels = p.problem.ref_labels = p.alike;
  }
  p.rows = lay_out_row_blocks<W>(arena, p.problem);
  p.itself = arena.take<Position<W>>(padded_n);
  p.place = arena.take<std::int64_t>(m);
  for (int side = 0; side < 2; ++side) {
    const std::int64_t grouped = problem.groups == nullptr ? 0 : side == 0 ? n : m;
    p.numbers[side] = arena.take<std::int64_t>(grouped);
    p.by_group[side] = arena.take<std::int64_t>(grouped);
  }
  p.x = lay_out_marks<W>(arena, problem, padded_n, p.words);
  p.y = problem.self ? p.x : lay_out_marks<W>(arena, problem, padded_m, p.words);
  p.anchor_hash = arena.take<std::uint32_t>(is_random(problem) ? padded_n : 0);
  p.candidate_hash = arena.take<std::uint32_t>(is_random(problem) ? padded_m : 0);
  for (int sign = 0; sign < 2; ++sign) {
    const std::int64_t kept = n * (sign == 0 ? problem.positive : problem.negative).last;
    p.lists[sign] = {arena.take<double>(kept), arena.take<std::int64_t>(kept)};
    p.first_distance[sign] = arena.take<double>(n);
    p.first_found[sign] = arena.take<bool>(n);
  }
  return p;
}

// --- random numbers --------------------------------------------------------------------------------------------------

inline constexpr double kRange = 0x1p31;  // of the random numbers

/// The finaliser of MurmurHash3, of a number or of every lane; U is unsigned, of 32 bits or more.
template <class U>
FASTMINE_INLINE U mix(U x) {
  const auto product = [](U a, std::uint32_t factor) { return (a * factor) & 0xffffffffU; };
  x = product(x ^ (x >> 16), 0x85ebca6bU);
  x = product(x ^ (x >> 13), 0xc2b2ae35U);
  return x ^ (x >> 16);
}

FASTMINE_INLINE std::uint32_t anchor_hash(std::uint64_t seed, std::int64_t i) {
  const auto low = static_cast<std::uint32_t>(seed), high = static_cast<std::uint32_t>(seed >> 32);
  return mix(mix(static_cast<std::uint32_t>(i) + low) ^ high);
}
FASTMINE_INLINE std::uint32_t candidate_hash(std::uint64_t seed, std::int64_t j) {
  const auto low = static_cast<std::uint32_t>(seed), high = static_cast<std::uint32_t>(seed >> 32);
  return mix(mix(static_cast<std::uint32_t>(j) + high) ^ (low ^ 0x9e3779b9U));
}

/// An integer of [0, kRange) for a pair.
template <class U>
FASTMINE_INLINE U random_bits(U anchor, std::uint32_t candidate) {
  return mix(anchor ^ candidate) >> 1;
}

// --- what comes first ------------------------------------------------------------------------------------------------

/// Number the groups of both sides in one go.
template <class W>
void number_groups(const Plan<W>& p) {
  const MinedPairs& q = p.problem;
  const std::int64_t* groups[] = {q.groups, q.ref_groups};
  const LabelledRows<W>* sides[] = {&p.rows.x, &p.rows.y};
  std::int64_t counts[] = {0, 0};
  for (int side = 0; side < (q.self ? 1 : 2); ++side) {
    counts[side] = sides[side]->count();
    for (std::int64_t k = 0; k < counts[side]; ++k) {
      p.by_group[side][k] = sides[side]->order[k];
    }
    sort_by_label(groups[side], p.by_group[side], p.rows.spare, counts[side]);
  }
  std::int64_t at[] = {0, 0};
  for (std::int64_t number = 0; at[0] < counts[0] || at[1] < counts[1]; ++number) {
    const auto next = [&](int side) { return groups[side][p.by_group[side][at[side]]]; };
    const bool own = at[0] < counts[0] && (at[1] == counts[1] || next(0) <= next(1));
    const std::int64_t group = own ? next(0) : next(1);
    for (int side = 0; side < 2; ++side) {
      while (at[side] < counts[side] && next(side) == group) {
        p.numbers[side][p.by_group[side][at[side]++]] = number;
      }
    }
  }
}

/// f(position, row) over the rows of a side, and over the padding of its last sliver with row 0.
template <class W, class F>
void each_position(const LabelledRows<W>& side, F f) {
  for (std::int64_t k = 0; k < side.slivers() * kWidth<W>; ++k) {
    f(k, k < side.count() ? side.order[k] : 0);
  }
}

template <class W>
void mark_groups(const LabelledRows<W>& side, const std::int64_t* numbers, Position<W>* group) {
  each_position(side, [=](std::int64_t k, std::int64_t i) { group[k] = static_cast<Position<W>>(numbers[i]); });
}

template <class W>
void mark_hashes(const Plan<W>& p) {
  const std::uint64_t seed = *p.problem.seed;
  each_position(p.rows.x, [&](std::int64_t k, std::int64_t i) { p.anchor_hash[k] = anchor_hash(seed, i); });
  each_position(p.rows.y, [&](std::int64_t k, std::int64_t j) { p.candidate_hash[k] = candidate_hash(seed, j); });
}

/// Where the anchor itself stands across.
template <class W>
void find_itself(const Plan<W>& p) {
  const LabelledRows<W>&x = p.rows.x, &y = p.rows.y;
  for (std::int64_t j = 0; j < p.problem.y.n; ++j) {
    p.place[j] = -1;
  }
  for (std::int64_t k = 0; k < y.count(); ++k) {
    p.place[y.order[k]] = k;
  }
  for (std::int64_t k = 0; k < x.slivers() * kWidth<W>; ++k) {
    const std::int64_t row = k < x.count() ? itself(p.problem, x.order[k]) : -1;
    p.itself[k] = static_cast<Position<W>>(row < 0 || row >= p.problem.y.n ? -1 : p.place[row]);
  }
}

/// The bits of the sets of labels of a sliver.
template <class W>
void pack_sets(const Plan<W>& p, const LabelledRows<W>& side, const bool* sets, Position<W>* words,
               std::int64_t sliver) {
  using Word = std::make_unsigned_t<Position<W>>;
  constexpr std::int64_t bits = 8 * sizeof(Word);
  const std::int64_t count = p.problem.label_count;
  for (std::int64_t w = 0; w < p.words; ++w) {
    for (std::int64_t r = 0; r < kWidth<W>; ++r) {
      Word word = 0;
      if (r < side.height(sliver)) {
        const bool* set = sets + side.order[side.first(sliver) + r] * count;
        for (std::int64_t b = w * bits; b < smaller(count, (w + 1) * bits); ++b) {
          word |= static_cast<Word>(set[b]) << (b - w * bits);
        }
      }
      words[(sliver * p.words + w) * kWidth<W> + r] = static_cast<Position<W>>(word);
    }
  }
}

/// Group, and say of every anchor that it has no pairs.
template <class W>
void group_all(void* plan, std::int64_t, std::int64_t) {
  Plan<W>& p = as_plan<W>(plan);
  const MinedPairs& q = p.problem;
  for (std::int64_t i = 0; p.words > 0 && i < larger(q.x.n, q.y.n); ++i) {
    p.alike[i] = 0;
  }
  group(p.rows);
  find_itself(p);
  if (q.groups != nullptr) {
    number_groups(p);
    mark_groups(p.rows.x, p.numbers[0], p.x.group);
    if (!q.self) {
      mark_groups(p.rows.y, p.numbers[1], p.y.group);
    }
  }
  if (is_random(q)) {
    mark_hashes(p);
  }
  for (const MinedSign& sign : {q.positive, q.negative}) {
    for (std::int64_t k = 0; k < q.x.n * (sign.last - sign.first); ++k) {
      sign.index[k] = 0;
      sign.distance[k] = 0;
      sign.found[k] = false;
    }
  }
  for (int sign = 0; sign < 2; ++sign) {
    for (std::int64_t i = 0; i < q.x.n; ++i) {
      p.first_distance[sign][i] = 0;
      p.first_found[sign][i] = false;
    }
  }
}

template <class W>
void pack_all(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  const std::int64_t own = p.rows.x.slivers();
  for (std::int64_t task = begin; task < end; ++task) {
    pack(p.rows, task);
    if (p.words > 0) {
      task < own ? pack_sets(p, p.rows.x, p.problem.label_sets, p.x.words, task)
                 : pack_sets(p, p.rows.y, p.problem.ref_label_sets, p.y.words, task - own);
    }
  }
}

// --- who is a pair ---------------------------------------------------------------------------------------------------

/// The rows of a sliver as lanes.
template <class W>
struct Lanes {
  Positions<W> itself[kVectors], begin[kVectors], end[kVectors], group[kVectors], live[kVectors];
  const Position<W>* words;

  Lanes(const Plan<W>& p, std::int64_t sliver) {
    const LabelledRows<W>& own = p.rows.x;
    const std::int64_t first = own.first(sliver);
    for (std::size_t v = 0; v < kVectors; ++v) {
      const auto offset = static_cast<std::int64_t>(v * lanes<W>), at = first + offset;
      itself[v] = load(p.itself + at);
      begin[v] = load(own.begin + at);
      end[v] = load(own.end + at);
      group[v] = p.problem.groups == nullptr ? Positions<W>{} : load(p.x.group + at);
      live[v] = lane_numbers<Position<W>>() < static_cast<Position<W>>(own.height(sliver) - offset);
    }
    words = p.x.words + sliver * p.words * kWidth<W>;
  }

  /// Masks of the lanes that are a pair of this sign with the row at position `across`.
  template <bool positive>
  FASTMINE_INLINE Positions<W> pairs(const Plan<W>& p, std::size_t v, std::int64_t across) const {
    const auto position = static_cast<Position<W>>(across);
    Positions<W> same;
    if (p.words == 0) {
      same = (begin[v] <= position) & (end[v] > position);
    } else {
      const Position<W>* set = p.y.words + across / kWidth<W> * p.words * kWidth<W> + across % kWidth<W>;
      Positions<W> shared{};
      for (std::int64_t w = 0; w < p.words; ++w) {
        shared |= load(words + w * kWidth<W> + static_cast<std::int64_t>(v * lanes<W>)) & set[w * kWidth<W>];
      }
      same = shared != 0;
    }
    Positions<W> found = live[v] & (itself[v] != position) & (positive ? same : ~same);
    if (p.problem.groups != nullptr && (!positive || !p.problem.group_positives)) {
      found &= group[v] != p.y.group[across];
    }
    return found;
  }
};

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::mined
