// The formula of the batch-all loss on the device, emulated, against that of the CPU.
#include <cmath>

#include "check.h"
#include "elements.h"
#include "kernels/cuda/batch_all.h"

namespace fastmine::test {
namespace {

/// What the formula writes, of one of both.
struct Formula {
  Guarded<double> scale, slopes, evidence, workspace;
  Guarded<double> loss;
  Guarded<bool> use;

  explicit Formula(std::size_t n)
      : scale(n), slopes(2 * n), evidence(2), workspace(cuda::kFormulaWorkspace / 8), loss(n > 0 ? n : 1), use(n) {}
};

bool near(const Guarded<double>& a, const Guarded<double>& b) {
  bool all = a.untouched_outside() && b.untouched_outside();
  for (std::size_t k = 0; k < a.size(); ++k) {
    const bool both_nan = std::isnan(a[k]) && std::isnan(b[k]);
    all = all && (both_nan || std::abs(a[k] - b[k]) <= 1e-12 * (1 + std::abs(b[k])));
  }
  return all;
}

void one(Random& random, std::size_t n, double share, Reduction reduction, Triplets kind, double leak, bool nan) {
  std::vector<double> positive(n), negative(n), triplets(n), sum(n), active(n), weight(n);
  const auto has_positive = std::make_unique<bool[]>(n), has_negative = std::make_unique<bool[]>(n);
  for (std::size_t i = 0; i < n; ++i) {
    positive[i] = random();
    negative[i] = nan && i == 3 ? kNan : random();
    has_positive[i] = random() < share;
    has_negative[i] = random() < share || (nan && i == 3);
    has_positive[i] = has_positive[i] || (nan && i == 3);
    triplets[i] = static_cast<double>(random.below(50));
    active[i] = static_cast<double>(random.below(20));
    sum[i] = random();
    weight[i] = random();
  }
  Formula cpu(n), device(n);
  const auto problem = [&](Formula& f) {
    BatchAllFormula p{};
    p.n = static_cast<std::int64_t>(n);
    p.positive_distance = positive.data();
    p.negative_distance = negative.data();
    p.has_positive = has_positive.get();
    p.has_negative = has_negative.get();
    p.triplets = triplets.data();
    p.sum = sum.data();
    p.active = active.data();
    p.weight = weight.data();
    p.metric = kind == Triplets::hard ? Metric::dot : Metric::euclidean;
    p.kind = kind;
    p.margin = 0.2;
    p.leak = leak;
    p.reduction = reduction;
    p.of_active = kind == Triplets::all;
    p.use = f.use.data();
    p.loss = f.loss.data();
    p.loss_dtype = DType::float64;
    p.scale = f.scale.data();
    p.slopes = f.slopes.data();
    p.all_triplets = f.evidence.data();
    p.all_active = f.evidence.data() + 1;
    return p;
  };
  const BatchAllFormula here = problem(cpu), there = problem(device);
  cpu::use_of_anchors(here);
  cpu::batch_all_formula(here);
  check(cuda::use_of_anchors(there, nullptr) == cuda::cudaSuccess, "launching");
  check(cuda::batch_all_formula(there, device.workspace.data(), nullptr) == cuda::cudaSuccess, "launching");
  const std::string name = "n=" + std::to_string(n) + " reduction " + std::to_string(static_cast<int>(reduction));
  check(device.use.same_bits(cpu.use), name + ": use");
  check(near(device.loss, cpu.loss), name + ": loss");
  check(near(device.scale, cpu.scale) && near(device.slopes, cpu.slopes), name + ": slopes");
  check(near(device.evidence, cpu.evidence), name + ": evidence");

  const std::vector<float> grad(1, 0.5F);
  Guarded<double> weighed(n), again(n);
  Guarded<bool> use(n), use_again(n);
  Guarded<std::int32_t> any(1);
  const bool some =
      cpu::weigh_anchors(grad.data(), DType::float32, 0, cpu.scale.data(), here.n, weighed.data(), use.data());
  check(cuda::weigh_anchors(grad.data(), DType::float32, 0, cpu.scale.data(), here.n, again.data(), use_again.data(),
                            any.data(), nullptr) == cuda::cudaSuccess,
        "launching");
  check(near(again, weighed) && use.same_bits(use_again) && any[0] == some, name + ": weights");
}

}  // namespace
}  // namespace fastmine::test

int main() {
  using namespace fastmine;
  test::Random random(3);
  for (const std::size_t n : {0U, 1U, 64U, 150U}) {
    for (const double share : {0.0, 0.6, 1.0}) {
      for (const Reduction reduction : {Reduction::mean, Reduction::sum, Reduction::none}) {
        for (const Triplets kind : {Triplets::all, Triplets::hard, Triplets::semi_hard}) {
          test::one(random, n, share, reduction, kind, kind == Triplets::all && share < 1 ? 0.25 : 0, n == 64);
        }
      }
    }
  }
  return test::report();
}
