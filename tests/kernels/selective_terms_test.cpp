// The selectively contrastive loss of mined pairs, by hand and against loops.
#include "kernels/selective_terms.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "check.h"

namespace fastmine::test {

/// Beside the tables.
void selective_terms(const SelectiveTerms& problem);

namespace {

bool equal(double a, double b, double tolerance) {
  return (std::isnan(a) && std::isnan(b)) || a == b || std::abs(a - b) <= tolerance * (1 + std::abs(b));
}

/// An anchor whose negative is nearer than its positive, one where it is not, and two without a pair of some sign.
void by_hand() {
  const double d_p[] = {0.75, 0.25, 0.5, 0}, d_n[] = {0.25, 0.75, 0, 0.5}, weight[] = {3, 1, 5, 7};
  const bool has_p[] = {true, true, true, false}, has_n[] = {true, true, false, true};
  double loss[4], slopes[8], active;
  SelectiveTerms p{};
  p.n = 4;
  p.positive_distance = d_p;
  p.negative_distance = d_n;
  p.has_positive = has_p;
  p.has_negative = has_n;
  p.weight = weight;
  p.metric = Metric::cosine;
  p.temperature = 0.5;
  p.hard_weight = 2;
  p.loss = loss;
  p.loss_dtype = DType::float64;
  p.slopes = slopes;
  p.active = &active;
  p.reduction = Reduction::mean;
  selective_terms(p);
  const double easy = std::log1p(std::exp(-1.0)), slope = 2 / (1 + std::exp(1.0));
  check(active == 2 && equal(loss[0], (3 * 2 * 0.75 + easy) / 4, 1e-15), "the mean by weights");
  check(slopes[0] == 0 && slopes[4] == -1.5 && equal(slopes[1], slope / 4, 1e-15) && slopes[5] == -slopes[1] &&
            slopes[2] == 0 && slopes[7] == 0,
        "a hard negative is only pushed");
  p.weight = nullptr;
  p.reduction = Reduction::none;
  p.n = 2;
  p.has_positive = has_p + 2;
  p.has_negative = has_n + 2;
  p.positive_distance = d_p + 2;
  p.negative_distance = d_n + 2;
  p.on_empty = OnEmpty::pull;
  selective_terms(p);
  check(active == 0 && loss[0] == 0.5 && slopes[0] == 1 && loss[1] == 0, "pull");
  p.on_empty = OnEmpty::push;
  selective_terms(p);
  check(loss[0] == 0 && equal(loss[1], std::log1p(std::exp(1.0)), 1e-15) && slopes[3] < 0, "push");
}

/// An anchor by its similarities.
struct Anchor {
  double to_positive, to_negative;
  bool has_p, has_n;
};

void against_loops() {
  Random random(3);
  for (int turn = 0; turn < 120; ++turn) {
    constexpr std::int64_t kSizes[] = {0, 1, 5, 63, 64, 65, 150};
    const std::int64_t n = kSizes[turn % 7];
    const auto size = static_cast<std::size_t>(n);
    const bool dot = turn % 2 == 1, wide = turn % 3 != 0, none_valid = turn % 4 == 2;
    std::vector<double> d_p(size), d_n(size), weight(size);
    const auto has_p = std::make_unique<bool[]>(size), has_n = std::make_unique<bool[]>(size);
    std::vector<Anchor> anchors;
    for (std::size_t i = 0; i < size; ++i) {
      const double nan = std::numeric_limits<double>::quiet_NaN();
      has_p[i] = random() < 0.7;
      has_n[i] = random() < 0.7 && !(none_valid && has_p[i]);
      d_p[i] = !has_p[i] ? 0 : turn % 5 == 4 && random() < 0.05 ? nan : 2 * random();
      d_n[i] = has_n[i] ? 2 * random() : 0;
      weight[i] = random();
      anchors.push_back({dot ? d_p[i] : 1 - d_p[i], dot ? d_n[i] : 1 - d_n[i], has_p[i], has_n[i]});
    }
    SelectiveTerms p{};
    p.n = n;
    p.positive_distance = d_p.data();
    p.negative_distance = d_n.data();
    p.has_positive = has_p.get();
    p.has_negative = has_n.get();
    p.weight = turn % 3 == 1 ? weight.data() : nullptr;
    p.metric = dot ? Metric::dot : Metric::cosine;
    p.temperature = 0.1 + random();
    p.hard_weight = 1.5;
    p.on_empty = static_cast<OnEmpty>(random.below(3));
    p.reduction = static_cast<Reduction>(random.below(3));
    const bool each = p.reduction == Reduction::none;
    Guarded<double> loss(each ? size : 1), slopes(2 * size), active(1);
    Guarded<float> narrow(loss.size());
    p.loss = wide ? static_cast<void*>(loss.data()) : narrow.data();
    p.loss_dtype = wide ? DType::float64 : DType::float32;
    p.slopes = slopes.data();
    p.active = active.data();
    selective_terms(p);

    const auto valid = [](const Anchor& a) { return a.has_p && a.has_n; };
    const auto count = std::count_if(anchors.begin(), anchors.end(), valid);
    const double sign = dot ? 1 : -1, t = p.temperature;
    std::vector<double> want(size), want_slopes(2 * size);
    double sum = 0, whole = 0;
    for (std::size_t i = 0; i < size; ++i) {
      const Anchor& a = anchors[i];
      const double w = p.weight == nullptr ? 1 : weight[i], apart = a.to_negative - a.to_positive;
      const bool pulled = count == 0 && p.on_empty == OnEmpty::pull && a.has_p;
      const bool pushed = count == 0 && p.on_empty == OnEmpty::push && a.has_n;
      if (valid(a) && apart > 0) {
        want[i] = w * p.hard_weight * a.to_negative;
        want_slopes[size + i] = w * sign * p.hard_weight;
      } else if (valid(a)) {
        want[i] = w * std::log(1 + std::exp(apart / t));
        want_slopes[size + i] = w * sign / (1 + std::exp(-apart / t)) / t;
        want_slopes[i] = -want_slopes[size + i];
      } else if (pulled) {
        want[i] = w * (dot ? -d_p[i] : d_p[i]);
        want_slopes[i] = w * -sign;
      } else if (pushed) {
        want[i] = w * std::log(1 + std::exp(a.to_negative / t));
        want_slopes[size + i] = w * sign / (1 + std::exp(-a.to_negative / t)) / t;
      }
      sum += want[i];
      whole += valid(a) || pulled || pushed ? w : 0;
    }
    const double divisor = p.reduction == Reduction::mean && whole > 0 ? whole : 1;
    const auto found = [&](std::size_t i) { return wide ? loss[i] : static_cast<double>(narrow[i]); };
    const double tolerance = wide ? 1e-12 : 1e-6;
    bool right = active[0] == static_cast<double>(count) && (each || equal(found(0), sum / divisor, tolerance));
    for (std::size_t i = 0; i < size; ++i) {
      right = right && (!each || equal(found(i), want[i], tolerance));
      right = right && equal(slopes[i], want_slopes[i] / divisor, 1e-12) &&
              equal(slopes[size + i], want_slopes[size + i] / divisor, 1e-12);
    }
    check(right, "turn " + std::to_string(turn));
    check(loss.untouched_outside() && narrow.untouched_outside() && slopes.untouched_outside() &&
              active.untouched_outside(),
          "turn " + std::to_string(turn) + ": nothing else is written");
  }
}

}  // namespace
}  // namespace fastmine::test

int main() {
  using namespace fastmine::test;
  by_hand();
  against_loops();
  return report();
}
