// Sums over all pairs, and their backward pass, of every instruction set against loops in float64.
#include "kernels/pair_sums.h"

#include <cmath>
#include <limits>

#include "check.h"
#include "elements.h"
#include "kernels/batch_hard.h"

namespace fastmine::test {
namespace {

constexpr Metric kMetrics[] = {Metric::euclidean, Metric::sqeuclidean, Metric::cosine, Metric::dot};
constexpr PairForm kForms[] = {PairForm::sum, PairForm::lse, PairForm::nce, PairForm::circle};
constexpr auto kSums = static_cast<std::size_t>(PairSum::count);

double distance(const double* x, const double* y, std::int64_t d, Metric metric) {
  double dot = 0, squared = 0, xx = 0, yy = 0;
  for (std::int64_t k = 0; k < d; ++k) {
    dot += x[k] * y[k];
    squared += (x[k] - y[k]) * (x[k] - y[k]);
    xx += x[k] * x[k];
    yy += y[k] * y[k];
  }
  switch (metric) {
    case Metric::euclidean:
      return std::sqrt(squared);
    case Metric::sqeuclidean:
      return squared;
    case Metric::cosine:
      return xx == 0 || yy == 0 ? 1 : 1 - dot / std::sqrt(xx * yy);
    case Metric::dot:
      return dot;
  }
  return 0;
}

struct Batch {
  std::int64_t n, m, d;
  DType type = DType::float32;
  std::vector<double> x, y;             // values that the type holds exactly
  std::vector<std::byte> x_row, y_row;  // the same, of that type
  std::vector<std::int64_t> labels, ref_labels;
  std::vector<unsigned char> valid, ref_valid;
  std::vector<double> positive_bound, negative_bound;
  bool self, bounded;
  Metric metric;
  PairForm form;
  PairCurve positive, negative;
  Products products;
};

double curve(const PairCurve& c, PairForm form, double v, double weight_at) {
  const double linear = c.scale * (v - c.offset);
  return form == PairForm::circle ? linear * std::max(0.0, (c.scale > 0 ? 1 : -1) * (weight_at - c.turn)) : linear;
}

/// The sums with rows at x and y; the circle's weights, and who is admitted, are those of the rows of the batch, since
/// they count as constant.
std::vector<double> expected(const Batch& b, const std::vector<double>& x, const std::vector<double>& y) {
  const std::int64_t m = b.self ? b.n : b.m;
  std::vector<double> sums(kSums * static_cast<std::size_t>(b.n));
  const auto at = [&](PairSum sum, std::int64_t i) -> double& {
    return sums[static_cast<std::size_t>(static_cast<std::int64_t>(sum) * b.n + i)];
  };
  const std::vector<double>&x0 = b.x, &y0 = b.self ? b.x : b.y;
  const double sign = b.metric == Metric::dot ? -1 : 1;
  for (std::int64_t i = 0; i < b.n; ++i) {
    double mass[2] = {0, 0}, total[2] = {0, 0};
    std::vector<double> curves;
    for (std::int64_t j = 0; j < m; ++j) {
      const auto u = static_cast<std::size_t>(i), w = static_cast<std::size_t>(j);
      if (!b.valid[u] || !(b.self ? b.valid : b.ref_valid)[w] || (b.self && i == j)) {
        continue;
      }
      const bool positive = b.labels[u] == (b.self ? b.labels : b.ref_labels)[w];
      ++at(positive ? PairSum::positives : PairSum::negatives, i);
      const double v0 = distance(x0.data() + i * b.d, y0.data() + j * b.d, b.d, b.metric);
      const double v = distance(x.data() + i * b.d, y.data() + j * b.d, b.d, b.metric);
      const bool admitted =
          !b.bounded || (positive ? sign * v0 > sign * b.positive_bound[u] : sign * v0 < sign * b.negative_bound[u]);
      if (!admitted) {
        continue;
      }
      ++at(positive ? PairSum::admitted_positives : PairSum::admitted_negatives, i);
      at(positive ? PairSum::positive_distance : PairSum::negative_distance, i) += v;
      const double t = curve(positive ? b.positive : b.negative, b.form, v, v0);
      mass[positive ? 0 : 1] += std::exp(t);
      total[positive ? 0 : 1] += std::exp(t) * t;
      if (positive) {
        curves.push_back(t);
      }
    }
    if (b.form != PairForm::sum) {
      at(PairSum::positive_lse, i) = std::log(mass[0]);
      at(PairSum::negative_lse, i) = std::log(mass[1]);
      at(PairSum::positive_curve, i) = mass[0] > 0 ? total[0] / mass[0] : 0;
      at(PairSum::negative_curve, i) = mass[1] > 0 ? total[1] / mass[1] : 0;
    }
    for (std::size_t k = 0; b.form == PairForm::nce && mass[1] > 0 && k < curves.size(); ++k) {
      const double excess = std::log(mass[1]) - curves[k];
      at(PairSum::nce, i) += excess > 0 ? excess + std::log1p(std::exp(-excess)) : std::log1p(std::exp(excess));
      at(PairSum::nce_slope, i) += 1 / (1 + std::exp(-excess));
      at(PairSum::nce_curve, i) += curves[k] / (1 + std::exp(-excess));
    }
  }
  return sums;
}

/// The rows to memory, and from then on as they are there.
void store(Batch& b) {
  const auto to = [&](std::vector<double>& values, std::vector<std::byte>& row) {
    row.resize(values.size() * size_of(b.type));
    for (std::size_t k = 0; k < values.size(); ++k) {
      put(row.data() + k * size_of(b.type), b.type, values[k]);
      values[k] = get(row.data() + k * size_of(b.type), b.type);
    }
  };
  to(b.x, b.x_row);
  to(b.y, b.y_row);
}

Batch draw(Random& random, std::int64_t n, std::int64_t m, std::int64_t d, std::int64_t classes,
           DType type = DType::float32) {
  Batch b{};
  b.n = n;
  b.m = m;
  b.d = d;
  b.type = type;
  const auto fill = [&](std::int64_t count, std::vector<double>& rows, std::vector<std::int64_t>& labels,
                        std::vector<unsigned char>& valid) {
    for (std::int64_t k = 0; k < count * d; ++k) {
      rows.push_back(random() - 0.4);
    }
    for (std::int64_t k = 0; k < count; ++k) {
      labels.push_back(random.below(classes) - 1);
      valid.push_back(random() < 0.8);
    }
  };
  fill(n, b.x, b.labels, b.valid);
  fill(m, b.y, b.ref_labels, b.ref_valid);
  for (std::int64_t k = 0; k < n; ++k) {
    b.positive_bound.push_back(0.3 + 0.3 * random());
    b.negative_bound.push_back(0.5 + 0.5 * random());
  }
  store(b);
  return b;
}

template <class P>
P problem_of(const Batch& b) {
  P p{};
  p.x = {b.x_row.data(), b.type, b.n, b.d, b.d};
  p.labels = b.labels.data();
  p.valid = reinterpret_cast<const bool*>(b.valid.data());
  p.y = b.self ? p.x : Rows{b.y_row.data(), b.type, b.m, b.d, b.d};
  p.ref_labels = b.self ? p.labels : b.ref_labels.data();
  p.ref_valid = b.self ? p.valid : reinterpret_cast<const bool*>(b.ref_valid.data());
  p.positive_bound = b.bounded ? b.positive_bound.data() : nullptr;
  p.negative_bound = b.bounded ? b.negative_bound.data() : nullptr;
  p.self = b.self;
  p.metric = b.metric;
  p.form = b.form;
  p.positive = b.positive;
  p.negative = b.negative;
  p.products = b.products;
  return p;
}

bool near(double a, double b, double tolerance) { return a == b || std::abs(a - b) <= tolerance * (1 + std::abs(b)); }

/// What every instruction set is asked about one batch.
struct Truth {
  std::vector<double> sums, grad;
  double slope_x, slope_y;  // of the sums weighted by grad, along towards()
};

double towards(std::size_t k) { return std::cos(static_cast<double>(k)); }

/// By central differences.
double slope(const Batch& b, const std::vector<double>& grad, bool of_x) {
  const std::vector<double>&x = b.x, &y = b.self ? b.x : b.y;
  const auto total = [&](double step) {
    std::vector<double> moved = of_x ? x : y;
    for (std::size_t k = 0; k < moved.size(); ++k) {
      moved[k] += step * towards(k);
    }
    const std::vector<double> got = expected(b, of_x ? moved : x, b.self || !of_x ? moved : y);
    double sum = 0;
    for (std::size_t k = 0; k < grad.size(); ++k) {
      sum += grad[k] != 0 ? grad[k] * got[k] : 0;
    }
    return sum;
  };
  const double h = 1e-5;
  return (total(h) - total(-h)) / (2 * h);
}

Truth truth_of(const Batch& b, Random& random) {
  Truth truth{expected(b, b.x, b.self ? b.x : b.y), {}, 0, 0};
  for (std::size_t k = 0; k < truth.sums.size(); ++k) {
    const auto row = static_cast<PairSum>(k / static_cast<std::size_t>(b.n));
    const bool differentiable = row >= PairSum::positive_distance && row <= PairSum::nce && truth.sums[k] != -kInf;
    truth.grad.push_back(differentiable ? random() - 0.5 : 0);
  }
  if (!kOnlyRaces) {
    truth.slope_x = slope(b, truth.grad, true);
    truth.slope_y = b.self ? 0 : slope(b, truth.grad, false);
  }
  return truth;
}

void check_slope(const Guarded<std::byte>& found, DType type, double slope, const std::string& name) {
  double along = 0, size = 0;
  for (std::size_t k = 0; k < found.size() / size_of(type); ++k) {
    const double value = get(found.data() + k * size_of(type), type);
    along += value * towards(k);
    size += std::abs(value);
  }
  const double rounding = type == DType::bfloat16 || type == DType::float16 ? 4e-3 : 1e-4;
  check(std::abs(along - slope) <= rounding * (1e-2 + size), name);
}

void one(const cpu::KernelTable& table, const Batch& b, const Truth& truth, const std::string& name) {
  constexpr std::size_t evidence_size = static_cast<std::size_t>(Mining::count) + 3;
  const std::vector<double>& want = truth.sums;
  const bool wide = b.type == DType::float64;
  Guarded<double> sums(want.size()), threaded(want.size()), evidence(evidence_size), again(evidence_size);
  PairSums p = problem_of<PairSums>(b);
  p.sums = sums.data();
  p.evidence = evidence.data();
  run(*table.pair_sums[wide], p, kFirst);
  check(sums.untouched_outside() && evidence.untouched_outside(), name + ": wrote outside");
  if (!kOnlyRaces) {
    p.sums = threaded.data();
    p.evidence = again.data();
    run(*table.pair_sums[wide], p, Order::threads);
    check(sums.same_bits(threaded) && evidence.same_bits(again), name + ": threads");
  }
  bool right = true;
  for (std::size_t k = 0; k < want.size(); ++k) {
    right = right && near(sums[k], want[k], wide ? 1e-11 : 3e-5);
  }
  check(right, name + ": values");

  const std::size_t size_x = b.x_row.size(), size_y = b.self ? 0 : b.y_row.size();
  Guarded<std::byte> grad_x(size_x), grad_y(size_y), again_x(size_x), again_y(size_y);
  PairSumsBackward q = problem_of<PairSumsBackward>(b);
  q.sums = sums.data();
  q.grad = truth.grad.data();
  q.grad_x = grad_x.data();
  q.grad_y = grad_y.data();
  run(*table.pair_sums_backward[wide], q, kFirst);
  check(grad_x.untouched_outside() && grad_y.untouched_outside(), name + ": gradient wrote outside");
  if (kOnlyRaces) {
    return;
  }
  q.grad_x = again_x.data();
  q.grad_y = again_y.data();
  run(*table.pair_sums_backward[wide], q, Order::threads);
  check(grad_x.same_bits(again_x) && grad_y.same_bits(again_y), name + ": gradient, threads");
  check_slope(grad_x, b.type, truth.slope_x, name + ": gradient");
  if (!b.self) {
    check_slope(grad_y, b.type, truth.slope_y, name + ": gradient of references");
  }
}

/// How rows are multiplied; the device has one way.
const std::vector<Products> kProducts =
    kEmulated ? std::vector{Products::floats} : std::vector{Products::floats, Products::digits};

std::string isa_of(const cpu::KernelTable& table, const Batch& b) {
  return std::string(table.isa) + (b.products == Products::digits ? " by digits" : "");
}

void one(const Tables& tables, Random& random, Batch b, Metric metric, PairForm form, bool self, bool bounded) {
  b.metric = metric;
  b.form = form;
  b.self = self;
  b.bounded = bounded;
  b.positive = {-3, 0.8, 2};
  b.negative = {2, 0.5, -1};
  const Truth truth = truth_of(b, random);
  for (const auto* table : tables) {
    for (const Products products : kProducts) {
      b.products = products;
      one(*table, b, truth,
          isa_of(*table, b) + " metric " + std::to_string(static_cast<int>(metric)) + " form " +
              std::to_string(static_cast<int>(form)) + " type " + std::to_string(static_cast<int>(b.type)) + " n=" +
              std::to_string(b.n) + " m=" + std::to_string(b.m) + (self ? " self" : "") + (bounded ? " bounded" : ""));
    }
  }
}

void all(const Tables& tables) {
  Random random(5);
  const std::int64_t shapes[][3] = {{0, 3, 2}, {1, 0, 3}, {3, 50, 5}, {60, 7, 37}, {101, 0, 8}, {50, 450, 20}};
  int turn = 0;
  for (const auto& [n, m, classes] : shapes) {
    for (const Metric metric : kMetrics) {
      for (const PairForm form : kForms) {
        for (const bool self : {true, false}) {
          for (const bool bounded : {true, false}) {
            if (!kEmulated || ++turn % 5 == 0) {  // the emulator takes its time; every option meets every shape
              one(tables, random, draw(random, n, m, 3 + random.below(70), classes), metric, form, self, bounded);
            }
          }
        }
      }
    }
  }
}

/// Rows of the other types.
void types(const Tables& tables) {
  Random random(11);
  for (const DType type : {DType::float64, DType::bfloat16, DType::float16}) {
    one(tables, random, draw(random, 71, 9, 33, 9, type), Metric::euclidean, PairForm::nce, true, false);
    one(tables, random, draw(random, 40, 71, 5, 6, type), Metric::cosine, PairForm::circle, false, true);
  }
}

/// Rows that lie close together: distances and gradients by differences, and of rows that coincide no gradient.
void close(const Tables& tables) {
  Random random(13);
  for (const PairForm form : {PairForm::sum, PairForm::lse}) {
    Batch b = draw(random, 41, 0, 7, 40);
    for (std::size_t k = 7; k < b.x.size(); ++k) {  // in threes; rows 1 and 2 coincide
      b.x[k] = b.x[k / 21 * 21 + k % 7] + (k < 21 ? 0 : 0.02 * b.x[k]);
    }
    store(b);
    one(tables, random, b, Metric::euclidean, form, true, false);
  }
}

/// A row that takes part and holds a NaN spoils all that pair with it; one that does not, nothing.
void poison(const cpu::KernelTable& table, Batch b, bool takes_part) {
  const std::string name = isa_of(table, b) + (b.self ? "" : " references") + ": a NaN that takes part";
  b.valid.assign(70, 1);
  (b.self ? b.valid : b.ref_valid)[33] = takes_part;
  (b.self ? b.x : b.y)[33 * 9 + 4] = std::numeric_limits<float>::quiet_NaN();
  store(b);
  Guarded<double> sums(kSums * 70), evidence(static_cast<std::size_t>(Mining::count) + 3);
  PairSums p = problem_of<PairSums>(b);
  p.sums = sums.data();
  p.evidence = evidence.data();
  run(*table.pair_sums[0], p);
  bool right = true;
  for (std::size_t i = 0; i < 70; ++i) {
    const double lse_p = sums[6 * 70 + i], lse_n = sums[7 * 70 + i];
    right = right && (std::isnan(lse_p) || std::isnan(lse_n)) == takes_part;
  }
  check(right, name + " is seen by all, another by none");
  check(evidence[static_cast<std::size_t>(b.self ? Mining::nonfinite_rows : Mining::nonfinite_refs)] == takes_part,
        name + " is counted");

  const std::vector<double> grad(kSums * 70, 0.5);
  Guarded<float> grad_x(b.x.size()), grad_y(b.self ? 0 : b.y.size());
  PairSumsBackward q = problem_of<PairSumsBackward>(b);
  q.sums = sums.data();
  q.grad = grad.data();
  q.grad_x = grad_x.data();
  q.grad_y = grad_y.data();
  run(*table.pair_sums_backward[0], q);
  right = true;
  for (std::size_t k = 0; k < b.x.size(); ++k) {
    right = right && std::isnan(grad_x[k]) == takes_part;
  }
  check(right, name + " spoils the gradient of all, another of none");
}

void poisoned(const cpu::KernelTable& table) {
  Random random(7);
  for (const bool takes_part : {true, false}) {
    for (const bool self : {true, false}) {
      for (const Products products : kProducts) {
        for (const Metric metric : {Metric::cosine, Metric::dot}) {
          Batch b = draw(random, 70, 70, 9, 6);
          b.self = self;
          b.metric = metric;
          b.form = PairForm::nce;
          b.positive = b.negative = {-2, 1, 0};
          b.products = products;
          poison(table, b, takes_part);
        }
      }
    }
  }
}

/// Large float32 problems are multiplied by digits where the CPU has a matrix unit for them, and there alone.
void chosen(const cpu::KernelTable& table) {
  Random random(19);
  Batch b = draw(random, 400, 0, 50, 20);
  b.self = true;
  b.metric = Metric::euclidean;
  b.form = PairForm::lse;
  b.positive = b.negative = {-2, 1, 0};
  std::vector<Guarded<double>> sums;
  for (const Products products : {Products::automatic, Products::floats, Products::digits}) {
    b.products = products;
    PairSums p = problem_of<PairSums>(b);
    Guarded<double> evidence(static_cast<std::size_t>(Mining::count) + 3);
    p.sums = sums.emplace_back(kSums * 400).data();
    p.evidence = evidence.data();
    run(*table.pair_sums[0], p);
  }
  const bool unit = std::string(table.isa) == "amx";
  check(!sums[1].same_bits(sums[2]), std::string(table.isa) + ": digits and floats differ by roundings");
  check(sums[0].same_bits(sums[unit ? 2 : 1]), std::string(table.isa) + ": digits where there is a unit for them");
}

/// The scale is read where it lies, and the rows of nce follow from a level that is known.
void scaled(const cpu::KernelTable& table) {
  Random random(17);
  Batch b = draw(random, 75, 0, 9, 6);
  b.self = true;
  b.metric = Metric::cosine;
  b.form = PairForm::nce;
  b.positive = {-3, 0.8, 2};
  b.negative = {-2, 0.5, -1};
  Guarded<double> direct(kSums * 75), sums(kSums * 75), known(kSums * 75);
  Guarded<double> evidence(static_cast<std::size_t>(Mining::count) + 3);
  PairSums p = problem_of<PairSums>(b);
  p.evidence = evidence.data();
  p.sums = direct.data();
  run(*table.pair_sums[0], p);
  const double four = 4;
  p.scale = &four;
  p.positive.scale /= four;
  p.negative.scale /= four;
  p.sums = sums.data();
  run(*table.pair_sums[0], p);
  check(sums.same_bits(direct), std::string(table.isa) + ": a scale in both curves, or beside them");
  p.level = sums.data() + 75 * static_cast<int>(PairSum::negative_lse);
  p.sums = known.data();
  run(*table.pair_sums[0], p);
  bool right = true;
  for (const PairSum row : {PairSum::positives, PairSum::negatives, PairSum::nce, PairSum::nce_slope}) {
    for (std::size_t i = 0; i < 75; ++i) {
      const std::size_t at = 75 * static_cast<std::size_t>(row) + i;
      right = right && known[at] == sums[at];
    }
  }
  check(right, std::string(table.isa) + ": the rows of nce of a known level");
}

}  // namespace
}  // namespace fastmine::test

int main() {
  const fastmine::test::Tables tables = fastmine::test::tables_of(&fastmine::cpu::KernelTable::pair_sums);
  fastmine::test::all(tables);
  fastmine::test::types(tables);
  fastmine::test::close(tables);
  if (fastmine::test::kOnlyRaces) {
    return fastmine::test::report();
  }
  for (const auto* table : tables) {
    fastmine::test::poisoned(*table);
    fastmine::test::scaled(*table);
    if (!fastmine::test::kEmulated) {
      fastmine::test::chosen(*table);
    }
  }
  return fastmine::test::report();
}
