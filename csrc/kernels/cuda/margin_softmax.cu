#include "kernels/cuda/margin_softmax.h"

#include "kernels/cuda/arena.h"
#include "kernels/cuda/load.h"
#include "kernels/cuda/math.h"
#include "kernels/cuda/warp.h"
#include "kernels/margin_softmax_formula.h"

namespace fastmine::cuda {
namespace {

using namespace mining;

/// Packs of 16 bytes that a lane has of a piece; in the emulator fewer, so that rows have several pieces.
#ifdef FASTMINE_EMULATE_CUDA
constexpr int kPacks = 2;
#else
constexpr int kPacks = 16;
#endif

template <class W>
constexpr int kItems = 16 / static_cast<int>(sizeof(W));
/// From one pack of a lane to the next; and elements of a piece.
template <class W>
constexpr int kStep = kWarp * kItems<W>;
template <class W>
constexpr int kPiece = kPacks * kStep<W>;

/// What the slopes of a row that counts are made of.
struct RowSlopes {
  double largest, share, own;
};

struct SoftmaxWork {
  MarginSoftmax problem;
  margin::Margin margin;
  std::int64_t pieces;     // of a row
  double* weights;         // [weight_blocks]
  margin::Others* others;  // [n, pieces]
  RowSlopes* slopes;       // [n]
  double* value;           // [n]

  /// Of kThreads rows each, where their weights are added up in a launch of its own.
  FASTMINE_HOST_DEVICE std::int64_t weight_blocks() const {
    return problem.reduction == Reduction::mean && problem.n > kThreads ? divide_up(problem.n, kThreads) : 0;
  }
};

SoftmaxWork lay_out(const MarginSoftmax& q, Arena& arena) {
  SoftmaxWork work{q, margin::margin_of(q), 0, nullptr, nullptr, nullptr, nullptr};
  const bool wide = q.dtype == DType::float64;
  // The first pack of a row may begin before it.
  const int before = (wide ? kItems<double> : kItems<float>)-1;
  work.pieces = divide_up(q.classes + before, wide ? kPiece<double> : kPiece<float>);
  work.weights = arena.take<double>(work.weight_blocks());
  work.others = arena.take<margin::Others>(q.n * work.pieces);
  work.slopes = arena.take<RowSlopes>(q.n);
  work.value = arena.take<double>(q.n);
  return work;
}

/// What a lane has of a piece of a row: packs aligned in memory, wherever the row begins.
template <class W>
struct Piece {
  std::int64_t begin;  // of the first pack; before the row, where its start is not aligned
  int low, high;       // counted from there, what the row has
  int own;             // which item is the own class; -1: none
  W item[kPacks * kItems<W>];

