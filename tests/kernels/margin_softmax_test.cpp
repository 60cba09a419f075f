// Margin softmax of every instruction set against loops in float64.
#include "kernels/margin_softmax.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "check.h"

namespace fastmine::test {
namespace {

struct Case {
  std::int64_t n, classes, d;
  MarginKind kind;
  Reduction reduction;
  bool masked, weighted;
  std::int64_t several = 1;  // vectors of a class
  std::size_t before = 0;    // numbers in memory before the logits, which may not be aligned
};

template <class T>
struct Batch {
  std::vector<T> unit, logits, weight;
  std::vector<std::int64_t> labels, nearest;
  std::unique_ptr<bool[]> valid;
};

constexpr double kScale = 16, kMargin = 0.5;

template <class T>
Batch<T> batch(const Case& c, Random& random) {
  Batch<T> b;
  b.unit.resize(static_cast<std::size_t>((c.n + c.classes * c.several) * c.d));
  b.logits.resize(c.before);
  for (std::size_t i = 0; i < b.unit.size(); i += static_cast<std::size_t>(c.d)) {
    double squared = 0;
    std::vector<double> row(static_cast<std::size_t>(c.d));
    for (double& x : row) {
      x = random() - 0.5;
      squared += x * x;
    }
    std::transform(row.begin(), row.end(), b.unit.begin() + static_cast<std::ptrdiff_t>(i),
                   [&](double x) { return static_cast<T>(x / std::sqrt(squared)); });
  }
  b.valid = std::make_unique<bool[]>(static_cast<std::size_t>(c.n));
  for (std::int64_t i = 0; i < c.n; ++i) {
    b.labels.push_back(i == 2 && c.masked ? c.classes : random.below(c.classes));
    b.nearest.push_back(0);
    for (std::int64_t j = 0; j < c.classes; ++j) {
      double most = -2;
      for (std::int64_t v = j * c.several; v < (j + 1) * c.several; ++v) {
        double cosine = 0;
        for (std::int64_t k = 0; k < c.d; ++k) {
          cosine += static_cast<double>(b.unit[static_cast<std::size_t>(i * c.d + k)]) *
                    static_cast<double>(b.unit[static_cast<std::size_t>((c.n + v) * c.d + k)]);
        }
        if (cosine > most) {
          most = cosine;
          b.nearest.back() = j == b.labels.back() ? v : b.nearest.back();
        }
      }
      b.logits.push_back(static_cast<T>(kScale * most));
    }
    b.valid[static_cast<std::size_t>(i)] = i != 2 && random() < 0.8;
    b.weight.push_back(static_cast<T>(random()));
  }
  return b;
}

bool near(double a, double b, double tolerance) { return std::abs(a - b) <= tolerance * (1 + std::abs(b)); }

template <class T>
void one(const cpu::KernelTable& table, const Case& c, Random& random) {
  const Batch<T> b = batch<T>(c, random);
  const auto n = static_cast<std::size_t>(c.n), classes = static_cast<std::size_t>(c.classes);
  Guarded<T> loss(c.reduction == Reduction::none ? n : 1), slopes(n * classes), cosine(n), nearest(n);
  Guarded<bool> active(n);
  const MarginSoftmaxKernel& kernel = *table.margin_softmax[sizeof(T) == 8];
  MarginSoftmax p{};
  p.n = c.n;
  p.classes = c.classes;
  p.d = c.d;
  p.dtype = sizeof(T) == 8 ? DType::float64 : DType::float32;
  p.logits = b.logits.data() + c.before;
  p.unit = b.unit.data();
  p.labels = b.labels.data();
  p.nearest = c.several > 1 ? b.nearest.data() : nullptr;
  p.valid = c.masked ? b.valid.get() : nullptr;
  p.weight = c.weighted ? b.weight.data() : nullptr;
  p.kind = c.kind;
  p.scale = kScale;
  p.margin = kMargin;
  p.reduction = c.reduction;
  p.loss = loss.data();
  p.slopes = slopes.data();
  p.cosine = cosine.data();
  p.nearest_other = nearest.data();
  p.active = active.data();
  run(kernel, p, kFirst);

  const double tolerance = sizeof(T) == 8 ? 1e-10 : 2e-5;
  double whole = 0, sum = 0;
  bool right = true;
  const auto part = [&](std::size_t i) {
    return c.masked && !b.valid[i] ? 0 : c.weighted ? static_cast<double>(b.weight[i]) : 1;
  };
  for (std::size_t i = 0; i < n; ++i) {
    whole += part(i);
  }
  const double divisor = c.reduction == Reduction::mean && whole > 0 ? whole : 1;
  for (std::size_t i = 0; i < n; ++i) {
    const T* logits = b.logits.data() + c.before + i * classes;
    const double share = part(i) / divisor;
    double total = 0, most = -2;
    const auto own = static_cast<std::size_t>(b.labels[i]);
    for (std::size_t j = 0; j < classes; ++j) {
      if (j != own) {
        total += std::exp(static_cast<double>(logits[j]));
        most = std::max(most, static_cast<double>(logits[j]) / kScale);
      }
    }
    const bool seen = share != 0;
    const double x = seen ? static_cast<double>(logits[own]) / kScale : 0, theta = std::acos(x);
    const bool angular = c.kind == MarginKind::angular, beyond = x < -std::cos(kMargin);
    const double phi = !angular ? x - kMargin : beyond ? x + std::cos(kMargin) - 1 : std::cos(theta + kMargin);
    const double phi_slope = !angular || beyond ? 1 : std::sin(theta + kMargin) / std::sin(theta);
    const double target = std::exp(kScale * phi), value = share * -std::log(target / (target + total));
    sum += seen ? value : 0;
    if (c.reduction == Reduction::none) {
      right = right && near(loss[i], seen ? value : 0, tolerance);
    }
    right = right && near(cosine[i], x, tolerance) && near(nearest[i], seen ? most : 0, tolerance) && active[i] == seen;
    for (std::size_t j = 0; j < classes; ++j) {
      const double other = share * kScale * std::exp(static_cast<double>(logits[j])) / (target + total);
      const double to_own = -share * kScale * total / (target + total) * phi_slope;
      right = right && near(slopes[i * classes + j], !seen ? 0 : j == own ? to_own : other, tolerance);
    }
  }
  right = right && (c.reduction == Reduction::none || near(loss[0], sum, tolerance));
  const std::string name = std::string(table.isa) + " " + std::to_string(c.n) + " x " + std::to_string(c.classes);
  check(right, name);
  check(loss.untouched_outside() && slopes.untouched_outside() && cosine.untouched_outside() &&
            nearest.untouched_outside() && active.untouched_outside(),
        name + ": bounds");
  for (const Order order : orders_again()) {
    Guarded<T> again(slopes.size());
    p.slopes = again.data();
    run(kernel, p, order);
    check(again.same_bits(slopes), name + ": bits");
  }
}

/// What becomes of these logits, one row after another, with a margin and a scale of 1.
struct Spoilt {
  float loss = 0;
  std::vector<float> slopes, nearest;
};

Spoilt mean_of(const cpu::KernelTable& table, const std::vector<float>& logits, std::int64_t classes,
               const std::vector<std::int64_t>& labels) {
  const std::size_t n = labels.size();
  const std::vector<float> unit(n + static_cast<std::size_t>(classes));
  std::vector<float> cosine(n);
  const auto active = std::make_unique<bool[]>(n);
  Spoilt found{0, std::vector<float>(logits.size()), std::vector<float>(n)};
  MarginSoftmax p{};
  p.n = static_cast<std::int64_t>(n);
  p.classes = classes;
  p.d = 1;
  p.logits = logits.data();
  p.unit = unit.data();
  p.labels = labels.data();
  p.scale = p.margin = 1;
  p.reduction = Reduction::mean;
  p.loss = &found.loss;
  p.slopes = found.slopes.data();
  p.cosine = cosine.data();
  p.nearest_other = found.nearest.data();
  p.active = active.get();
  run(*table.margin_softmax[0], p, Order::serial);
  return found;
}

bool is_nan(float x) { return std::isnan(x); }

/// A NaN in a row spoils this row, and so does a label of no class; not the slopes of the others.
void spoilt(const cpu::KernelTable& table) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  const auto [loss, slopes, nearest] = mean_of(table, {nan, 1, 2, 1, 2, 3, 3, 2, 1}, 3, {1, 0, 3});
  const auto row = [&s = slopes](int i) { return s.begin() + 3 * i; };
  check(is_nan(loss) && std::all_of(row(0), row(1), is_nan) && std::none_of(row(1), row(2), is_nan) &&
            std::all_of(row(2), row(3), is_nan),
        std::string(table.isa) + ": what is spoilt");
  check(is_nan(mean_of(table, {inf, 1, 2}, 3, {1}).loss), std::string(table.isa) + ": a logit of Inf");
  check(is_nan(mean_of(table, {1, inf, 2}, 3, {1}).loss), std::string(table.isa) + ": an own logit of Inf");
  check(is_nan(mean_of(table, {-inf, 1, -inf}, 3, {1}).loss), std::string(table.isa) + ": every other one is -Inf");
  check(is_nan(mean_of(table, {1}, 1, {0}).loss), std::string(table.isa) + ": there is no other class");
}

/// Rows of which a part that some unit of work has alone holds nothing but the own class, or -Inf.
void lonely(const cpu::KernelTable& table) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const std::size_t classes : {257U, 2049U, 2500U}) {
    std::vector<float> logits(classes, -inf);
    logits[3] = 1;
    logits[classes - 1] = 5;
    const auto [loss, slopes, nearest] =
        mean_of(table, logits, static_cast<std::int64_t>(classes), {static_cast<std::int64_t>(classes) - 1});
    const double want = std::log1p(std::exp(1.0 - 4.0)), slope = 1 / (1 + std::exp(3.0));
    check(near(loss, want, 1e-6) && near(slopes[3], slope, 1e-6) && near(slopes.back(), -slope, 1e-6) &&
              nearest[0] == 1 && std::count(slopes.begin(), slopes.end(), 0.0F) == static_cast<int>(classes) - 2,
          std::string(table.isa) + ": one other class of " + std::to_string(classes));
  }
}

}  // namespace
}  // namespace fastmine::test

