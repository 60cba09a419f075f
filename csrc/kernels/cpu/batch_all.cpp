#include "kernels/batch_all.h"

#include "kernels/cpu/batch_all_blocks.h"
#include "kernels/cpu/batch_all_tiles.h"
#include "kernels/cpu/dispatch.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {
namespace batch_all {
namespace {

template <class W>
struct Sum : Plan<W> {
  Tiles<W> tiles;
};

template <class W>
Sum<W> lay_out(const BatchAll& problem, Arena& arena) {
  Sum<W> p{};
  static_cast<Plan<W>&>(p) = lay_out_plan<W>(problem, arena);
  p.blocks = lay_out_blocks<W>(p, arena, false);
  p.tiles = lay_out_tiles<W>(problem, arena, parts_of(problem, 0), false);
  return p;
}

template <class W>
const Sum<W>& as_sum(const void* plan) {
  return *static_cast<const Sum<W>*>(plan);
}

// --- by blocks -------------------------------------------------------------------------------------------------------

/// total[r] += the sum over c of closeness x rank, of a sliver.
template <class W>
FASTMINE_NOINLINE void add_ranked(const Chunk<W>& chunk, double* total) {
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<double>);
  for (std::int64_t r = 0; r < kWidth<W>; r += step) {
    Vec<double> sum = load(total + r);
    for (std::int64_t c = 0; c < chunk.count; ++c) {
      const Vec<double> rank = load_double(chunk.slope + c * kWidth<W> + r);
      const Vec<double> closeness = load_double(chunk.closeness + c * kWidth<W> + r);
      sum += select(rank == 0, Vec<double>{}, rank * closeness);
    }
    store(total + r, sum);
  }
}

/// total[r] += the sum over c of the closeness of negatives.
template <class W>
FASTMINE_NOINLINE void add_plain(const Chunk<W>& chunk, double* total) {
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<double>);
  for (std::int64_t r = 0; r < kWidth<W>; r += step) {
    Vec<double> sum = load(total + r);
    for (std::int64_t c = 0; c < chunk.count; ++c) {
      const Vec<double> closeness = load_double(chunk.closeness + c * kWidth<W> + r);
      sum += select(closeness == closeness, closeness, Vec<double>{});
    }
    store(total + r, sum);
  }
}

template <class W>
void sum_sliver(const Plan<W>& p, std::int64_t sliver) {
  const Blocks<W>& s = p.blocks;
  const End<W> own{s.x, s.x_class, p.a.count}, across{s.y, s.y_class, 0};
  double ranked[kSliver<W>] = {}, pushed[kSliver<W>] = {};
  const auto add = [&](const Chunk<W>& chunk) {
    add_ranked(chunk, ranked);
    if (p.problem.leak > 0) {
      add_plain(chunk, pushed);
    }
  };
  for_chunks(p, own, sliver, across, add, [](std::int64_t, std::int64_t, W*) {});
  const std::int64_t first = sliver * kWidth<W>;
  for (std::int64_t k = first; k < smaller(first + kWidth<W>, p.a.count); ++k) {
    AnchorSum sum{.ranked = ranked[k - first], .pushed = pushed[k - first]};
    for (std::int64_t t = 0; t < s.found[k]; ++t) {
      sum.add_positive(s.positive[k * p.most_positives + t] + p.problem.margin, s.below[t * s.stride + k]);
    }
    sum.write(p.problem, p.a.row(k), s.found[k], p.negatives(k));
  }
}

// --- by tiles --------------------------------------------------------------------------------------------------------

/// What the negatives of an anchor add to its sum.
struct Pushed {
  double ranked;  // sum of rank x closeness
  double plain;   // sum of closeness
};

