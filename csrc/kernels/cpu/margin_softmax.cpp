#include "kernels/margin_softmax.h"

#include "kernels/cpu/arena.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/exact.h"
#include "kernels/cpu/grain.h"
#include "kernels/cpu/math.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {
namespace {

struct Plan {
  MarginSoftmax problem;
  double* value;  // [n], weighted
  double* whole;  // [1]: what the mean is divided by
};

Plan lay_out(const MarginSoftmax& problem, Arena& arena) {
  return {problem, arena.take<double>(problem.n), arena.take<double>(1)};
}

const Plan& as_plan(const void* plan) { return *static_cast<const Plan*>(plan); }

std::int64_t once(const void*) { return 1; }

bool takes_part(const MarginSoftmax& q, std::int64_t i) { return q.valid == nullptr || q.valid[i]; }

bool in_range(const MarginSoftmax& q, std::int64_t i) { return q.labels[i] >= 0 && q.labels[i] < q.classes; }

/// What a row counts for in the sum of all.
template <class W>
double weight_of(const MarginSoftmax& q, std::int64_t i) {
  if (!takes_part(q, i) || !in_range(q, i)) {
    return 0;
  }
  return q.weight == nullptr ? 1 : static_cast<double>(static_cast<const W*>(q.weight)[i]);
}

template <class W>
void add_weights(void* plan, std::int64_t, std::int64_t) {
  const Plan& p = as_plan(plan);
  double whole = 0;
  for (std::int64_t i = 0; i < p.problem.n; ++i) {
    whole += weight_of<W>(p.problem, i);
  }
  *p.whole = p.problem.reduction != Reduction::mean || whole == 0 ? 1 : whole;
}

/// f(place, lanes there) over a row of `count` numbers, a register at a time; -Inf beyond the end, where what f returns
/// is not kept.
template <class W, class F>
FASTMINE_INLINE void each_register(const W* from, W* to, std::int64_t count, F f) {
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<W>);
  std::int64_t j = 0;
  for (; j + step <= count; j += step) {
    store(to + j, f(load(from + j)));
  }
  if (j < count) {
    Vec<W> rest = fill<Vec<W>>(static_cast<W>(-__builtin_inf()));
    const std::size_t bytes = static_cast<std::size_t>(count - j) * sizeof(W);
    __builtin_memcpy(&rest, from + j, bytes);
    rest = f(rest);
    __builtin_memcpy(to + j, &rest, bytes);
  }
}

/// The exponentials of `row`, of which own is left out, about the largest, and their sum; NaN if any is.
template <class W>
struct Shares {
  double largest, sum;
};

template <class W>
FASTMINE_INLINE Shares<W> exponentials(const W* logits, W* row, std::int64_t classes, std::int64_t own) {
  constexpr std::int64_t kRun = 1024;  // numbers that are added in their own type
  Vec<W> high = fill<Vec<W>>(static_cast<W>(-__builtin_inf()));
  each_register(logits, row, own, [&](Vec<W> l) { return high = maximum(l, high), l; });
  each_register(logits + own + 1, row + own + 1, classes - own - 1,
                [&](Vec<W> l) { return high = maximum(l, high), l; });
  row[own] = static_cast<W>(-__builtin_inf());
  const W largest = max_lanes(high);
  double sum = 0;
  for (std::int64_t begin = 0; begin < classes; begin += kRun) {
    Vec<W> part{};
    each_register(row + begin, row + begin, smaller(kRun, classes - begin), [&](Vec<W> l) {
      const Vec<W> e = exp_negative(fill<Vec<W>>(largest) - l);
      part += e;
      return e;
    });
    sum += static_cast<double>(sum_lanes(part));
  }
  return {static_cast<double>(largest), sum};
}

/// phi, and its derivative by the cosine.
struct Turned {
  double phi, slope;
};

