#include "kernels/batch_all.h"
#include "kernels/cpu/batch_all_blocks.h"
#include "kernels/cpu/batch_all_tiles.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/gradient_rows.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {
namespace batch_all {
namespace {

// With H[i, j] the derivative of the loss by half the squared distance of anchor i to reference j, the gradient at the
// anchor is (sum over j of H[i, j]) x[i] - (sum of H[i, j] y[j]), and so at the reference with i and j exchanged; of a
// similarity only the second terms. H is known a tile at a time. A tile is multiplied with both sides: into the sums
// of its anchors, which one part owns, and into that part's own sums of all references, added up in the end. By blocks
// a row gathers all that it is due itself: from one block what its negatives pull it by, as anchor and as reference,
// and in the end, when all counts are known, what its positives do, each by its difference.

constexpr std::int64_t kRoundedUp = 8;  // to which a tile's width is filled up with zeros: whole tiles of products

/// Elements of a panel of one row.
template <class W>
FASTMINE_INLINE W* panel_of(const Columns<W>& columns, std::int64_t panel, std::int64_t row) {
  return columns.data + (panel * columns.count + row) * kWidth<W>;
}

template <class W>
struct Gradient : Plan<W> {
  BatchAllBackward outer;
  Tiles<W> tiles;
  Columns<W> anchors, references;
  std::int64_t* x_position;  // per row of x its position in a, -1 without one; per row of y in b
  std::int64_t* y_position;
  double* x_sums;   // by tiles [x.n, wide]: of each anchor in use, by row; with one set of all, in the end
  double* x_total;  // [x.n]: the sum of its row of H
  double* y_sums;   // the same of y, by tiles in the end; null with one set
  double* y_block_total;
  Columns<W> partial[kMostParts];  // per part: sums of the references, by position
  double* y_total[kMostParts];
  bool some_fixed;  // some row is a zero vector, and the metric cosine
  bool spoiled;     // some anchor sees a NaN: the gradient of all that it sees is NaN