template <class W>
FASTMINE_INLINE void add_negatives(const W* row, const W* rank, std::int64_t width, bool plainly, Pushed& pushed) {
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<double>);
  Vec<double> ranked{};
  std::int64_t c = 0;
  for (; c + step <= width; c += step) {
    ranked += load_double(rank + c) * load_double(row + c);
  }
  double sum = sum_lanes(ranked);
  for (; c < width; ++c) {
    sum += static_cast<double>(rank[c]) * static_cast<double>(row[c]);
  }
  pushed.ranked += sum;
  for (c = 0; plainly && c < width; ++c) {
    pushed.plain += row[c] == kFar<W> ? 0 : static_cast<double>(row[c]);
  }
}

template <class W>
void write_sum(const Plan<W>& p, const Block& block, const Scratch<W>& scratch, std::int64_t r, const Pushed& pushed) {
  AnchorSum sum{.ranked = pushed.ranked, .pushed = pushed.plain};
  for (std::int64_t k = 0; k < block.positives[r]; ++k) {
    sum.add_positive(scratch.ascending[block.offset[r] + k] + p.problem.margin, scratch.below[block.offset[r] + k]);
  }
  sum.write(p.problem, p.a.row(block.first + r), block.positives[r], block.negatives[r]);
}

template <class W>
void sum_block(const Plan<W>& p, std::int64_t number, const Scratch<W>& scratch) {
  alignas(64) W rank[kReferences];
  Pushed pushed[kAnchors] = {};
  const Block block = find_positives(p, number, scratch);
  for_tiles(p, block.first, scratch.tile, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = 0; r < block.height(); ++r) {
      rank_row(p, block, scratch, r, begin, end, rank);
      add_negatives(scratch.tile + r * kReferences, rank, end - begin, p.problem.leak > 0, pushed[r]);
    }
  });
  finish_counts(block, scratch);
  for (std::int64_t r = 0; r < block.height(); ++r) {
    write_sum(p, block, scratch, r, pushed[r]);
  }
}

template <class W>
void sum_part(const Sum<W>& p, std::int64_t part) {
  const std::int64_t anchors = p.a.count;
  for (std::int64_t number = p.tiles.first_block(anchors, part); number < p.tiles.first_block(anchors, part + 1);
       ++number) {
    sum_block(p, number, p.tiles.scratch[part]);
  }
}

// --- stages ----------------------------------------------------------------------------------------------------------

/// What is gathered of a chunk are its counts.
template <class W>
void measure_counts(void* plan, std::int64_t begin, std::int64_t end) {
  const Sum<W>& p = as_sum<W>(plan);
  measure<W>(p, begin, end);
  for (std::int64_t k = begin * kWidth<W>; k < end * kWidth<W>; ++k) {
    p.blocks.each[k] = 1;
    p.blocks.always[k] = 0;
  }
}

template <class W>
std::int64_t sum_tasks(const void* plan) {
  const Sum<W>& p = as_sum<W>(plan);
  return p.in_blocks() ? p.a.slivers() : p.tiles.parts(p.a.count);
}

template <class W>
void sum(void* plan, std::int64_t begin, std::int64_t end) {
  const Sum<W>& p = as_sum<W>(plan);
  [[maybe_unused]] const MatrixUnit unit;
  for (std::int64_t t = begin; t < end; ++t) {
    p.in_blocks() ? sum_sliver(p, t) : sum_part(p, t);
  }
}

template <class W>
constexpr Stage kStages[] = {
    {&look_tasks<Sum<W>>, &few, &look<Sum<W>>},         {&once, &once, &group<Sum<W>>},
    {&pack_tasks<Sum<W>>, &few, &pack<Sum<W>>},         {&once, &once, &find_largest<Sum<W>>},
    {&measure_tasks<Sum<W>>, &few, &measure_counts<W>}, {&sum_tasks<W>, &once, &sum<W>},
};

}  // namespace
}  // namespace batch_all

extern const BatchAllKernel batch_all_float32;
extern const BatchAllKernel batch_all_float64;
const BatchAllKernel batch_all_float32 = staged<BatchAll, batch_all::lay_out<float>>(batch_all::kStages<float>);
const BatchAllKernel batch_all_float64 = staged<BatchAll, batch_all::lay_out<double>>(batch_all::kStages<double>);

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
