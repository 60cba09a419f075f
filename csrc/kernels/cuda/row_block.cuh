// Everything against everything, a block of distances at a time: what losses over all pairs of a batch are built on, as
// in cpu/row_block.h.
//
// Rows that take part and are finite are grouped by label, centred and packed, as for mining; from then on they are
// known by their position in that order. A block of threads owns a tile of rows and walks the tiles across. Their
// products become distances where they are, in registers; those go to shared memory, half a tile at a time, and there a
// functor reads them with the own rows in the threads. So what is summed over the pairs of a row lies in the registers
// of the threads that have it, and a half tile of weights is at once what the product with the rows across reads.
// Nothing is written to another tile's rows: where a pair teaches both of its ends, each end computes it.
//
// Rows with a NaN or an Inf are at distance NaN from everything. They are in no tile: who pairs with them is told by
// counts.
#pragma once

#include "kernels/cuda/batch_hard_evidence.cuh"

namespace fastmine::cuda::mining {

/// Blocks that the tiles of a problem are worth: a few for every multiprocessor. In the emulator so few that some walk
/// over several tiles.
#ifdef FASTMINE_EMULATE_CUDA
inline constexpr std::int64_t kEnoughBlocks = 6;
#else
inline constexpr std::int64_t kEnoughBlocks = 1024;
#endif

// --- grouped rows ----------------------------------------------------------------------------------------------------

/// A plan as far as rows, their labels and the evidence go. `P` is a problem with x, labels, valid, y, ref_labels,
/// ref_valid, self and metric, as BatchHard has them. The pairs of the plan's problem, one of each sign per anchor, are
/// in the workspace; the evidence is not.
template <class W, class P>
Plan<W> lay_out_labelled(const P& problem, const std::int64_t* self_index, Arena& arena) {
  Plan<W> m{};
  BatchHard& q = m.problem;
  q.x = problem.x;
  q.labels = problem.labels;
  q.valid = problem.valid;
  q.y = problem.y;
  q.ref_labels = problem.ref_labels;
  q.ref_valid = problem.ref_valid;
  q.self = problem.self;
  q.self_index = self_index;
  q.metric = problem.metric;
  const std::int64_t n = q.x.n, d = q.x.d;
  q.positive_index = arena.take<std::int64_t>(n);
  q.negative_index = arena.take<std::int64_t>(n);
  q.positive_distance = arena.take<double>(n);
  q.negative_distance = arena.take<double>(n);
  q.has_positive = arena.take<bool>(n);
  q.has_negative = arena.take<bool>(n);
  m.x = lay_out_rows(arena, q.x, q.valid, q.labels, q.metric);
  m.y = q.self ? m.x : lay_out_rows(arena, q.y, q.ref_valid, q.ref_labels, q.metric);
  m.first = arena.take<bool>(n);
  m.total = arena.take<double>(d);
  m.parts = arena.take<double>(divide_up(n > q.y.n ? n : q.y.n, kThreads) * kParts);
  m.counts = arena.take<Counts>(1);
  m.same_begin = arena.take<std::int32_t>(n);
  m.same_end = arena.take<std::int32_t>(n);
  m.own = arena.take<std::int32_t>(n);
  return m;
}

/// The same with centred, packed rows.
template <class W, class P>
Plan<W> lay_out_row_blocks(const P& problem, const std::int64_t* self_index, Arena& arena) {
  Plan<W> m = lay_out_labelled<W>(problem, self_index, arena);
  const BatchHard& q = m.problem;
  const std::int64_t n = q.x.n, d = q.x.d;
  m.centre = arena.take<double>(d);
  m.depth = round_up(d, Full<W>::kDepth);
  m.a = lay_out_packed<W>(arena, n, m.depth, 0);
  m.b = q.self ? m.a : lay_out_packed<W>(arena, q.y.n, m.depth, 0);
  m.panel = divide_up(q.y.n > n ? q.y.n : n, kSide<W>) + 1;  // all are one panel
  m.panels = 1;
  m.radius = arena.take<Ordered<W>>(1);
  m.lost = arena.take<Ordered<W>>(1);
  return m;
}

/// The first launches of a plan: look at every row, sort them by label.
template <class S>
void label_rows(Launches& launches, const Plan<Working<S>>& m) {
  const BatchHard& q = m.problem;
  launches(&look_at_rows<S>, m.x.blocks() + (q.self ? 0 : m.y.blocks()), kThreads, m);
  sort(launches, m.x.items, m.x.spare, q.x.n);
  if (!q.self) {
    sort(launches, m.y.items, m.y.spare, q.y.n);
  }
  launches(&match_labels<Working<S>>, divide_up(q.x.n > 0 ? q.x.n : 1, kThreads), kThreads, m);
}

/// The same, then centre and pack them.
template <class S>
void group_rows(Launches& launches, const Plan<Working<S>>& m) {
  using W = Working<S>;
  const BatchHard& q = m.problem;
  const std::int64_t n = q.x.n, references = q.y.n;
  label_rows<S>(launches, m);
  launches(&find_centre<W>, divide_up(q.x.d, kWarp) + 1, kColumnThreads, m);
  const std::int64_t positions = round_up(n, kSide<W>) + (q.self ? 0 : round_up(references, kSide<W>));
  launches(&pack_rows<S>, divide_up(positions, kWarps), kThreads, m);
}

/// The last ones: the evidence, once the plan's pairs are known.
template <class W>
void tell_evidence(Launches& launches, const Plan<W>& m) {
  launches(&look_at_anchors<W>, evidence_blocks(m) > 1 ? evidence_blocks(m) : 0, kThreads, m);
  launches(&gather_evidence<W>, 1, kThreads, m);
}

/// How many references of a label that take part are poisoned.
template <class W>
FASTMINE_DEVICE int count_poisoned(const Plan<W>& m, std::int64_t label) {
  if (m.counts->poisoned_y == 0) {
    return 0;
  }
  return rank_of({label, kPoisonedRows, kNoRow}, m.y.sorted, static_cast<int>(m.y.rows.n)) -
         begin_of_label(m.y, kPoisonedRows, label);
}

// --- tiles -----------------------------------------------------------------------------------------------------------

/// How the tiles of the pairs are cut: a block has one tile of own rows and a chunk of the tiles across.
struct TileCut {
  std::int64_t tiles, across, chunk;  // tiles of own rows; across; of those in a chunk

