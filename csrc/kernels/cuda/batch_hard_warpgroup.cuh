// The bfloat16 screen where warpgroups multiply: the minima of screen_negatives<Rounded>, by the same epilogue, from
// products of the matrix unit that reads both factors in shared memory, where bulk copies put them.
//
// A block takes a run of pairs of tiles: strip after strip, which is a tile of anchors with the tiles of references
// across. The anchors' tile stays in shared memory for a strip, whole; of the tiles across, slices go through kStages
// places, asked for that far ahead, over the ends of tiles and strips, so that copies go on while minima are taken.
// Packed rows lie in memory as descriptors name them in shared memory (Rounded::place_of), so each copy is one piece.
//
// Why no thread waits for ever: whatever is waited for was asked for before, and a copy that was asked for arrives.
// Thread 0 asks for the first kStages - 1 slices before the first barrier of the block, and for slice q + kStages - 1
// before the barrier that ends slice q; a thread that waits for slice q is past the barrier of slice q - 1. A strip's
// tile is asked for before a barrier that comes before all waits for it.
// Why no thread takes one phase for another: a place's next phase is announced after the barrier of the slice before
// it, which every thread reaches after its wait for that slice. None is ever two behind, which a parity would not tell.
// Why no copy overwrites what is still multiplied: that barrier comes after the end of the products, in every thread.
// Should any of this be wrong, the kernel ends with an error after some seconds: wait_for_arrival.
#pragma once

#include "kernels/cuda/batch_hard_screen.cuh"
#include "kernels/cuda/warpgroup.h"

namespace fastmine::cuda::mining {

/// A tile of products by warpgroups, each of which has kGroupRows of its rows and all its columns.
struct Grouped {
  using Value = float;
  using Element = std::uint16_t;
  using Vector = Rounded::Vector;
  static constexpr bool kRounded = true;
  static constexpr int kTile = kSide<float>, kGroups = kTile / kGroupRows, kBlock = kGroups * kGroup;
  static constexpr int kRows = 2, kColumns = kTile / 4;  // of a thread
  static constexpr int kSums = kRows * kColumns;

  static constexpr int kRowLanes = 4, kRowParts = 1, kColumnParts = kBlock / kWarp;
  FASTMINE_DEVICE static int row_part() { return 0; }
  FASTMINE_DEVICE static int column_part() { return warp_index(); }
  FASTMINE_DEVICE static int row(int r) { return warp_index() * 16 + r * 8 + lane_index() / 4; }
  FASTMINE_DEVICE static int column(int c) { return c / 2 * 8 + lane_index() % 4 * 2 + c % 2; }

  static constexpr int kDepth = Rounded::kDepth, kStages = 4;  // elements of a slice; slices there or on their way
  static constexpr int kSliceVectors = kTile * kDepth / 8;
  static constexpr std::int64_t kMostDepth = 736;  // of rows whose tile fits into shared memory beside all else
  static constexpr std::int64_t shared_vectors(std::int64_t depth) {
    return kTile * depth / 8 + kStages * kSliceVectors;
  }
  static constexpr std::size_t shared_bytes(std::int64_t depth) {
    return static_cast<std::size_t>(shared_vectors(depth)) * sizeof(Vector);
  }

  /// What a product takes from `row` on of a tile or slice, from element k on of its rows.
  FASTMINE_DEVICE static std::uint64_t describe(const Vector* tile, int row, int k) {
    return describe_matrix(tile + k / 8 * kTile + row, kTile * sizeof(Vector), 8 * sizeof(Vector));
  }
};

static_assert(Grouped::shared_bytes(Grouped::kMostDepth) + 5 * 1024 <= 227 * 1024);  // with the minima, of sm_90

/// What a block has before it and thread 0 alone changes; in shared memory, since products take all registers.
struct Agenda {
  std::int64_t tasks;    // pairs of tiles
  std::int64_t slices;   // of the tiles across, not asked for
  std::int32_t I, J;     // the pair whose slice is asked for next
  int from, stage;       // where that slice begins in its rows, and where it will lie
  std::uint32_t strips;  // begun
  Arrival of_stage[Grouped::kStages], of_strip;

