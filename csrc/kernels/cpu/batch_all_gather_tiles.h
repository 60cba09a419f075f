// The gradient by tiles: a tile of H is multiplied with both sides, into the sums of its anchors, which one part owns,
// and into that part's own sums of all references, added up in the end.
#pragma once

#include "kernels/cpu/batch_all_gradient.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::batch_all {

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

/// Row i of a side: what it has as an anchor, at its own row of `sums`, and what as a reference at position
/// `across`.
template <class W>
void finish_row_of_tiles(const Gradient<W>& p, const RowSet& set, std::int64_t i, bool anchor, std::int64_t across,
                         double* sums, void* out) {
  double total = anchor ? p.x_total[i] : 0;
  for (std::int64_t k = 0; !anchor && k < p.wide(); ++k) {
    sums[k] = 0;
  }
  if (across >= 0) {
    total += add_parts(p, across, sums);
  }
  write_row(p, set, i, total, sums, out);
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::batch_all