  FASTMINE_DEVICE bool has(int place) const { return place >= low && place < high; }
  FASTMINE_DEVICE bool has_pack(int place) const { return place >= low && place + kItems<W> <= high; }
};

/// f(place, number of the first item) for each pack of which the row has any.
template <class W, class F>
FASTMINE_DEVICE void each_pack(const Piece<W>& at_hand, F f) {
  FASTMINE_UNROLL for (int k = 0; k < kPacks; ++k) {
    if (k * kStep<W> < at_hand.high) {
      f(k * kStep<W>, k * kItems<W>);
    }
  }
}
/// f(number of the item) for each of these.
template <class W, class F>
FASTMINE_DEVICE void each_item(const Piece<W>& at_hand, F f) {
  each_pack(at_hand, [&](int, int first) {
    FASTMINE_UNROLL for (int i = 0; i < kItems<W>; ++i) { f(first + i); }
  });
}

/// Piece `which` of row i, -Inf beyond its ends.
template <class W>
FASTMINE_DEVICE Piece<W> load_piece(const MarginSoftmax& q, std::int64_t i, std::int64_t which) {
  constexpr int kN = kItems<W>;
  const W* const row = static_cast<const W*>(q.logits) + i * q.classes;
  const auto before = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(row) / sizeof(W) % kN);
  const std::int64_t piece = which * kPiece<W> - before, begin = piece + lane_index() * kN;
  const std::int64_t rest = q.classes - begin, own = q.labels[i] - piece;
  Piece<W> at_hand{
      begin, begin < 0 ? static_cast<int>(-begin) : 0, static_cast<int>(rest < kPiece<W> ? rest : kPiece<W>), -1, {}};
  if (own >= 0 && own < kPiece<W> && own / kN % kWarp == lane_index()) {
    at_hand.own = static_cast<int>(own / kStep<W> * kN + own % kN);
  }
  FASTMINE_UNROLL for (W& item : at_hand.item) { item = -static_cast<W>(__builtin_inf()); }
  each_pack(at_hand, [&](int place, int first) {
    const W* const from = row + begin + place;
    if (at_hand.has_pack(place)) {
      const Pack<W, kN> pack = load_pack<W, kN>(from);
      FASTMINE_UNROLL for (int item = 0; item < kN; ++item) { at_hand.item[first + item] = pack.item[item]; }
    } else {
      FASTMINE_UNROLL for (int item = 0; item < kN; ++item) {
        if (at_hand.has(place + item)) {
          at_hand.item[first + item] = from[item];
        }
      }
    }
  });
  return at_hand;
}

/// The piece to `row`, where its packs may not be aligned.
template <class W>
FASTMINE_DEVICE void store_piece(const Piece<W>& at_hand, W* row) {
  constexpr int kN = kItems<W>;
  each_pack(at_hand, [&](int place, int first) {
    W* const to = row + at_hand.begin + place;
    if (at_hand.has_pack(place) && is_pack<W, kN>(to, 1, kN)) {
      Pack<W, kN> pack;
      FASTMINE_UNROLL for (int item = 0; item < kN; ++item) { pack.item[item] = at_hand.item[first + item]; }
      store_pack<W, kN>(pack, to);
    } else {
      FASTMINE_UNROLL for (int item = 0; item < kN; ++item) {
        if (at_hand.has(place + item)) {
          to[item] = at_hand.item[first + item];
        }
      }
    }
  });
}

/// The largest over the warp, in all its lanes; no NaN.
template <class W>
FASTMINE_DEVICE W largest_of_lanes(W value) {
  FASTMINE_UNROLL for (int mask = kWarp / 2; mask > 0; mask /= 2) { value = larger(from_across(value, mask), value); }
  return value;
}

/// The sum over the block, in all its threads, in a fixed order.
FASTMINE_DEVICE double add_block(double value, double* shared) {
  const double columns[1] = {value};
  const double sum = combine_block(columns, shared, [](int, double a, double b) { return a + b; });
  if (thread_index() == 0) {
    shared[0] = sum;
  }
  barrier();
  return shared[0];
}

/// One block: the weights of kThreads rows.
template <class W>
FASTMINE_KERNEL(kThreads, 2)
add_row_weights(FASTMINE_PARAMETER SoftmaxWork work) {
  FASTMINE_SHARED(double, shared, kWarps);
  const std::int64_t i = block_index() * kThreads + thread_index();
  const double sum = add_block(i < work.problem.n ? margin::weight_of<W>(work.problem, i) : 0, shared);
  if (thread_index() == 0) {
    work.weights[block_index()] = sum;
  }
}

/// One warp: a piece of the logits of a row, but for the own class.
template <class W>
FASTMINE_KERNEL(kThreads, 2)
look_at_logits(FASTMINE_PARAMETER SoftmaxWork work) {
  const MarginSoftmax& q = work.problem;
  const std::int64_t task = block_index() * kWarps + warp_index(), i = task / work.pieces;
  if (i >= q.n || !margin::counts(q, i)) {
    return;
  }
  constexpr W kNothing = -static_cast<W>(__builtin_inf());
  Piece<W> at_hand = load_piece<W>(q, i, task % work.pieces);
  W largest = kNothing;
  each_item(at_hand, [&](int item) {
    at_hand.item[item] = item == at_hand.own ? kNothing : at_hand.item[item];
    largest = larger(at_hand.item[item], largest);
  });
  largest = largest_of_lanes(largest);
  const W about = largest == kNothing ? W{0} : largest;  // of which no exponential is left, but for a NaN
  W sum = 0;
  each_item(at_hand, [&](int item) { sum += exponential(at_hand.item[item] - about); });
  const double total = add_lanes(static_cast<double>(sum));
  if (lane_index() == 0) {
    work.others[task] = {static_cast<double>(largest), total};
  }
}

/// The pieces of row i together, in all lanes. If every logit is -Inf, the sum is NaN.
FASTMINE_DEVICE margin::Others gather_pieces(const SoftmaxWork& work, std::int64_t i) {
  const margin::Others* const pieces = work.others + i * work.pieces;
  double largest = -static_cast<double>(__builtin_inf()), sum = 0;
  for (std::int64_t c = lane_index(); c < work.pieces; c += kWarp) {
    largest = larger(pieces[c].largest, largest);
  }
  largest = largest_of_lanes(largest);
  for (std::int64_t c = lane_index(); c < work.pieces; c += kWarp) {
    sum += exponential(pieces[c].largest - largest) * pieces[c].sum;
  }
  return {largest, add_lanes(sum)};
}

/// The squared length of what is left of row i beside the vector of its class, in all lanes.
template <class W>
FASTMINE_DEVICE double squared_rest(const MarginSoftmax& q, std::int64_t i, double cosine) {
  const W* const x = static_cast<const W*>(q.unit) + i * q.d;
  const W* const own = static_cast<const W*>(q.unit) + margin::own_vector(q, i) * q.d;
  double sum = 0;
  for (std::int64_t k = lane_index(); k < q.d; k += kWarp) {
    const double apart = static_cast<double>(x[k]) - cosine * static_cast<double>(own[k]);
    sum += apart * apart;
  }
  return add_lanes(sum);
}

/// What the warps of a block find of a row.
struct Seen {
  margin::Others others;
  double cosine, squared;
};

template <class W>
FASTMINE_DEVICE Seen see_row(const SoftmaxWork& work, std::int64_t i) {
  const MarginSoftmax& q = work.problem;
  const double cosine = static_cast<double>(static_cast<const W*>(q.logits)[i * q.classes + q.labels[i]]) / q.scale;
  const double squared = margin::turns(work.margin, cosine) ? squared_rest<W>(q, i, cosine) : 0;
  return {gather_pieces(work, i), cosine, squared};
}

/// Everything about row i but the slopes by its cosines. Of one that does not count nothing was seen.
template <class W>
FASTMINE_DEVICE void settle_row(const SoftmaxWork& work, std::int64_t i, const Seen& seen, double divisor) {
  const MarginSoftmax& q = work.problem;
  W cosine = 0, nearest_other = 0;
  margin::Row found{margin::takes_part(q, i) ? static_cast<double>(__builtin_nan("")) : 0, 0, 0, false};
  if (margin::counts(q, i)) {
    const margin::Turned turned = margin::turned<W>(work.margin, seen.cosine, seen.squared);
    found = margin::row_of<W>(q, turned, seen.others, margin::weight_of<W>(q, i) / divisor);
    cosine = static_cast<W>(seen.cosine);
    nearest_other = static_cast<W>(seen.others.largest / q.scale);
    work.slopes[i] = {seen.others.largest, found.share, found.own};
  }
  work.value[i] = found.value;
  static_cast<W*>(q.cosine)[i] = cosine;
  static_cast<W*>(q.nearest_other)[i] = nearest_other;
  q.active[i] = found.active;
  if (q.reduction == Reduction::none) {
    static_cast<W*>(q.loss)[i] = static_cast<W>(found.value);
  }
}

/// One block: kWarps rows, a warp for what is summed of each, then a thread.
template <class W>
FASTMINE_KERNEL(kThreads, 2)
settle_rows(FASTMINE_PARAMETER SoftmaxWork work) {
  FASTMINE_SHARED(double, shared, kWarps);
  FASTMINE_SHARED(Seen, seen, kWarps);
  const MarginSoftmax& q = work.problem;
  double weights = 0;
  if (work.weight_blocks() > 0) {
    for (std::int64_t block = thread_index(); block < work.weight_blocks(); block += kThreads) {
      weights += work.weights[block];
    }
  } else if (q.reduction == Reduction::mean && thread_index() < q.n) {
    weights = margin::weight_of<W>(q, thread_index());
  }
  const double divisor = margin::divisor(q, add_block(weights, shared));
  const std::int64_t first = block_index() * kWarps, own = first + warp_index();
  if (own < q.n && margin::counts(q, own)) {
    const Seen row = see_row<W>(work, own);
    if (lane_index() == 0) {
      seen[warp_index()] = row;
    }
  }
  barrier();
  if (thread_index() < kWarps && first + thread_index() < q.n) {
    settle_row<W>(work, first + thread_index(), seen[thread_index()], divisor);
  }
}

/// One warp: the slopes by the cosines of a piece of a row.
template <class W>
FASTMINE_DEVICE void write_piece(const SoftmaxWork& work, std::int64_t i, std::int64_t which) {
  const MarginSoftmax& q = work.problem;
  Piece<W> at_hand = load_piece<W>(q, i, which);
  const RowSlopes slopes = work.slopes[i];
  const W largest = static_cast<W>(slopes.largest), share = static_cast<W>(slopes.share);
  each_item(at_hand, [&](int item) {
    const W slope = exponential(at_hand.item[item] - largest) * share;
    at_hand.item[item] = item == at_hand.own ? static_cast<W>(slopes.own) : slope;
  });
  store_piece(at_hand, static_cast<W*>(q.slopes) + i * q.classes);
}

/// The first block: the loss. All others: pieces, the last ones first, whose logits were read last and are in the
/// cache.
template <class W>
FASTMINE_KERNEL(kThreads, 2)
write_cosine_slopes(FASTMINE_PARAMETER SoftmaxWork work) {
  FASTMINE_SHARED(double, shared, kWarps);
  const MarginSoftmax& q = work.problem;
  if (block_index() == 0) {
    double sum = 0;
    for (std::int64_t i = thread_index(); i < q.n; i += kThreads) {
      sum += work.value[i];
    }
    sum = add_block(sum, shared);
    if (thread_index() == 0 && q.reduction != Reduction::none) {
      static_cast<W*>(q.loss)[0] = static_cast<W>(sum);
    }
    return;
  }
  const std::int64_t task = q.n * work.pieces - 1 - ((block_index() - 1) * kWarps + warp_index());
  if (task < 0) {
    return;
  }
  const std::int64_t i = task / work.pieces, which = task % work.pieces;
  if (margin::counts(q, i)) {
    return write_piece<W>(work, i, which);
  }
  const W nothing = margin::takes_part(q, i) ? static_cast<W>(__builtin_nan("")) : W{0};
  const std::int64_t end = (which + 1) * kPiece<W>;
  for (std::int64_t j = which * kPiece<W> + lane_index(); j < (end < q.classes ? end : q.classes); j += kWarp) {
    static_cast<W*>(q.slopes)[i * q.classes + j] = nothing;
  }
}

template <class W>
cudaError_t run(const SoftmaxWork& work, cudaStream_t stream) {
  const std::int64_t pieces = divide_up(work.problem.n * work.pieces, kWarps);
  Launches launches(stream);
  launches(&add_row_weights<W>, work.weight_blocks(), kThreads, work);
  launches(&look_at_logits<W>, pieces, kThreads, work);
  launches(&settle_rows<W>, divide_up(work.problem.n, kWarps), kThreads, work);
  launches(&write_cosine_slopes<W>, 1 + pieces, kThreads, work);
  return launches.status();
}

}  // namespace

std::size_t margin_softmax_workspace(const MarginSoftmax& q) noexcept {
  Arena arena(nullptr);
  lay_out(q, arena);
  return arena.used();
}

cudaError_t margin_softmax(const MarginSoftmax& q, void* workspace, cudaStream_t stream) noexcept {
  Arena arena(workspace);
  const SoftmaxWork work = lay_out(q, arena);
  switch (q.dtype) {
    case DType::float32:
      return run<float>(work, stream);
    case DType::float64:
      return run<double>(work, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace fastmine::cuda
