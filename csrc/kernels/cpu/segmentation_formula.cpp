#include "kernels/cpu/segmentation_formula.h"

#include <cmath>
#include <limits>

namespace fastmine::cpu {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

constexpr int index(SegmentationTerm term) { return static_cast<int>(term); }
constexpr int kDice = index(SegmentationTerm::dice);
constexpr int kIou = index(SegmentationTerm::iou);
constexpr int kTversky = index(SegmentationTerm::tversky);
constexpr int kOverlapTerms[] = {kDice, kIou, kTversky};

constexpr bool is_overlap(int term) { return term == kDice || term == kIou || term == kTversky; }

double at_least_one(double count) { return count > 1 ? count : 1; }

/// The sums of one group, in the order in which SegmentationLoss::sums holds them.
struct Sums {
  double n, t, p, a;
};

/// The value of an overlap term and its derivative by a probability, on_target t + everywhere.
struct Overlap {
  double value, on_target, everywhere;
};

struct Evidence {
  double annotated = 0, nonempty = 0, items = 0;
  double target_sum = 0, prediction_sum = 0, overlap_sum = 0;
  double target_min = kInf, target_max = -kInf, logit_min = kInf, logit_max = -kInf;
  double nonfinite = 0, out_of_range = 0;
};

/// The smaller and the larger; NaN if either is.
double lower(double a, double b) { return std::isnan(a) || a < b ? a : b; }
double upper(double a, double b) { return std::isnan(a) || a > b ? a : b; }

bool counts(const SegmentationLoss& problem, const Sums& s) {
  return s.n > 0 && !(s.t == 0 && problem.empty == EmptyGroups::skip);
}

Overlap overlap(const SegmentationLoss& problem, const Sums& s, int term) {
  if (s.t == 0 && problem.empty == EmptyGroups::area) {
    return {s.p / s.n, 0, 1 / s.n};
  }
  const double smooth = problem.smooth, alpha = problem.tversky_alpha, beta = problem.tversky_beta;
  if (term == kDice) {
    const double inverse = 1 / (s.p + s.t + smooth);
    return {1 - (2 * s.a + smooth) * inverse, -2 * inverse, (2 * s.a + smooth) * inverse * inverse};
  }
  const double numerator = s.a + smooth;
  if (term == kIou) {
    const double inverse = 1 / (s.p + s.t - s.a + smooth), square = numerator * inverse * inverse;
    return {1 - numerator * inverse, -(inverse + square), square};
  }
  const double inverse = 1 / (s.a + alpha * (s.p - s.a) + beta * (s.t - s.a) + smooth);
  const double square = numerator * inverse * inverse;
  return {1 - numerator * inverse, -inverse + square * (1 - alpha - beta), alpha * square};
}

struct Context {
  const SegmentationLoss& problem;
  const SegmentationTasks& tasks;
  std::int64_t samples, classes;
  bool softmax;
};

/// Add up the parts of one row of tasks: into the sums of its groups, the entropies of its sample, and the evidence.
void add_row(const Context& c, const double* parts, std::int64_t row, Evidence& evidence) {
  const std::int64_t first = row * c.tasks.classes;  // group
  auto* sums = reinterpret_cast<Sums*>(c.problem.sums) + first;
  double* entropies = c.problem.entropies + 2 * (c.softmax ? row : row / c.classes);
  const std::int64_t size = segmentation_part_size(c.tasks);
  for (std::int64_t run = 0; run < c.tasks.runs; ++run) {
    const double* at = parts + (row * c.tasks.runs + run) * size;
    const auto& part = *reinterpret_cast<const SegmentationPart*>(at);
    const auto* groups = reinterpret_cast<const SegmentationGroup*>(at + sizeof(SegmentationPart) / sizeof(double));
    for (std::int64_t k = 0; k < c.tasks.classes; ++k) {
      sums[k].n += part.items;
      sums[k].t += groups[k].target;
      sums[k].p += groups[k].prediction;
      sums[k].a += groups[k].overlap;
    }
    entropies[0] += part.cross_entropy;
    entropies[1] += part.focal;
    evidence.items += part.items;
    evidence.target_min = lower(evidence.target_min, part.target_min);
    evidence.target_max = upper(evidence.target_max, part.target_max);
    evidence.logit_min = lower(evidence.logit_min, part.logit_min);
    evidence.logit_max = upper(evidence.logit_max, part.logit_max);
    evidence.nonfinite += part.nonfinite;
    evidence.out_of_range += part.out_of_range;
  }
}

Evidence add_parts(const Context& c, const double* parts) {
  for (std::int64_t i = 0; i < c.samples * c.classes * 4; ++i) {
    c.problem.sums[i] = 0;
  }
  for (std::int64_t i = 0; i < c.samples * 2; ++i) {
    c.problem.entropies[i] = 0;
  }
  Evidence evidence;
  for (std::int64_t row = 0; row < c.tasks.rows; ++row) {
    add_row(c, parts, row, evidence);
  }
  const auto* sums = reinterpret_cast<const Sums*>(c.problem.sums);
  for (std::int64_t g = 0; g < c.samples * c.classes; ++g) {
    evidence.annotated += sums[g].n > 0 ? 1 : 0;
    evidence.nonempty += sums[g].n > 0 && sums[g].t != 0 ? 1 : 0;
    if (!(c.softmax && g % c.classes == 0)) {  // class 0 of a softmax is background
      evidence.target_sum += sums[g].t;
      evidence.prediction_sum += sums[g].p;
      evidence.overlap_sum += sums[g].a;
    }
  }
  return evidence;
}

/// The numerators and denominators of all terms, of one sample or of all.
struct Totals {
  double sums[kSegmentationTerms] = {};
  double groups = 0;  // that count
  double items = 0;

