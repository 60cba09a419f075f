// Sums over all pairs, and their backward pass, of every instruction set against loops in float64.
#include "kernels/pair_sums.h"

#include <cmath>
#include <limits>

#include "check.h"
#include "kernels/batch_hard.h"

namespace fastmine::test {
namespace {

constexpr Metric kMetrics[] = {Metric::euclidean, Metric::sqeuclidean, Metric::cosine, Metric::dot};
constexpr PairForm kForms[] = {PairForm::sum, PairForm::lse, PairForm::nce, PairForm::circle};
constexpr auto kSums = static_cast<std::size_t>(PairSum::count);
constexpr double kInf = std::numeric_limits<double>::infinity();

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
  std::vector<float> x, y;
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
  const std::vector<double> x0(b.x.begin(), b.x.end()), y0(b.self ? x0 : std::vector<double>(b.y.begin(), b.y.end()));
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

Batch draw(Random& random, std::int64_t n, std::int64_t m, std::int64_t d, std::int64_t classes) {
  Batch b{};
  b.n = n;
  b.m = m;
  b.d = d;
  const auto fill = [&](std::int64_t count, std::vector<float>& rows, std::vector<std::int64_t>& labels,
                        std::vector<unsigned char>& valid) {
    for (std::int64_t k = 0; k < count * d; ++k) {
      rows.push_back(static_cast<float>(random() - 0.4));
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
  return b;
}

template <class P>
P problem_of(const Batch& b) {
  P p{};
  p.x = {b.x.data(), DType::float32, b.n, b.d, b.d};
  p.labels = b.labels.data();
  p.valid = reinterpret_cast<const bool*>(b.valid.data());
  p.y = b.self ? p.x : Rows{b.y.data(), DType::float32, b.m, b.d, b.d};
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

void one(const cpu::KernelTable& table, Random& random, const Batch& b, const std::string& name) {
  constexpr std::size_t evidence_size = static_cast<std::size_t>(Mining::count) + 3;
  const std::vector<double> x(b.x.begin(), b.x.end());
  const std::vector<double> y(b.self ? x : std::vector<double>(b.y.begin(), b.y.end()));
  const std::vector<double> want = expected(b, x, y);
  Guarded<double> sums(want.size()), threaded(want.size()), evidence(evidence_size), again(evidence_size);
  PairSums p = problem_of<PairSums>(b);
  p.sums = sums.data();
  p.evidence = evidence.data();
  run(*table.pair_sums[0], p);
  p.sums = threaded.data();
  p.evidence = again.data();
  run(*table.pair_sums[0], p, Order::threads);
  check(sums.untouched_outside() && evidence.untouched_outside(), name + ": wrote outside");
  check(sums.same_bits(threaded) && evidence.same_bits(again), name + ": threads");
  bool right = true;
  for (std::size_t k = 0; k < want.size(); ++k) {
    right = right && near(sums[k], want[k], 3e-5);
  }
  check(right, name + ": values");

  std::vector<double> grad(want.size());
  for (std::size_t k = 0; k < grad.size(); ++k) {
    const auto row = static_cast<PairSum>(k / static_cast<std::size_t>(b.n));
    const bool differentiable = row >= PairSum::positive_distance && row <= PairSum::nce && want[k] != -kInf;
    grad[k] = differentiable ? random() - 0.5 : 0;
  }
  const std::size_t size_y = b.self ? 0 : b.y.size();
  Guarded<float> grad_x(b.x.size()), grad_y(size_y), again_x(b.x.size()), again_y(size_y);
  PairSumsBackward q = problem_of<PairSumsBackward>(b);
  q.sums = sums.data();
  q.grad = grad.data();
  q.grad_x = grad_x.data();
  q.grad_y = grad_y.data();
  run(*table.pair_sums_backward[0], q);
  q.grad_x = again_x.data();
  q.grad_y = again_y.data();
  run(*table.pair_sums_backward[0], q, Order::threads);
  check(grad_x.untouched_outside() && grad_y.untouched_outside(), name + ": gradient wrote outside");
  check(grad_x.same_bits(again_x) && grad_y.same_bits(again_y), name + ": gradient, threads");

  // One direction for each side, by central differences of the weighted sum.
  const auto total = [&](double step, bool of_x) {
    std::vector<double> moved = of_x ? x : y;
    for (std::size_t k = 0; k < moved.size(); ++k) {
      moved[k] += step * std::cos(static_cast<double>(k));
    }
    const std::vector<double> got = expected(b, of_x ? moved : x, b.self || !of_x ? moved : y);
    double sum = 0;
    for (std::size_t k = 0; k < grad.size(); ++k) {
      sum += grad[k] != 0 ? grad[k] * got[k] : 0;
    }
    return sum;
  };
  for (const bool of_x : {true, false}) {
    if (of_x || !b.self) {
      const Guarded<float>& found = of_x ? grad_x : grad_y;
      double along = 0, size = 0;
      for (std::size_t k = 0; k < found.size(); ++k) {
        along += static_cast<double>(found[k]) * std::cos(static_cast<double>(k));
        size += std::abs(static_cast<double>(found[k]));
      }
      const double h = 1e-5, slope = (total(h, of_x) - total(-h, of_x)) / (2 * h);
      check(std::abs(along - slope) <= 1e-4 * (1e-2 + size), name + (of_x ? ": gradient" : ": gradient of references"));
    }
  }
}

void all(const cpu::KernelTable& table) {
  Random random(5);
  const std::int64_t shapes[][3] = {{0, 3, 2}, {1, 0, 3}, {3, 50, 5}, {60, 7, 37}, {101, 0, 8}, {50, 450, 20}};
  for (const auto& [n, m, classes] : shapes) {
    for (const Metric metric : kMetrics) {
      for (const PairForm form : kForms) {
        for (const bool self : {true, false}) {
          for (const bool bounded : {true, false}) {
            Batch b = draw(random, n, m, 3 + random.below(70), classes);
            b.metric = metric;
            b.form = form;
            b.self = self;
            b.bounded = bounded;
            b.positive = {-3, 0.8, 2};
            b.negative = {2, 0.5, -1};
            for (const Products products : {Products::floats, Products::digits}) {
              b.products = products;
              one(table, random, b,
                  std::string(table.isa) + " metric " + std::to_string(static_cast<int>(metric)) + " form " +
                      std::to_string(static_cast<int>(form)) + " n=" + std::to_string(n) + " m=" + std::to_string(m) +
                      (self ? " self" : "") + (bounded ? " bounded" : "") +
                      (products == Products::digits ? " by digits" : ""));
            }
          }
        }
      }
    }
  }
}

/// A row that takes part and holds a NaN spoils all, and all gradients; one that does not, nothing.
void poison(const cpu::KernelTable& table, Batch b, bool takes_part) {
  constexpr std::int64_t bad = 33;
  b.valid.assign(static_cast<std::size_t>(b.n), 1);
  b.valid[bad] = takes_part;
  b.x[static_cast<std::size_t>(bad * b.d + 4)] = std::numeric_limits<float>::quiet_NaN();
  const auto n = static_cast<std::size_t>(b.n);
  Guarded<double> sums(kSums * n), evidence(static_cast<std::size_t>(Mining::count) + 3);
  PairSums p = problem_of<PairSums>(b);
  p.sums = sums.data();
  p.evidence = evidence.data();
  run(*table.pair_sums[0], p);
  bool right = true;
  for (std::size_t i = 0; i < n; ++i) {
    const auto at = [&](PairSum sum) { return sums[static_cast<std::size_t>(sum) * n + i]; };
    const double of_all = b.form == PairForm::sum ? at(PairSum::positive_distance) + at(PairSum::negative_distance)
                                                  : at(PairSum::positive_lse) + at(PairSum::negative_lse);
    right = right && std::isnan(of_all) == takes_part || i == bad;
  }
  const std::string name = std::string(table.isa) + (b.products == Products::digits ? " by digits" : "");
  check(right, name + ": a NaN that takes part is seen by all, another by none");
  check(evidence[static_cast<std::size_t>(Mining::nonfinite_rows)] == takes_part, "a NaN row is counted");

  std::vector<double> grad(sums.size());
  for (std::size_t i = 0; i < n; ++i) {
    grad[static_cast<std::size_t>(PairSum::negative_distance) * n + i] = 0.5;
    grad[static_cast<std::size_t>(PairSum::negative_lse) * n + i] = b.form == PairForm::sum ? 0 : 1;
  }
  Guarded<float> grad_x(b.x.size());
  PairSumsBackward q = problem_of<PairSumsBackward>(b);
  q.sums = sums.data();
  q.grad = grad.data();
  q.grad_x = grad_x.data();
  run(*table.pair_sums_backward[0], q);
  right = true;
  for (std::size_t k = 0; k < grad_x.size(); ++k) {
    right = right && std::isnan(grad_x[k]) == takes_part;
  }
  check(right, name + ": and so is its gradient");
}

void poisoned(const cpu::KernelTable& table) {
  Random random(7);
  for (const bool takes_part : {true, false}) {
    for (const Products products : {Products::floats, Products::digits}) {
      for (const Metric metric : {Metric::cosine, Metric::dot}) {
        for (const PairForm form : {PairForm::sum, PairForm::nce}) {
          Batch b = draw(random, 70, 0, 9, 6);
          b.self = true;
          b.metric = metric;
          b.form = form;
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
  Random random(11);
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

}  // namespace
}  // namespace fastmine::test

int main() {
  for (const auto* table : fastmine::test::tables()) {
    fastmine::test::all(*table);
    fastmine::test::poisoned(*table);
    fastmine::test::chosen(*table);
  }
  return fastmine::test::report();
}
