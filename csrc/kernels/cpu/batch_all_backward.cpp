#include "kernels/batch_all.h"
#include "kernels/cpu/batch_all_plan.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/gradient_rows.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {
namespace batch_all {
namespace {

// With H[i, j] the derivative of the loss by half the squared distance of anchor i to reference j, the gradient at the
// anchor is (sum over j of H[i, j]) x[i] - (sum of H[i, j] y[j]), and so at the reference with i and j exchanged; of a
// similarity only the second terms. H is known a tile at a time. A tile is multiplied with both sides: into the sums
// of its anchors, which one part owns, and into that part's own sums of all references, added up in the end.

constexpr std::int64_t kRoundedUp = 8;  // to which a tile's width is filled up with zeros: whole tiles of products

/// Elements of a panel of one row.
template <class W>
FASTMINE_INLINE W* panel_of(const Columns<W>& columns, std::int64_t panel, std::int64_t row) {
  return columns.data + (panel * columns.count + row) * kWidth<W>;
}

template <class W>
struct Gradient : Plan<W> {
  BatchAllBackward outer;
  Columns<W> anchors, references;
  std::int64_t* x_position;  // per row of x its position in a, -1 without one; per row of y in b
  std::int64_t* y_position;
  double* x_sums;                  // [x.n, wide]: of each anchor in use, by row; with one set of all rows, in the end
  double* x_total;                 // [x.n]: the sum of its row of H
  double* y_sums;                  // [y.n, wide], in the end; null with one set
  Columns<W> partial[kMostParts];  // per part: sums of the references, by position
  double* y_total[kMostParts];
  bool spoiled;  // some anchor sees a NaN: the gradient of all that it sees is NaN

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
  static_cast<Plan<W>&>(p) = lay_out_plan<W>(q, arena, parts, true);
  p.outer = outer;
  p.anchors = lay_out_columns<W>(arena, q.x);
  p.references = lay_out_columns<W>(arena, q.y);
  p.x_position = arena.take<std::int64_t>(n);
  p.y_position = arena.take<std::int64_t>(m);
  p.x_sums = arena.take<double>(n * p.wide());
  p.x_total = arena.take<double>(n);
  p.y_sums = q.self ? nullptr : arena.take<double>(m * p.wide());
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
  group_rows(p);
  p.spoiled = false;
  for (std::int64_t i = 0; i < p.problem.x.n; ++i) {
    p.x_position[i] = -1;
    p.spoiled = p.spoiled || is_nan(p.outer.weight[i]);
  }
  for (std::int64_t i = 0; i < p.problem.y.n; ++i) {
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
  return p.a.count + p.b.count;
}

template <class W>
void pack_columns(void* plan, std::int64_t begin, std::int64_t end) {
  const Gradient<W>& p = as_gradient<W>(plan);
  for (std::int64_t t = begin; t < end; ++t) {
    const std::int64_t k = t - p.a.count;
    k < 0 ? pack_column(p.x, p.centre, p.a.row(t), t, p.anchors)
          : pack_column(p.y, p.centre, p.b.row(k), k, p.references);
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

/// From the derivative by closeness to that by half the squared distance; V is a vector or one number.
template <class V>
FASTMINE_INLINE V weight_of(V slope, V closeness, Metric metric) {
  return metric == Metric::euclidean     ? select((slope == 0) | (closeness == 0), V{}, slope / closeness)
         : metric == Metric::sqeuclidean ? slope * 2
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
    V w = weight_of(load(slope + c), near, metric);
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
std::int64_t gather_tasks(const void* plan) {
  return as_gradient<W>(plan).parts();
}

template <class W>
void gather_part(const Gradient<W>& p, std::int64_t part) {
  const Scratch<W>& scratch = p.scratch[part];
  const Columns<W>& partial = p.partial[part];
  const Walk<W> walk{p, scratch, partial, p.y_total[part]};
  __builtin_memset(partial.data, 0, static_cast<std::size_t>(p.wide() * partial.count) * sizeof(W));
  __builtin_memset(walk.y_total, 0, static_cast<std::size_t>(partial.count) * sizeof(double));
  for (std::int64_t number = p.first_block(part); number < p.first_block(part + 1); ++number) {
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

template <class W>
void gather(void* plan, std::int64_t begin, std::int64_t end) {
  for (std::int64_t part = begin; part < end; ++part) {
    gather_part(as_gradient<W>(plan), part);
  }
}

// --- finish ----------------------------------------------------------------------------------------------------------

/// sums += what all parts gathered for the reference at `position`; returns the sum of its column of H.
template <class W>
double add_parts(const Gradient<W>& p, std::int64_t position, double* sums) {
  double total = 0;
  for (std::int64_t part = 0; part < p.parts(); ++part) {
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

/// The gradient of row i from its sums: total (x - centre) - sums, and for cosine the part along the row taken off.
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
      sum = (p.problem.metric == Metric::dot ? 0 : total * (unit - p.centre[from + k])) - sum;
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

/// Row i of a side: what it has as an anchor, at its own row of `sums`, and what as a reference at position `across`.
template <class W>
void finish_row(const Gradient<W>& p, const RowSet& set, std::int64_t i, bool anchor, std::int64_t across, bool nan,
                double* sums, void* out) {
  double total = anchor ? p.x_total[i] : 0;
  for (std::int64_t k = 0; !anchor && k < p.wide(); ++k) {
    sums[k] = 0;
  }
  if (nan || (!anchor && across < 0)) {  // the row may hold anything
    for (std::int64_t k = 0; k < set.rows.d; ++k) {
      sums[k] = nan ? __builtin_nan("") : 0;
    }
    char* bytes = static_cast<char*>(out) + i * set.rows.d * static_cast<std::int64_t>(size_of(set.rows.dtype));
    return write(sums, static_cast<std::size_t>(set.rows.d), bytes, set.rows.dtype);
  }
  if (across >= 0) {
    total += add_parts(p, across, sums);
  }
  write_row(p, set, i, total, sums, out);
}

template <class W>
std::int64_t finish_tasks(const void* plan) {
  const Gradient<W>& p = as_gradient<W>(plan);
  return p.problem.x.n + (p.problem.self ? 0 : p.problem.y.n);
}

template <class W>
void finish(void* plan, std::int64_t begin, std::int64_t end) {
  const Gradient<W>& p = as_gradient<W>(plan);
  const bool self = p.problem.self;
  for (std::int64_t t = begin; t < end; ++t) {
    const std::int64_t j = t - p.problem.x.n;
    const bool of_y = j >= 0;
    const RowSet& set = of_y ? p.y : p.x;
    const std::int64_t i = of_y ? j : t;
    const bool seen = p.spoiled && (set.kind[i] & kSkipped) == 0;
    if (of_y) {
      finish_row(p, set, i, false, p.y_position[i], seen, p.y_sums + i * p.wide(), p.outer.grad_y);
    } else {
      finish_row(p, set, i, p.x_position[i] >= 0, self ? p.y_position[i] : -1, self ? seen : is_nan(p.outer.weight[i]),
                 p.x_sums + i * p.wide(), p.outer.grad_x);
    }
  }
}

std::int64_t some_rows(const void*) { return 64; }

template <class W>
constexpr Stage kStages[] = {
    {&look_tasks<Gradient<W>>, &few, &look<Gradient<W>>}, {&once, &once, &group_positions<W>},
    {&pack_tasks<Gradient<W>>, &few, &pack<Gradient<W>>}, {&once, &once, &measure<Gradient<W>>},
    {&column_tasks<W>, &some_rows, &pack_columns<W>},     {&gather_tasks<W>, &once, &gather<W>},
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