  std::int64_t panels() const { return divide_up(this->problem.x.d, kWidth<W>); }
  std::int64_t wide() const { return panels() * kWidth<W>; }
};

template <class W>
Gradient<W> lay_out(const BatchAllBackward& outer, Arena& arena) {
  const BatchAll& q = outer.problem;
  const std::int64_t n = q.x.n, m = q.y.n, panels = divide_up(q.x.d, kWidth<W>);
  const std::int64_t padded = divide_up(m, kReferences) * kReferences + kRoundedUp;
  const std::int64_t parts = parts_of(q, padded * panels * kWidth<W> * static_cast<std::int64_t>(sizeof(W)));
  Gradient<W> p{};
  static_cast<Plan<W>&>(p) = lay_out_plan<W>(q, arena);
  p.blocks = lay_out_blocks<W>(p, arena, true);
  p.tiles = lay_out_tiles<W>(q, arena, parts, true);
  p.outer = outer;
  p.anchors = lay_out_columns<W>(arena, q.x);
  p.references = lay_out_columns<W>(arena, q.y);
  p.x_position = arena.take<std::int64_t>(n);
  p.y_position = arena.take<std::int64_t>(m);
  p.x_sums = lay_out_sums<W>(arena, q.x);
  p.x_total = arena.take<double>(slivers_of<W>(n) * kWidth<W>);
  p.y_sums = q.self ? nullptr : lay_out_sums<W>(arena, q.y);
  p.y_block_total = q.self ? nullptr : arena.take<double>(slivers_of<W>(m) * kWidth<W>);
  for (std::int64_t part = 0; part < parts; ++part) {
    p.partial[part] = {arena.take<W>(panels * padded * kWidth<W>), nullptr, padded};
    p.y_total[part] = arena.take<double>(padded);
  }
  return p;
}

template <class W>
const Gradient<W>& as_gradient(const void* plan) {
  return *static_cast<const Gradient<W>*>(plan);
}

FASTMINE_INLINE bool is_nan(double x) { return x != x; }

// --- rows by label, in columns too -----------------------------------------------------------------------------------

template <class W>
void group_positions(void* plan, std::int64_t, std::int64_t) {
  Gradient<W>& p = *static_cast<Gradient<W>*>(plan);
  group<Gradient<W>>(plan, 0, 1);
  p.spoiled = p.some_fixed = false;
  for (std::int64_t i = 0; i < p.problem.x.n; ++i) {
    p.x_position[i] = -1;
    p.spoiled = p.spoiled || is_nan(p.outer.weight[i]);
    p.some_fixed = p.some_fixed || p.x.norm[i] == 0;
  }
  for (std::int64_t i = 0; i < p.problem.y.n; ++i) {
    p.some_fixed = p.some_fixed || p.y.norm[i] == 0;
    p.y_position[i] = -1;
  }
  for (std::int64_t k = 0; k < p.a.count; ++k) {
    p.x_position[p.a.row(k)] = k;
  }
  for (std::int64_t k = 0; k < p.b.count; ++k) {
    p.y_position[p.b.row(k)] = k;
  }
}

template <class W>
std::int64_t column_tasks(const void* plan) {
  const Gradient<W>& p = as_gradient<W>(plan);
  return p.in_blocks() && p.blocks.digits ? 0 : p.b.count + (packs_anchors(p) ? p.a.count : 0);
}

template <class W>
void pack_columns(void* plan, std::int64_t begin, std::int64_t end) {
  const Gradient<W>& p = as_gradient<W>(plan);
  for (std::int64_t t = begin; t < end; ++t) {
    const std::int64_t k = t - p.b.count;
    k < 0 ? pack_column(p.y, p.centre, p.b.row(t), t, p.references)
          : pack_column(p.x, p.centre, p.a.row(k), k, p.anchors);
  }
}

// --- weights ---------------------------------------------------------------------------------------------------------

/// The pull of row i of x and row j of y on each other, from the rows as they were given: w (x - y) off the sums of
/// the first, which are subtracted, and on those of the second.
template <class W>
FASTMINE_NOINLINE void pull_together(const Gradient<W>& p, std::int64_t i, std::int64_t j, double w, double* own,
                                     const Columns<W>& partial, std::int64_t position) {
  const double own_scale = scale_of(p.x, i), other_scale = scale_of(p.y, j);
  W x_buffer[kWidth<W>], y_buffer[kWidth<W>];
  for (std::int64_t panel = 0; panel < p.panels(); ++panel) {
    const std::int64_t from = panel * kWidth<W>, count = smaller(kWidth<W>, p.problem.x.d - from);
    const W* x = chunk(p.problem.x, i, from, count, x_buffer);
    const W* y = chunk(p.problem.y, j, from, count, y_buffer);
    W* other = panel_of(partial, panel, position);
    for (std::int64_t k = 0; k < count; ++k) {
      const double part = w * (static_cast<double>(x[k]) * own_scale - static_cast<double>(y[k]) * other_scale);
      own[from + k] -= part;
      other[k] += static_cast<W>(part);
    }
  }
}

/// What a part carries through its tiles.
template <class W>
struct Walk {
  const Gradient<W>& p;
  const Scratch<W>& scratch;
  const Columns<W>& partial;
  double* y_total;
};

/// From the derivative by closeness to that by half the squared distance, for dot by the similarity; V is a vector or
/// one number.
template <class V>
FASTMINE_INLINE V weight_of_pair(V slope, V closeness, Metric metric) {
  return metric == Metric::euclidean     ? select((slope == 0) | (closeness == 0), V{}, slope / closeness)
         : metric == Metric::sqeuclidean ? slope * 2
         : metric == Metric::dot         ? -slope
                                         : slope;
}

/// Row r of the tile at position `begin`: from derivatives by closeness, in `slope`, to weights, but for close pairs,
/// which pull by their difference at once. True if any weight is not 0.
template <class W>
FASTMINE_INLINE bool weigh(const Walk<W>& walk, std::int64_t i, std::int64_t r, std::int64_t begin, std::int64_t width,
                           const W* slope) {
  using V = Vec<W>;
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<W>);
  constexpr W tiny = sizeof(W) == 8 ? 0x1p-900 : 0x1p-100;  // squares below have lost digits
  const Gradient<W>& p = walk.p;
  const Metric metric = p.problem.metric;
  const W* row = walk.scratch.tile + r * kReferences;
  W* weight = walk.scratch.weight + r * kReferences;
  const std::int64_t x_row = p.a.row(i);
  const W own = p.a.c[i];
  V total{};
  auto some = V{} != V{};
  for (std::int64_t c = 0; c < width; c += step) {
    const V near = load(row + c);
    V w = weight_of_pair(load(slope + c), near, metric);
    const V key = metric == Metric::euclidean ? near * near : metric == Metric::cosine ? near * 2 : near;
    const V limit = (own + load(p.b.c + begin + c)) * kClose<W> + tiny;
    const auto close = metric == Metric::dot ? V{} != V{} : (key < limit) & (w != 0);
    for (std::int64_t lane = 0; any(close) && lane < step; ++lane) {
      if (close[static_cast<std::size_t>(lane)] != 0) {
        pull_together(p, x_row, p.b.row(begin + c + lane), static_cast<double>(w[static_cast<std::size_t>(lane)]),
                      p.x_sums + x_row * p.wide(), walk.partial, begin + c + lane);
      }
    }
    w = select(close, V{}, w);
    some |= w != 0;
    total += w;
    store(weight + c, w);
    for (std::int64_t k = c; k < c + step; k += static_cast<std::int64_t>(lanes<double>)) {
      double* sum = walk.y_total + begin + k;
      store(sum, load(sum) + load_double(weight + k));
    }
  }
  for (std::int64_t c = width; c % kRoundedUp != 0; ++c) {
    weight[c] = 0;
  }
  p.x_total[x_row] += static_cast<double>(fold(total, [](auto a, auto b) { return a + b; }));
  return any(some);
}

/// Of cosine, a zero vector has no direction to turn: at distance 1 from everything.
template <class W>
FASTMINE_INLINE void drop_fixed(const Gradient<W>& p, std::int64_t i, std::int64_t begin, std::int64_t width,
                                W* slope) {
  if (p.problem.metric != Metric::cosine) {
    return;
  }
  const bool fixed = p.x.norm[p.a.row(i)] == 0;
  for (std::int64_t c = 0; c < width && begin + c < p.b.count; ++c) {
    slope[c] = fixed || p.y.norm[p.b.row(begin + c)] == 0 ? 0 : slope[c];
  }
}

// --- products --------------------------------------------------------------------------------------------------------

template <class W, std::size_t Vectors>
void multiply_panel(const Walk<W>& walk, const Block& block, std::int64_t panel, std::int64_t begin,
                    std::int64_t width) {
  constexpr std::int64_t rows = static_cast<std::int64_t>(kTileRows<W>);
  constexpr std::size_t line = kReferences;
  const Gradient<W>& p = walk.p;
  const std::int64_t height = block.height(), filled = smaller(width, p.b.count - begin);
  alignas(64) W out[kTileRows<W> * kSliver<W>];
  for (std::int64_t r = 0; r < height; r += rows) {
    dot_tile<W, kTileRows<W>, Vectors, false, line, 1>(walk.scratch.weight + r * kReferences,
                                                       panel_of(p.references, panel, begin),
                                                       static_cast<std::size_t>(filled), out);
    for (std::int64_t k = r; k < smaller(r + rows, height); ++k) {
      double* sum = p.x_sums + p.a.row(block.first + k) * p.wide() + panel * kWidth<W>;
      for (std::size_t c = 0; c < Vectors * lanes<W>; c += lanes<double>) {
        store(sum + c, load(sum + c) + load_double(out + (k - r) * kWidth<W> + static_cast<std::int64_t>(c)));
      }
    }
  }
  for (std::int64_t c = 0; c < width; c += rows) {
    dot_tile<W, kTileRows<W>, Vectors, true, 1, line>(walk.scratch.weight + c, panel_of(p.anchors, panel, block.first),
                                                      static_cast<std::size_t>(height),
                                                      panel_of(walk.partial, panel, begin + c));
  }
}

/// Multiply a tile of weights with both sides.
template <class W>
void multiply(const Walk<W>& walk, const Block& block, std::int64_t begin, std::int64_t width) {
  for (std::int64_t panel = 0; panel < walk.p.panels(); ++panel) {
    const std::int64_t rest = walk.p.problem.x.d - panel * kWidth<W>;
    const auto run = rest <= static_cast<std::int64_t>(lanes<W>)       ? &multiply_panel<W, 1>
                     : rest <= static_cast<std::int64_t>(2 * lanes<W>) ? &multiply_panel<W, 2>
                                                                       : &multiply_panel<W, 3>;
    run(walk, block, panel, begin, width);
  }
}

// --- gather ----------------------------------------------------------------------------------------------------------

/// The negatives of a tile: each is pushed by every triplet it is part of that counts, and with a leak by
/// the others that much.
template <class W>
void push_negatives(const Walk<W>& walk, const Block& block, std::int64_t begin, std::int64_t end) {
  const Gradient<W>& p = walk.p;
  const double leak = p.problem.leak;
  alignas(64) W slope[kReferences];
  bool some = false;
  for (std::int64_t r = 0; r < block.height(); ++r) {
    const std::int64_t i = block.first + r;
    const double weight = p.outer.weight[p.a.row(i)];
    const W* row = walk.scratch.tile + r * kReferences;
    rank_row(p, block, walk.scratch, r, begin, end, slope);
    const W always = static_cast<W>(-weight * leak * static_cast<double>(block.positives[r]));
    const W each = static_cast<W>(-weight * (1 - leak));
    for (std::int64_t c = 0; c < end - begin; ++c) {
      slope[c] = row[c] == kFar<W> ? 0 : always + each * slope[c];
    }
    drop_fixed(p, i, begin, end - begin, slope);
    some |= weigh(walk, i, r, begin, end - begin, slope);
  }
  if (some) {
    multiply(walk, block, begin, end - begin);
  }
}

/// The number of triplets that a positive of this closeness is part of.
template <class W>
double triplets_of(const Walk<W>& walk, const Block& block, std::int64_t r, double closeness) {
  const double* positive = walk.scratch.ascending + block.offset[r];
  std::int64_t first = 0;  // the first that is not less: it, or an equal one
  for (std::int64_t left = block.positives[r]; left > 0;) {
    const std::int64_t half = left / 2;
    const bool less = positive[first + half] < closeness;
    first = less ? first + half + 1 : first;
    left = less ? left - half - 1 : half;
  }
  return walk.scratch.below[block.offset[r] + first];
}

/// The positives of a block at positions begin .. end: each is pulled by every triplet it is part of that counts, and
/// with a leak by the others that much. `seen` counts each anchor's positives at earlier positions.
template <class W>
void pull_positives(const Walk<W>& walk, const Block& block, std::int64_t begin, std::int64_t end, std::int64_t* seen) {
  const Gradient<W>& p = walk.p;
  const double leak = p.problem.leak;
  bool some = false;
  for (std::int64_t r = 0; r < block.height(); ++r) {
    const std::int64_t i = block.first + r;
    const double weight = p.outer.weight[p.a.row(i)];
    const double always = leak * static_cast<double>(block.negatives[r]);
    W* row = walk.scratch.tile + r * kReferences;
    alignas(64) W slope[kReferences] = {};
    for_positives(p, i, begin, end, [&](std::int64_t j) {
      const double closeness = walk.scratch.positive[block.offset[r] + seen[r]++];
      row[j - begin] = static_cast<W>(closeness);
      slope[j - begin] = static_cast<W>(weight * (always + (1 - leak) * triplets_of(walk, block, r, closeness)));
    });
    drop_fixed(p, i, begin, end - begin, slope);
    some |= weigh(walk, i, r, begin, end - begin, slope);
  }
  if (some) {
    multiply(walk, block, begin, end - begin);
  }
}

/// All tiles with a positive of a block.
template <class W>
void pull_all_positives(const Walk<W>& walk, const Block& block) {
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<W>);
  std::int64_t seen[kAnchors] = {};
  const std::int64_t last = divide_up(walk.p.same_end[block.end - 1], sliver) * sliver;
  for (std::int64_t begin = walk.p.same_begin[block.first] / sliver * sliver; begin < last; begin += kReferences) {
    pull_positives(walk, block, begin, smaller(begin + kReferences, last), seen);
  }
}

