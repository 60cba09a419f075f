// The segmentation kernels of every instruction set against loops in float64 that follow the definitions.
#include "segmentation_case.h"

namespace fastmine::test {
namespace {

/// One problem and its options.
struct Case : InputCase {
  double weights[kSegmentationTerms] = {0.4, 0, 0.5, 0.25, 0.7, 2};
  Focal focal = {1, 1, 2};
  double smooth = 0;
  EmptyGroups empty = EmptyGroups::area;
  Reduction reduction = Reduction::mean;
};

/// What the outputs should be.
struct Answer {
  std::vector<double> sums, entropies, loss, coefficients, gradient;
};

void add_sums(const Case& c, Answer& answer) {
  answer.sums.assign(static_cast<std::size_t>(c.samples * c.classes * 4), 0);
  answer.entropies.assign(static_cast<std::size_t>(c.samples * 2), 0);
  for (std::int64_t b = 0; b < c.samples; ++b) {
    for (std::int64_t s = 0; s < c.positions; ++s) {
      const std::vector<double> log_p = log_softmax(c, b, s);
      for (std::int64_t k = 0; k < c.classes; ++k) {
        if (!c.v[c.target_at(b, k, s)]) {
          continue;
        }
        const double x = c.x[c.at(b, k, s)], label = c.t[c.target_at(b, k, s)];
        const double t = c.softmax() ? static_cast<double>(label == static_cast<double>(k)) : label;
        const double p = c.softmax() ? std::exp(log_p[static_cast<std::size_t>(k)]) : sigmoid(x);
        double* sums = answer.sums.data() + (b * c.classes + k) * 4;
        sums[0] += 1, sums[1] += t, sums[2] += p, sums[3] += p * t;
        double* entropies = answer.entropies.data() + b * 2;
        if (c.softmax() && t == 0) {
          continue;
        }
        if (c.softmax()) {
          std::vector<double> probability;
          for (const double value : log_p) {
            probability.push_back(std::exp(value));
          }
          const double q = others(probability, static_cast<std::size_t>(k));
          entropies[0] -= log_p[static_cast<std::size_t>(k)];
          entropies[1] -= std::pow(q, c.focal.gamma) * log_p[static_cast<std::size_t>(k)];
        } else {
          entropies[0] += t * softplus(-x) + (1 - t) * softplus(x);
          entropies[1] += c.focal.on_target * t * std::exp(-c.focal.gamma * softplus(x)) * softplus(-x) +
                          c.focal.off_target * (1 - t) * std::exp(-c.focal.gamma * softplus(-x)) * softplus(x);
        }
      }
    }
  }
}

/// The value of one overlap term of a group, as a function of its sums.
double overlap(const Case& c, int term, double n, double t, double p, double a) {
  if (t == 0 && c.empty == EmptyGroups::area) {
    return p / n;
  }
  if (term == 2) {
    return 1 - (2 * a + c.smooth) / (p + t + c.smooth);
  }
  return 1 - (a + c.smooth) / (term == 3 ? p + t - a + c.smooth : a + 0.3 * (p - a) + 0.7 * (t - a) + c.smooth);
}

/// Loss and coefficients; the slopes of the overlap terms by differences of their values.
void add_formula(const Case& c, Answer& answer) {
  const auto samples = static_cast<std::size_t>(c.samples), classes = static_cast<std::size_t>(c.classes);
  std::vector<double> groups(samples, 0), items(samples, 0), terms(samples * kSegmentationTerms, 0);
  const int entropy = c.softmax() ? 1 : 0;
  const auto counted = [&](const double* s) { return s[0] > 0 && !(s[1] == 0 && c.empty == EmptyGroups::skip); };
  for (std::size_t b = 0; b < samples; ++b) {
    for (std::size_t k = 0; k < classes; ++k) {
      const double* s = answer.sums.data() + (b * classes + k) * 4;
      items[b] += c.softmax() && k > 0 ? 0 : s[0];
      groups[b] += counted(s) ? 1 : 0;
      for (int term = 2; term < 5; ++term) {
        terms[b * kSegmentationTerms + static_cast<std::size_t>(term)] +=
            counted(s) ? overlap(c, term, s[0], s[1], s[2], s[3]) : 0;
      }
    }
    terms[b * kSegmentationTerms + static_cast<std::size_t>(entropy)] = answer.entropies[b * 2];
    terms[b * kSegmentationTerms + 5] = answer.entropies[b * 2 + 1];
  }
  const auto total = [](const std::vector<double>& values) {
    double sum = 0;
    for (const double value : values) {
      sum += value;
    }
    return sum;
  };
  const bool mean = c.reduction == Reduction::mean;
  const double all_groups = total(groups), all_items = total(items);
  answer.loss.assign(c.reduction == Reduction::none ? samples : 1, 0);
  answer.coefficients.assign(samples * classes * 4, 0);
  for (std::size_t b = 0; b < samples; ++b) {
    const double group_count = std::fmax(mean ? all_groups : groups[b], 1);
    const double item_count = std::fmax(mean ? all_items : items[b], 1);
    for (int term = 0; term < kSegmentationTerms; ++term) {
      if (term == 1 - entropy) {
        continue;
      }
      const double count = term >= 2 && term < 5 ? group_count : item_count;
      answer.loss[c.reduction == Reduction::none ? b : 0] +=
          c.weights[term] * terms[b * kSegmentationTerms + static_cast<std::size_t>(term)] / count;
    }
    for (std::size_t k = 0; k < classes; ++k) {
      const double* s = answer.sums.data() + (b * classes + k) * 4;
      double* out = answer.coefficients.data() + (b * classes + k) * 4;
      for (int term = 2; term < 5 && counted(s); ++term) {
        const double h = 1e-5 * (1 + s[0]);
        const double by_a =
            (overlap(c, term, s[0], s[1], s[2], s[3] + h) - overlap(c, term, s[0], s[1], s[2], s[3] - h)) / (2 * h);
        const double by_p =
            (overlap(c, term, s[0], s[1], s[2] + h, s[3]) - overlap(c, term, s[0], s[1], s[2] - h, s[3])) / (2 * h);
        out[0] += c.weights[term] * by_a / group_count;
        out[1] += c.weights[term] * by_p / group_count;
      }
      out[2] = c.weights[entropy] / item_count;
      out[3] = c.weights[5] / item_count;
    }
  }
}

/// The gradient from given coefficients, for an upstream gradient of `grad`.
void add_gradient(const Case& c, const double* coefficients, double grad, Answer& answer) {
  answer.gradient.assign(c.x.size(), 0);
  const double gamma = c.focal.gamma;
  for (std::int64_t b = 0; b < c.samples; ++b) {
    for (std::int64_t s = 0; s < c.positions; ++s) {
      const std::vector<double> log_p = log_softmax(c, b, s);
      std::vector<double> probability;
      for (const double value : log_p) {
        probability.push_back(std::exp(value));
      }
      const auto y = c.softmax() ? static_cast<std::size_t>(c.t[c.target_at(b, 0, s)]) : 0;
      const double other = c.softmax() ? others(probability, y) : 0;
      for (std::int64_t k = 0; k < c.classes; ++k) {
        if (!c.v[c.target_at(b, k, s)]) {
          continue;
        }
        const double* w = coefficients + (b * c.classes + k) * 4;
        const double x = c.x[c.at(b, k, s)], t = c.t[c.target_at(b, k, s)];
        double g = 0;
        if (c.softmax()) {
          const double p = probability[static_cast<std::size_t>(k)], q = other;
          const auto slope = [&](std::int64_t j) {
            const double* u = coefficients + (b * c.classes + j) * 4;
            return (j == static_cast<std::int64_t>(y) ? u[0] : 0) + u[1];
          };
          const double own = slope(k);
          double sum = 0;
          for (std::int64_t j = 0; j < c.classes; ++j) {
            sum += probability[static_cast<std::size_t>(j)] * (own - slope(j));
          }
          const bool on = static_cast<std::int64_t>(y) == k;
          const double share = on ? -1 : q > 0 ? p / q : 0;
          const double power = std::pow(q, gamma) * (q - gamma * std::exp(log_p[y]) * log_p[y]);
          g = p * sum + w[2] * (on ? -q : p) + w[3] * power * share;
        } else {
          const double p = sigmoid(x), q = sigmoid(-x);
          const auto focal = [&](double sign) {
            const double wrong = sigmoid(-sign * x);
            return -sign * std::exp(-gamma * softplus(sign * x)) * (wrong + gamma * (1 - wrong) * softplus(-sign * x));
          };
          g = (w[0] * t + w[1]) * p * q + w[2] * ((1 - t) * p - t * q) +
              w[3] * (c.focal.on_target * t * focal(1) + c.focal.off_target * (1 - t) * focal(-1));
        }
        answer.gradient[c.at(b, k, s)] = g * grad;
      }
    }
  }
}

/// Everything that one call of each kernel writes.
struct Outputs {
  Guarded<double> loss, coefficients, evidence, sums, entropies;
  Guarded<unsigned char> gradient;

