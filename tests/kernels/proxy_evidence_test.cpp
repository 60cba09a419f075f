// The evidence of losses against class vectors, against one loop over the rows.
#include "kernels/proxy_evidence.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "check.h"

namespace fastmine::test {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

/// W is the type of the rows and of the cosines. Rows of every kind: invalid, of no class, zero, not finite.
template <class W>
void against_a_loop(const cpu::KernelTable& table, Random& random, std::int64_t n, std::int64_t d, std::int64_t classes,
                    int options) {
  const bool masked = (options & 1) != 0, weighted = (options & 2) != 0, nan = (options & 4) != 0;
  const std::int64_t stride = d + 3, vectors = classes * (weighted ? 2 : 1);
  std::vector<W> values, cosine, nearest, weight;
  std::vector<std::int64_t> labels;
  std::vector<double> norms;
  const auto valid = std::make_unique<bool[]>(static_cast<std::size_t>(n) + 1);
  const auto active = std::make_unique<bool[]>(static_cast<std::size_t>(n) + 1);
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t k = 0; k < stride; ++k) {
      const double x = k >= d || (i % 11 == 3 && k == d - 1) ? kNan : i % 9 == 4 ? 0 : random() - 0.5;
      values.push_back(static_cast<W>(x));
    }
    labels.push_back(i % 13 == 5 ? -1 : i % 17 == 6 ? classes + i : random.below(classes));
    cosine.push_back(static_cast<W>(nan && i == n / 2 ? kNan : 2 * random() - 1));
    nearest.push_back(static_cast<W>(2 * random() - 1));
    weight.push_back(static_cast<W>(random()));
    valid[static_cast<std::size_t>(i)] = i % 5 != 2;
    active[static_cast<std::size_t>(i)] = random() < 0.5;
  }
  for (std::int64_t k = 0; k < vectors; ++k) {
    norms.push_back(k % 6 == 2 ? 0 : k % 7 == 3 ? (k % 2 == 0 ? kInf : kNan) : 1 + random());
  }
  Guarded<double> found(static_cast<std::size_t>(Proxy::count));
  ProxyEvidence p{};
  p.x = {values.data(), sizeof(W) == 8 ? DType::float64 : DType::float32, n, d, stride};
  p.labels = labels.data();
  p.valid = masked ? valid.get() : nullptr;
  p.classes = classes;
  p.vector_norm = norms.data();
  p.vectors = vectors;
  p.cosine = cosine.data();
  p.nearest_other = nearest.data();
  p.weight = weighted ? weight.data() : nullptr;
  p.dtype = p.x.dtype;
  p.active = active.get();
  p.evidence = found.data();
  run(*table.proxy_evidence[sizeof(W) == 8], p);

  std::vector<double> want(static_cast<std::size_t>(Proxy::count));
  const auto at = [&](Proxy field) -> double& { return want[static_cast<std::size_t>(field)]; };
  std::vector<double> total(static_cast<std::size_t>(d));
  std::set<std::int64_t> present;
  double farthest = -kInf, closest = kInf;
  at(Proxy::anchors) = static_cast<double>(n);
  for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
    if (masked && !valid[i]) {
      continue;
    }
    double squares = 0;
    for (std::size_t k = 0; k < static_cast<std::size_t>(d); ++k) {
      const auto x = static_cast<double>(values[i * static_cast<std::size_t>(stride) + k]);
      squares += x * x;
    }
    at(Proxy::admitted) += 1;
    at(Proxy::has_negative) += 1;
    at(Proxy::zero_rows) += squares == 0;
    at(Proxy::nonfinite_rows) += std::isnan(squares);
    if (!std::isnan(squares)) {
      at(Proxy::norm_squared_sum) += squares;
      for (std::size_t k = 0; k < static_cast<std::size_t>(d); ++k) {
        total[k] += static_cast<double>(values[i * static_cast<std::size_t>(stride) + k]);
      }
    }
    at(Proxy::negative_labels) += labels[i] < 0;
    if (labels[i] < 0 || labels[i] >= classes) {
      at(Proxy::out_of_range) += 1;
      continue;
    }
    const auto d_p = static_cast<double>(1 - cosine[i]), d_n = static_cast<double>(1 - nearest[i]);
    at(Proxy::valid) += 1;
    at(Proxy::has_positive) += 1;
    at(Proxy::hard) += d_n < d_p;
    at(Proxy::active) += active[i];
    at(Proxy::weight_sum) += weighted ? static_cast<double>(weight[i]) : 1;
    at(Proxy::positive_distance_sum) += d_p;
    at(Proxy::negative_distance_sum) += d_n;
    farthest = std::isnan(d_p) || std::isnan(farthest) ? kNan : std::max(farthest, d_p);
    closest = std::min(closest, d_n);
    present.insert(labels[i]);
  }
  for (const double sum : total) {
    at(Proxy::sum_norm_squared) += sum * sum;
  }
  at(Proxy::classes) = static_cast<double>(present.size());
  if (at(Proxy::valid) > 0) {
    at(Proxy::positive_distance_max) = farthest;
    at(Proxy::negative_distance_min) = closest;
  }
  for (const double norm : norms) {
    at(Proxy::nonfinite_refs) += !std::isfinite(norm);
    at(Proxy::zero_refs) += norm == 0;
  }
  const std::string what = "n = " + std::to_string(n) + ", d = " + std::to_string(d) + ", classes " +
                           std::to_string(classes) + ", options " + std::to_string(options) + ", " + table.isa;
  for (std::size_t field = 0; field < want.size(); ++field) {
    const double x = found[field], y = want[field];
    check((std::isnan(x) && std::isnan(y)) || std::abs(x - y) <= 1e-12 * (1 + std::abs(y)),
          "field " + std::to_string(field) + ": " + what);
  }
  check(found.untouched_outside(), "nothing else is written: " + what);
}

}  // namespace
}  // namespace fastmine::test

int main() {
  using namespace fastmine::test;
  for (const auto* table : tables_of(&fastmine::cpu::KernelTable::proxy_evidence)) {
    Random random(3);
    for (const std::int64_t n : {0, 1, 60, 64, 130, 300}) {
      for (int options = 0; options < 8; ++options) {
        const std::int64_t classes = 1 + random.below(200);
        against_a_loop<float>(*table, random, n, 19, classes, options);
        against_a_loop<double>(*table, random, n, options % 2 == 0 ? 1 : 70, classes, options);
      }
    }
  }
  return report();
}