  FASTMINE_DEVICE static std::int32_t first_across(const Search<float>& s, std::int32_t I) {
    return s.mirrored() ? I : 0;
  }
  /// The pair of tiles after this.
  FASTMINE_DEVICE static void step(const Search<float>& s, std::int32_t& I, std::int32_t& J) {
    ++J;
    if (J >= divide_up(s.plan.counts->finite_y, Grouped::kTile)) {
      ++I;
      J = first_across(s, I);
    }
  }
};

/// One block's shared memory.
struct GroupedMemory {
  Agenda* agenda;
  Grouped::Vector* slices;
  Grouped::Vector* tile;  // of the strip
  std::int32_t* pair;     // as of ScreenMemory
};

/// Of a tile, so many elements of all its rows.
FASTMINE_DEVICE void ask_for(Grouped::Vector* place, const std::uint16_t* rows, std::int64_t depth, Arrival* arrival) {
  const auto bytes = static_cast<std::uint32_t>(depth * Grouped::kTile * static_cast<int>(sizeof *rows));
  announce(arrival, bytes);
  start_bulk_copy(place, rows, bytes, arrival);
}

/// Thread 0: the next slice, if there is one.
FASTMINE_DEVICE void ask_for_slice(const Search<float>& s, const GroupedMemory& memory) {
  Agenda& agenda = *memory.agenda;
  if (agenda.slices == 0) {
    return;
  }
  const std::int64_t depth = s.plan.rounded_depth;
  ask_for(memory.slices + agenda.stage * Grouped::kSliceVectors,
          s.plan.b.rounded + (agenda.J * depth + agenda.from) * Grouped::kTile, Grouped::kDepth,
          agenda.of_stage + agenda.stage);
  --agenda.slices;
  agenda.stage = agenda.stage + 1 < Grouped::kStages ? agenda.stage + 1 : 0;
  agenda.from += Grouped::kDepth;
  if (agenda.from >= depth) {
    agenda.from = 0;
    Agenda::step(s, agenda.I, agenda.J);
  }
}

/// Thread 0: the block's run of pairs, and the first slices.
FASTMINE_DEVICE void open_agenda(const Search<float>& s, const GroupedMemory& memory) {
  Agenda& agenda = *memory.agenda;
  const std::int64_t tasks = screen_tasks(s);
  const std::int64_t begin = tasks * block_index() / s.blocks, end = tasks * (block_index() + 1) / s.blocks;
  agenda.tasks = end - begin;
  agenda.slices = agenda.tasks * divide_up(s.plan.rounded_depth, Grouped::kDepth);
  agenda.from = agenda.stage = 0;
  agenda.strips = 0;
  for (Arrival& arrival : agenda.of_stage) {
    make_arrival(&arrival);
  }
  make_arrival(&agenda.of_strip);
  show_arrivals();
  if (agenda.tasks > 0) {
    locate(s, begin, agenda.I, agenda.J);
    memory.pair[0] = agenda.I;
    memory.pair[1] = agenda.J - 1;
  }
  for (int stage = 0; stage + 1 < Grouped::kStages; ++stage) {
    ask_for_slice(s, memory);
  }
}

/// Thread 0: the next pair of tiles, and of a new strip the tile.
FASTMINE_DEVICE void begin_task(const Search<float>& s, const GroupedMemory& memory) {
  Agenda& agenda = *memory.agenda;
  Agenda::step(s, memory.pair[0], memory.pair[1]);
  if (agenda.strips == 0 || memory.pair[1] == Agenda::first_across(s, memory.pair[0])) {
    ++agenda.strips;
    const std::int64_t depth = s.plan.rounded_depth;
    ask_for(memory.tile, s.plan.a.rounded + memory.pair[0] * depth * Grouped::kTile, depth, &agenda.of_strip);
  }
}

/// sum = the products of the pair of tiles at hand. `stage` and `parity` say where its first slice lies and which phase
/// brings it, then the same of the slice after its last.
FASTMINE_DEVICE void multiply_tiles(const Search<float>& s, const GroupedMemory& memory, int& stage,
                                    std::uint32_t& parity, float (&sum)[Grouped::kSums]) {
  const int group_row = warp_index() / (kGroup / kWarp) * kGroupRows;
  FASTMINE_UNROLL for (float& each : sum) { each = 0; }
  wait_for_arrival(&memory.agenda->of_strip, (memory.agenda->strips - 1) & 1);
  FASTMINE_ROLL for (int from = 0; from < s.plan.rounded_depth; from += Grouped::kDepth) {
    wait_for_arrival(memory.agenda->of_stage + stage, parity);
    begin_products();
    FASTMINE_UNROLL for (int k = 0; k < Grouped::kDepth; k += kGroupDepth) {
      multiply_add(Grouped::describe(memory.tile, group_row, from + k),
                   Grouped::describe(memory.slices + stage * Grouped::kSliceVectors, 0, k), sum);
    }
    commit_products();
    if (thread_index() == 0) {  // meanwhile: where the slice before this was, nobody reads any more
      ask_for_slice(s, memory);
    }
    wait_for_products(sum);
    barrier();
    ++stage;
    if (stage == Grouped::kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
}

/// Blocks take equal runs of the pairs of tiles.
FASTMINE_KERNEL(Grouped::kBlock, 2)
screen_by_warpgroups(FASTMINE_PARAMETER Search<float> s) {
#if FASTMINE_WARPGROUPS
  FASTMINE_DYNAMIC_SHARED(Grouped::Vector, shared_tiles, Grouped::shared_vectors(s.plan.rounded_depth));
  FASTMINE_SHARED(float, shared_rows, Grouped::kTile* Grouped::kRowParts);
  FASTMINE_SHARED(float, shared_columns, Grouped::kTile* Grouped::kColumnParts);
  FASTMINE_SHARED(std::int32_t, shared_pair, 2);
  FASTMINE_SHARED(Agenda, shared_agenda, 1);
  const GroupedMemory memory{shared_agenda, shared_tiles, shared_tiles + Grouped::kStages * Grouped::kSliceVectors,
                             shared_pair};
  if (thread_index() == 0) {
    open_agenda(s, memory);
  }
  int stage = 0;
  std::uint32_t parity = 0;
  barrier();
  for (std::int64_t left = shared_agenda->tasks; left > 0; --left) {
    if (thread_index() == 0) {
      begin_task(s, memory);
    }
    barrier();
    float sum[Grouped::kSums], dot[Grouped::kRows][Grouped::kColumns];
    multiply_tiles(s, memory, stage, parity, sum);
    FASTMINE_UNROLL for (int r = 0; r < Grouped::kRows; ++r) {
      FASTMINE_UNROLL for (int c = 0; c < Grouped::kColumns; ++c) { dot[r][c] = sum[c / 2 * 4 + r * 2 + c % 2]; }
    }
    reduce_tiles<Grouped, false>(s, {nullptr, shared_rows, shared_columns, shared_pair}, dot);
  }
#else
  stop_kernel();  // the launcher was told of code that is not there
#endif
}

}  // namespace fastmine::cuda::mining