  FASTMINE_HOST_DEVICE std::int64_t chunks() const { return divide_up(across, chunk); }
  FASTMINE_HOST_DEVICE std::int64_t blocks() const { return tiles * chunks(); }
};

/// For n own rows, with at most so many chunks; what follows depends on the shapes alone.
template <class W>
TileCut cut_tiles(std::int64_t n, std::int64_t across, std::int64_t most_chunks) {
  const std::int64_t tiles = divide_up(n, kSide<W>), tiles_across = divide_up(across, kSide<W>);
  std::int64_t chunks = tiles > 0 ? divide_up(kEnoughBlocks, tiles) : 1;
  chunks = chunks < most_chunks ? chunks : most_chunks;
  return {tiles, tiles_across, tiles_across > chunks ? divide_up(tiles_across, chunks) : 1};
}

/// What a block of threads has.
struct TileRange {
  std::int32_t row;         // the first own position
  std::int32_t begin, end;  // tiles across
  std::int64_t chunk;
};

FASTMINE_DEVICE TileRange tile_range(const TileCut& cut, int side) {
  const std::int64_t chunk = block_index() / cut.tiles, begin = chunk * cut.chunk, end = begin + cut.chunk;
  return {static_cast<std::int32_t>(block_index() % cut.tiles * side), static_cast<std::int32_t>(begin),
          static_cast<std::int32_t>(end < cut.across ? end : cut.across), chunk};
}

/// One side of the pairs.
template <class W>
struct Side {
  const RowSet& rows;
  const Packed<W>& packed;
  std::int32_t count;  // positions
};

template <class W>
FASTMINE_DEVICE Side<W> anchors_of(const Plan<W>& m) {
  return {m.x, m.a, m.counts->finite_x};
}
template <class W>
FASTMINE_DEVICE Side<W> references_of(const Plan<W>& m) {
  return {m.y, m.b, m.counts->finite_y};
}

/// Half a tile of distances in shared memory. The pair of own row r and of row q across is at block[q kPitch + r]; q
/// counts the rows across in the order that lets threads write theirs without meeting in a bank.
template <class W>
struct BlockShape {
  using Tile = Full<W>;
  static constexpr int kOwn = kSide<W>, kAcross = kOwn / 2;
  static constexpr int kPitch = kOwn + Tile::kPack;
  static constexpr int kShare = kThreads / kOwn;  // threads that share the pairs of a row
  static constexpr int kVectors = kAcross * kPitch / Tile::kPack;
  static constexpr int kSharedVectors = kVectors > Tile::kSharedVectors ? kVectors : Tile::kSharedVectors;
  static_assert(kThreads % kOwn == 0 && Tile::kEach == 2 * Tile::kPack);