  double denominator(int term) const { return at_least_one(is_overlap(term) ? groups : items); }

  void add(const Totals& other) {
    for (int term = 0; term < kSegmentationTerms; ++term) {
      sums[term] += other.sums[term];
    }
    groups += other.groups;
    items += other.items;
  }
};

Totals totals_of(const Context& c, std::int64_t sample) {
  Totals totals;
  const auto* sums = reinterpret_cast<const Sums*>(c.problem.sums) + sample * c.classes;
  for (std::int64_t k = 0; k < c.classes; ++k) {
    totals.items += c.softmax && k > 0 ? 0 : sums[k].n;
    if (!counts(c.problem, sums[k])) {
      continue;
    }
    totals.groups += 1;
    for (const int term : kOverlapTerms) {
      totals.sums[term] += c.problem.weights[term] != 0 ? overlap(c.problem, sums[k], term).value : 0;
    }
  }
  const double* entropies = c.problem.entropies + 2 * sample;
  totals.sums[index(c.softmax ? SegmentationTerm::ce : SegmentationTerm::bce)] = entropies[0];
  totals.sums[index(SegmentationTerm::focal)] = entropies[1];
  return totals;
}

double weighted(const SegmentationLoss& problem, const Totals& totals) {
  double loss = 0;
  for (int term = 0; term < kSegmentationTerms; ++term) {
    if (problem.weights[term] != 0) {
      loss += problem.weights[term] * (totals.sums[term] / totals.denominator(term));
    }
  }
  return loss;
}

void write_loss(const SegmentationLoss& problem, std::int64_t i, double value) {
  if (problem.loss_dtype == DType::float64) {
    static_cast<double*>(problem.loss)[i] = value;
  } else {
    static_cast<float*>(problem.loss)[i] = static_cast<float>(value);
  }
}

/// The coefficients of one sample's groups; `totals` are those over which the loss takes its means.
void write_coefficients(const Context& c, std::int64_t sample, const Totals& totals, double poison) {
  const auto* sums = reinterpret_cast<const Sums*>(c.problem.sums) + sample * c.classes;
  double* out = c.problem.coefficients + sample * c.classes * 4;
  const double* weights = c.problem.weights;
  const double cross_entropy = weights[index(c.softmax ? SegmentationTerm::ce : SegmentationTerm::bce)];
  const double items = at_least_one(totals.items), groups = at_least_one(totals.groups);
  for (std::int64_t k = 0; k < c.classes; ++k, out += 4) {
    double on_target = 0, everywhere = 0;
    for (const int term : kOverlapTerms) {
      if (weights[term] != 0 && counts(c.problem, sums[k])) {
        const Overlap slope = overlap(c.problem, sums[k], term);
        on_target += weights[term] * slope.on_target / groups;
        everywhere += weights[term] * slope.everywhere / groups;
      }
    }
    out[0] = on_target * poison;
    out[1] = everywhere * poison;
    out[2] = cross_entropy / items * poison;
    out[3] = weights[index(SegmentationTerm::focal)] / items * poison;
  }
}

void write_evidence(const Context& c, const Evidence& found, const Totals& totals) {
  const auto put = [&](Segmentation field, double value) { c.problem.evidence[static_cast<int>(field)] = value; };
  const double items = static_cast<double>(c.samples * (c.softmax ? 1 : c.classes) * c.problem.in.positions);
  const bool seen = found.items > 0;
  put(Segmentation::groups, static_cast<double>(c.samples * c.classes));
  put(Segmentation::annotated, found.annotated);
  put(Segmentation::nonempty, found.nonempty);
  put(Segmentation::items, items);
  put(Segmentation::ignored, items - found.items);
  put(Segmentation::target_sum, found.target_sum);
  put(Segmentation::prediction_sum, found.prediction_sum);
  put(Segmentation::overlap_sum, found.overlap_sum);
  put(Segmentation::target_min, seen ? found.target_min : 0);
  put(Segmentation::target_max, seen ? found.target_max : 0);
  put(Segmentation::logit_min, seen ? found.logit_min : 0);
  put(Segmentation::logit_max, seen ? found.logit_max : 0);
  put(Segmentation::nonfinite, found.nonfinite);
  put(Segmentation::out_of_range, found.out_of_range);
  for (int term = 0; term < kSegmentationTerms; ++term) {
    const bool wanted = c.problem.weights[term] != 0;
    c.problem.evidence[static_cast<int>(Segmentation::first_term) + term] =
        wanted ? totals.sums[term] / totals.denominator(term) : 0;
  }
}

}  // namespace