  bool same_bits(const Outputs& o) const {
    return loss.same_bits(o.loss) && coefficients.same_bits(o.coefficients) && evidence.same_bits(o.evidence) &&
           sums.same_bits(o.sums) && entropies.same_bits(o.entropies) && gradient.same_bits(o.gradient);
  }
  bool untouched_outside() const {
    return loss.untouched_outside() && coefficients.untouched_outside() && evidence.untouched_outside() &&
           sums.untouched_outside() && entropies.untouched_outside() && gradient.untouched_outside();
  }
};

constexpr double kGrad = 1.5;

/// Run both kernels, backward with what forward found or with what another call found. Invalid items hold NaN, and
/// targets out of range.
Outputs call(const cpu::KernelTable& table, const Case& c, Order order, const Outputs* other = nullptr) {
  Arrays arrays(c);
  const auto samples = static_cast<std::size_t>(c.samples), groups = samples * static_cast<std::size_t>(c.classes);
  Outputs out{Guarded<double>(c.reduction == Reduction::none ? samples : 1),
              Guarded<double>(groups * 4),
              Guarded<double>(static_cast<std::size_t>(Segmentation::count)),
              Guarded<double>(groups * 4),
              Guarded<double>(samples * 2),
              Guarded<unsigned char>(c.x.size() * size_of(c.logits))};
  SegmentationLoss problem{};
  problem.in = arrays.inputs();
  std::copy(std::begin(c.weights), std::end(c.weights), problem.weights);
  problem.weights[c.softmax() ? 1 : 0] = c.weights[c.softmax() ? 1 : 0];
  problem.weights[c.softmax() ? 0 : 1] = 0;
  problem.smooth = c.smooth;
  problem.focal = c.focal;
  problem.tversky_alpha = 0.3;
  problem.tversky_beta = 0.7;
  problem.empty = c.empty;
  problem.reduction = c.reduction;
  problem.loss = out.loss.data();
  problem.loss_dtype = DType::float64;
  problem.coefficients = out.coefficients.data();
  problem.evidence = out.evidence.data();
  problem.sums = out.sums.data();
  problem.entropies = out.entropies.data();
  const bool wide = c.logits == DType::float64;
  run(*table.segmentation_loss[wide], problem, order);

  const double* const found = other != nullptr ? other->coefficients.data() : out.coefficients.data();
  std::vector<double> coefficients(found, found + groups * 4);
  for (std::size_t group = 0; c.softmax() && group < groups; ++group) {
    if (group % static_cast<std::size_t>(c.classes) != 0) {  // the scales of a softmax are read at class 0
      coefficients[4 * group + 2] = coefficients[4 * group + 3] = kNan;
    }
  }
  const double grad = kGrad;
  const SegmentationLossBackward backward{problem.in, coefficients.data(), c.focal, &grad, DType::float64,
                                          0,          out.gradient.data()};
  run(*table.segmentation_loss_backward[wide], backward, order);
  return out;
}

/// What a table found, backward with the coefficients of the first.
void compare(const cpu::KernelTable& table, const Case& c, const Outputs& out, const Outputs& first,
             const Answer& answer) {
  const std::string name = std::string(table.isa) + " " + c.name;
  check(out.untouched_outside(), name + ": writes outside its outputs");
  for (const Order order : orders_again()) {
    check(out.same_bits(call(table, c, order, &first)), name + ": bits depend on who runs the tasks");
  }

  const bool wide = c.logits == DType::float64;
  const double tight = wide ? 1e-13 : c.classes < 100 ? 5e-7 : 2e-6;  // classes are added up in float32
  const auto in = [](const Guarded<double>& values) { return [&values](std::size_t i) { return values[i]; }; };
  check(close(answer.sums, in(out.sums), tight, 0), name + ": sums");
  for (std::size_t term = 0; term < 2; ++term) {
    if (c.weights[term == 0 ? (c.softmax() ? 1 : 0) : 5] != 0) {
      std::vector<double> want;
      for (std::size_t b = 0; b < answer.entropies.size() / 2; ++b) {
        want.push_back(answer.entropies[2 * b + term]);
      }
      check(
          close(want, [&](std::size_t b) { return out.entropies[2 * b + term]; }, 4 * tight, 0), name + ": entropies");
    }
  }
  check(close(answer.loss, in(out.loss), tight * 4, tight), name + ": loss");
  check(close(answer.coefficients, in(out.coefficients), 1e-4, 1e-6), name + ": coefficients");
  const double rounding = c.logits == DType::bfloat16 ? 0x1p-8 : c.logits == DType::float16 ? 0x1p-10 : 0;
  const double floor = c.logits == DType::float16 ? 1e-3 : wide ? 1e-16 : 1e-7;  // float16: its subnormal numbers
  const std::size_t step = size_of(c.logits);
  check(close(
            answer.gradient, [&](std::size_t i) { return get(out.gradient.data() + i * step, c.logits); },
            tight * 10 + rounding, floor),
        name + ": gradient");
  check(out.evidence[static_cast<int>(Segmentation::nonfinite)] == 0 &&
            out.evidence[static_cast<int>(Segmentation::out_of_range)] == 0,
        name + ": evidence of something wrong");
}

Case typical(SegmentationMode mode, std::int64_t positions) {
  Case c;
  c.mode = mode;
  c.samples = 2;
  c.classes = mode == SegmentationMode::binary ? 1 : 3;
  c.positions = positions;
  c.weights[1] = c.weights[0];  // of ce, where that is the entropy
  return c;
}

/// A case whose values are known.
void finish(const Tables& tables, Case c) {
  c.name += " " + describe(c) + " gamma " + std::to_string(c.focal.gamma);
  const Outputs first = call(*tables[0], c, kFirst);
  Answer answer;
  add_sums(c, answer);
  add_formula(c, answer);
  add_gradient(c, first.coefficients.data(), kGrad, answer);
  compare(*tables[0], c, first, first, answer);
  for (std::size_t i = 1; i < tables.size(); ++i) {
    compare(*tables[i], c, call(*tables[i], c, kFirst, &first), first, answer);
  }
}

void finish(const Tables& tables, Case c, std::uint64_t seed) {
  fill(c, seed);
  finish(tables, c);
}

void sizes(const Tables& tables) {
  for (const SegmentationMode mode : kModes) {
    for (const std::int64_t positions : {0, 1, 2, 3, 15, 16, 17, 255, 256, 257, 511, 512, 513, 1025}) {
      for (const int validity : {0, 2}) {
        for (const DType logits : {DType::float32, DType::float64}) {
          Case c = typical(mode, positions);
          c.validity = validity;
          c.logits = logits;
          finish(tables, c, static_cast<std::uint64_t>(positions));
        }
      }
    }
    Case several_tasks = typical(mode, 40000);
    several_tasks.validity = 2;
    finish(tables, several_tasks, 1);
    if (kEmulated) {  // many runs of many steps
      Case long_runs = typical(mode, 300001);
      long_runs.samples = 1;
      finish(tables, long_runs, 2);
    }
    Case no_samples = typical(mode, 5);
    no_samples.samples = 0;
    finish(tables, no_samples, 1);
  }
}

void types(const Tables& tables) {
  for (const SegmentationMode mode : kModes) {
    for (const DType logits : kFloats) {
      for (const DType target : kTargets) {
        for (const int layout : {0, 1, 2, 3}) {
          Case c = typical(mode, 83);
          c.logits = logits;
          c.target = target;
          c.layout = layout;
          c.validity = layout;
          if (mode == SegmentationMode::multiclass && is_float(target)) {
            continue;
          }
          c.soft = is_float(target) && layout % 2 == 0;
          finish(tables, c, 7);
          c.ignores = target != DType::bool_;  // which has no value to spare
          c.validity = layout == 0 ? 2 : layout;
          finish(tables, c, 7);
        }
      }
    }
  }
}

void options(const Tables& tables) {
  for (const SegmentationMode mode : kModes) {
    for (const double gamma : {0.0, 0.5, 1.0, 2.0, 3.5}) {
      for (const bool soft : {false, true}) {
        for (const DType logits : {DType::float32, DType::float64}) {
          Case c = typical(mode, 300);
          c.logits = logits;
          c.focal.gamma = gamma;
          c.focal.on_target = 0.25;  // multiclass pays it no attention
          c.focal.off_target = 0.75;
          if (mode != SegmentationMode::multiclass) {
            c.target = soft ? DType::float32 : DType::bool_;
            c.soft = soft;
          }
          finish(tables, c, 3);
        }
      }
    }
    for (int term = 0; term < kSegmentationTerms; ++term) {
      Case c = typical(mode, 300);
      std::fill(std::begin(c.weights), std::end(c.weights), 0.0);
      c.weights[term] = 1;
      finish(tables, c, 4);
    }
    for (const EmptyGroups empty : {EmptyGroups::area, EmptyGroups::skip, EmptyGroups::smooth}) {
      for (const Reduction reduction : {Reduction::mean, Reduction::sum, Reduction::none}) {
        for (const int validity : {0, 3, 4, 5}) {
          Case c = typical(mode, 70);
          c.empty = empty;
          c.reduction = reduction;
          c.validity = validity;
          c.smooth = empty == EmptyGroups::smooth ? 1 : 0;
          c.target_share = validity == 0 ? 0 : 0.1;
          finish(tables, c, 5);
        }
      }
    }
  }
}

void many_classes(const Tables& tables) {
  for (const std::int64_t classes : {2, 14, 19, 100, 300, 1100, 3000}) {
    Case c = typical(SegmentationMode::multiclass, classes < 100 ? 700 : classes < 1000 ? 19 : 3);
    c.classes = classes;
    c.target = DType::int16;
    c.validity = 2;
    finish(tables, c, 6);
    c.logits = DType::bfloat16;
    finish(tables, c, 6);
  }
}

void large_logits(const Tables& tables) {
  for (const SegmentationMode mode : kModes) {
    for (const double scale : {30.0, 80.0, 1e4}) {
      for (const DType logits : {DType::float32, DType::float64}) {
        Case c = typical(mode, 200);
        c.scale = scale;
        c.logits = logits;
        finish(tables, c, 8);
      }
    }
  }
}

/// Rows of hard targets that nothing masks: a GPU takes short ones pack by pack, long ones in rounds of packs.
constexpr std::int64_t kPacks = 93;
const std::int64_t kRounds = kEmulated ? 31001 : 2001;
const std::int64_t kLong = kEmulated ? 122880 : 2048;  // the former is six steps of a run

/// A mean's gradient has no digits in float16.
void enlarge_if_half(Case& c) {
  for (double& weight : c.weights) {
    weight *= c.logits == DType::float16 ? 4096 : 1;
  }
}

void hard_targets(const Tables& tables) {
  constexpr DType kLogits[] = {DType::float32, DType::bfloat16, DType::float16};
  int which = 0;
  for (const double gamma : {0.0, 1.0, 2.0, 2.5}) {
    for (const DType target : {DType::uint8, DType::bool_, DType::float32}) {
      Case c = typical(SegmentationMode::binary, kRounds);
      c.target = target;
      c.logits = kLogits[++which % 3];
      c.focal.gamma = gamma;
      if (which % 2 == 0) {
        c.focal.on_target = 0.25;
        c.focal.off_target = 0.75;
      }
      enlarge_if_half(c);
      finish(tables, c, 14);
      if (target == DType::float32) {
        c.soft = true;
        c.soft_every = 37;
        finish(tables, c, 15);
      }
    }
  }
  for (const DType logits : kLogits) {
    Case c = typical(SegmentationMode::binary, kRounds);
    c.logits = logits;
    c.weights[5] = 0;  // many cross entropies take one logarithm where nothing else needs them
    enlarge_if_half(c);
    finish(tables, c, 20);
    Case lacking = c;  // one element of a last round: behind it is that of the next row
    lacking.positions = (kRounds / 2048 + 1) * 2048 - 1;
    finish(tables, lacking, 20);
    c.scale = 0;
    finish(tables, c, 21);
    fill(c, 22);
    for (std::size_t i = 0; i < c.x.size(); ++i) {  // all are right, and surer of it than 1 + e can say
      c.t[i] = static_cast<double>(i % 3 == 0);
      c.x[i] = (static_cast<double>(i % 7) + 16) * (i % 3 == 0 ? 0.5 : -0.5);
    }
    std::fill(std::begin(c.weights), std::end(c.weights), 0.0);
    for (const int term : {0, 5}) {
      c.weights[term] = logits == DType::float16 ? 4096 : 1;
      finish(tables, c);
    }
  }
  for (const DType logits : kLogits) {
    for (const int term : {0, 2, 5}) {
      Case c = typical(SegmentationMode::binary, kRounds);
      c.logits = logits;
      std::fill(std::begin(c.weights), std::end(c.weights), 0.0);
      c.weights[term] = logits == DType::float16 ? 4096 : 1;  // a mean's gradient has no digits there
      c.target_share = term == 0 ? 0 : term == 2 ? 1 : 0.5;
      finish(tables, c, 16);
    }
    for (const std::int64_t positions : {kPacks, kRounds}) {
      Case c = typical(SegmentationMode::binary, positions);
      c.logits = logits;
      fill(c, 17);
      c.x[3] = c.logits == DType::float16 ? 65504 : 0x1.8p127;  // 1.5 times that overflows
      c.t[3] = 1;
      finish(tables, c);
      // Marked by the target alone, as in most data sets: a pack is hard beside one that is not all valid.
      c.ignores = true;
      for (std::size_t i = 0; i < c.v.size(); i += 1000) {
        c.v[i] = i % static_cast<std::size_t>(positions) % 2 != 0;
      }
      finish(tables, c);
      for (std::size_t i = 0; i < c.v.size(); ++i) {
        c.v[i] = i % static_cast<std::size_t>(positions) % 2 != 0 || c.t[i] == 0;
        c.t[i] = 0;
      }
      c.ignored = 1;
      finish(tables, c);
    }
  }
}

/// Few classes, rows of whole packs and nothing masked: a GPU takes positions about the logits of their targets, in
/// several steps.
void few_classes(const Tables& tables) {
  constexpr DType kLogits[] = {DType::float32, DType::bfloat16, DType::float16};
  constexpr DType kTypes[] = {DType::bool_, DType::uint8, DType::int8, DType::int16, DType::int32, DType::int64};
  const auto several = [](std::int64_t classes, std::int64_t positions) {
    Case c = typical(SegmentationMode::multiclass, positions);
    c.classes = classes;
    return c;
  };
  int which = 0;
  for (const std::int64_t classes : {2, 3, 4, 5, 19, 24, 25}) {
    for (const double focal : {0.0, 1.0}) {
      Case c = several(classes, kLong);
      c.logits = kLogits[++which % 3];
      c.target = kTypes[which % 6];
      c.weights[5] = focal;
      c.focal.gamma = which % 4 == 0 ? 1.5 : 2;
      c.scale = classes == 3 ? 0 : 4;  // 0: all of a position come to the same
      enlarge_if_half(c);
      finish(tables, c, 23);
    }
  }
  for (const DType logits : kLogits) {
    Case c = several(4, 1024);
    c.logits = logits;
    c.target = DType::int64;
    c.scale = 16;  // some outdo the target by more than a product can hold
    for (const double focal : {0.0, 2.0}) {
      c.weights[5] = focal;
      finish(tables, c, 24);
    }
    c.scale = 4;
    fill(c, 25);
    c.x[6] = logits == DType::float16 ? 65504 : 0x1.8p127;
    finish(tables, c);
    c.x[6] = 0;
    c.ignores = true;  // by the target alone, be it none of the classes or one
    for (const std::int64_t ignored : {255, 2}) {
      c.ignored = ignored;
      for (std::size_t i = 0; i < c.v.size(); ++i) {
        c.v[i] = i % 100 != 0 && (i % 2 != 0 || c.t[i] != static_cast<double>(ignored));
        c.t[i] = c.t[i] == static_cast<double>(ignored) ? 1 : c.t[i];
      }
      finish(tables, c);
    }
    // All are right, and surer of it than 1 + s can say.
    Case sure = several(3, 1024);
    sure.logits = logits;
    fill(sure, 26);
    std::fill(std::begin(sure.weights), std::end(sure.weights), 0.0);
    for (std::int64_t i = 0; i < sure.samples * sure.positions; ++i) {
      const std::int64_t b = i / sure.positions, position = i % sure.positions, target = i % sure.classes;
      sure.t[sure.target_at(b, 0, position)] = static_cast<double>(target);
      for (std::int64_t k = 0; k < sure.classes; ++k) {
        sure.x[sure.at(b, k, position)] = static_cast<double>(k == target ? 10 + i % 5 : -(i % 7));
      }
    }
    for (const int term : {1, 5}) {
      sure.weights[term] = logits == DType::float16 ? 4096 : 1;
      finish(tables, sure);
    }
  }
  for (const int term : {1, 2, 5}) {  // each alone: what cancels in a gradient hides behind no other
    for (const double scale : {1.0, 8.0}) {
      Case c = several(5, 1024);
      std::fill(std::begin(c.weights), std::end(c.weights), 0.0);
      c.weights[term] = 1;
      c.scale = scale;
      finish(tables, c, 28);
    }
  }
  for (const int layout : {1, 4}) {  // rows of logits that are no packs, and of a gradient alone
    Case c = several(4, layout == 1 ? 1024 : 1023);
    c.layout = layout;
    finish(tables, c, 27);
  }
}

/// A class that is the index to ignore, where nothing else says so: its logits are as good as any.
void an_ignored_class_does_not_count(const cpu::KernelTable& table) {
  Case c = typical(SegmentationMode::multiclass, 1024);
  c.ignores = true;
  c.ignored = 1;
  fill(c, 29);
  const Outputs out = call(table, c, Order::serial);
  double ignored = 0;
  bool zero = true;
  for (std::int64_t i = 0; i < c.samples * c.positions; ++i) {
    const std::int64_t b = i / c.positions, position = i % c.positions;
    if (c.t[c.target_at(b, 0, position)] == 1) {
      ignored += 1;
      zero = zero && get(out.gradient.data() + c.at(b, 0, position) * sizeof(float), DType::float32) == 0;
    }
  }
  check(out.evidence[static_cast<int>(Segmentation::ignored)] == ignored && zero,
        std::string(table.isa) + ": an ignored class counts");
}

/// A gradient that is not 0 where 1 - p rounds to 0: as long as float32 can say it.
void confident_mistakes_keep_a_gradient(const cpu::KernelTable& table) {
  for (const SegmentationMode mode : kModes) {
    Case c = typical(mode, 16);
    c.scale = 40;
    c.weights[0] = c.weights[1] = 0;
    c.weights[5] = 0;
    c.name = "confident";
    fill(c, 9);
    const Outputs out = call(table, c, Order::serial);
    int alive = 0;
    for (std::size_t i = 0; i < c.x.size(); ++i) {
      const double g = get(out.gradient.data() + i * sizeof(float), DType::float32);
      alive += std::isfinite(g) && g != 0 ? 1 : 0;
    }
    check(alive == static_cast<int>(c.x.size()), std::string(table.isa) + ": a confident gradient died");
  }
}

/// One valid NaN, Inf or impossible target makes everything NaN, and the evidence counts it.
void poison(const cpu::KernelTable& table) {
  for (const SegmentationMode mode : kModes) {
    for (const DType logits : {DType::float32, DType::float64}) {
      for (const int which : {0, 1, 2, 3, 4, 5}) {
        const double bad = which % 3 == 0 ? kNan : which % 3 == 1 ? kInf : -kInf;
        Case c = typical(mode, 520);
        c.validity = which < 3 ? 2 : 0;
        c.logits = logits;
        fill(c, 10);
        const auto at = static_cast<std::size_t>(std::find(c.v.begin(), c.v.end(), true) - c.v.begin());
        c.x[at] = bad;
        const Outputs out = call(table, c, Order::serial);
        const double* evidence = out.evidence.data();
        const auto field = [&](Segmentation f) { return evidence[static_cast<int>(f)]; };
        check(std::isnan(out.loss[0]) && std::isnan(out.coefficients[0]),
              std::string(table.isa) + ": a bad logit is silent");
        check(field(Segmentation::nonfinite) == 1 && field(Segmentation::out_of_range) == 0,
              std::string(table.isa) + ": bad logits are not counted");
        const double seen = bad > 0 ? field(Segmentation::logit_max) : field(Segmentation::logit_min);
        check(std::isnan(bad) ? std::isnan(seen) : seen == bad, std::string(table.isa) + ": range of bad logits");
        bool right = true;
        for (std::size_t i = 0; i < c.x.size(); ++i) {
          const double g = get(out.gradient.data() + i * size_of(logits), logits);
          const std::size_t flag = c.softmax() ? i / static_cast<std::size_t>(c.classes * c.positions) *
                                                         static_cast<std::size_t>(c.classes * c.positions) +
                                                     i % static_cast<std::size_t>(c.positions)
                                               : i;
          right = right && (c.v[flag] ? std::isnan(g) : g == 0);
        }
        check(right, std::string(table.isa) + ": a poisoned gradient is not NaN where valid and 0 elsewhere");
      }
      for (const double bad : {-1.0, 99.0}) {
        Case c = typical(mode, 520);
        c.target = DType::int16;
        c.logits = logits;
        fill(c, 11);
        c.t[3] = bad;
        const Outputs out = call(table, c, Order::serial);
        check(std::isnan(out.loss[0]) && out.evidence[static_cast<int>(Segmentation::out_of_range)] == 1 &&
                  out.evidence[static_cast<int>(bad < 0 ? Segmentation::target_min : Segmentation::target_max)] == bad,
              std::string(table.isa) + ": an impossible target is silent");
      }
    }
  }
  // A hair outside [0, 1], which rounds into it.
  Case c = typical(SegmentationMode::binary, 40);
  c.target = DType::float64;
  fill(c, 12);
  c.t[5] = 1 + 1e-12;
  const Outputs out = call(table, c, Order::serial);
  check(out.evidence[static_cast<int>(Segmentation::out_of_range)] == 1, std::string(table.isa) + ": 1 + 1e-12 passes");
}

/// The same among hard targets: what is not finite or impossible is counted exactly, and its round computed as ever.
void poison_among_hard_targets(const cpu::KernelTable& table) {
  for (const DType logits : {DType::float32, DType::bfloat16, DType::float16}) {
    for (const std::int64_t positions : {kPacks, kRounds}) {
      const std::string name = std::string(table.isa) + " [" + std::to_string(positions) + "]: ";
      Case c = typical(SegmentationMode::binary, positions);
      c.logits = logits;
      fill(c, 18);
      constexpr std::size_t at = 5;  // of the first sample, whose row is aligned
      const auto field = [](const Outputs& out, Segmentation f) { return out.evidence[static_cast<int>(f)]; };
      for (const double bad : {kNan, kInf, -kInf}) {
        Case spoiled = c;
        spoiled.x[at] = spoiled.x[at + 9] = bad;
        const Outputs out = call(table, spoiled, Order::serial);
        check(std::isnan(out.loss[0]) && field(out, Segmentation::nonfinite) == 2, name + "bad logits are not counted");
        double sum = 0;
        bool lost = true;
        for (std::size_t i = 0; i < spoiled.x.size(); ++i) {
          sum += std::isinf(spoiled.x[i]) ? (spoiled.x[i] > 0 ? 1 : 0) : sigmoid(spoiled.x[i]);
          lost = lost && std::isnan(get(out.gradient.data() + i * size_of(logits), logits));
        }
        check(lost, name + "a gradient survives bad logits");
        const double found = field(out, Segmentation::prediction_sum);
        check(std::isnan(bad) ? std::isnan(found) : std::fabs(found - sum) < 1e-6 * sum,
              name + "sum beside bad logits");
        const double low = field(out, Segmentation::logit_min), high = field(out, Segmentation::logit_max);
        check(std::isnan(bad) ? std::isnan(low) && std::isnan(high) : (bad > 0 ? high : low) == bad,
              name + "range of bad logits");
      }
      for (const DType target : {DType::uint8, DType::float32}) {
        for (const double bad : {2.0, 255.0}) {
          Case spoiled = c;
          spoiled.target = target;
          spoiled.t[at] = bad;
          const Outputs out = call(table, spoiled, Order::serial);
          check(std::isnan(out.loss[0]) && field(out, Segmentation::out_of_range) == 1 &&
                    field(out, Segmentation::target_min) == 0 && field(out, Segmentation::target_max) == bad,
                name + "an impossible target is silent");
        }
      }
    }
  }
}

void evidence_of_hard_targets(const cpu::KernelTable& table) {
  for (const double share : {0.0, 0.3, 1.0}) {
    for (const std::int64_t positions : {kPacks, kRounds}) {
      Case c = typical(SegmentationMode::binary, positions);
      c.logits = DType::bfloat16;
      c.target_share = share;
      fill(c, 19);
      const Outputs out = call(table, c, Order::serial);
      const auto field = [&](Segmentation f) { return out.evidence[static_cast<int>(f)]; };
      double targets = 0;
      for (const double t : c.t) {
        targets += t;
      }
      check(field(Segmentation::items) == static_cast<double>(c.x.size()) && field(Segmentation::ignored) == 0 &&
                field(Segmentation::target_sum) == targets &&
                field(Segmentation::target_min) == *std::min_element(c.t.begin(), c.t.end()) &&
                field(Segmentation::target_max) == *std::max_element(c.t.begin(), c.t.end()) &&
                field(Segmentation::logit_min) == *std::min_element(c.x.begin(), c.x.end()) &&
                field(Segmentation::logit_max) == *std::max_element(c.x.begin(), c.x.end()),
            std::string(table.isa) + ": evidence of hard targets");
    }
  }
}

void evidence_is_what_was_seen(const cpu::KernelTable& table) {
  for (const int which : {0, 1, 2, 3, 4, 5}) {
    const SegmentationMode mode = kModes[which % 3];
    Case c = typical(mode, 700);
    c.validity = which < 3 ? 3 : 0;  // one of the two samples, or both
    fill(c, 13);
    const Outputs out = call(table, c, Order::serial);
    const auto field = [&](Segmentation f) { return out.evidence[static_cast<int>(f)]; };
    double low = kInf, high = -kInf, items = 0, valid = 0;
    for (std::int64_t b = 0; b < c.samples; ++b) {
      for (std::int64_t k = 0; k < c.classes; ++k) {
        for (std::int64_t s = 0; s < c.positions; ++s) {
          const bool seen = c.v[c.target_at(b, k, s)], counts = k < c.target_classes();
          items += counts ? 1 : 0;
          valid += counts && seen ? 1 : 0;
          low = seen ? std::fmin(low, c.x[c.at(b, k, s)]) : low;
          high = seen ? std::fmax(high, c.x[c.at(b, k, s)]) : high;
        }
      }
    }
    check(field(Segmentation::groups) == static_cast<double>(c.samples * c.classes) &&
              field(Segmentation::annotated) == static_cast<double>(c.classes * (which < 3 ? 1 : 2)) &&
              field(Segmentation::items) == items && field(Segmentation::ignored) == items - valid &&
              field(Segmentation::logit_min) == low && field(Segmentation::logit_max) == high &&
              field(Segmentation::target_min) == 0 &&
              field(Segmentation::target_max) == static_cast<double>(c.softmax() ? c.classes - 1 : 1),
          std::string(table.isa) + ": evidence, mode " + std::to_string(static_cast<int>(mode)));
  }
}

void dimensions_collapse() {
  const auto collapses = [](std::vector<std::int64_t> sizes, std::vector<std::int64_t> strides, std::int64_t expected) {
    std::int64_t stride = 0;
    const bool walks = collapse(sizes.data(), strides.data(), static_cast<std::int64_t>(sizes.size()), stride);
    return expected == -99 ? !walks : walks && stride == expected;
  };
  check(collapses({}, {}, 1) && collapses({4}, {3}, 3) && collapses({4, 5}, {5, 1}, 1) &&
            collapses({4, 5, 6}, {90, 18, 3}, 3) && collapses({4, 5}, {0, 0}, 0) && collapses({1, 5}, {77, 2}, 2) &&
            collapses({5, 1}, {2, 77}, 2) && collapses({4, 0}, {9, 9}, 1) && collapses({2, 3}, {-3, -1}, -1),
        "dimensions that can be walked as one");
  check(collapses({4, 5}, {1, 4}, -99) && collapses({4, 5}, {0, 1}, -99) && collapses({4, 5}, {6, 1}, -99),
        "dimensions that cannot");
}

}  // namespace
}  // namespace fastmine::test

int main() {
  using namespace fastmine::test;
  dimensions_collapse();
  const Tables tables = tables_of(&fastmine::cpu::KernelTable::segmentation_loss);
  sizes(tables);
  types(tables);
  options(tables);
  many_classes(tables);
  large_logits(tables);
  hard_targets(tables);
  few_classes(tables);
  for (const fastmine::cpu::KernelTable* table : tables) {
    confident_mistakes_keep_a_gradient(*table);
    poison(*table);
    poison_among_hard_targets(*table);
    evidence_is_what_was_seen(*table);
    an_ignored_class_does_not_count(*table);
    evidence_of_hard_targets(*table);
  }
  return report();
}