  /// The own row of this thread, and its first row across; the next are kShare further on.
  FASTMINE_DEVICE static int own() { return thread_index() % kOwn; }
  FASTMINE_DEVICE static int first() { return thread_index() / kOwn; }
  /// From the first position of the half tile to row q across.
  FASTMINE_DEVICE static int position(int q) { return q % Tile::kAcross * Tile::kPack + q / Tile::kAcross; }
  FASTMINE_DEVICE static int line(int column) { return column % Tile::kPack * Tile::kAcross + column / Tile::kPack; }
};

/// Whether products of rows whose norms add up to this may overflow, or fall among the subnormal numbers.
template <class W>
FASTMINE_DEVICE bool extreme(W norms) {
  constexpr W kTiny = sizeof(W) == 8 ? static_cast<W>(0x1p-450) : static_cast<W>(0x1p-40);
  constexpr W kHuge = sizeof(W) == 8 ? static_cast<W>(0x1p500) : static_cast<W>(0x1p60);
  return !(norms > kTiny && norms < kHuge);
}

/// Keys below this share of |x|^2 + |y|^2 have lost too many digits in the subtraction.
template <class W>
inline constexpr W kCloseShare = static_cast<W>(1.0 / 16);

/// Products become distances, in place; a bit for each, row by row, that must be taken directly instead.
template <class W>
FASTMINE_DEVICE std::uint64_t make_distances(const Side<W>& own, std::int32_t row, const Side<W>& across,
                                             std::int32_t column, bool self, W (&dot)[Full<W>::kEach][Full<W>::kEach]) {
  using Tile = Full<W>;
  const Metric metric = own.rows.metric;
  std::uint64_t again = 0;
  FASTMINE_UNROLL for (int r = 0; r < Tile::kEach; ++r) {
    const std::int32_t i = row + Tile::row(r);
    const W c = own.packed.c[i], norm = own.packed.norm[i];
    FASTMINE_UNROLL for (int k = 0; k < Tile::kEach; ++k) {
      const std::int32_t j = column + Tile::column(k);
      const W both = c + across.packed.c[j], key = both - 2 * dot[r][k], positive = key < 0 ? W{0} : key;
      const bool close = metric != Metric::dot && key < both * kCloseShare<W>;
      const bool there = i < own.count && j < across.count && !(self && i == j);
      if (there && (close || extreme(norm + across.packed.norm[j]))) {
        again |= std::uint64_t{1} << (r * Tile::kEach + k);
      }
      if (metric == Metric::euclidean) {
        dot[r][k] = static_cast<W>(sqrt(positive));
      } else if (metric != Metric::dot) {
        dot[r][k] = metric == Metric::cosine ? positive * static_cast<W>(0.5) : positive;
      }
    }
  }
  return again;
}

/// The pairs that `again` names, from all lanes of the warp, by direct difference in float64.
template <class W>
FASTMINE_DEVICE void take_directly(const Side<W>& own, std::int32_t row, const Side<W>& across, std::int32_t column,
                                   std::uint64_t again, W* block) {
  using Tile = Full<W>;
  using Shape = BlockShape<W>;
  for (unsigned lanes = ballot(again != 0); lanes != 0; lanes &= lanes - 1) {
    const int source = lowest_bit(lanes), thread = warp_index() * kWarp + source;
    for (std::uint64_t pairs = from_lane(again, source); pairs != 0; pairs &= pairs - 1) {
      const int pair = lowest_bit(pairs);
      const int r = Tile::line(thread / Tile::kAcross, pair / Tile::kEach);
      const int c = Tile::line(thread % Tile::kAcross, pair % Tile::kEach);
      const double key =
          exact_key_of<W>(own.rows, own.rows.sorted[row + r].row, across.rows, across.rows.sorted[column + c].row);
      if (lane_index() == 0) {
        block[Shape::line(c % Shape::kAcross) * Shape::kPitch + r] = static_cast<W>(distance_of(key, own.rows.metric));
      }
    }
  }
}

/// f(first, block) with the distances of the tile of own rows that begins at `row` to the kAcross positions from
/// `first` on, for both halves of the tile across that begins at `column`. What is computed beyond the last position of
/// either side, and of a row with itself, means nothing. `f` may write to the block; all threads call it, and it ends
/// as the walk does: without a barrier.
template <class W, class F>
FASTMINE_DEVICE void each_block(const Plan<W>& m, const Side<W>& own, std::int32_t row, const Side<W>& across,
                                std::int32_t column, typename Full<W>::Vector* shared, F f) {
  using Tile = Full<W>;
  using Shape = BlockShape<W>;
  W dot[Tile::kEach][Tile::kEach];
  barrier();  // what was in the block is no longer read
  Tile::multiply(own.packed.data + (row + Tile::loaded_line()) * m.depth,
                 across.packed.data + (column + Tile::loaded_line()) * m.depth, static_cast<int>(m.depth), shared, dot);
  const std::uint64_t again = make_distances(own, row, across, column, m.problem.self, dot);
  W* const block = &shared[0].item[0];
  std::uint64_t first_half = 0;  // bits of the first half of the columns
  FASTMINE_UNROLL for (int r = 0; r < Tile::kEach; ++r) {
    first_half |= ((std::uint64_t{1} << Tile::kPack) - 1) << (r * Tile::kEach);
  }
  FASTMINE_ROLL for (int half = 0; half < 2; ++half) {
    barrier();
    FASTMINE_UNROLL for (int c = 0; c < Tile::kPack; ++c) {
      const int q = Shape::line(Tile::column(c));
      FASTMINE_UNROLL for (int r = 0; r < Tile::kEach; r += Tile::kPack) {
        typename Tile::Vector rows;
        FASTMINE_UNROLL for (int v = 0; v < Tile::kPack; ++v) {
          rows.item[v] = dot[r + v][c];
          dot[r + v][c] = dot[r + v][c + Tile::kPack];  // its turn is next
        }
        *reinterpret_cast<typename Tile::Vector*>(block + q * Shape::kPitch + Tile::row(r)) = rows;
      }
    }
    warp_barrier();  // what follows writes over what other lanes wrote
    take_directly(own, row, across, column, again & (half == 0 ? first_half : ~first_half), block);
    barrier();
    f(column + half * Shape::kAcross, block);
  }
}

}  // namespace fastmine::cuda::mining
