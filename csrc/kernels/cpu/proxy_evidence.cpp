#include "kernels/proxy_evidence.h"

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/grain.h"
#include "kernels/cpu/packing.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {
namespace {

struct Plan {
  ProxyEvidence problem;
  RowSet x;
  double* total;  // [d]: the sum of the rows that take part and are finite
  bool* present;  // [classes]
};

Plan lay_out(const ProxyEvidence& problem, Arena& arena) {
  Plan p{};
  p.problem = problem;
  p.x = lay_out_rows(arena, problem.x, problem.valid, Metric::euclidean);
  p.total = arena.take<double>(problem.x.d);
  p.present = arena.take<bool>(problem.classes);
  return p;
}

const Plan& as_plan(const void* plan) { return *static_cast<const Plan*>(plan); }

std::int64_t look_tasks(const void* plan) { return as_plan(plan).x.blocks(); }

std::int64_t look_grain(const void* plan) { return reading_worth_a_thread(as_plan(plan).problem.x.d * kRowBlock); }

std::int64_t once(const void*) { return 1; }

template <class W>
void look(void* plan, std::int64_t begin, std::int64_t end) {
  for (std::int64_t block = begin; block < end; ++block) {
    look_at_block<W>(as_plan(plan).x, block);
  }
}

/// The largest value so far; a NaN stays.
struct Largest {
  double value = -__builtin_inf();

  void see(double x) { value = x <= value || value != value ? value : x; }
};

/// Count and add up what is said of the rows, in their order; W is the type of the cosines.
template <class W>
void count_rows(const Plan& p) {
  const ProxyEvidence& q = p.problem;
  const auto at = [&](Proxy field) -> double& { return q.evidence[static_cast<int>(field)]; };
  const W* cosine = static_cast<const W*>(q.cosine);
  const W* nearest_other = static_cast<const W*>(q.nearest_other);
  const W* weight = static_cast<const W*>(q.weight);
  Largest farthest, nearest;
  for (std::int64_t i = 0; i < q.x.n; ++i) {
    if ((p.x.kind[i] & kSkipped) != 0) {
      continue;
    }
    const bool finite = (p.x.kind[i] & kPoisoned) == 0, in_range = q.labels[i] >= 0 && q.labels[i] < q.classes;
    at(Proxy::admitted) += 1;
    at(Proxy::zero_rows) += (p.x.kind[i] & kZero) != 0;
    at(Proxy::nonfinite_rows) += !finite;
    at(Proxy::negative_labels) += q.labels[i] < 0;
    at(Proxy::norm_squared_sum) += finite ? p.x.squared[i] : 0;
    if (!in_range) {
      at(Proxy::out_of_range) += 1;
      continue;
    }
    const double d_p = static_cast<double>(1 - cosine[i]), d_n = static_cast<double>(1 - nearest_other[i]);
    at(Proxy::valid) += 1;
    at(Proxy::hard) += d_n < d_p;
    at(Proxy::active) += q.active[i];
    at(Proxy::weight_sum) += weight == nullptr ? 1 : static_cast<double>(weight[i]);
    at(Proxy::positive_distance_sum) += d_p;
    at(Proxy::negative_distance_sum) += d_n;
    farthest.see(d_p);
    nearest.see(-d_n);
    at(Proxy::classes) += !p.present[q.labels[i]];
    p.present[q.labels[i]] = true;
  }
  at(Proxy::has_positive) = at(Proxy::valid);
  at(Proxy::has_negative) = at(Proxy::admitted);
  at(Proxy::positive_distance_max) = at(Proxy::valid) > 0 ? farthest.value : 0;
  at(Proxy::negative_distance_min) = at(Proxy::valid) > 0 ? -nearest.value : 0;
}

void finish(void* plan, std::int64_t, std::int64_t) {
  const Plan& p = as_plan(plan);
  const ProxyEvidence& q = p.problem;
  const auto at = [&](Proxy field) -> double& { return q.evidence[static_cast<int>(field)]; };
  for (int field = 0; field < static_cast<int>(Proxy::count); ++field) {
    q.evidence[field] = 0;
  }
  for (std::int64_t k = 0; k < q.classes; ++k) {
    p.present[k] = false;
  }
  at(Proxy::anchors) = static_cast<double>(q.x.n);
  q.dtype == DType::float64 ? count_rows<double>(p) : count_rows<float>(p);
  for (std::int64_t k = 0; k < q.x.d; ++k) {
    p.total[k] = 0;
  }
  add_blocks(p.x, p.x.raw_sums, p.total);
  for (std::int64_t k = 0; k < q.x.d; ++k) {
    at(Proxy::sum_norm_squared) += p.total[k] * p.total[k];
  }
  for (std::int64_t k = 0; k < q.vectors; ++k) {
    at(Proxy::nonfinite_refs) += !(q.vector_norm[k] <= 1.7976931348623157e308);
    at(Proxy::zero_refs) += q.vector_norm[k] == 0;
  }
}

template <class W>
constexpr Stage kStages[] = {
    {&look_tasks, &look_grain, &look<W>},
    {&once, &once, &finish},
};

}  // namespace

extern const ProxyEvidenceKernel proxy_evidence_float32;
extern const ProxyEvidenceKernel proxy_evidence_float64;
const ProxyEvidenceKernel proxy_evidence_float32 = staged<ProxyEvidence, lay_out>(kStages<float>);
const ProxyEvidenceKernel proxy_evidence_float64 = staged<ProxyEvidence, lay_out>(kStages<double>);

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