template <class W>
void gather_part(const Gradient<W>& p, std::int64_t part) {
  const Scratch<W>& scratch = p.tiles.scratch[part];
  const Columns<W>& partial = p.partial[part];
  const Walk<W> walk{p, scratch, partial, p.y_total[part]};
  __builtin_memset(partial.data, 0, static_cast<std::size_t>(p.wide() * partial.count) * sizeof(W));
  __builtin_memset(walk.y_total, 0, static_cast<std::size_t>(partial.count) * sizeof(double));
  for (std::int64_t number = p.tiles.first_block(p.a.count, part); number < p.tiles.first_block(p.a.count, part + 1);
       ++number) {
    const Block block = find_positives(p, number, scratch);
    for (std::int64_t i = block.first; i < block.end; ++i) {
      const std::int64_t row = p.a.row(i);
      p.x_total[row] = 0;
      __builtin_memset(p.x_sums + row * p.wide(), 0, static_cast<std::size_t>(p.wide()) * sizeof(double));
    }
    for_tiles(p, block.first, scratch.tile,
              [&](std::int64_t begin, std::int64_t end) { push_negatives(walk, block, begin, end); });
    finish_counts(block, scratch);
    pull_all_positives(walk, block);
  }
}

// --- gather by blocks ------------------------------------------------------------------------------------------------

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

