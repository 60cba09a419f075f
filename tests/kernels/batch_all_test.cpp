// The sums over all triplets, and their gradient, of every instruction set against three nested loops in float64.
#include "kernels/batch_all.h"

#include <algorithm>
#include <cmath>

#include "check.h"

namespace fastmine::test {
namespace {

constexpr Metric kMetrics[] = {Metric::euclidean, Metric::sqeuclidean, Metric::cosine, Metric::dot};
constexpr Triplets kKinds[] = {Triplets::all, Triplets::hard, Triplets::semi_hard};

struct Batch {
  std::int64_t n, m, d;
  bool self;
  std::vector<float> x, y;
  std::vector<std::int64_t> labels, ref_labels;
  std::unique_ptr<bool[]> valid, ref_valid, use;
  std::vector<double> weight;
};

Batch make(Random& random, std::int64_t n, std::int64_t m, std::int64_t d, std::int64_t classes, bool self, bool ties) {
  Batch b{n, self ? n : m, d, self, {}, {}, {}, {}, nullptr, nullptr, nullptr, {}};
  const auto fill = [&](std::int64_t count, std::vector<float>& rows, std::vector<std::int64_t>& labels,
                        std::unique_ptr<bool[]>& valid) {
    rows.resize(static_cast<std::size_t>(count * d));
    labels.resize(static_cast<std::size_t>(count));
    valid = std::make_unique<bool[]>(static_cast<std::size_t>(count));
    for (float& v : rows) {
      v = static_cast<float>(random.below(8)) - 3 + (ties ? 0 : static_cast<float>(random()));
    }
    for (std::int64_t i = 0; i < count; ++i) {
      labels[static_cast<std::size_t>(i)] = random.below(classes);
      valid[static_cast<std::size_t>(i)] = random() < 0.9;
    }
  };
  fill(n, b.x, b.labels, b.valid);
  if (!self) {
    fill(m, b.y, b.ref_labels, b.ref_valid);
  }
  b.use = std::make_unique<bool[]>(static_cast<std::size_t>(n));
  b.weight.resize(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < b.weight.size(); ++i) {
    b.weight[i] = random() - 0.3;
  }
  return b;
}

/// Distance, and its derivative by the first of the two rows, to `by`.
double distance(const float* x, const float* y, std::int64_t d, Metric metric, std::vector<double>& by) {
  double dot = 0, squared = 0, xx = 0, yy = 0;
  for (std::int64_t k = 0; k < d; ++k) {
    const auto a = static_cast<double>(x[k]), b = static_cast<double>(y[k]);
    dot += a * b;
    squared += (a - b) * (a - b);
    xx += a * a;
    yy += b * b;
  }
  const double norms = std::sqrt(xx * yy), euclidean = std::sqrt(squared);
  for (std::int64_t k = 0; k < d; ++k) {
    const auto a = static_cast<double>(x[k]), b = static_cast<double>(y[k]);
    double& out = by[static_cast<std::size_t>(k)];
    switch (metric) {
      case Metric::euclidean:
        out = squared == 0 ? 0 : (a - b) / euclidean;
        break;
      case Metric::sqeuclidean:
        out = 2 * (a - b);
        break;
      case Metric::cosine:
        out = norms == 0 ? 0 : -(b - a * dot / xx) / norms;
        break;
      case Metric::dot:
        out = b;
    }
  }
  return metric == Metric::euclidean     ? euclidean
         : metric == Metric::sqeuclidean ? squared
         : metric == Metric::dot         ? dot
         : norms == 0                    ? 1
                                         : 1 - dot / norms;
}

struct Truth {
  std::vector<double> triplets, sum, active, grad_x, grad_y;
  std::vector<double> terms;  // what a sum would be if nothing cancelled
};

Truth loops(const Batch& b, const BatchAll& p) {
  const auto size = [](std::int64_t count) { return static_cast<std::size_t>(count); };
  Truth t{std::vector<double>(size(b.n)),       std::vector<double>(size(b.n)),       std::vector<double>(size(b.n)),
          std::vector<double>(size(b.n * b.d)), std::vector<double>(size(b.m * b.d)), std::vector<double>(size(b.n))};
  const float* y = b.self ? b.x.data() : b.y.data();
  const auto& ref_labels = b.self ? b.labels : b.ref_labels;
  const bool* ref_valid = b.self ? b.valid.get() : b.ref_valid.get();
  const double sign = p.metric == Metric::dot ? -1 : 1;
  std::vector<double> by(size(b.d));
  const auto pull = [&](std::int64_t i, std::int64_t j, double w) {
    distance(b.x.data() + i * b.d, y + j * b.d, b.d, p.metric, by);
    for (std::int64_t k = 0; k < b.d; ++k) {
      t.grad_x[size(i * b.d + k)] += w * by[size(k)];
    }
    distance(y + j * b.d, b.x.data() + i * b.d, b.d, p.metric, by);
    for (std::int64_t k = 0; k < b.d; ++k) {
      (b.self ? t.grad_x : t.grad_y)[size(j * b.d + k)] += w * by[size(k)];
    }
  };
  for (std::int64_t i = 0; i < b.n; ++i) {
    if (!b.valid[size(i)]) {
      continue;
    }
    for (std::int64_t j = 0; j < b.m; ++j) {
      if (!ref_valid[j] || ref_labels[size(j)] != b.labels[size(i)] || (b.self && i == j)) {
        continue;
      }
      const double d_p = sign * distance(b.x.data() + i * b.d, y + j * b.d, b.d, p.metric, by);
      double pulls = 0;
      for (std::int64_t k = 0; k < b.m; ++k) {
        if (!ref_valid[k] || ref_labels[size(k)] == b.labels[size(i)]) {
          continue;
        }
        t.triplets[size(i)] += 1;
        if (!p.use[i]) {
          continue;
        }
        const double d_n = sign * distance(b.x.data() + i * b.d, y + k * b.d, b.d, p.metric, by);
        const bool above = p.kind == Triplets::hard ? d_n < d_p : d_n < d_p + p.margin;
        const bool counts = above && !(p.kind == Triplets::semi_hard && d_n < d_p);
        const double slope = counts ? 1 : p.leak;
        t.active[size(i)] += counts;
        t.sum[size(i)] += slope * (d_p - d_n + p.margin);
        t.terms[size(i)] += slope * (std::abs(d_p) + std::abs(d_n) + p.margin);
        pulls += slope;
        if (slope != 0) {
          pull(i, k, -sign * slope * b.weight[size(i)]);
        }
      }
      if (pulls != 0) {
        pull(i, j, sign * pulls * b.weight[size(i)]);
      }
    }
  }
  return t;
}

double worst(const std::vector<double>& want, const double* got) {
  double error = 0, scale = 1;
  for (std::size_t k = 0; k < want.size(); ++k) {
    error = std::max(error, std::abs(want[k] - got[k]));
    scale = std::max(scale, std::abs(want[k]));
  }
  return error / scale;
}

double worst(const std::vector<double>& want, const Guarded<float>& got) {
  std::vector<double> wide(want.size());
  for (std::size_t k = 0; k < want.size(); ++k) {
    wide[k] = static_cast<double>(got[k]);
  }
  return worst(want, wide.data());
}

/// Whether sums of differences are right to the rounding of their terms, which float32 distances are.
bool add_up(const Truth& want, const Guarded<double>& got) {
  bool right = true;
  for (std::size_t k = 0; k < want.sum.size(); ++k) {
    right = right && std::abs(want.sum[k] - got[k]) <= 1e-6 * want.terms[k];
  }
  return right;
}

void one(const cpu::KernelTable& table, const Batch& b, BatchAll p, const Truth& want, const std::string& name) {
  const auto n = static_cast<std::size_t>(b.n), size_x = static_cast<std::size_t>(b.n * b.d);
  const std::size_t size_y = b.self ? 0 : static_cast<std::size_t>(b.m * b.d);
  Guarded<double> triplets(n), sum(n), active(n), again(n);
  p.triplets = triplets.data();
  p.sum = sum.data();
  p.active = active.data();
  run(*table.batch_all[0], p, kFirst);
  check(triplets.untouched_outside() && sum.untouched_outside() && active.untouched_outside(), name + ": outside");
  if (!kOnlyRaces) {
    check(worst(want.triplets, triplets.data()) == 0, name + ": triplets");
    check(worst(want.active, active.data()) == 0, name + ": active");
    check(add_up(want, sum), name + ": sums");
    p.sum = again.data();
    run(*table.batch_all[0], p, Order::threads);
    check(sum.same_bits(again), name + ": threads");
  }

  p.triplets = p.sum = p.active = nullptr;
  Guarded<float> grad_x(size_x), grad_y(size_y), again_x(size_x), again_y(size_y);
  BatchAllBackward g{p, b.weight.data(), grad_x.data(), grad_y.data()};
  run(*table.batch_all_backward[0], g, kFirst);
  check(grad_x.untouched_outside() && grad_y.untouched_outside(), name + ": gradient wrote outside");
  if (kOnlyRaces) {
    return;
  }
  check(worst(want.grad_x, grad_x) < 1e-5, name + ": gradient");
  check(b.self || worst(want.grad_y, grad_y) < 1e-5, name + ": gradient of references");
  g.grad_x = again_x.data();
  g.grad_y = again_y.data();
  run(*table.batch_all_backward[0], g, Order::threads);
  check(grad_x.same_bits(again_x) && grad_y.same_bits(again_y), name + ": gradient, threads");
}

void one(const Tables& tables, Batch& b, Metric metric, Triplets kind, double leak, Products products,
         const std::string& name, double margin = 1) {
  const Rows x{b.x.data(), DType::float32, b.n, b.d, b.d};
  const Rows y = b.self ? x : Rows{b.y.data(), DType::float32, b.m, b.d, b.d};
  BatchAll p{};
  p.x = x;
  p.labels = b.labels.data();
  p.valid = b.valid.get();
  p.y = y;
  p.ref_labels = b.self ? p.labels : b.ref_labels.data();
  p.ref_valid = b.self ? p.valid : b.ref_valid.get();
  p.self = b.self;
  p.metric = metric;
  p.kind = kind;
  p.margin = margin;
  p.leak = leak;
  p.use = b.use.get();
  p.products = products;

  // In use: every anchor with both kinds of candidates, but for a few.
  for (std::int64_t i = 0; i < b.n; ++i) {
    b.use[static_cast<std::size_t>(i)] = false;
  }
  const Truth counted = loops(b, p);
  for (std::size_t i = 0; i < b.weight.size(); ++i) {
    b.use[i] = counted.triplets[i] > 0 && i % 7 != 3;
    b.weight[i] = b.use[i] ? b.weight[i] : 0;
  }
  const Truth want = kOnlyRaces ? counted : loops(b, p);
  for (const cpu::KernelTable* table : tables) {
    one(*table, b, p, want, std::string(table->isa) + name);
  }
}

/// Margins that put a threshold closer to a negative than float32 can tell them apart, on either side.
void thresholds_beside_negatives(const Tables& tables) {
  Random random(23);
  std::vector<double> by(37);
  for (const Metric metric : {Metric::euclidean, Metric::sqeuclidean, Metric::cosine}) {
    Batch b = make(random, 24, 24, 37, 3, true, false);
    const auto far = [&](std::size_t i, std::size_t j) {
      return distance(b.x.data() + i * 37, b.x.data() + j * 37, 37, metric, by);
    };
    for (std::size_t i = 0, tried = 0; i < 24 && tried < 6; ++i) {
      for (std::size_t p = 0; p < 24; ++p) {
        const std::size_t n = (i + p + 5) % 24;
        const double gap = far(i, n) - far(i, p);
        if (p != i && b.labels[p] == b.labels[i] && b.labels[n] != b.labels[i] && b.valid[i] && b.valid[p] &&
            b.valid[n] && i % 7 != 3 && gap > 0) {
          ++tried;
          for (const double beside : {-1e-11, 1e-11}) {
            one(tables, b, metric, Triplets::all, 0, Products::floats,
                " threshold beside a negative, metric " + std::to_string(static_cast<int>(metric)), gap + beside);
          }
          break;
        }
      }
    }
  }
}

void all(const Tables& tables) {
  Random random(5);
  int turn = 0;
  for (const bool self : {true, false}) {
    for (const Metric metric : kMetrics) {
      // Ragged blocks; few classes, whose positives are bisected, or many; several panels; deep; nothing at all.
      const std::int64_t sizes[][4] = {{53, 61, 3, 9},   {100, 90, 2, 2}, {20, 205, 5, 3},
                                       {70, 430, 3, 40}, {9, 8, 130, 2},  {0, 0, 4, 1}};
      for (const auto& [n, m, d, classes] : sizes) {
        if (kEmulated && ++turn % 3 != 0) {  // it takes its time
          continue;
        }
        // At integer distances candidates tie in droves; those of cosine tie but for rounding.
        Batch batch = make(random, n, m, d, classes, self, metric != Metric::cosine);
        const std::string name = (self ? " self " : " references ") + std::to_string(n) + " metric " +
                                 std::to_string(static_cast<int>(metric));
        for (const Triplets kind : kKinds) {
          one(tables, batch, metric, kind, 0, Products::floats,
              name + " kind " + std::to_string(static_cast<int>(kind)));
        }
        one(tables, batch, metric, Triplets::all, 0.25, Products::floats, name + " leak");
        if (!kEmulated) {
          one(tables, batch, metric, Triplets::semi_hard, 0, Products::digits, name + " by digits");
        }
      }
    }
  }
}

}  // namespace
}  // namespace fastmine::test

int main() {
  const fastmine::test::Tables tables = fastmine::test::tables_of(&fastmine::cpu::KernelTable::batch_all);
  fastmine::test::all(tables);
  fastmine::test::thresholds_beside_negatives(tables);
  return fastmine::test::report();
}
