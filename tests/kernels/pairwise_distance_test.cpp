// All distances, and their backward pass, of every instruction set against loops in float64.
#include "kernels/pairwise_distance.h"

#include <cmath>
#include <limits>

#include "check.h"

namespace fastmine::test {
namespace {

constexpr Metric kMetrics[] = {Metric::euclidean, Metric::sqeuclidean, Metric::cosine, Metric::dot};

double distance(const float* x, const float* y, std::int64_t d, Metric metric) {
  double dot = 0, squared = 0, xx = 0, yy = 0;
  for (std::int64_t k = 0; k < d; ++k) {
    const auto a = static_cast<double>(x[k]), b = static_cast<double>(y[k]);
    dot += a * b;
    squared += (a - b) * (a - b);
    xx += a * a;
    yy += b * b;
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

bool near(double a, double b, double tolerance) { return std::abs(a - b) <= tolerance * (1 + std::abs(b)); }

void one(const cpu::KernelTable& table, Random& random, std::int64_t n, std::int64_t m, std::int64_t d, Metric metric,
         bool self, const std::string& name) {
  std::vector<float> x(static_cast<std::size_t>(n * d)), y(static_cast<std::size_t>(m * d));
  for (std::vector<float>* rows : {&x, &y}) {
    for (float& v : *rows) {
      v = static_cast<float>(random() - 0.5);
    }
  }
  const std::vector<float>& other = self ? x : y;
  const std::int64_t others = self ? n : m;
  const auto size = static_cast<std::size_t>(n * others);
  PairwiseDistance p{
      {x.data(), DType::float32, n, d, d}, {other.data(), DType::float32, others, d, d}, self, metric, nullptr};
  Guarded<float> out(size), threaded(size);
  p.distance = out.data();
  run(*table.pairwise_distance[0], p);
  p.distance = threaded.data();
  run(*table.pairwise_distance[0], p, Order::threads);
  bool right = out.untouched_outside(), symmetric = true;
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < others; ++j) {
      const auto got = static_cast<double>(out[static_cast<std::size_t>(i * others + j)]);
      const bool itself = self && i == j && metric != Metric::dot;
      const double want = itself ? 0 : distance(x.data() + i * d, other.data() + j * d, d, metric);
      right = right && (itself ? got == 0 : near(got, want, 4e-6));
      symmetric =
          symmetric && (!self || out[static_cast<std::size_t>(i * n + j)] == out[static_cast<std::size_t>(j * n + i)]);
    }
  }
  check(right, name + ": values");
  check(symmetric, name + ": symmetric");
  check(out.same_bits(threaded), name + ": threads");

  std::vector<float> grad(size);
  for (float& g : grad) {
    g = static_cast<float>(random() - 0.5);
  }
  const std::size_t size_y = self ? 0 : y.size();
  Guarded<float> grad_x(x.size()), grad_y(size_y), again_x(x.size()), again_y(size_y);
  PairwiseDistanceBackward b{p.x, p.y, self, metric, grad.data(), out.data(), grad_x.data(), grad_y.data()};
  run(*table.pairwise_distance_backward[0], b);
  b.grad_x = again_x.data();
  b.grad_y = again_y.data();
  run(*table.pairwise_distance_backward[0], b, Order::threads);
  check(grad_x.untouched_outside() && grad_y.untouched_outside(), name + ": gradient wrote outside");
  check(grad_x.same_bits(again_x) && grad_y.same_bits(again_y), name + ": gradient, threads");

  // One direction, by central differences of the weighted sum of all distances: moving x along `step`.
  const auto total = [&](double t) {
    std::vector<float> moved = x;
    for (std::size_t k = 0; k < moved.size(); ++k) {
      moved[k] += static_cast<float>(t * std::cos(static_cast<double>(k)));
    }
    const std::vector<float>& across = self ? moved : y;
    double sum = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = 0; j < others; ++j) {
        const double weight = self && i == j ? (metric == Metric::dot ? 1 : 0) : 1;
        sum += weight * static_cast<double>(grad[static_cast<std::size_t>(i * others + j)]) *
               distance(moved.data() + i * d, across.data() + j * d, d, metric);
      }
    }
    return sum;
  };
  double along = 0;
  for (std::size_t k = 0; k < x.size(); ++k) {
    along += static_cast<double>(grad_x[k]) * std::cos(static_cast<double>(k));
  }
  const double h = 0x1p-10, slope = (total(h) - total(-h)) / (2 * h);
  check(n * others == 0 || std::abs(along - slope) <= 2e-2 * (1 + std::abs(slope)), name + ": gradient");
}

void all(const cpu::KernelTable& table) {
  Random random(3);
  for (const Metric metric : kMetrics) {  // deeper than what is compared at a time
    for (const bool self : {true, false}) {
      one(table, random, 60, 17, 333, metric, self,
          std::string(table.isa) + " deep, metric " + std::to_string(static_cast<int>(metric)));
    }
  }
  for (const std::int64_t n : {0, 1, 3, 48, 101}) {
    for (const std::int64_t m : {0, 1, 50}) {
      for (const Metric metric : kMetrics) {
        for (const bool self : {true, false}) {
          one(table, random, n, m, 3 + random.below(40), metric, self,
              std::string(table.isa) + " metric " + std::to_string(static_cast<int>(metric)) +
                  " n=" + std::to_string(n) + " m=" + std::to_string(m) + (self ? " self" : ""));
        }
      }
    }
  }
}

}  // namespace
}  // namespace fastmine::test

int main() {
  for (const auto* table : fastmine::test::tables()) {
    fastmine::test::all(*table);
  }
  return fastmine::test::report();
}