// --- gather, either way ----------------------------------------------------------------------------------------------

template <class W>
std::int64_t gather_tasks(const void* plan) {
  const Gradient<W>& p = as_gradient<W>(plan);
  if (p.in_blocks()) {
    return p.a.count == 0 ? 0 : p.blocks.x.slivers() + (p.problem.self ? 0 : p.blocks.y.slivers());
  }
  return p.tiles.parts(p.a.count);
}

template <class W>
void gather(void* plan, std::int64_t begin, std::int64_t end) {
  const Gradient<W>& p = as_gradient<W>(plan);
  [[maybe_unused]] const MatrixUnit unit;
  for (std::int64_t t = begin; t < end; ++t) {
    p.in_blocks() ? gather_blocks(p, t) : gather_part(p, t);
  }
}

// --- finish ----------------------------------------------------------------------------------------------------------

/// sums += what all parts gathered for the reference at `position`; returns the sum of its column of H.
template <class W>
double add_parts(const Gradient<W>& p, std::int64_t position, double* sums) {
  double total = 0;
  for (std::int64_t part = 0; part < p.tiles.parts(p.a.count); ++part) {
    total += p.y_total[part][position];
    for (std::int64_t panel = 0; panel < p.panels(); ++panel) {
      const W* from = panel_of(p.partial[part], panel, position);
      for (std::int64_t k = 0; k < kWidth<W>; ++k) {
        sums[panel * kWidth<W> + k] += static_cast<double>(from[k]);
      }
    }
  }
  return total;
}

