// The shares of every error in the Jaccard loss against differences of that loss, mistake by mistake.
#include "kernels/lovasz_shares.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "check.h"

namespace fastmine::test {
namespace {

template <class T>
struct Batch {
  std::int64_t samples, classes, positions;
  std::vector<T> errors, target;
  std::unique_ptr<bool[]> valid;
};

/// With errors of few values, many are equal; with errors of 0, some of -0.
template <class T>
Batch<T> make(Random& random, std::int64_t samples, std::int64_t classes, std::int64_t positions, std::int64_t values) {
  const auto n = static_cast<std::size_t>(samples * classes * positions);
  Batch<T> b{samples, classes, positions, std::vector<T>(n), std::vector<T>(n), std::make_unique<bool[]>(n)};
  for (std::size_t i = 0; i < n; ++i) {
    b.errors[i] = static_cast<T>(values > 0 ? static_cast<double>(random.below(values)) : random() * 3);
    b.errors[i] = b.errors[i] == 0 && random() < 0.5 ? -b.errors[i] : b.errors[i];
    b.target[i] = static_cast<T>(random() < 0.3 ? 1 : 0);
    b.valid[i] = random() < 0.8;
  }
  return b;
}

/// 1 - |target without the mistakes| / |target with the mistakes that are not of it|.
double jaccard_loss(double target, double missed, double false_positives) {
  const double every = target + false_positives;
  return every == 0 ? 0 : 1 - (target - missed) / every;
}

template <class T>
std::vector<double> by_differences(const Batch<T>& b, bool masked) {
  std::vector<double> shares(b.errors.size(), 0);
  for (std::int64_t g = 0; g < b.samples * b.classes; ++g) {
    const auto first = static_cast<std::size_t>(g * b.positions);
    std::vector<std::size_t> order;
    for (std::size_t i = first; i < first + static_cast<std::size_t>(b.positions); ++i) {
      if (!masked || b.valid[i]) {
        order.push_back(i);
      }
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t i, std::size_t j) { return b.errors[i] > b.errors[j]; });
    double target = 0, missed = 0, false_positives = 0, before = 0;
    for (const std::size_t i : order) {
      target += static_cast<double>(b.target[i]);
    }
    for (const std::size_t i : order) {
      (b.target[i] != 0 ? missed : false_positives) += 1;
      const double after = jaccard_loss(target, missed, false_positives);
      shares[i] = after - before;
      before = after;
    }
  }
  return shares;
}

template <class T>
void assert_shares(const Batch<T>& b, bool masked, Order order, const std::string& what) {
  Guarded<T> shares(b.errors.size());
  const std::int64_t row = b.classes * b.positions;
  const LovaszShares problem{b.samples,
                             b.classes,
                             b.positions,
                             sizeof(T) == 4 ? DType::float32 : DType::float64,
                             b.errors.data(),
                             b.target.data(),
                             masked ? reinterpret_cast<const std::uint8_t*>(b.valid.get()) : nullptr,
                             {row, b.positions, 1},
                             shares.data()};
  run(cpu::lovasz_shares, problem, order);
  const std::vector<double> want = by_differences(b, masked);
  double worst = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    worst = std::max(worst, std::abs(static_cast<double>(shares[i]) - want[i]));
  }
  check(worst < (sizeof(T) == 4 ? 1e-7 : 1e-13), what + ": a share is off by " + std::to_string(worst));
  check(shares.untouched_outside(), what + ": wrote outside");
}

template <class T>
void sizes() {
  Random random(sizeof(T));
  for (const std::int64_t positions : {0, 1, 2, 63, 700}) {
    for (const std::int64_t values : {0, 1, 2, 9}) {
      for (const std::int64_t samples : {1, 5}) {
        const Batch<T> b = make<T>(random, samples, 3, positions, values);
        for (const bool masked : {false, true}) {
          assert_shares(b, masked, samples == 1 ? Order::one_by_one_backwards : Order::threads,
                        std::to_string(sizeof(T)) + " bytes, " + std::to_string(samples) + " x 3 x " +
                            std::to_string(positions) + ", " + std::to_string(values) + " values");
        }
      }
    }
  }
}

}  // namespace
}  // namespace fastmine::test

int main() {
  fastmine::test::sizes<float>();
  fastmine::test::sizes<double>();
  return fastmine::test::report();
}
