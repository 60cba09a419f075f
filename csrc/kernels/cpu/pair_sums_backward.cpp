#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/pair_curve.h"
#include "kernels/pair_sums.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {
namespace pairs {
namespace {

/// What an anchor's pairs need of it, per position: by how much the loss changes with its sums. Where there was nothing
/// to sum the level is Inf, so that exp(curve - level) is 0.
template <class W>
struct Anchors {
  W* by_positive;  // with the sum of distances
  W* by_negative;
  W* pull;            // with the log-sum-exp of the positives; times the scale of the curve
  W* push;            // of the negatives, through nce too; times the scale of the curve
  W* nce;             // times the scale of the curve
  W* positive_level;  // the log-sum-exps
  W* negative_level;
  Bounds<W> bounds;
  W* bound_memory[2];
};

template <class W>
struct Plan {
  PairSumsBackward problem;
  RowBlocks<W> rows;
  Anchors<W> anchors;
  Columns<W> x_columns, y_columns;  // by position; where products are by digits, none
  double* x_sums;
  double* y_sums;
};

template <class W>
Plan<W> lay_out(const PairSumsBackward& problem, Arena& arena) {
  Plan<W> p{};
  p.problem = scaled(problem);
  const bool digits = by_digits<W>(problem);
  p.rows = lay_out_row_blocks<W>(arena, problem, digits ? Multiply::digits_and_weights : Multiply::floats);
  const std::int64_t padded = slivers_of<W>(problem.x.n) * kWidth<W>;
  Anchors<W>& a = p.anchors;
  for (W** values : {&a.by_positive, &a.by_negative, &a.pull, &a.push, &a.nce, &a.positive_level, &a.negative_level,
                     &a.bound_memory[0], &a.bound_memory[1]}) {
    *values = arena.take<W>(padded);
  }
  p.x_sums = lay_out_sums<W>(arena, problem.x);
  p.y_sums = problem.self ? p.x_sums : lay_out_sums<W>(arena, problem.y);
  if (!digits) {
    p.x_columns = lay_out_columns<W>(arena, problem.x);
    p.y_columns = problem.self ? p.x_columns : lay_out_columns<W>(arena, problem.y);
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

// --- weights ---------------------------------------------------------------------------------------------------------

/// Who of a pair is an anchor.
enum class Ends { own, across, both };

/// A part of a panel: c in [begin, end), at positions first + c across.
struct Span {
  std::int64_t first, begin, end;
};

/// The anchors at one place: a vector of them, or one of them in every lane.
template <class W, bool lanewise>
struct At {
  const Anchors<W>& anchors;
  std::int64_t place;

  FASTMINE_INLINE Vec<W> operator()(const W* values) const {
    return lanewise ? load(values + place) : broadcast(values[place]);
  }
};

/// How the loss changes with the distances x of positive pairs, whose curve is t and whose curve's slope is `weight`
/// (1 but for the circle) times the scale that the anchors' values hold already.
template <PairForm form, bool bounded, class W, bool lanewise>
FASTMINE_INLINE Vec<W> by_positive(const At<W, lanewise>& at, Vec<W> x, Vec<W> t, Vec<W> weight, bool nce) {
  const Anchors<W>& a = at.anchors;
  Vec<W> slope = at(a.by_positive);
  if constexpr (form != PairForm::sum) {
    Vec<W> curved = at(a.pull) * exp_negative(at(a.positive_level) - t);
    if (nce) {
      const Vec<W> excess = at(a.negative_level) - t, e = exp_negative(absolute(excess));
      curved -= at(a.nce) * (select(excess < 0, e, fill<Vec<W>>(1)) / (1 + e));
    }
    slope += form == PairForm::circle ? curved * weight : curved;
  }
  if constexpr (bounded) {
    return select(a.bounds.admits_positive(x, at(a.bounds.positive)), slope, Vec<W>{});
  }
  return slope;
}

/// The same for negative pairs.
template <PairForm form, bool bounded, class W, bool lanewise>
FASTMINE_INLINE Vec<W> by_negative(const At<W, lanewise>& at, Vec<W> x, Vec<W> t, Vec<W> weight) {
  const Anchors<W>& a = at.anchors;
  Vec<W> slope = at(a.by_negative);
  if constexpr (form != PairForm::sum) {
    const Vec<W> curved = at(a.push) * exp_negative(at(a.negative_level) - t);
    slope += form == PairForm::circle ? curved * weight : curved;
  }
  if constexpr (bounded) {
    return select(a.bounds.admits_negative(x, at(a.bounds.negative)), slope, Vec<W>{});
  }
  return slope;
}

/// f of those of the two ends that are anchors, added.
template <Ends ends, class H, class A, class F>
FASTMINE_INLINE auto over_anchors(const H& here, const A& across, F f) {
  if constexpr (ends == Ends::own) {
    return f(here);
  } else if constexpr (ends == Ends::across) {
    return f(across);
  } else {
    return f(here) + f(across);
  }
}

/// One side of the problem: its rows, those across, and where the gradient goes.
template <class W>
struct Side {
  const LabelledRows<W>& own;
  const LabelledRows<W>& across;
  const Columns<W>& columns;  // of the rows across
  double* sums;
  void* out;

  double* sums_of(std::int64_t sliver) const {
    return sums + sliver * slivers_of<W>(own.set.rows.d) * kWidth<W> * kWidth<W>;
  }
};

/// From derivatives by distances to derivatives by half the squared distances (by the similarity, for dot).
template <class W>
FASTMINE_INLINE Vec<W> weight_of(Vec<W> derivative, Vec<W> distance, Metric metric) {
  switch (metric) {
    case Metric::euclidean:
      return select(distance == 0, Vec<W>{}, derivative / distance);
    case Metric::sqeuclidean:
      return 2 * derivative;
    default:
      return derivative;
  }
}

/// Euclidean weights grow without limit where rows are close: there, below 1/16 of |x|^2 + |y|^2, each pair's
/// difference is taken directly, and what is left for the product is 0.
template <class W>
FASTMINE_NOINLINE Vec<W> pull_close(const Side<W>& side, std::int64_t row, std::int64_t rows, std::int64_t across,
                                    Vec<W> distance, Vec<W> weight, double* sums) {
  const Vec<W> limit = (load(side.own.packed.c + row) + side.across.packed.c[across]) * kClose<W>;
  const auto close = distance * distance < limit;
  for (std::int64_t lane = 0; any(close) && lane < smaller(rows, static_cast<std::int64_t>(lanes<W>)); ++lane) {
    const auto w = static_cast<double>(weight[static_cast<std::size_t>(lane)]);
    if (close[static_cast<std::size_t>(lane)] != 0 && w != 0) {
      pull<W>(side.own.set, side.own.order[row + lane], side.across.set, side.across.order[across], w,
              sums + lane * kWidth<W>);
    }
  }
  return select(close, Vec<W>{}, weight);
}

/// The distances of a span become weights, in place.
template <PairForm form, Ends ends, bool mixed, bool bounded, class W>
FASTMINE_NOINLINE void weigh(const Plan<W>& p, const Side<W>& side, const Lanes<W>& own, std::int64_t sliver, Span span,
                             W* block) {
  constexpr bool circle = form == PairForm::circle;
  const Curve<W> curve_p(p.problem.positive), curve_n(p.problem.negative);
  const Metric metric = p.problem.metric;
  const bool nce = p.problem.form == PairForm::nce;
  for (std::int64_t c = span.begin; c < span.end; ++c) {
    const At<W, false> across{p.anchors, span.first + c};
    for (std::size_t v = 0; v < kVectors; ++v) {
      const auto lane = static_cast<std::int64_t>(v * lanes<W>);
      const At<W, true> here{p.anchors, side.own.first(sliver) + lane};
      W* place = block + c * kWidth<W> + lane;
      const Vec<W> x = load(place);
      const Vec<W> t_n = curve_at<circle>(curve_n, x), weight_n = weight_at(curve_n, x);
      Vec<W> derivative = over_anchors<ends>(
          here, across, [&](const auto& at) { return by_negative<form, bounded>(at, x, t_n, weight_n); });
      if constexpr (mixed) {
        const Vec<W> t_p = curve_at<circle>(curve_p, x), weight_p = weight_at(curve_p, x);
        const Vec<W> positive = over_anchors<ends>(
            here, across, [&](const auto& at) { return by_positive<form, bounded>(at, x, t_p, weight_p, nce); });
        const auto position = static_cast<Position<W>>(span.first + c);
        const Vec<W> of_same = select(own.other_than(v, position), positive, Vec<W>{});
        derivative = select(own.same(v, position), of_same, derivative);
      }
      Vec<W> weight = weight_of<W>(derivative, x, metric);
      if (metric == Metric::euclidean) {
        weight = pull_close(side, here.place, side.own.height(sliver) - lane, across.place, x, weight,
                            side.sums_of(sliver) + lane * kWidth<W>);
      }
      store(place, weight);
    }
  }
}

// --- gather ----------------------------------------------------------------------------------------------------------

/// Weights times the rows across, to the sums of a sliver.
template <class W>
void multiply(const Side<W>& side, Metric metric, std::int64_t sliver, std::int64_t first, std::int64_t count,
              const W* weights) {
  const std::int64_t d = side.own.set.rows.d, rows = side.own.height(sliver);
  if constexpr (sizeof(W) == 4) {
    if (side.across.digits.in_use()) {
      return add_products(side.across.digits, metric, d, weights, rows, first, count, side.sums_of(sliver));
    }
  }
  add_products(side.columns, metric, d, weights, rows, first, count, side.sums_of(sliver));
}

template <PairForm form, Ends ends, bool bounded, class W>
void gather(const Plan<W>& p, const Side<W>& side, std::int64_t task) {
  const Metric metric = p.problem.metric;
  const std::int64_t slivers = side.own.slivers(), step = together(slivers);
  const std::int64_t begin = task * step, end = smaller(slivers, begin + step);
  alignas(64) W memory[static_cast<std::size_t>(kPanelRows<W>) * kSliver<W>];
  double total[kMostTogether][kSliver<W>] = {};
  for (double* sum = side.sums_of(begin); sum < side.sums_of(end); ++sum) {
    *sum = 0;
  }
  walk_together(side.own, begin, end, side.across, memory,
                [&](std::int64_t sliver, std::int64_t first, std::int64_t count, W* block) {
                  const Lanes<W> own(side.own, sliver, p.problem.self);
                  const Cut<W> cut = cut_panel(side.own, sliver, first, count);
                  weigh<form, ends, false, bounded>(p, side, own, sliver, {first, 0, cut.same_begin}, block);
                  weigh<form, ends, true, bounded>(p, side, own, sliver, {first, cut.same_begin, cut.same_end}, block);
                  weigh<form, ends, false, bounded>(p, side, own, sliver, {first, cut.same_end, count}, block);
                  add_weights(block, count, total[sliver - begin]);
                  multiply(side, metric, sliver, first, count, block);
                });
  for (std::int64_t sliver = begin; sliver < end; ++sliver) {
    for (std::int64_t r = 0; r < side.own.height(sliver); ++r) {
      write_gradient<W>(side.own.set, p.rows.centre, side.own.order[side.own.first(sliver) + r],
                        total[sliver - begin][r], side.sums_of(sliver) + r * kWidth<W>, side.out);
    }
  }
}

template <class W>
std::int64_t tasks_of(const LabelledRows<W>& own) {
  return divide_up(own.slivers(), together(own.slivers()));
}

template <PairForm form, bool bounded, class W>
void gather_task(const Plan<W>& p, std::int64_t task) {
  const std::int64_t own = tasks_of(p.rows.x);
  const Side<W> of_x{p.rows.x, p.rows.y, p.y_columns, p.x_sums, p.problem.grad_x};
  const Side<W> of_y{p.rows.y, p.rows.x, p.x_columns, p.y_sums, p.problem.grad_y};
  if (p.problem.self) {
    gather<form, Ends::both, bounded>(p, of_x, task);
  } else if (task < own) {
    gather<form, Ends::own, bounded>(p, of_x, task);
  } else {
    gather<form, Ends::across, bounded>(p, of_y, task - own);
  }
}

template <PairForm form, class W>
void gather_task(const Plan<W>& p, std::int64_t task) {
  const bool bounded = p.problem.positive_bound != nullptr || p.problem.negative_bound != nullptr;
  bounded ? gather_task<form, true>(p, task) : gather_task<form, false>(p, task);
}

// --- stages ----------------------------------------------------------------------------------------------------------

std::int64_t once(const void*) { return 1; }
std::int64_t row_grain(const void*) { return 64; }

/// What the loss's slopes by the sums come to for each anchor, by position.
template <class W>
void order_anchors(Plan<W>& p) {
  const PairSumsBackward& q = p.problem;
  Anchors<W>& a = p.anchors;
  const LabelledRows<W>& x = p.rows.x;
  const bool curved = q.form != PairForm::sum;
  const auto at = [n = q.x.n](const double* rows, PairSum row, std::int64_t i) {
    return rows[static_cast<std::int64_t>(row) * n + i];
  };
  for (std::int64_t k = 0; k < x.slivers() * kWidth<W>; ++k) {
    const bool padding = k >= x.count();
    const std::int64_t i = padding ? 0 : x.order[k];
    const auto grad = [&](PairSum row) { return padding ? 0 : at(q.grad, row, i); };
    const auto level = [&](PairSum row) {
      const double value = padding ? 0 : at(q.sums, row, i);
      return value == -__builtin_inf() ? kInf<W> : static_cast<W>(value);
    };
    const double through_nce =
        q.form == PairForm::nce && !padding ? grad(PairSum::nce) * at(q.sums, PairSum::nce_slope, i) : 0;
    a.by_positive[k] = static_cast<W>(grad(PairSum::positive_distance));
    a.by_negative[k] = static_cast<W>(grad(PairSum::negative_distance));
    a.pull[k] = static_cast<W>(curved ? grad(PairSum::positive_lse) * q.positive.scale : 0);
    a.push[k] = static_cast<W>(curved ? (grad(PairSum::negative_lse) + through_nce) * q.negative.scale : 0);
    const bool no_negatives = at(q.sums, PairSum::negative_lse, i) == -__builtin_inf();
    a.nce[k] = static_cast<W>(q.form == PairForm::nce && !no_negatives ? grad(PairSum::nce) * q.positive.scale : 0);
    a.positive_level[k] = level(PairSum::positive_lse);
    a.negative_level[k] = level(PairSum::negative_lse);
  }
}

/// Group, order what is known of the anchors, and leave rows that take no part without a gradient.
template <class W>
void group_all(void* plan, std::int64_t, std::int64_t) {
  Plan<W>& p = as_plan<W>(plan);
  const PairSumsBackward& q = p.problem;
  group(p.rows);
  order_anchors(p);
  Anchors<W>& a = p.anchors;
  a.bounds = {a.bound_memory[0], a.bound_memory[1], static_cast<W>(q.metric == Metric::dot ? -1 : 1)};
  order_bounds(p.rows.x, q.positive_bound, a.bounds.sign, -kInf<W>, a.bound_memory[0]);
  order_bounds(p.rows.x, q.negative_bound, a.bounds.sign, kInf<W>, a.bound_memory[1]);
  const auto clear = [](const RowSet& set, void* out) {
    const std::int64_t bytes = set.rows.d * static_cast<std::int64_t>(size_of(set.rows.dtype));
    for (std::int64_t i = 0; i < set.rows.n; ++i) {
      if ((set.kind[i] & kSkipped) != 0) {
        __builtin_memset(static_cast<char*>(out) + i * bytes, 0, static_cast<std::size_t>(bytes));
      }
    }
  };
  clear(p.rows.x.set, q.grad_x);
  if (!q.self) {
    clear(p.rows.y.set, q.grad_y);
  }
}

template <class W>
std::int64_t column_count(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  return p.rows.x.digits.in_use() ? 0 : p.rows.x.count() + (p.problem.self ? 0 : p.rows.y.count());
}
template <class W>
void pack_columns(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  const LabelledRows<W>&x = p.rows.x, &y = p.rows.y;
  for (std::int64_t t = begin; t < end; ++t) {
    const std::int64_t other = t - x.count();
    other < 0 ? pack_column(x.set, p.rows.centre, x.order[t], t, p.x_columns)
              : pack_column(y.set, p.rows.centre, y.order[other], other, p.y_columns);
  }
}

template <class W>
std::int64_t gather_count(const void* plan) {
  const RowBlocks<W>& rows = as_plan<W>(plan).rows;
  return tasks_of(rows.x) + (rows.self ? 0 : tasks_of(rows.y));
}
template <class W>
std::int64_t gather_grain(const void* plan) {
  constexpr std::int64_t worthwhile = 1'000'000;  // multiply-adds, of each of the two products
  const Plan<W>& p = as_plan<W>(plan);
  const std::int64_t terms = smaller(p.rows.x.count(), p.rows.y.count()) * p.problem.x.d;
  return divide_up(worthwhile, larger<std::int64_t>(1, terms * kWidth<W>));
}
template <class W>
void gather_all(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  [[maybe_unused]] const MatrixUnit unit;
  for (std::int64_t t = begin; t < end; ++t) {
    switch (p.problem.form) {
      case PairForm::sum:
        gather_task<PairForm::sum>(p, t);
        break;
      case PairForm::circle:
        gather_task<PairForm::circle>(p, t);
        break;
      default:
        gather_task<PairForm::lse>(p, t);
    }
  }
}

template <class W>
constexpr Stage kStages[] = {
    kLookStage<Plan<W>>,
    {&once, &once, &group_all<W>},
    kPackStage<Plan<W>>,
    {&column_count<W>, &row_grain, &pack_columns<W>},
    {&gather_count<W>, &gather_grain<W>, &gather_all<W>},
};

}  // namespace
}  // namespace pairs

extern const PairSumsBackwardKernel pair_sums_backward_float32;
extern const PairSumsBackwardKernel pair_sums_backward_float64;
const PairSumsBackwardKernel pair_sums_backward_float32 =
    staged<PairSumsBackward, pairs::lay_out<float>>(pairs::kStages<float>);
const PairSumsBackwardKernel pair_sums_backward_float64 =
    staged<PairSumsBackward, pairs::lay_out<double>>(pairs::kStages<double>);

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