/// The gradient of row i from its sums: total (x - centre) - sums, for dot the sums, and for cosine the part along the
/// row taken off.
template <class W>
void write_row(const Gradient<W>& p, const RowSet& set, std::int64_t i, double total, double* sums, void* out) {
  const std::int64_t d = set.rows.d;
  const double scale = scale_of(set, i);
  W buffer[kChunk];
  double along = 0;
  for (std::int64_t from = 0; from < d; from += kChunk) {
    const std::int64_t count = smaller(kChunk, d - from);
    const W* x = chunk(set.rows, i, from, count, buffer);
    for (std::int64_t k = 0; k < count; ++k) {
      const double unit = static_cast<double>(x[k]) * scale;
      double& sum = sums[from + k];
      sum = p.problem.metric == Metric::dot ? sum : total * (unit - p.centre[from + k]) - sum;
      along += sum * unit;
    }
  }
  for (std::int64_t from = 0; p.problem.metric == Metric::cosine && from < d; from += kChunk) {
    const std::int64_t count = smaller(kChunk, d - from);
    const W* x = chunk(set.rows, i, from, count, buffer);
    for (std::int64_t k = 0; k < count; ++k) {
      sums[from + k] = (sums[from + k] - along * (static_cast<double>(x[k]) * scale)) * scale;
    }
  }
  char* bytes = static_cast<char*>(out) + i * d * static_cast<std::int64_t>(size_of(set.rows.dtype));
  write(sums, static_cast<std::size_t>(d), bytes, set.rows.dtype);
}

/// A row of zeros, or of NaN: of a row that may hold anything.
template <class W>
void write_constant(const RowSet& set, std::int64_t i, double value, void* out) {
  double values[kChunk];
  for (double& v : values) {
    v = value;
  }
  for (std::int64_t from = 0; from < set.rows.d; from += kChunk) {
    char* bytes =
        static_cast<char*>(out) + (i * set.rows.d + from) * static_cast<std::int64_t>(size_of(set.rows.dtype));
    write(values, static_cast<std::size_t>(smaller(kChunk, set.rows.d - from)), bytes, set.rows.dtype);
  }
}

