// All distances, and their backward pass, of every instruction set against loops in float64.
#include "kernels/pairwise_distance.h"

#include <algorithm>
#include <cmath>

#include "check.h"
#include "elements.h"

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

/// Rows in any type, with something between them, and the same numbers in float64.
struct Set {
  std::int64_t n, d;
  DType type;
  std::vector<double> values;  // [n, d]
  std::vector<unsigned char> bytes;

  template <class F>
  Set(std::int64_t rows, std::int64_t elements, DType dtype, F value)
      : n(rows),
        d(elements),
        type(dtype),
        bytes(static_cast<std::size_t>(rows * (elements + 3)) * size_of(dtype), 0xff) {
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t k = 0; k < d; ++k) {
        unsigned char* const at = bytes.data() + static_cast<std::size_t>(i * (d + 3) + k) * size_of(type);
        put(at, type, value(i, k));
        values.push_back(get(at, type));
      }
    }
  }
  Rows rows() const { return {bytes.data(), type, n, d, d + 3}; }
  double at(std::int64_t i, std::int64_t k) const { return values[static_cast<std::size_t>(i * d + k)]; }
};

double dot(const Set& x, std::int64_t i, const Set& y, std::int64_t j) {
  double sum = 0;
  for (std::int64_t k = 0; k < x.d; ++k) {
    sum += x.at(i, k) * y.at(j, k);
  }
  return sum;
}

double distance(const Set& x, std::int64_t i, const Set& y, std::int64_t j, Metric metric) {
  const double xx = std::sqrt(dot(x, i, x, i)), yy = std::sqrt(dot(y, j, y, j));
  if (metric == Metric::dot) {
    return dot(x, i, y, j);
  }
  if (metric == Metric::cosine && (xx == 0 || yy == 0)) {
    return 1;
  }
  double squared = 0;
  for (std::int64_t k = 0; k < x.d; ++k) {
    const double a = metric == Metric::cosine ? x.at(i, k) / xx : x.at(i, k);
    const double b = metric == Metric::cosine ? y.at(j, k) / yy : y.at(j, k);
    squared += (a - b) * (a - b);
  }
  return metric == Metric::euclidean ? std::sqrt(squared) : metric == Metric::cosine ? squared / 2 : squared;
}

/// The derivative of a distance by element k of row i of x.
double slope(const Set& x, std::int64_t i, const Set& y, std::int64_t j, std::int64_t k, Metric metric) {
  const double length = distance(x, i, y, j, metric), difference = x.at(i, k) - y.at(j, k);
  if (metric == Metric::dot) {
    return y.at(j, k);
  }
  if (metric == Metric::sqeuclidean) {
    return 2 * difference;
  }
  if (metric == Metric::euclidean) {
    return length == 0 ? 0 : difference / length;
  }
  const double xx = std::sqrt(dot(x, i, x, i)), yy = std::sqrt(dot(y, j, y, j));
  return xx == 0 || yy == 0 ? 0 : (-y.at(j, k) / yy + (1 - length) * x.at(i, k) / xx) / xx;
}

/// Distances as right as the contract says, and the gradient against its definition, one term after the other.
void compare(const cpu::KernelTable& table, const Set& x, const Set& y, bool self, Metric metric,
             const std::string& what) {
  const std::string name = std::string(table.isa) + " " + what + ", type " + std::to_string(static_cast<int>(x.type)) +
                           " metric " + std::to_string(static_cast<int>(metric)) + (self ? " self" : "");
  const bool wide = x.type == DType::float64;
  const DType result = wide ? DType::float64 : DType::float32;
  const std::size_t step = size_of(result), pairs = static_cast<std::size_t>(x.n * y.n);
  Guarded<unsigned char> out(pairs * step);
  run(*table.pairwise_distance[wide], {x.rows(), y.rows(), self, metric, out.data()});
  const auto found = [&](std::int64_t i, std::int64_t j) {
    return get(out.data() + static_cast<std::size_t>(i * y.n + j) * step, result);
  };
  bool right = out.untouched_outside();
  for (std::int64_t i = 0; i < x.n; ++i) {
    for (std::int64_t j = 0; j < y.n; ++j) {
      const bool itself = self && i == j && metric != Metric::dot;
      const double want = itself ? 0 : distance(x, i, y, j, metric), got = found(i, j);
      const double size = metric == Metric::dot ? std::sqrt(dot(x, i, x, i) * dot(y, j, y, j)) : want;
      const double units = metric == Metric::cosine ? 1e-15 * std::sqrt(want) : 0;  // rounding of unit vectors
      right = right && std::fabs(got - want) <= (wide ? 1e-13 : 1e-5) * size + units && (!self || got == found(j, i));
    }
  }
  check(right, name + ": distances");

  Random random(9);
  std::vector<double> grad;
  Guarded<unsigned char> grad_bytes(pairs * step), grad_x(x.values.size() * size_of(x.type)),
      grad_y(self ? 0 : y.values.size() * size_of(y.type));
  for (std::size_t at = 0; at < pairs; ++at) {
    grad.push_back(std::round(random() * 256 - 128) / 64);
    put(grad_bytes.data() + at * step, result, grad.back());
  }
  run(*table.pairwise_distance_backward[wide],
      {x.rows(), y.rows(), self, metric, grad_bytes.data(), out.data(), grad_x.data(), grad_y.data()});
  const double rounding = x.type == DType::bfloat16 ? 0x1p-8 : x.type == DType::float16 ? 0x1p-10 : 0;
  const auto near = [&](double got, double want, double size) {
    const double floor = x.type == DType::float16 ? 1e-7 : 0;  // its subnormal numbers
    return std::fabs(got - want) <= rounding * std::fabs(want) + (wide ? 1e-12 : 1e-5) * size + floor;
  };
  right = grad_x.untouched_outside() && grad_y.untouched_outside();
  const auto weight = [&](std::int64_t i, std::int64_t j) { return grad[static_cast<std::size_t>(i * y.n + j)]; };
  for (std::int64_t i = 0; i < x.n; ++i) {
    for (std::int64_t k = 0; k < x.d; ++k) {
      double want = 0, size = 0;
      for (std::int64_t j = 0; j < y.n; ++j) {
        const bool fixed = self && i == j && metric == Metric::cosine;
        const double term = fixed ? 0 : (weight(i, j) + (self ? weight(j, i) : 0)) * slope(x, i, y, j, k, metric);
        want += term, size += std::fabs(term);
      }
      right = right &&
              near(get(grad_x.data() + static_cast<std::size_t>(i * x.d + k) * size_of(x.type), x.type), want, size);
    }
  }
  for (std::int64_t j = 0; !self && j < y.n; ++j) {
    for (std::int64_t k = 0; k < y.d; ++k) {
      double want = 0, size = 0;
      for (std::int64_t i = 0; i < x.n; ++i) {
        const double term = weight(i, j) * slope(y, j, x, i, k, metric);
        want += term, size += std::fabs(term);
      }
      right = right &&
              near(get(grad_y.data() + static_cast<std::size_t>(j * y.d + k) * size_of(y.type), y.type), want, size);
    }
  }
  check(right, name + ": gradient");
}