template <class W>
FASTMINE_INLINE Turned turned(const MarginSoftmax& q, std::int64_t i, double cosine) {
  if (q.kind == MarginKind::cosine) {
    return {cosine - q.margin, 1};
  }
  const double cosine_m = __builtin_cos(q.margin), sine_m = __builtin_sin(q.margin);
  if (cosine < -cosine_m) {
    return {cosine + (cosine_m - 1), 1};
  }
  const W* x = static_cast<const W*>(q.unit) + i * q.d;
  const W* own = static_cast<const W*>(q.unit) + (q.n + (q.nearest == nullptr ? q.labels[i] : q.nearest[i])) * q.d;
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<double>);
  Vec<double> squares{};
  double squared = 0;
  std::int64_t k = 0;
  for (; k + step <= q.d; k += step) {
    const Vec<double> apart = load_double(x + k) - cosine * load_double(own + k);
    squares += apart * apart;
  }
  for (; k < q.d; ++k) {
    const double apart = static_cast<double>(x[k]) - cosine * static_cast<double>(own[k]);
    squared += apart * apart;
  }
  constexpr double kRounding = sizeof(W) == 4 ? 0x1p-23 : 0x1p-52;
  const double sine = cosine == 0 ? 1 : __builtin_sqrt(squared + sum_lanes(squares));
  const double least = 16 * kRounding;
  return {cosine * cosine_m - sine * sine_m, cosine_m + sine_m * cosine / (sine < least ? least : sine)};
}

template <class W>
void one_row(const Plan& p, std::int64_t i) {
  const MarginSoftmax& q = p.problem;
  W* row = static_cast<W*>(q.slopes) + i * q.classes;
  W& cosine = static_cast<W*>(q.cosine)[i];
  W& nearest_other = static_cast<W*>(q.nearest_other)[i];
  if (!takes_part(q, i) || !in_range(q, i)) {
    const double nothing = takes_part(q, i) ? __builtin_nan("") : 0;
    for (std::int64_t j = 0; j < q.classes; ++j) {
      row[j] = static_cast<W>(nothing);
    }
    p.value[i] = nothing;
    cosine = nearest_other = 0;
    q.active[i] = false;
    return;
  }
  const W* logits = static_cast<const W*>(q.logits) + i * q.classes;
  const std::int64_t own = q.labels[i];
  const Shares<W> others = exponentials(logits, row, q.classes, own);
  const double to_own = static_cast<double>(logits[own]) / q.scale;
  const Turned margin = turned<W>(q, i, to_own);
  const double excess = others.largest + __builtin_log(others.sum) - q.scale * margin.phi;
  const double e = __builtin_exp(-__builtin_fabs(excess));
  const double value = (excess > 0 ? excess : 0) + __builtin_log1p(e), slope = (excess >= 0 ? 1 : e) / (1 + e);
  const double part = weight_of<W>(q, i) / *p.whole, factor = part * slope * q.scale;
  const double spoilt = excess - excess;  // 0, or NaN
  p.value[i] = part * (value + spoilt);
  const Vec<W> share = fill<Vec<W>>(static_cast<W>(factor / others.sum + spoilt));
  each_register(row, row, q.classes, [&](Vec<W> v) { return v * share; });
  row[own] = static_cast<W>(-factor * margin.slope);
  cosine = static_cast<W>(to_own);
  nearest_other = static_cast<W>(others.largest / q.scale);
  q.active[i] = static_cast<W>(value) != 0;
}

std::int64_t rows(const void* plan) { return as_plan(plan).problem.n; }

std::int64_t rows_grain(const void* plan) {
  const MarginSoftmax& q = as_plan(plan).problem;
  return reading_worth_a_thread(q.classes + q.d);
}

template <class W>
void look(void* plan, std::int64_t begin, std::int64_t end) {
  for (std::int64_t i = begin; i < end; ++i) {
    one_row<W>(as_plan(plan), i);
  }
}

template <class W>
void finish(void* plan, std::int64_t, std::int64_t) {
  const Plan& p = as_plan(plan);
  W* loss = static_cast<W*>(p.problem.loss);
  double sum = 0;
  for (std::int64_t i = 0; i < p.problem.n; ++i) {
    sum += p.value[i];
    if (p.problem.reduction == Reduction::none) {
      loss[i] = static_cast<W>(p.value[i]);
    }
  }
  if (p.problem.reduction != Reduction::none) {
    *loss = static_cast<W>(sum);
  }
}

template <class W>
constexpr Stage kStages[] = {
    {&once, &once, &add_weights<W>},
    {&rows, &rows_grain, &look<W>},
    {&once, &once, &finish<W>},
};

}  // namespace

extern const MarginSoftmaxKernel margin_softmax_float32;
extern const MarginSoftmaxKernel margin_softmax_float64;
const MarginSoftmaxKernel margin_softmax_float32 = staged<MarginSoftmax, lay_out>(kStages<float>);
const MarginSoftmaxKernel margin_softmax_float64 = staged<MarginSoftmax, lay_out>(kStages<double>);

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