SegmentationTasks segmentation_tasks(const SegmentationInputs& in) noexcept {
  constexpr std::int64_t kTask = 16384, kShortest = 512, kThread = 32768;  // logits; positions; logits
  const bool softmax = in.mode == SegmentationMode::multiclass;
  SegmentationTasks tasks{};
  tasks.rows = softmax ? in.samples : in.samples * in.classes;
  tasks.classes = softmax ? in.classes : 1;
  tasks.run = kTask / (tasks.classes > 0 ? tasks.classes : 1) / kShortest * kShortest;
  tasks.run = tasks.run < kShortest ? kShortest : tasks.run;
  tasks.runs = (in.positions + tasks.run - 1) / tasks.run;
  const std::int64_t longest = tasks.run < in.positions ? tasks.run : in.positions;
  tasks.grain = 1 + kThread / (1 + longest * tasks.classes);
  return tasks;
}

std::int64_t segmentation_part_size(const SegmentationTasks& tasks) noexcept {
  return static_cast<std::int64_t>(
      (sizeof(SegmentationPart) + static_cast<std::size_t>(tasks.classes) * sizeof(SegmentationGroup)) /
      sizeof(double));
}

void segmentation_formula(const SegmentationLoss& problem, const SegmentationTasks& tasks,
                          const double* parts) noexcept {
  const Context c{problem, tasks, problem.in.samples, problem.in.classes,
                  problem.in.mode == SegmentationMode::multiclass};
  const Evidence evidence = add_parts(c, parts);
  // A factor, not a replacement: a valid NaN, Inf or impossible target spoils value and gradient alike.
  const double poison = evidence.out_of_range + evidence.nonfinite > 0 ? kNan : 1;
  Totals all;
  double per_sample_sum = 0;
  for (std::int64_t sample = 0; sample < c.samples; ++sample) {
    const Totals totals = totals_of(c, sample);
    const double loss = weighted(problem, totals) * poison;
    all.add(totals);
    per_sample_sum += loss;
    if (problem.reduction == Reduction::none) {
      write_loss(problem, sample, loss);
    }
    if (problem.reduction != Reduction::mean) {
      write_coefficients(c, sample, totals, poison);
    }
  }
  if (problem.reduction == Reduction::mean) {
    write_loss(problem, 0, weighted(problem, all) * poison);
    for (std::int64_t sample = 0; sample < c.samples; ++sample) {
      write_coefficients(c, sample, all, poison);
    }
  } else if (problem.reduction == Reduction::sum) {
    write_loss(problem, 0, per_sample_sum);
  }
  write_evidence(c, evidence, all);
}

}  // namespace fastmine::cpu