void types(const cpu::KernelTable& table) {
  for (const DType type : kFloats) {
    for (const Metric metric : kMetrics) {
      Random random(4);
      const auto value = [&](std::int64_t, std::int64_t) { return std::round(random() * 128 - 64) / 64; };
      const Set x(37, 13, type, value), y(70, 13, type, value);
      compare(table, x, y, false, metric, "rows of a type");
      compare(table, x, x, true, metric, "rows of a type");
    }
  }
}

/// Rows in tight clusters far from the origin, some of them the same, one of them zero.
void close_rows(const cpu::KernelTable& table) {
  for (const DType type : {DType::float32, DType::float64}) {
    for (const Metric metric : kMetrics) {
      Random random(6);
      const auto value = [&](std::int64_t i, std::int64_t k) {
        return i == 5 ? 0
                      : std::round(std::cos(static_cast<double>(i % 3 + k)) * 64) + (i % 4 == 0 ? 0 : random() * 1e-3);
      };
      const Set x(33, 20, type, value);
      compare(table, x, x, true, metric, "close rows");
      compare(table, x, Set(9, 20, type, value), false, metric, "close rows");
    }
  }
}

/// Where squares overflow float32 or vanish in it, distances do not.
void extreme_rows(const cpu::KernelTable& table) {
  for (const Metric metric : {Metric::euclidean, Metric::cosine}) {
    Random random(8);
    const auto value = [&](std::int64_t i, std::int64_t) { return (random() + 0.5) * (i % 2 == 0 ? 1e25 : 1e-25); };
    const Set x(11, 6, DType::float32, value);
    Guarded<float> out(121);
    run(*table.pairwise_distance[0], {x.rows(), x.rows(), true, metric, out.data()});
    bool right = true;
    for (std::int64_t i = 0; i < x.n; ++i) {
      for (std::int64_t j = 0; j < x.n; ++j) {
        const double want = i == j ? 0 : distance(x, i, x, j, metric);
        const auto got = static_cast<double>(out[static_cast<std::size_t>(i * x.n + j)]);
        right = right && std::fabs(got - want) <= 1e-6 * want + 1e-7 * (metric == Metric::cosine ? 1 : 0);
      }
    }
    check(right, std::string(table.isa) + ": rows too large or too small to multiply");
  }
}

/// A row with a NaN or an Inf is at distance NaN from everything, itself included, and changes no other distance.
void poisoned_rows(const cpu::KernelTable& table) {
  for (const DType type : {DType::float32, DType::float64}) {
    for (const Metric metric : kMetrics) {
      for (const double bad : {kNan, kInf}) {
        Random random(2);
        std::vector<double> numbers(19 * 5);
        for (double& number : numbers) {
          number = random() - 0.5;
        }
        const auto value = [&](bool spoil) {
          return [&numbers, bad, spoil](std::int64_t i, std::int64_t k) {
            return spoil && i == 3 && k == 2 ? bad : numbers[static_cast<std::size_t>(i * 5 + k)];
          };
        };
        const Set x(19, 5, type, value(true)), fine(19, 5, type, value(false));
        const DType result = type == DType::float64 ? DType::float64 : DType::float32;
        Guarded<unsigned char> out(19 * 19 * size_of(result));
        run(*table.pairwise_distance[type == DType::float64], {x.rows(), x.rows(), true, metric, out.data()});
        bool right = true;
        for (std::int64_t i = 0; i < 19; ++i) {
          for (std::int64_t j = 0; j < 19; ++j) {
            const double got = get(out.data() + static_cast<std::size_t>(i * 19 + j) * size_of(result), result);
            const double want = i == j && metric != Metric::dot ? 0 : distance(fine, i, fine, j, metric);
            right = right && (i == 3 || j == 3 ? std::isnan(got) : std::fabs(got - want) <= 1e-6);
          }
        }
        check(right, std::string(table.isa) + ": a row that is not finite");
      }
    }
  }
}

void all(const cpu::KernelTable& table) {
  types(table);
  close_rows(table);
  extreme_rows(table);
  poisoned_rows(table);
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
  for (const auto* table : fastmine::test::tables_of(&fastmine::cpu::KernelTable::pairwise_distance)) {
    fastmine::test::all(*table);
  }
  return fastmine::test::report();
}
