#include "kernels/pair_sums.h"

#include "kernels/cpu/batch_hard_evidence.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/pair_curve.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {
namespace pairs {
namespace {

template <class W>
struct Plan {
  PairSums problem;
  RowBlocks<W> rows;
  Bounds<W> bounds;
  W* bound_memory[2];
  // Per anchor, for the evidence: the mean distances of its positives and of its negatives.
  double* means[2];
  bool* exists[2];
};

template <class W>
Plan<W> lay_out(const PairSums& problem, Arena& arena) {
  Plan<W> p{};
  p.problem = scaled(problem);
  p.rows = lay_out_row_blocks<W>(arena, problem, by_digits<W>(problem) ? Multiply::digits : Multiply::floats);
  for (int side = 0; side < 2; ++side) {
    p.bound_memory[side] = arena.take<W>(slivers_of<W>(problem.x.n) * kWidth<W>);
    p.means[side] = arena.take<double>(problem.x.n);
    p.exists[side] = arena.take<bool>(problem.x.n);
  }
  return p;
}

template <class W>
Plan<W>& as_plan(void* plan) {
  return *static_cast<Plan<W>*>(plan);
}
template <class W>
const Plan<W>& as_plan(const void* plan) {
  return *static_cast<const Plan<W>*>(plan);
}

double* row_of(const PairSums& problem, PairSum row) {
  return problem.sums + static_cast<std::int64_t>(row) * problem.x.n;
}

// --- the sums of a sliver of anchors ---------------------------------------------------------------------------------

/// Of one sign: per lane, over all panels so far.
template <class W>
struct Total {
  alignas(64) W top[kSliver<W>];  // the largest curve of an admitted pair; -Inf before the first
  double mass[kSliver<W>];        // the sum of exp(curve - top)
  double curve[kSliver<W>];       // the sum of curve exp(curve - top)
  double distance[kSliver<W>];
  double every_distance[kSliver<W>];  // also of pairs that are not admitted; kept with bounds alone
  double admitted[kSliver<W>];        // likewise
};

/// Of one sign: per lane, over one panel.
template <class W>
struct Part {
  Vec<W> top[kVectors], mass[kVectors], curve[kVectors], distance[kVectors], every_distance[kVectors];
  Vec<Position<W>> admitted[kVectors];
};

/// What a task carries of a sliver.
template <class W>
struct State {
  Total<W> positive{}, negative{};
  double nce[kSliver<W>] = {}, nce_slope[kSliver<W>] = {}, nce_curve[kSliver<W>] = {};
};

/// A part of a panel: c in [begin, end), at positions first + c across.
struct Span {
  std::int64_t first, begin, end;
};

/// Lane masks of the pairs of one sign, of distance x, that are admitted.
template <bool positive, bool bounded, class W>
FASTMINE_INLINE auto admitted_among(Vec<Position<W>> pairs, Vec<W> x, const Bounds<W>& bounds, std::int64_t at) {
  if constexpr (!bounded) {
    return pairs;
  } else if constexpr (positive) {
    return pairs & bounds.admits_positive(x, load(bounds.positive + at));
  } else {
    return pairs & bounds.admits_negative(x, load(bounds.negative + at));
  }
}

/// f(v, x, pairs, admitted) over the pairs of one sign; `mixed` where rows across may have a label of the sliver.
template <bool positive, bool mixed, bool bounded, class W, class F>
FASTMINE_INLINE void each_pair(const Plan<W>& p, const Lanes<W>& own, std::int64_t row, const W* block, Span span,
                               F f) {
  for (std::int64_t c = span.begin; c < span.end; ++c) {
    const auto across = static_cast<Position<W>>(span.first + c);
    for (std::size_t v = 0; v < kVectors; ++v) {
      const Vec<W> x = load(block + c * kWidth<W> + v * lanes<W>);
      Vec<Position<W>> pairs = Vec<Position<W>>{} - 1;
      if constexpr (mixed) {
        const auto same = own.same(v, across);
        pairs = positive ? same & own.other_than(v, across) : ~same;
      }
      const std::int64_t at = row + static_cast<std::int64_t>(v * lanes<W>);
      f(v, x, pairs, admitted_among<positive, bounded>(pairs, x, p.bounds, at));
    }
  }
}

/// The largest curve, the distances and, with bounds, how many pairs they admit.
template <bool positive, bool mixed, bool bounded, PairForm form, class W>
FASTMINE_NOINLINE void survey(const Plan<W>& p, const Lanes<W>& own, std::int64_t row, const W* block, Span span,
                              Part<W>& out) {
  const Curve<W> curve(positive ? p.problem.positive : p.problem.negative);
  Part<W> part = out;
  each_pair<positive, mixed, bounded>(
      p, own, row, block, span, [&](std::size_t v, Vec<W> x, Vec<Position<W>> pairs, Vec<Position<W>> admitted) {
        constexpr bool all = !mixed && !bounded;
        part.distance[v] += all ? x : select(admitted, x, Vec<W>{});
        if constexpr (bounded) {
          part.every_distance[v] += mixed ? select(pairs, x, Vec<W>{}) : x;
          part.admitted[v] -= admitted;
        }
        if constexpr (form != PairForm::sum) {
          const Vec<W> t = curve_at<form == PairForm::circle>(curve, x);
          part.top[v] = maximum(all ? t : select(admitted, t, fill<Vec<W>>(-kInf<W>)), part.top[v]);
        }
      });
  out = part;
}

/// The sums of exp(curve - top), and of that times the curve.
template <bool positive, bool mixed, bool bounded, PairForm form, class W>
FASTMINE_NOINLINE void weigh(const Plan<W>& p, const Lanes<W>& own, std::int64_t row, const W* block, Span span,
                             Part<W>& out) {
  const Curve<W> curve(positive ? p.problem.positive : p.problem.negative);
  Vec<W> top[kVectors], mass[kVectors], total[kVectors];
  for (std::size_t v = 0; v < kVectors; ++v) {
    top[v] = out.top[v];
    mass[v] = out.mass[v];
    total[v] = out.curve[v];
  }
  each_pair<positive, mixed, bounded>(
      p, own, row, block, span, [&](std::size_t v, Vec<W> x, Vec<Position<W>>, Vec<Position<W>> admitted) {
        const Vec<W> t = curve_at<form == PairForm::circle>(curve, x), below = top[v] - t;
        const Vec<W> e = exp_negative(!mixed && !bounded ? below : select(admitted, below, fill<Vec<W>>(kInf<W>)));
        mass[v] += e;
        total[v] += e * t;
      });
  for (std::size_t v = 0; v < kVectors; ++v) {
    out.mass[v] = mass[v];
    out.curve[v] = total[v];
  }
}

/// Add what one panel has.
template <PairForm form, class W>
void add_part(Part<W>& part, Total<W>& total) {
  for (std::size_t r = 0; r < kSliver<W>; ++r) {
    const std::size_t v = r / lanes<W>, lane = r % lanes<W>;
    total.distance[r] += static_cast<double>(part.distance[v][lane]);
    total.every_distance[r] += static_cast<double>(part.every_distance[v][lane]);
    total.admitted[r] += static_cast<double>(part.admitted[v][lane]);
    if constexpr (form != PairForm::sum) {
      total.mass[r] += static_cast<double>(part.mass[v][lane]);
      total.curve[r] += static_cast<double>(part.curve[v][lane]);
    }
  }
}

/// Move the top to where it is with this panel; the mass so far shrinks accordingly. Where nothing was admitted yet the
/// part's top is 0, so that no Inf - Inf arises.
template <class W>
void raise_top(Part<W>& part, Total<W>& total) {
  for (std::size_t v = 0; v < kVectors; ++v) {
    const Vec<W> before = load(total.top + v * lanes<W>), top = maximum(before, part.top[v]);
    const Vec<W> shift = select(top == fill<Vec<W>>(-kInf<W>), Vec<W>{}, top);
    const Vec<W> shrink = exp_negative(shift - before);
    store(total.top + v * lanes<W>, top);
    part.top[v] = shift;
    for (std::size_t lane = 0; lane < lanes<W>; ++lane) {
      total.mass[v * lanes<W> + lane] *= static_cast<double>(shrink[lane]);
      total.curve[v * lanes<W> + lane] *= static_cast<double>(shrink[lane]);
    }
  }
}

/// Both signs of a panel.
template <PairForm form, bool bounded, class W>
void add_panel(const Plan<W>& p, std::int64_t sliver, std::int64_t first, std::int64_t count, const W* block,
               State<W>& state) {
  const Lanes<W> own(p.rows.x, sliver, p.problem.self);
  const std::int64_t row = p.rows.x.first(sliver);
  const Cut<W> cut = cut_panel(p.rows.x, sliver, first, count);
  const Span before{first, 0, cut.same_begin}, mixed{first, cut.same_begin, cut.same_end},
      after{first, cut.same_end, count};
  Part<W> positive{}, negative{};
  for (std::size_t v = 0; v < kVectors; ++v) {
    positive.top[v] = negative.top[v] = fill<Vec<W>>(-kInf<W>);
  }
  survey<false, false, bounded, form>(p, own, row, block, before, negative);
  survey<false, true, bounded, form>(p, own, row, block, mixed, negative);
  survey<false, false, bounded, form>(p, own, row, block, after, negative);
  survey<true, true, bounded, form>(p, own, row, block, mixed, positive);
  if constexpr (form != PairForm::sum) {
    raise_top(positive, state.positive);
    raise_top(negative, state.negative);
    weigh<false, false, bounded, form>(p, own, row, block, before, negative);
    weigh<false, true, bounded, form>(p, own, row, block, mixed, negative);
    weigh<false, false, bounded, form>(p, own, row, block, after, negative);
    weigh<true, true, bounded, form>(p, own, row, block, mixed, positive);
  }
  add_part<form>(positive, state.positive);
  add_part<form>(negative, state.negative);
}

/// top + log(mass); -Inf where there was nothing to sum.
template <class W>
double log_sum_exp(const Total<W>& total, std::int64_t r) {
  const double top = static_cast<double>(total.top[r]);
  if (total.mass[r] == 0) {
    return -__builtin_inf();
  }
  return (top == -__builtin_inf() ? 0 : top) + ::log(total.mass[r]);  // of NaN alone there is no top
}

/// The mean of the curve with weights e^curve; 0 where there was nothing to sum.
template <class W>
double mean_curve(const Total<W>& total, std::int64_t r) {
  return total.mass[r] == 0 ? 0 : total.curve[r] / total.mass[r];
}

/// The sums of log(1 + exp(L - curve)) over admitted positives, their slopes by L, and those times the curve.
template <bool bounded, class W>
FASTMINE_NOINLINE void add_nce(const Plan<W>& p, std::int64_t sliver, std::int64_t first, std::int64_t count,
                               const W* block, State<W>& state) {
  const Lanes<W> own(p.rows.x, sliver, p.problem.self);
  const Cut<W> cut = cut_panel(p.rows.x, sliver, first, count);
  const Curve<W> curve(p.problem.positive);
  Vec<W> level[kVectors] = {}, sum[kVectors] = {}, slope[kVectors] = {}, total[kVectors] = {};
  for (std::int64_t r = 0; r < p.rows.x.height(sliver); ++r) {
    const std::int64_t i = p.rows.x.order[p.rows.x.first(sliver) + r];
    const double known = p.problem.level ? p.problem.level[i] : log_sum_exp(state.negative, r);
    level[static_cast<std::size_t>(r) / lanes<W>][static_cast<std::size_t>(r) % lanes<W>] = static_cast<W>(known);
  }
  each_pair<true, true, bounded>(p, own, p.rows.x.first(sliver), block, Span{first, cut.same_begin, cut.same_end},
                                 [&](std::size_t v, Vec<W> x, Vec<Position<W>>, Vec<Position<W>> admitted) {
                                   const Vec<W> t = curve_at<false>(curve, x), excess = level[v] - t;
                                   const Vec<W> e = exp_negative(absolute(excess));
                                   const Vec<W> above = select(excess < 0, Vec<W>{}, excess);  // NaN stays NaN
                                   sum[v] += select(admitted, above + log1p_unit(e), Vec<W>{});
                                   const Vec<W> share = select(excess < 0, e, fill<Vec<W>>(1)) / (1 + e);
                                   slope[v] += select(admitted, share, Vec<W>{});
                                   total[v] += select(admitted, share * t, Vec<W>{});
                                 });
  for (std::size_t r = 0; r < kSliver<W>; ++r) {
    state.nce[r] += static_cast<double>(sum[r / lanes<W>][r % lanes<W>]);
    state.nce_slope[r] += static_cast<double>(slope[r / lanes<W>][r % lanes<W>]);
    state.nce_curve[r] += static_cast<double>(total[r / lanes<W>][r % lanes<W>]);
  }
}

/// The sums of the anchors of a sliver, to their places, and their mean distances for the evidence.
template <PairForm form, bool bounded, class W>
void write_sums(const Plan<W>& p, std::int64_t sliver, const State<W>& state) {
  const LabelledRows<W>& x = p.rows.x;
  for (std::int64_t r = 0; r < x.height(sliver); ++r) {
    const std::int64_t position = x.first(sliver) + r, i = x.order[position];
    const std::int64_t same = static_cast<std::int64_t>(x.end[position] - x.begin[position]);
    const auto n_p = static_cast<double>(same - (p.problem.self ? 1 : 0));
    const auto n_n = static_cast<double>(p.rows.y.count() - same);
    const auto put = [&](PairSum sum, double value) { row_of(p.problem, sum)[i] = value; };
    put(PairSum::positives, n_p);
    put(PairSum::negatives, n_n);
    put(PairSum::admitted_positives, bounded ? state.positive.admitted[r] : n_p);
    put(PairSum::admitted_negatives, bounded ? state.negative.admitted[r] : n_n);
    put(PairSum::positive_distance, state.positive.distance[r]);
    put(PairSum::negative_distance, state.negative.distance[r]);
    if constexpr (form != PairForm::sum) {
      put(PairSum::positive_lse, log_sum_exp(state.positive, r));
      put(PairSum::negative_lse, log_sum_exp(state.negative, r));
      put(PairSum::nce, state.nce[r]);
      put(PairSum::nce_slope, state.nce_slope[r]);
      put(PairSum::positive_curve, mean_curve(state.positive, r));
      put(PairSum::negative_curve, mean_curve(state.negative, r));
      put(PairSum::nce_curve, state.nce_curve[r]);
    }
    const Total<W>* totals[] = {&state.positive, &state.negative};
    const double counts[] = {n_p, n_n};
    for (int side = 0; side < 2; ++side) {
      p.exists[side][i] = counts[side] > 0;
      const double sum = bounded ? totals[side]->every_distance[r] : totals[side]->distance[r];
      p.means[side][i] = counts[side] > 0 ? sum / counts[side] : 0;
    }
  }
}

template <PairForm form, bool bounded, class W>
void sum_task(const Plan<W>& p, std::int64_t task) {
  const LabelledRows<W>&x = p.rows.x, &y = p.rows.y;
  const std::int64_t step = together(x.slivers()), begin = task * step, end = smaller(x.slivers(), begin + step);
  alignas(64) W memory[static_cast<std::size_t>(kPanelRows<W>) * kSliver<W>];
  State<W> states[kMostTogether];
  for (State<W>& state : states) {
    for (std::size_t r = 0; r < kSliver<W>; ++r) {
      state.positive.top[r] = state.negative.top[r] = -kInf<W>;
    }
  }
  if (!p.problem.level) {
    walk_together(x, begin, end, y, memory,
                  [&](std::int64_t sliver, std::int64_t first, std::int64_t count, const W* block) {
                    add_panel<form, bounded>(p, sliver, first, count, block, states[sliver - begin]);
                  });
  }
  for (std::int64_t sliver = begin; sliver < end; ++sliver) {
    State<W>& state = states[sliver - begin];
    if (p.problem.form == PairForm::nce) {
      const auto add = [&](std::int64_t first, std::int64_t count, const W* block) {
        add_nce<bounded>(p, sliver, first, count, block, state);
      };
      if (!p.problem.level && step == 1 && y.count() <= panel_rows(y)) {  // the block still holds them all
        add(0, y.count(), memory);
      } else {
        walk(x, sliver, y, x.same_begin(sliver), x.same_end(sliver), memory, add);
      }
    }
    write_sums<form, bounded>(p, sliver, state);
  }
}

template <PairForm form, class W>
void sum_task(const Plan<W>& p, std::int64_t task) {
  const bool bounded = p.problem.positive_bound != nullptr || p.problem.negative_bound != nullptr;
  bounded ? sum_task<form, true>(p, task) : sum_task<form, false>(p, task);
}

// --- stages ----------------------------------------------------------------------------------------------------------

std::int64_t once(const void*) { return 1; }

/// Group, and say of every anchor that it has no pairs.
template <class W>
void group_all(void* plan, std::int64_t, std::int64_t) {
  Plan<W>& p = as_plan<W>(plan);
  group(p.rows);
  p.bounds = {p.bound_memory[0], p.bound_memory[1], static_cast<W>(p.problem.metric == Metric::dot ? -1 : 1)};
  order_bounds(p.rows.x, p.problem.positive_bound, p.bounds.sign, -kInf<W>, p.bound_memory[0]);
  order_bounds(p.rows.x, p.problem.negative_bound, p.bounds.sign, kInf<W>, p.bound_memory[1]);
  const double nothing = p.problem.form == PairForm::sum ? 0 : -__builtin_inf();
  for (int row = 0; row < static_cast<int>(PairSum::count); ++row) {
    const auto which = static_cast<PairSum>(row);
    const bool lse = which == PairSum::positive_lse || which == PairSum::negative_lse;
    for (std::int64_t i = 0; i < p.problem.x.n; ++i) {
      row_of(p.problem, which)[i] = lse ? nothing : 0;
    }
  }
  for (int side = 0; side < 2; ++side) {
    for (std::int64_t i = 0; i < p.problem.x.n; ++i) {
      p.means[side][i] = 0;
      p.exists[side][i] = false;
    }
  }
}

template <class W>
std::int64_t sum_count(const void* plan) {
  const std::int64_t slivers = as_plan<W>(plan).rows.x.slivers();
  return divide_up(slivers, together(slivers));
}
template <class W>
std::int64_t sum_grain(const void* plan) {
  constexpr std::int64_t worthwhile = 2'000'000;  // multiply-adds
  const Plan<W>& p = as_plan<W>(plan);
  return divide_up(worthwhile, larger<std::int64_t>(1, kWidth<W> * p.rows.y.count() * p.problem.x.d));
}
template <class W>
void sum_all(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  [[maybe_unused]] const MatrixUnit unit;
  for (std::int64_t t = begin; t < end; ++t) {
    switch (p.problem.form) {
      case PairForm::sum:
        sum_task<PairForm::sum>(p, t);
        break;
      case PairForm::circle:
        sum_task<PairForm::circle>(p, t);
        break;
      default:
        sum_task<PairForm::lse>(p, t);
    }
  }
}

std::int64_t count_poisoned(const RowSet& set) {
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < set.rows.n; ++i) {
    count += takes_part(set, i) && poisoned(set, i);
  }
  return count;
}

template <class W>
void finish(void* plan, std::int64_t, std::int64_t) {
  const Plan<W>& p = as_plan<W>(plan);
  const PairSums& q = p.problem;
  BatchHard mined{};  // as far as its evidence is concerned
  mined.x = q.x;
  mined.labels = q.labels;
  mined.self = q.self;
  mined.metric = q.metric;
  mined.positive_distance = p.means[0];
  mined.negative_distance = p.means[1];
  mined.has_positive = p.exists[0];
  mined.has_negative = p.exists[1];
  mined.evidence = q.evidence;
  gather_evidence(mined, p.rows.x.set, p.rows.total, p.rows.classes, count_poisoned(p.rows.x.set),
                  count_poisoned(p.rows.y.set));
  double* extra = q.evidence + static_cast<int>(Mining::count);
  extra[0] = extra[1] = extra[2] = 0;
  for (std::int64_t i = 0; i < q.x.n; ++i) {
    if (p.exists[0][i] && p.exists[1][i]) {
      const double k_p = row_of(q, PairSum::admitted_positives)[i], k_n = row_of(q, PairSum::admitted_negatives)[i];
      extra[0] += k_p + k_n > 0;
      extra[1] += k_p;
      extra[2] += k_n;
    }
  }
}

template <class W>
constexpr Stage kStages[] = {
    kLookStage<Plan<W>>,        {&once, &once, &group_all<W>},
    kPackStage<Plan<W>>,        {&sum_count<W>, &sum_grain<W>, &sum_all<W>},
    {&once, &once, &finish<W>},
};

}  // namespace
}  // namespace pairs

extern const PairSumsKernel pair_sums_float32;
extern const PairSumsKernel pair_sums_float64;
const PairSumsKernel pair_sums_float32 = staged<PairSums, pairs::lay_out<float>>(pairs::kStages<float>);
const PairSumsKernel pair_sums_float64 = staged<PairSums, pairs::lay_out<double>>(pairs::kStages<double>);

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
