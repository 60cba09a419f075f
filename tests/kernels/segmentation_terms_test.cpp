// The slopes of every segmentation term by the sums against differences of its values, and values by hand; the Python
// tests compare both with the specification and with loops over pixels.
#include "kernels/segmentation_terms.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <string>
#include <vector>

#include "check.h"

namespace fastmine::test {
namespace {

using Sum = SegmentationSum;

/// A problem, its inputs and room for its outputs.
struct Formula {
  SegmentationTerms problem{};
  std::vector<double> sums, found, lovasz, weights, pos_weights, room, slopes, lovasz_slopes, values, norms, loss;
  std::vector<std::uint8_t> kept;

  double& sum(std::int64_t group, SegmentationSum which) {
    return sums[static_cast<std::size_t>(group * kSegmentationSums + static_cast<int>(which))];
  }

  /// The sum of what the loss returns.
  double run() {
    SegmentationTerms& p = problem;
    const auto groups = static_cast<std::size_t>(p.samples * p.classes);
    room.assign(groups * kSegmentationSums, 0);
    slopes.assign(groups * kSegmentationSums, 0);
    lovasz_slopes.assign(groups, 0);
    values.assign(kFormulaTerms, 0);
    norms.assign(kFormulaTerms, 0);
    loss.assign(static_cast<std::size_t>(std::max<std::int64_t>(p.samples, 1)), 0);
    p.sums = sums.data();
    p.found = found.data();
    p.lovasz = lovasz.data();
    p.room = room.data();
    p.loss = loss.data();
    p.loss_dtype = DType::float64;
    p.slopes = slopes.data();
    p.lovasz_slopes = lovasz_slopes.data();
    p.values = values.data();
    p.norms = norms.data();
    cpu::segmentation_terms(p);
    double total = 0;
    for (const double value : loss) {
      total += value;
    }
    return total;
  }
};

/// Sums that pixels could have; of the first group with nothing on target, of the last with nothing at all.
Formula make(Random& random, std::int64_t samples, std::int64_t classes, bool softmax) {
  Formula f;
  SegmentationTerms& p = f.problem;
  p.samples = samples;
  p.classes = classes;
  p.softmax = softmax;
  const std::int64_t groups = samples * classes;
  f.sums.assign(static_cast<std::size_t>(groups * kSegmentationSums), 0);
  f.found.assign(static_cast<std::size_t>(Segmentation::first_term), 0);
  f.lovasz.assign(static_cast<std::size_t>(groups), 0);
  for (std::int64_t g = 0; g + 1 < groups; ++g) {
    const double target = g == 0 ? 0 : 2 + 6 * random(), probability = 1 + 9 * random();
    f.sum(g, Sum::n) = 20;
    f.sum(g, Sum::t) = f.sum(g, Sum::tt) = target;
    f.sum(g, Sum::p) = probability;
    f.sum(g, Sum::a) = 0.6 * std::min(target, probability);
    f.sum(g, Sum::pp) = 0.7 * probability;
    f.sum(g, Sum::g1) = 0.1 * target;
    f.sum(g, Sum::g0) = 0.1;
    for (const Sum which : {Sum::e1, Sum::e0, Sum::f1, Sum::f0, Sum::x, Sum::tx}) {
      f.sum(g, which) = random();
    }
    f.lovasz[static_cast<std::size_t>(g)] = random();
  }
  for (int i = 0; i < kFormulaTerms; ++i) {
    p.asked[i] = static_cast<FormulaTerm>(i) != (softmax ? FormulaTerm::bce : FormulaTerm::ce);
    p.weights[i] = 0.5 + random();
  }
  p.smooth_nr = 0.3;
  p.smooth_dr = 0.4;
  p.tversky_alpha = 0.3;
  p.tversky_beta = 0.8;
  p.focal_tversky_exponent = 0.75;
  p.generalized_power = 2;
  return f;
}

void assert_slopes_are_differences(Formula f, const std::string& what) {
  constexpr double kStep = 1e-6;
  f.run();
  const std::vector<double> slopes = f.slopes, lovasz_slopes = f.lovasz_slopes;
  const auto difference = [&](double& of) {
    const double before = of;
    of = before + kStep;
    const double above = f.run();
    of = before - kStep;
    const double below = f.run();
    of = before;
    return (above - below) / (2 * kStep);
  };
  const auto agrees = [&](double slope, double numeric, const std::string& by) {
    check(std::abs(slope - numeric) <= 1e-6 * (1 + std::abs(numeric)),
          what + ": the slope by " + by + " is " + std::to_string(slope) + ", not " + std::to_string(numeric));
  };
  const std::int64_t groups = f.problem.samples * f.problem.classes;
  for (std::int64_t g = 0; g + 1 < groups; ++g) {  // a group without items has no sums to step from
    for (const Sum by : {Sum::p, Sum::a, Sum::pp, Sum::e1, Sum::e0, Sum::f1, Sum::f0, Sum::x, Sum::tx}) {
      const auto at = static_cast<std::size_t>(g * kSegmentationSums + static_cast<int>(by));
      agrees(slopes[at], difference(f.sums[at]), kSegmentationSumNames[static_cast<int>(by)]);
    }
  }
  for (std::size_t i = 0;
       i + 1 < (f.problem.batch ? static_cast<std::size_t>(f.problem.classes) : lovasz_slopes.size()); ++i) {
    agrees(lovasz_slopes[i], difference(f.lovasz[i]), "lovasz");
  }
}

void slopes() {
  Random random(1);
  int turn = 0;
  for (const bool softmax : {false, true}) {
    for (const bool batch : {false, true}) {
      for (const Reduction reduction : {Reduction::mean, Reduction::sum, Reduction::none}) {
        for (const EmptyGroups empty : {EmptyGroups::area, EmptyGroups::skip, EmptyGroups::smooth}) {
          for (const bool options : {false, true}) {
            if (kEmulated && ++turn % 7 != 0) {
              continue;
            }
            Formula f = make(random, kEmulated ? 2 : 3, 4, softmax);
            f.problem.batch = batch;
            f.problem.reduction = reduction;
            f.problem.empty = empty;
            if (options) {
              f.weights = {0.5, 2, 0, 1.5};
              f.pos_weights = {3, 0.25, 1, 2};
              f.kept = {1, 1, 0, 1};
              f.problem.class_weights = {f.weights.data(), 1};
              f.problem.pos_weight = {f.pos_weights.data(), 1};
              f.problem.focal_alpha = {f.weights.data(), 0};
              f.problem.kept = f.kept.data();
              f.problem.label_smoothing = 0.2;
              f.problem.squared = true;
              f.problem.weights_count = reduction == Reduction::sum;
            }
            assert_slopes_are_differences(f, std::string(softmax ? "softmax" : "sigmoid") + (batch ? ", batch" : "") +
                                                 ", reduction " + std::to_string(static_cast<int>(reduction)) +
                                                 ", empty " + std::to_string(static_cast<int>(empty)) +
                                                 (options ? ", options" : ""));
          }
        }
      }
    }
  }
}

/// The same along one direction in which all sums change at once, for more groups than there are threads.
void many_groups() {
  Random random(4);
  for (const bool batch : {false, true}) {
    Formula f = make(random, 37, 45, true);
    f.problem.batch = batch;
    f.run();
    const std::vector<double> slopes = f.slopes, sums = f.sums;
    std::vector<double> direction(sums.size(), 0);
    double want = 0;
    for (std::int64_t g = 0; g + 1 < 37 * 45; ++g) {
      for (const Sum by : {Sum::p, Sum::a, Sum::e1, Sum::f1}) {
        const auto at = static_cast<std::size_t>(g * kSegmentationSums + static_cast<int>(by));
        direction[at] = random() - 0.5;
        want += slopes[at] * direction[at];
      }
    }
    constexpr double kStep = 1e-6;
    const auto moved = [&](double step) {
      for (std::size_t i = 0; i < sums.size(); ++i) {
        f.sums[i] = sums[i] + step * direction[i];
      }
      return f.run();
    };
    const double found = (moved(kStep) - moved(-kStep)) / (2 * kStep);
    check(std::abs(found - want) <= 1e-6 * (1 + std::abs(want)),
          "along a direction the loss grows by " + std::to_string(found) + ", not " + std::to_string(want));
  }
}

/// Of all terms together: one that is 0 where it cannot be told stays 0.
void nothing_and_spoiled() {
  for (const std::int64_t samples : {0, 2}) {
    Random random(2);
    Formula f = make(random, samples, 3, false);
    std::fill(f.sums.begin(), f.sums.end(), 0.0);
    check(f.run() == 0, "nothing valid is worth " + std::to_string(f.run()));
    check(std::all_of(f.slopes.begin(), f.slopes.end(), [](double slope) { return slope == 0; }), "and has a slope");
  }
  Random random(3);
  Formula f = make(random, 2, 3, true);
  f.found[static_cast<std::size_t>(Segmentation::nonfinite)] = 1;
  check(std::isnan(f.run()), "a logit that is not finite was swallowed");
  check(std::all_of(f.slopes.begin(), f.slopes.end(), [](double slope) { return std::isnan(slope); }),
        "a slope of a spoiled batch is a number");
}

}  // namespace
}  // namespace fastmine::test

int main() {
  fastmine::test::slopes();
  fastmine::test::many_groups();
  fastmine::test::nothing_and_spoiled();
  return fastmine::test::report();
}