/// By tiles, row i of a side: what it has as an anchor, at its own row of `sums`, and what as a reference at position
/// `across`.
template <class W>
void finish_row(const Gradient<W>& p, const RowSet& set, std::int64_t i, bool anchor, std::int64_t across, double* sums,
                void* out) {
  double total = anchor ? p.x_total[i] : 0;
  for (std::int64_t k = 0; !anchor && k < p.wide(); ++k) {
    sums[k] = 0;
  }
  if (across >= 0) {
    total += add_parts(p, across, sums);
  }
  write_row(p, set, i, total, sums, out);
}

/// sums += what the pair of anchor k and its positive t, row j of y, pulls one of its rows by, `own`, the other being
/// `other`: all triplets of the pair that count, and with a leak the others that much.
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

/// By blocks, the row at a position of one side.
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

template <class W>
void finish_x(const Gradient<W>& p, std::int64_t i) {
  const bool self = p.problem.self, anchor = p.x_position[i] >= 0, taken = self && p.y_position[i] >= 0;
  const bool nan = self ? p.spoiled && (p.x.kind[i] & kSkipped) == 0 : is_nan(p.outer.weight[i]);
  void* out = p.outer.grad_x;
  if (nan || (!anchor && !taken)) {
    write_constant<W>(p.x, i, nan ? __builtin_nan("") : 0, out);
  } else if (p.in_blocks()) {
    finish_position(p, p.blocks.x, self ? p.y_position[i] : p.x_position[i], anchor, self, p.x_sums, p.x_total, out);
  } else {
    finish_row(p, p.x, i, anchor, self ? p.y_position[i] : -1, p.x_sums + i * p.wide(), out);
  }
}

template <class W>
void finish_y(const Gradient<W>& p, std::int64_t j) {
  const bool nan = p.spoiled && (p.y.kind[j] & kSkipped) == 0;
  void* out = p.outer.grad_y;
  if (nan || p.y_position[j] < 0) {
    write_constant<W>(p.y, j, nan ? __builtin_nan("") : 0, out);
  } else if (p.in_blocks()) {
    finish_position(p, p.blocks.y, p.y_position[j], false, true, p.y_sums, p.y_block_total, out);
  } else {
    finish_row(p, p.y, j, false, p.y_position[j], p.y_sums + j * p.wide(), out);
  }
}

template <class W>
std::int64_t finish_tasks(const void* plan) {
  const Gradient<W>& p = as_gradient<W>(plan);
  return p.problem.x.n + (p.problem.self ? 0 : p.problem.y.n);
}

template <class W>
void finish(void* plan, std::int64_t begin, std::int64_t end) {
  const Gradient<W>& p = as_gradient<W>(plan);
  for (std::int64_t t = begin; t < end; ++t) {
    t < p.problem.x.n ? finish_x(p, t) : finish_y(p, t - p.problem.x.n);
  }
}

std::int64_t some_rows(const void*) { return 64; }

template <class W>
constexpr Stage kStages[] = {
    {&look_tasks<Gradient<W>>, &few, &look<Gradient<W>>},
    {&once, &once, &group_positions<W>},
    {&pack_tasks<Gradient<W>>, &few, &pack<Gradient<W>>},
    {&once, &once, &find_largest<Gradient<W>>},
    {&column_tasks<W>, &some_rows, &pack_columns<W>},
    {&measure_tasks<Gradient<W>>, &few, &measure_pulls<W>},
    {&gather_tasks<W>, &once, &gather<W>},
    {&finish_tasks<W>, &some_rows, &finish<W>},
};

}  // namespace
}  // namespace batch_all

extern const BatchAllBackwardKernel batch_all_backward_float32;
extern const BatchAllBackwardKernel batch_all_backward_float64;
const BatchAllBackwardKernel batch_all_backward_float32 =
    staged<BatchAllBackward, batch_all::lay_out<float>>(batch_all::kStages<float>);
const BatchAllBackwardKernel batch_all_backward_float64 =
    staged<BatchAllBackward, batch_all::lay_out<double>>(batch_all::kStages<double>);

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
