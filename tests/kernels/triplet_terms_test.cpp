// The triplet loss of several mined pairs, and distances of pairs of rows, against lists of all triplets and by hand.
#include "kernels/triplet_terms.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "check.h"

namespace fastmine::test {

/// Beside the tables.
void triplet_terms(const TripletTerms& problem);

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr Metric kMetrics[] = {Metric::euclidean, Metric::sqeuclidean, Metric::cosine, Metric::dot};

bool equal(double a, double b) {
  return (std::isnan(a) && std::isnan(b)) || a == b || std::abs(a - b) <= 1e-12 * (1 + std::abs(b));
}

/// Rows at 0, 2, 5 and 9 of classes 0, 0, 1, 1: d_p is 2, 2, 4, 4 and d_n 5, 3, 3, 7; adjusted, by hand.
void adjusted() {
  const double d_p[] = {2, 2, 4, 4}, d_n[] = {5, 3, 3, 7}, between[] = {3, 5, 7, 3};
  const bool has[] = {true, true, true, true};
  double loss[4], slopes[12], evidence[static_cast<int>(TripletTerm::count)], violations[4];
  TripletTerms p{};
  p.n = 4;
  p.positives = p.negatives = 1;
  p.positive_distance = d_p;
  p.negative_distance = d_n;
  p.has_positive = p.has_negative = has;
  p.margin = 1.5;
  p.between = between;
  p.reduction = Reduction::none;
  p.loss = loss;
  p.loss_dtype = DType::float64;
  p.slopes = slopes;
  p.evidence = evidence;
  p.violations = violations;
  triplet_terms(p);
  const auto field = [&](TripletTerm name) { return evidence[static_cast<int>(name)]; };
  check(loss[0] == 0.5 && loss[1] == 0.5 && loss[2] == 2.5 && loss[3] == 2.5, "swap: 3 stands for 5 and for 7");
  check(slopes[4] == 0 && slopes[5] == -1 && slopes[7] == 0 && slopes[8] == -1 && slopes[9] == 0 && slopes[11] == -1,
        "swap: the slope is by the smaller distance");
  check(field(TripletTerm::swapped) == 2 && field(TripletTerm::active) == 4, "swap: evidence");
  p.between = nullptr;
  p.hardness = 0.75;
  p.margin = 1;
  triplet_terms(p);
  check(
      loss[0] == 0.25 && loss[1] == 0.75 && loss[2] == 2 && slopes[0] == 0.25 && slopes[4] == -0.25 && slopes[6] == -1,
      "hardness: a quarter of what is easy");
  p.hardness = 0;
  p.margin = 0;
  p.active_fraction = 0.75;
  triplet_terms(p);
  check(equal(field(TripletTerm::margin), 3) && field(TripletTerm::active) == 4,
        "active fraction: two stand at -3, and the least margin takes both");

  // As one anchor with two positives and two negatives, which has four triplets.
  p.n = 1;
  p.positives = p.negatives = 2;
  p.active_fraction = 0;
  p.margin = 1.5;
  p.reduction = Reduction::mean;
  triplet_terms(p);
  check(loss[0] == 0.25 && slopes[0] == 0.25 && slopes[1] == 0.25 && slopes[2] == 0 && slopes[3] == -0.5,
        "all combinations: violations of -1.5 and 0.5, twice each");
  check(
      field(TripletTerm::triplets) == 4 && field(TripletTerm::active_triplets) == 2 && field(TripletTerm::active) == 1,
      "all combinations: evidence");
}

/// Distances of pairs, in quarters, so that many triplets stand at the kink; some absent, some NaN.
struct Pairs {
  std::int64_t n, positives, negatives;
  std::vector<double> d_p, d_n, between, weight;
  std::unique_ptr<bool[]> has_p, has_n;
};

Pairs make_pairs(Random& random, std::int64_t n, std::int64_t positives, std::int64_t negatives, double absent,
                 double nan) {
  Pairs s{n, positives, negatives, {}, {}, {}, {}, nullptr, nullptr};
  const auto distance = [&] { return random() < nan ? kNan : static_cast<double>(random.below(16)) / 4; };
  const auto draw = [&](std::vector<double>& distances, std::unique_ptr<bool[]>& has, std::int64_t count) {
    has = std::make_unique<bool[]>(static_cast<std::size_t>(count) + 1);
    for (std::int64_t k = 0; k < count; ++k) {
      has[static_cast<std::size_t>(k)] = random() >= absent;
      distances.push_back(has[static_cast<std::size_t>(k)] ? distance() : 0);
    }
  };
  draw(s.d_p, s.has_p, n * positives);
  draw(s.d_n, s.has_n, n * negatives);
  for (std::int64_t i = 0; i < n; ++i) {
    s.between.push_back(distance());
    s.weight.push_back(random());
  }
  return s;
}

/// One triplet, with all distances as if they were no similarities.
struct Listed {
  std::size_t anchor, positive, negative;
  double d_p, d_n, gap, moved;  // `moved`: the derivative of the gap by d_p
  bool has_p, has_n, swapped;
  bool valid() const { return has_p && has_n; }
};

std::vector<Listed> list(const TripletTerms& p, const Pairs& s) {
  std::vector<Listed> all;
  const double sign = p.metric == Metric::dot ? -1 : 1;
  for (std::int64_t i = 0; i < s.n; ++i) {
    for (std::int64_t k = 0; k < s.positives; ++k) {
      for (std::int64_t l = 0; l < s.negatives; ++l) {
        const auto anchor = static_cast<std::size_t>(i);
        const auto positive = static_cast<std::size_t>(i * s.positives + k);
        const auto negative = static_cast<std::size_t>(i * s.negatives + l);
        Listed t{anchor, positive, negative,          sign * s.d_p[positive], sign * s.d_n[negative],
                 0,      1,        s.has_p[positive], s.has_n[negative],      false};
        t.swapped = p.between != nullptr && t.valid() && sign * s.between[anchor] < t.d_n;
        t.gap = t.d_p - (t.swapped ? sign * s.between[anchor] : t.d_n);
        if (t.gap < 0) {
          t.moved = 1 - p.hardness;
          t.gap = t.gap * t.moved;
        }
        all.push_back(t);
      }
    }
  }
  return all;
}

double margin_of(const TripletTerms& p, const std::vector<Listed>& all) {
  std::vector<double> gaps;
  for (const Listed& t : all) {
    if (t.valid()) {
      gaps.push_back(std::isnan(t.gap) ? static_cast<double>(INFINITY) : t.gap);
    }
  }
  if (p.active_fraction == 0 || gaps.empty()) {
    return p.margin;
  }
  std::sort(gaps.rbegin(), gaps.rend());
  const double wanted = std::max(std::ceil(p.active_fraction * static_cast<double>(gaps.size())), 1.0);
  const double last = gaps[static_cast<std::size_t>(wanted) - 1];
  const double margin = std::nextafter(-last, static_cast<double>(INFINITY));
  return std::isinf(last) ? kNan : std::max(margin, p.margin);
}

/// The loss at v and its derivative.
std::pair<double, double> curve(TripletShape shape, double leak, double v) {
  if (std::isnan(v)) {
    return {v, v};
  }
  if (shape == TripletShape::soft) {
    return {std::log1p(std::exp(v)), 1 / (1 + std::exp(-v))};
  }
  const double below = shape == TripletShape::leaky ? leak : 0;
  return v > 0 ? std::pair{v, 1.0} : std::pair{below * v, below};
}

void against_lists() {
  Random random(77);
  for (int turn = 0; turn < 160; ++turn) {
    constexpr std::int64_t kSizes[] = {0, 1, 5, 63, 64, 65, 150};
    const std::int64_t n = kSizes[turn % 7], positives = turn % 3 == 0 ? 1 : 1 + random.below(3);
    const std::int64_t negatives = turn % 3 == 0 ? 1 : 1 + random.below(3);
    const Pairs s = make_pairs(random, n, positives, negatives,
                               turn % 5 == 0   ? 1
                               : turn % 4 == 0 ? 0.3
                                               : 0.05,
                               turn % 8 == 7 ? 0.02 : 0);
    const bool swap = positives * negatives == 1 && turn % 2 == 0, single = turn % 6 == 5;
    const std::size_t pairs = static_cast<std::size_t>(n * (positives + negatives));
    const std::size_t slots = pairs + static_cast<std::size_t>(swap ? n : 0);
    TripletTerms p{};
    p.n = n;
    p.positives = positives;
    p.negatives = negatives;
    p.positive_distance = s.d_p.data();
    p.negative_distance = s.d_n.data();
    p.between = swap ? s.between.data() : nullptr;
    p.has_positive = s.has_p.get();
    p.has_negative = s.has_n.get();
    p.weight = turn % 4 == 1 ? s.weight.data() : nullptr;
    p.metric = turn % 3 == 1 ? Metric::dot : Metric::euclidean;
    p.shape = static_cast<TripletShape>(random.below(3));
    p.margin = 0.25 * static_cast<double>(random.below(4));
    p.leak = 0.125;
    p.hardness = turn % 2 == 0 ? 0 : 0.7;
    p.active_fraction = turn % 4 == 3 ? 0.05 + 0.9 * random() : 0;
    p.on_empty = static_cast<OnEmpty>(random.below(3));
    p.reduction = static_cast<Reduction>(random.below(3));
    const bool none = p.reduction == Reduction::none;
    const std::size_t losses = none ? static_cast<std::size_t>(n) : 1;
    std::vector<double> violations(static_cast<std::size_t>(n * positives * negatives));
    Guarded<double> wide(losses), slopes(slots), evidence(static_cast<std::size_t>(TripletTerm::count));
    Guarded<float> narrow(losses);
    p.violations = violations.data();
    p.loss = single ? static_cast<void*>(narrow.data()) : wide.data();
    p.loss_dtype = single ? DType::float32 : DType::float64;
    p.slopes = slopes.data();
    p.evidence = evidence.data();
    triplet_terms(p);

    const std::vector<Listed> all = list(p, s);
    const double margin = margin_of(p, all), sign = p.metric == Metric::dot ? -1 : 1;
    const bool empty = std::none_of(all.begin(), all.end(), [](const Listed& t) { return t.valid(); });
    std::vector<double> want_loss(static_cast<std::size_t>(n)), want(slots), counts(6);
    std::vector<bool> active(static_cast<std::size_t>(n)), seen(static_cast<std::size_t>(n));
    double sum = 0, counted = 0;
    for (const Listed& t : all) {
      const double w = p.weight == nullptr ? 1 : s.weight[t.anchor];
      double value = 0, by_p = 0, by_n = 0;
      if (t.valid()) {
        const auto [v, slope] = curve(p.shape, p.leak, t.gap + margin);
        value = v, by_p = slope * t.moved, by_n = -by_p;
        const bool above = p.shape == TripletShape::soft || t.gap + margin > 0;
        active[t.anchor] = active[t.anchor] || above;
        counts[2] += 1;
        counts[3] += above;
      } else if (empty && p.on_empty == OnEmpty::pull && t.has_p) {
        value = t.d_p, by_p = 1;
      } else if (empty && p.on_empty == OnEmpty::push && t.has_n) {
        const auto [v, slope] = curve(TripletShape::soft, 0, margin - t.d_n);
        value = v, by_n = -slope;
      }
      counts[4] += t.swapped;
      counts[1] += !seen[t.anchor] && t.valid() && t.d_p - t.d_n <= 0 && t.d_p - t.d_n + margin > 0;
      seen[t.anchor] = true;
      const bool counts_here =
          t.valid() ||
          (empty && ((p.on_empty == OnEmpty::pull && t.has_p) || (p.on_empty == OnEmpty::push && t.has_n)));
      counted += counts_here ? w : 0;
      sum += w * value;
      want_loss[t.anchor] += w * value;
      want[t.positive] += w * sign * by_p;
      want[t.swapped ? pairs + t.anchor : static_cast<std::size_t>(n * positives) + t.negative] += w * sign * by_n;
    }
    counts[0] = static_cast<double>(std::count(active.begin(), active.end(), true));
    counts[5] = margin;
    const double scale = p.reduction == Reduction::mean && counted > 0 ? 1 / counted : 1;
    const auto loss_at = [&](std::size_t i) { return single ? static_cast<double>(narrow[i]) : wide[i]; };
    const auto as_loss = [&](double x) { return single ? static_cast<double>(static_cast<float>(x)) : x; };
    const std::string what = "turn " + std::to_string(turn) + ": ";
    bool right = none || equal(loss_at(0), as_loss(sum * scale)) || std::abs(loss_at(0) - sum * scale) < 1e-6 * sum;
    for (std::size_t i = 0; none && i < losses; ++i) {
      right = right && (equal(loss_at(i), as_loss(want_loss[i])) || single);
    }
    check(right, what + "loss");
    right = true;
    for (std::size_t k = 0; k < slots; ++k) {
      right = right && equal(slopes[k], want[k] * scale);
    }
    check(right, what + "slopes");
    right = true;
    for (std::size_t field = 0; field < 6; ++field) {
      right = right && (evidence[field] == counts[field] || (std::isnan(evidence[field]) && std::isnan(counts[field])));
    }
    check(right, what + "evidence");
    check(wide.untouched_outside() && narrow.untouched_outside() && slopes.untouched_outside() &&
              evidence.untouched_outside(),
          what + "nothing else is written");
  }
}

/// Rows of float32 or float64 with a gap after each; every tenth has a NaN, every seventh is zero. Of cosine such two
/// were at distance 1 from each other.
void distances(const cpu::KernelTable& table) {
  Random random(5);
  for (const DType dtype : {DType::float32, DType::float64}) {
    for (const std::int64_t d : {0, 1, 33}) {
      constexpr std::int64_t kRows = 23, kPairs = 70;
      const std::int64_t stride = d + 2;
      std::vector<float> singles;
      std::vector<double> doubles;
      for (std::int64_t at = 0; at < kRows * stride; ++at) {
        const std::int64_t row = at / stride;
        const double x = at % stride >= d || (row % 10 == 9 && at % stride == 0) ? kNan
                         : row % 7 == 6 ? 0
                                        : static_cast<double>(random.below(9)) - 4;
        doubles.push_back(x);
        singles.push_back(static_cast<float>(x));
      }
      std::vector<std::int64_t> first, second;
      bool has_first[kPairs], has_second[kPairs];
      for (std::int64_t i = 0; i < kPairs; ++i) {
        first.push_back(random.below(kRows));
        second.push_back(random.below(kRows));
        has_first[i] = random() < 0.9;
        has_second[i] = random() < 0.9;
      }
      for (const Metric metric : kMetrics) {
        Guarded<double> found(kPairs);
        PairedDistance p{};
        p.rows = {dtype == DType::float64 ? static_cast<const void*>(doubles.data()) : singles.data(), dtype, kRows, d,
                  stride};
        p.metric = metric;
        p.n = kPairs;
        p.first = first.data();
        p.second = second.data();
        p.has_first = has_first;
        p.has_second = has_second;
        p.distance = found.data();
        run(*table.paired_distance[dtype == DType::float64], p);
        bool right = found.untouched_outside();
        for (std::size_t i = 0; i < kPairs; ++i) {
          double squares = 0, product = 0, xx = 0, yy = 0;
          for (std::int64_t k = 0; k < d; ++k) {
            const double x = doubles[static_cast<std::size_t>(first[i] * stride + k)];
            const double y = doubles[static_cast<std::size_t>(second[i] * stride + k)];
            squares += (x - y) * (x - y);
            product += x * y;
            xx += x * x;
            yy += y * y;
          }
          const double norms = std::sqrt(xx) * std::sqrt(yy), cosine = norms == 0 ? 1 : 1 - product / norms;
          const double want = !has_first[i] || !has_second[i] ? 0
                              : metric == Metric::euclidean   ? std::sqrt(squares)
                              : metric == Metric::sqeuclidean ? squares
                              : metric == Metric::cosine      ? cosine
                                                              : product;
          right = right && equal(found[i], want);
        }
        check(right, "distances of pairs, d = " + std::to_string(d) + ", metric " +
                         std::to_string(static_cast<int>(metric)) + ", " + table.isa);
      }
    }
  }
}

}  // namespace
}  // namespace fastmine::test

int main() {
  using namespace fastmine::test;
  for (const auto* table : tables_of(&fastmine::cpu::KernelTable::paired_distance)) {
    distances(*table);
  }
  adjusted();
  against_lists();
  return report();
}
