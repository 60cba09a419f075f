#include "kernels/cpu/segmentation_formula.h"

#include "kernels/segmentation_formula.h"

namespace fastmine::cpu {
namespace {

using namespace segmentation;

struct Context {
  const SegmentationLoss& problem;
  const SegmentationTasks& tasks;
  std::int64_t samples, classes;
  bool softmax;

  Sums* sums(std::int64_t group) const { return reinterpret_cast<Sums*>(problem.sums) + group; }
};

/// Add up the parts of one row of tasks: into the sums of its groups, the entropies of its sample, and what was found.
void add_row(const Context& c, const double* parts, std::int64_t row, Found& found) {
  Sums* sums = c.sums(row * c.tasks.classes);
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
    found.add(part);
  }
}

Found add_parts(const Context& c, const double* parts) {
  for (std::int64_t i = 0; i < c.samples * c.classes * 4; ++i) {
    c.problem.sums[i] = 0;
  }
  for (std::int64_t i = 0; i < c.samples * 2; ++i) {
    c.problem.entropies[i] = 0;
  }
  Found found;
  for (std::int64_t row = 0; row < c.tasks.rows; ++row) {
    add_row(c, parts, row, found);
  }
  for (std::int64_t g = 0; g < c.samples * c.classes; ++g) {
    found.add(*c.sums(g), !(c.softmax && g % c.classes == 0));
  }
  return found;
}

Totals totals_of(const Context& c, std::int64_t sample) {
  Totals totals;
  const Sums* sums = c.sums(sample * c.classes);
  for (std::int64_t k = 0; k < c.classes; ++k) {
    totals.items += c.softmax && k > 0 ? 0 : sums[k].n;
    totals.add(c.problem, sums[k]);
  }
  const double* entropies = c.problem.entropies + 2 * sample;
  totals.sums[entropy_term(c.problem.in)] = entropies[0];
  totals.sums[kFocal] = entropies[1];
  return totals;
}

// --- all sums

/// Add up the parts of one row of tasks: into the sums of its groups, and what was found.
void add_row(const SegmentationSums& problem, const SegmentationTasks& tasks, const double* parts, std::int64_t row,
             Found& found) {
  double* sums = problem.sums + row * tasks.classes * kSegmentationSums;
  const std::int64_t size = segmentation_sums_part_size(tasks);
  for (std::int64_t run = 0; run < tasks.runs; ++run) {
    const double* at = parts + (row * tasks.runs + run) * size;
    const auto& part = *reinterpret_cast<const SegmentationPart*>(at);
    const double* groups = at + sizeof part / sizeof *at;
    for (std::int64_t i = 0; i < tasks.classes * kSegmentationSums; ++i) {
      sums[i] += groups[i];
    }
    for (std::int64_t k = 0; k < tasks.classes; ++k) {
      const bool has_items = !(is_softmax(problem.in) && is_merged(problem.in, row, k));
      sums[k * kSegmentationSums] += has_items ? part.items : 0;
    }
    found.add(part);
  }
}

// --- the fused loss

void write_coefficients_of(const Context& c, std::int64_t sample, const Totals& totals, double poison) {
  for (std::int64_t group = sample * c.classes; group < (sample + 1) * c.classes; ++group) {
    write_coefficients(c.problem, group, *c.sums(group), totals, poison);
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

std::int64_t segmentation_sums_part_size(const SegmentationTasks& tasks) noexcept {
  return static_cast<std::int64_t>(
      (sizeof(SegmentationPart) + static_cast<std::size_t>(tasks.classes) * sizeof(SegmentationGroupSums)) /
      sizeof(double));
}

void segmentation_sums(const SegmentationSums& problem, const SegmentationTasks& tasks, const double* parts) noexcept {
  static_assert(sizeof(SegmentationGroupSums) == kSegmentationSums * sizeof(double));
  const SegmentationInputs& in = problem.in;
  const std::int64_t groups = in.samples * in.classes;
  for (std::int64_t i = 0; i < groups * kSegmentationSums; ++i) {
    problem.sums[i] = 0;
  }
  Found found;
  for (std::int64_t row = 0; row < tasks.rows; ++row) {
    add_row(problem, tasks, parts, row, found);
  }
  const double poison = found.poison();
  for (std::int64_t g = 0; g < groups; ++g) {
    double* sums = problem.sums + g * kSegmentationSums;
    found.add(Sums{sums[0], sums[1], sums[2], sums[3]}, !(is_softmax(in) && g % in.classes == 0));
    finish_sums(problem, poison, sums);
  }
  write_found(in, found, problem.evidence);
}

void segmentation_formula(const SegmentationLoss& problem, const SegmentationTasks& tasks,
                          const double* parts) noexcept {
  const Context c{problem, tasks, problem.in.samples, problem.in.classes, is_softmax(problem.in)};
  const Found found = add_parts(c, parts);
  const double poison = found.poison();
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
      write_coefficients_of(c, sample, totals, poison);
    }
  }
  if (problem.reduction == Reduction::mean) {
    write_loss(problem, 0, weighted(problem, all) * poison);
    for (std::int64_t sample = 0; sample < c.samples; ++sample) {
      write_coefficients_of(c, sample, all, poison);
    }
  } else if (problem.reduction == Reduction::sum) {
    write_loss(problem, 0, per_sample_sum);
  }
  write_evidence(problem, found, all);
}

}  // namespace fastmine::cpu
