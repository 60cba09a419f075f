#include "kernels/margin_softmax_formula.h"

#include "kernels/cpu/arena.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/exact.h"
#include "kernels/cpu/grain.h"
#include "kernels/cpu/math.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {
namespace {

struct Plan {
  MarginSoftmax problem;
  margin::Margin margin;
  double* value;    // [n], weighted
  double* divisor;  // [1]: of the mean
};

Plan lay_out(const MarginSoftmax& problem, Arena& arena) {
  return {problem, margin::margin_of(problem), arena.take<double>(problem.n), arena.take<double>(1)};
}

const Plan& as_plan(const void* plan) { return *static_cast<const Plan*>(plan); }

std::int64_t once(const void*) { return 1; }

template <class W>
void add_weights(void* plan, std::int64_t, std::int64_t) {
  const Plan& p = as_plan(plan);
  double whole = 0;
  for (std::int64_t i = 0; i < p.problem.n; ++i) {
    whole += margin::weight_of<W>(p.problem, i);
  }
  *p.divisor = margin::divisor(p.problem, whole);
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

/// `row` becomes the exponentials of the logits about the largest, without the own one.
template <class W>
FASTMINE_INLINE margin::Others exponentials(const W* logits, W* row, std::int64_t classes, std::int64_t own) {
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

/// The squared length of what is left of row i beside the vector of its class.
template <class W>
FASTMINE_INLINE double squared_rest(const MarginSoftmax& q, std::int64_t i, double cosine) {
  const W* x = static_cast<const W*>(q.unit) + i * q.d;
  const W* own = static_cast<const W*>(q.unit) + margin::own_vector(q, i) * q.d;
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
  return squared + sum_lanes(squares);
}

template <class W>
void one_row(const Plan& p, std::int64_t i) {
  const MarginSoftmax& q = p.problem;
  W* row = static_cast<W*>(q.slopes) + i * q.classes;
  W& to_own = static_cast<W*>(q.cosine)[i];
  W& nearest_other = static_cast<W*>(q.nearest_other)[i];
  if (!margin::counts(q, i)) {
    const double nothing = margin::takes_part(q, i) ? __builtin_nan("") : 0;
    for (std::int64_t j = 0; j < q.classes; ++j) {
      row[j] = static_cast<W>(nothing);
    }
    p.value[i] = nothing;
    to_own = nearest_other = 0;
    q.active[i] = false;
    return;
  }
  const W* logits = static_cast<const W*>(q.logits) + i * q.classes;
  const std::int64_t own = q.labels[i];
  const margin::Others others = exponentials(logits, row, q.classes, own);
  const double cosine = static_cast<double>(logits[own]) / q.scale;
  const double squared = margin::turns(p.margin, cosine) ? squared_rest<W>(q, i, cosine) : 0;
  const margin::Turned turned = margin::turned<W>(p.margin, cosine, squared);
  const margin::Row found = margin::row_of<W>(q, turned, others, margin::weight_of<W>(q, i) / *p.divisor);
  const Vec<W> share = fill<Vec<W>>(static_cast<W>(found.share));
  each_register(row, row, q.classes, [&](Vec<W> v) { return v * share; });
  p.value[i] = found.value;
  row[own] = static_cast<W>(found.own);
  to_own = static_cast<W>(cosine);
  nearest_other = static_cast<W>(others.largest / q.scale);
  q.active[i] = found.active;
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