int main() {
  using namespace fastmine;
  using namespace fastmine::test;
  for (const auto* table : tables_of(&cpu::KernelTable::margin_softmax)) {
    Random random(1);
    for (const MarginKind kind : {MarginKind::cosine, MarginKind::angular}) {
      for (const Reduction reduction : {Reduction::mean, Reduction::sum, Reduction::none}) {
        for (const std::int64_t classes : {2, 5, 16, 33, 2500}) {
          const bool masked = classes % 2 == 1;
          one<float>(*table, {7, classes, 19, kind, reduction, masked, !masked}, random);
          one<double>(*table, {9, classes, 6, kind, reduction, masked, masked}, random);
        }
        one<float>(*table, {0, 3, 4, kind, reduction, false, false}, random);
        one<float>(*table, {150, 6, 4, kind, reduction, true, true}, random);
        for (const std::size_t before : {0, 1, 2}) {
          one<float>(*table, {5, 1003, 19, kind, reduction, false, true, 2, before}, random);
          one<double>(*table, {5, 517, 19, kind, reduction, true, false, 3, before}, random);
          one<float>(*table, {3, 256, 19, kind, reduction, false, false, 1, before}, random);
          one<double>(*table, {3, 256, 19, kind, reduction, true, true, 1, before}, random);
        }
      }
    }
    spoilt(*table);
    lonely(*table);
  }
  return report();
}
