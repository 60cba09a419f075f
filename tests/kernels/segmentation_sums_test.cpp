// The segmentation sums of every instruction set against their definitions in long double, and their gradient against
// differences of what the definitions say.
#include "kernels/segmentation_sums.h"

#include <array>

#include "segmentation_case.h"

namespace fastmine::test {
namespace {

constexpr SegmentationSumSet kAll = (1U << kSegmentationSums) - 1;
constexpr auto kSums = static_cast<std::size_t>(kSegmentationSums);

constexpr std::size_t index(SegmentationSum sum) { return static_cast<std::size_t>(sum); }
constexpr SegmentationSumSet only(SegmentationSum sum) { return 1U << index(sum); }

struct Case : InputCase {
  SegmentationSumSet wanted = kAll;
  double gamma = 2;
  int merging = 0;    // 0 none given, 1 given but none set, 2 some classes of some samples, 3 all but class 0
  bool even = false;  // the same gradient on and off the target, and in all classes
  std::vector<std::uint8_t> merged{};  // [samples, classes]

  bool is_merged(std::int64_t b, std::int64_t k) const {
    return merging > 0 && k > 0 && merged[static_cast<std::size_t>(b * classes + k)] != 0;
  }
};

using Items = std::array<long double, kSums>;

/// What one position of a sample adds to the sums of each class, given its logits: the classes in [first, end).
std::vector<Items> items_of(const Case& c, std::int64_t b, std::int64_t s, const std::vector<long double>& logits,
                            std::size_t first, std::size_t end) {
  const auto classes = static_cast<std::size_t>(c.classes);
  const long double gamma = static_cast<long double>(c.gamma);
  std::vector<Items> items(classes, Items{});
  std::vector<long double> e(classes, 0);
  long double largest = -kInf;
  for (const long double x : logits) {
    largest = std::fmax(largest, x);
  }
  for (std::size_t k = 0; c.softmax() && k < classes; ++k) {
    e[c.is_merged(b, static_cast<std::int64_t>(k)) ? 0 : k] += std::exp(logits[k] - largest);
  }
  const auto top = static_cast<std::size_t>(std::max_element(e.begin(), e.end()) - e.begin());
  long double below = 0;  // all but the largest
  for (std::size_t k = 0; k < classes; ++k) {
    below += k == top ? 0 : e[k];
  }
  const long double total = e[top] + below;
  for (std::size_t k = first; k < end; ++k) {
    const auto own = static_cast<std::int64_t>(k);
    if (!c.v[c.target_at(b, own, s)] || c.is_merged(b, own)) {
      continue;
    }
    const long double logit = logits[k];
    auto& out = items[k];
    const auto put = [&](SegmentationSum sum, long double value) { out[index(sum)] = value; };
    using enum SegmentationSum;
    if (c.softmax()) {
      auto y = static_cast<std::int64_t>(c.t[c.target_at(b, own, s)]);
      y = c.is_merged(b, y) ? 0 : y;
      const bool hit = y == own;
      const long double rest = k == top ? below : total - e[k];
      const long double probability = e[k] / total, other = rest / total, entropy = std::log1p(rest / e[k]);
      put(n, 1), put(t, hit), put(p, probability), put(a, hit ? probability : 0), put(pp, probability * probability);
      put(tt, hit), put(e1, hit ? entropy : 0), put(f1, hit ? std::pow(other, gamma) * entropy : 0), put(x, entropy);
      put(g1, hit ? probability * other : 0), put(g0, hit ? 0 : probability * other);
    } else {
      const long double label = static_cast<long double>(c.t[c.target_at(b, own, s)]);
      const auto soft = [](long double z) { return std::fmax(z, 0.0L) + std::log1p(std::exp(-std::fabs(z))); };
      const long double on = soft(-logit), off = soft(logit);
      const long double probability = std::exp(-on), other = std::exp(-off);
      put(n, 1), put(t, label), put(p, probability), put(a, probability * label), put(pp, probability * probability);
      put(tt, label * label), put(e1, label * on), put(e0, (1 - label) * off);
      put(f1, label * std::exp(-gamma * off) * on), put(f0, (1 - label) * std::exp(-gamma * on) * off);
      put(x, logit), put(tx, label * logit);
      put(g1, label * probability * other), put(g0, (1 - label) * probability * other);
    }
  }
  return items;
}

std::vector<long double> logits_at(const Case& c, std::int64_t b, std::int64_t s) {
  std::vector<long double> logits;
  for (std::int64_t k = 0; k < c.classes; ++k) {
    logits.push_back(static_cast<long double>(c.x[c.at(b, k, s)]));
  }
  return logits;
}

/// What the outputs should be; `sizes` are the sums of the absolute values, the scale of rounding.
struct Answer {
  std::vector<double> sums, sizes, gradient;
};

Answer sums_of(const Case& c) {
  Answer answer;
  std::vector<long double> sums(static_cast<std::size_t>(c.samples * c.classes) * kSums, 0), sizes = sums;
  for (std::int64_t b = 0; b < c.samples; ++b) {
    for (std::int64_t s = 0; s < c.positions; ++s) {
      const std::vector<Items> items = items_of(c, b, s, logits_at(c, b, s), 0, static_cast<std::size_t>(c.classes));
      for (std::size_t k = 0; k < items.size(); ++k) {
        for (std::size_t i = 0; i < kSums; ++i) {
          const std::size_t at = (static_cast<std::size_t>(b * c.classes) + k) * kSums + i;
          sums[at] += items[k][i];
          sizes[at] += std::fabs(items[k][i]);
        }
      }
    }
  }
  for (std::size_t i = 0; i < sums.size(); ++i) {
    const bool wanted = (c.wanted >> (i % kSums) & 1) != 0;
    answer.sums.push_back(wanted ? static_cast<double>(sums[i]) : 0);
    answer.sizes.push_back(static_cast<double>(sizes[i]));
  }
  return answer;
}

/// The derivative by each logit of the sums of its position, weighted by their gradients: differences of five points.
/// Of many classes some, and NaN for the others.
void add_gradient(const Case& c, const std::vector<double>& grad, Answer& answer) {
  const long double step_size = 1e-3L / (1 + static_cast<long double>(c.gamma) / 10);
  answer.gradient.assign(c.x.size(), kNan);
  for (std::int64_t b = 0; b < c.samples; ++b) {
    for (std::int64_t s = 0; s < c.positions; ++s) {
      std::vector<long double> logits = logits_at(c, b, s);
      const auto value = [&](std::size_t first, std::size_t end) {
        const std::vector<Items> items = items_of(c, b, s, logits, first, end);
        long double sum = 0;
        for (std::size_t k = first; k < end; ++k) {
          for (std::size_t i = index(SegmentationSum::p); i < index(SegmentationSum::g1); ++i) {
            if (i == index(SegmentationSum::tt)) {
              continue;  // like n and t it depends on no logit, and would leave a rounding error
            }
            const double by = grad[(static_cast<std::size_t>(b * c.classes) + k) * kSums + i];
            sum += (c.wanted >> i & 1) != 0 ? static_cast<long double>(by) * items[k][i] : 0;
          }
        }
        return sum;
      };
      for (std::int64_t k = 0; k < c.classes; k += 1 + c.classes / 10) {
        // Of a softmax every class depends on every logit, of a sigmoid on its own.
        const auto own = static_cast<std::size_t>(k);
        const std::size_t first = c.softmax() ? 0 : own, end = c.softmax() ? logits.size() : own + 1;
        long double& x = logits[own];
        const long double before = x;
        long double slope = 0;
        for (const int step : {-2, -1, 1, 2}) {
          x = before + step * step_size;
          slope += (step == -2 ? 1 : step == -1 ? -8 : step == 1 ? 8 : -1) * value(first, end);
        }
        x = before;
        answer.gradient[c.at(b, k, s)] = static_cast<double>(slope / (12 * step_size));
      }
    }
  }
}

struct Outputs {
  Guarded<double> sums, evidence;
  Guarded<unsigned char> gradient;

  bool same_bits(const Outputs& o) const {
    return sums.same_bits(o.sums) && evidence.same_bits(o.evidence) && gradient.same_bits(o.gradient);
  }
  bool untouched_outside() const {
    return sums.untouched_outside() && evidence.untouched_outside() && gradient.untouched_outside();
  }
  double field(Segmentation f) const { return evidence[static_cast<std::size_t>(f)]; }
};

Outputs call(const cpu::KernelTable& table, const Case& c, const std::vector<double>& grad, Order order) {
  const Arrays arrays(c);
  SegmentationInputs in = arrays.inputs();
  in.merged = c.merging > 0 ? c.merged.data() : nullptr;
  Outputs out{Guarded<double>(grad.size()), Guarded<double>(static_cast<std::size_t>(Segmentation::first_term)),
              Guarded<unsigned char>(c.x.size() * size_of(c.logits))};
  const bool wide = c.logits == DType::float64;
  run(*table.segmentation_sums[wide], {in, c.wanted, c.gamma, out.sums.data(), out.evidence.data()}, order);
  run(*table.segmentation_sums_backward[wide], {in, c.wanted, c.gamma, grad.data(), out.gradient.data()}, order);
  return out;
}

void fill_case(Case& c, std::uint64_t seed) {
  fill(c, seed);
  Random random(seed + 77);
  c.merged.assign(static_cast<std::size_t>(c.samples * c.classes), 0);
  for (std::int64_t b = 0; b < c.samples; ++b) {
    for (std::int64_t k = 0; k < c.classes; ++k) {
      // Class 0 is marked too, which must change nothing.
      const bool set = c.merging == 3 || (c.merging == 2 && b % 2 == 0 && random() < 0.5);
      c.merged[static_cast<std::size_t>(b * c.classes + k)] = set ? 1 : 0;
    }
  }
}

std::vector<double> gradients_for(const Case& c) {
  Random random(5);
  std::vector<double> grad;
  for (std::int64_t i = 0; i < c.samples * c.classes * kSegmentationSums; ++i) {
    grad.push_back(random() * 2 - 1);
  }
  using enum SegmentationSum;
  for (std::size_t i = 0; c.even && i < grad.size(); i += kSums) {
    grad[i + index(e1)] = grad[i + index(e0)] = 0.75;
    grad[i + index(f1)] = grad[i + index(f0)] = 0.5;
    grad[i + index(pp)] = grad[i + index(x)] = grad[i + index(tx)] = 0;
  }
  return grad;
}

/// What a kernel found, whoever runs its tasks.
Outputs call_again(const cpu::KernelTable& table, const Case& c, const std::vector<double>& grad) {
  const std::string name = std::string(table.isa) + " " + c.name;
  Outputs out = call(table, c, grad, kFirst);
  check(out.untouched_outside(), name + ": writes outside its outputs");
  for (const Order order : orders_again()) {
    check(out.same_bits(call(table, c, grad, order)), name + ": bits depend on who runs the tasks");
  }
  return out;
}

void compare(const cpu::KernelTable& table, const Case& c, const std::vector<double>& grad, const Answer& answer) {
  const std::string name = std::string(table.isa) + " " + c.name;
  const Outputs out = call_again(table, c, grad);
  const bool wide = c.logits == DType::float64;
  // Classes are added up in float32, merging them rounds at the size of a logit, and a power multiplies an error.
  const double single = (c.classes < 100 ? 2e-6 : 8e-6) * (1 + c.gamma / 20) + (c.merging > 1 ? 1e-7 * c.scale : 0);
  const double tight = wide ? 1e-13 * (1 + c.gamma / 20) : single;
  bool right = true;
  std::string wrong;
  for (std::size_t i = 0; i < answer.sums.size(); ++i) {
    const bool fine = std::fabs(out.sums[i] - answer.sums[i]) <= tight * answer.sizes[i] + (wide ? 0 : 1e-30);
    if (!fine && right) {
      wrong = std::string(" ") + kSegmentationSumNames[i % kSums] + " of group " + std::to_string(i / kSums) + " is " +
              std::to_string(out.sums[i]) + " and not " + std::to_string(answer.sums[i]);
    }
    right = right && fine;
  }
  check(right, name + ": sums" + wrong);
  const double rounding = c.logits == DType::bfloat16 ? 0x1p-8 : c.logits == DType::float16 ? 0x1p-10 : 0;
  // A power multiplies the error of the kernel and that of the differences, which lose what a large logit does too.
  const double floor = (c.logits == DType::float16 ? 1e-3 : wide ? 1e-12 * (1 + c.scale) : 5e-7) * (1 + c.gamma / 2);
  const std::size_t step = size_of(c.logits);
  std::vector<double> want, got;
  for (std::size_t i = 0; i < answer.gradient.size(); ++i) {
    if (!std::isnan(answer.gradient[i])) {
      want.push_back(answer.gradient[i]);
      got.push_back(get(out.gradient.data() + i * step, c.logits));
    }
  }
  check(close(want, [&](std::size_t i) { return got[i]; }, tight * 10 + rounding, floor), name + ": gradient");
  check(out.field(Segmentation::nonfinite) == 0 && out.field(Segmentation::out_of_range) == 0,
        name + ": evidence of something wrong");
}

Case typical(SegmentationMode mode, std::int64_t positions) {
  Case c;
  c.mode = mode;
  c.samples = 2;
  c.classes = mode == SegmentationMode::binary ? 1 : 3;
  c.positions = positions;
  return c;
}

void finish(const Tables& tables, Case c, std::uint64_t seed) {
  c.name = describe(c) + " gamma " + std::to_string(c.gamma) + " wanted " + std::to_string(c.wanted) + " merging " +
           std::to_string(c.merging) + (c.even ? " even" : "");
  fill_case(c, seed);
  const std::vector<double> grad = gradients_for(c);
  if (kOnlyRaces) {
    for (const cpu::KernelTable* table : tables) {
      call_again(*table, c, grad);
    }
    return;
  }
  Answer answer = sums_of(c);
  add_gradient(c, grad, answer);
  for (const cpu::KernelTable* table : tables) {
    compare(*table, c, grad, answer);
  }
}

void sizes(const Tables& tables) {
  for (const SegmentationMode mode : kModes) {
    for (const std::int64_t positions : {0, 1, 3, 16, 17, 256, 257, 511, 513}) {
      for (const int validity : {0, 2}) {
        for (const DType logits : {DType::float32, DType::float64}) {
          Case c = typical(mode, positions);
          c.validity = validity;
          c.logits = logits;
          finish(tables, c, static_cast<std::uint64_t>(positions));
        }
      }
    }
    Case several_tasks = typical(mode, 20000);
    several_tasks.samples = 1;
    several_tasks.validity = 2;
    finish(tables, several_tasks, 1);
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
          const bool turn = layout == (static_cast<int>(logits) + static_cast<int>(target)) % 4;
          if ((mode == SegmentationMode::multiclass && is_float(target)) || (kEmulated && !turn)) {
            continue;
          }
          c.soft = is_float(target) && layout % 2 == 0;
          c.ignores = turn && target != DType::bool_;  // which has no value to spare
          finish(tables, c, 7);
        }
      }
    }
  }
}

void options(const Tables& tables) {
  for (const SegmentationMode mode : kModes) {
    for (const DType logits : {DType::float32, DType::float64}) {
      for (const bool soft : {false, true}) {
        Case c = typical(mode, 300);
        c.logits = logits;
        if (mode != SegmentationMode::multiclass) {
          c.target = soft ? DType::float32 : DType::bool_;
          c.soft = soft;
        }
        for (const bool even : {false, true}) {
          for (const double gamma : {0.0, 0.5, 1.0, 2.0, 3.5}) {
            c.gamma = gamma;
            c.even = even;
            finish(tables, c, 3);
          }
        }
        for (int sum = 0; sum < kSegmentationSums; ++sum) {
          c.wanted = only(static_cast<SegmentationSum>(sum));
          finish(tables, c, 4);
        }
        c.wanted = 0;
        finish(tables, c, 4);
      }
    }
    for (const int validity : {0, 3, 4, 5}) {
      Case c = typical(mode, 70);
      c.validity = validity;
      c.target_share = 0;
      finish(tables, c, 5);
    }
  }
}

void many_classes(const Tables& tables) {
  for (const std::int64_t classes : {2, 14, 100, 300, 2500}) {
    for (const int merging : {0, 2}) {
      Case c = typical(SegmentationMode::multiclass, classes < 100 ? 300 : classes < 1000 ? 7 : 2);
      c.samples = classes < 1000 ? 2 : 1;
      c.classes = classes;
      c.target = DType::int16;
      c.validity = classes < 1000 ? 2 : 0;
      c.merging = merging;
      finish(tables, c, 6);
    }
  }
}

void merged_classes(const Tables& tables) {
  for (const int merging : {1, 2, 3}) {
    for (const DType logits : kFloats) {
      for (const int layout : {0, 1, 2}) {
        for (const double scale : {4.0, 64.0}) {
          Case c = typical(SegmentationMode::multiclass, 140);
          c.samples = 3;
          c.classes = 5;
          c.logits = logits;
          c.layout = layout;
          c.validity = layout;
          c.merging = merging;
          c.scale = scale;
          c.target = DType::uint8;
          finish(tables, c, 12);
        }
      }
    }
  }
}

/// It speaks of logits and labels as they are, and of groups as they are read.
void evidence_of_merged_classes(const cpu::KernelTable& table) {
  Case c = typical(SegmentationMode::multiclass, 600);
  c.merging = 3;
  fill_case(c, 13);
  const Outputs out = call(table, c, gradients_for(c), Order::serial);
  const auto [low, high] = std::minmax_element(c.x.begin(), c.x.end());
  check(out.field(Segmentation::logit_min) == *low && out.field(Segmentation::logit_max) == *high &&
            out.field(Segmentation::target_min) == 0 && out.field(Segmentation::target_max) == 2 &&
            out.field(Segmentation::groups) == 6 && out.field(Segmentation::annotated) == 2 &&
            out.field(Segmentation::nonempty) == 2 && out.field(Segmentation::items) == 1200 &&
            out.field(Segmentation::prediction_sum) == 0,
        std::string(table.isa) + ": evidence of merged classes");
}

void large_logits(const Tables& tables) {
  for (const SegmentationMode mode : kModes) {
    for (const double scale : {30.0, 80.0, 1e4}) {
      for (const DType logits : {DType::float32, DType::float64}) {
        for (const double gamma : {0.25, 2.0, 100.0}) {
          Case c = typical(mode, 200);
          c.scale = scale;
          c.logits = logits;
          c.gamma = gamma;
          finish(tables, c, 8);
        }
      }
    }
  }
}

/// At |x| = 30 a probability rounds to 1: the slopes by p, pp and the entropies keep their digits.
void confident_mistakes_keep_a_gradient(const cpu::KernelTable& table) {
  using enum SegmentationSum;
  const std::pair<SegmentationSum, double> wanted[] = {{p, 30.0},  {p, -30.0}, {pp, 30.0},
                                                       {e0, 30.0}, {f0, 30.0}, {e0, -30.0}};
  for (const DType logits : kFloats) {
    for (const auto& [sum, logit] : wanted) {
      Case c = typical(SegmentationMode::binary, 40);
      c.samples = 1;
      c.logits = logits;
      c.wanted = only(sum);
      c.x.assign(40, logit), c.t.assign(40, 0), c.v.assign(40, true);
      const double scale = 0x1p40;  // what float16 needs to hold 1e-13
      std::vector<double> grad(kSums, 0);
      grad[index(sum)] = scale;
      const double slope = std::exp(-30.0) / std::pow(1 + std::exp(-30.0), 2);
      const double large = 1 + 2 * std::exp(-30.0) * 30;
      const double want = sum == p    ? slope
                          : sum == pp ? 2 * slope
                          : logit < 0 ? std::exp(-30.0)
                          : sum == f0 ? large
                                      : 1;
      if (logits == DType::float16 && want * scale > 65504) {
        grad[index(sum)] = 1;
      }
      const Outputs out = call(table, c, grad, Order::serial);
      const double got = get(out.gradient.data(), logits) / grad[index(sum)];
      const double tolerance = logits == DType::bfloat16 ? 4e-3 : logits == DType::float16 ? 1e-3 : 1e-6;
      check(std::fabs(got - want) <= tolerance * want,
            std::string(table.isa) + ": a confident gradient by " + kSegmentationSumNames[index(sum)] +
                " died: " + std::to_string(got) + " for " + std::to_string(want));
    }
  }
}

/// A slope on the target that is tiny beside that off the target, or the other way round, is not a difference of both.
void uneven_slopes_keep_their_digits(const cpu::KernelTable& table) {
  using enum SegmentationSum;
  for (const double gamma : {1.0, 2.0, 2.5}) {
    for (const bool on : {false, true}) {
      Case c = typical(SegmentationMode::binary, 64);
      c.samples = 1;
      c.gamma = gamma;
      c.wanted = only(e1) | only(e0) | only(f1) | only(f0);
      c.x.assign(64, 0.5), c.t.assign(64, on ? 1 : 0), c.v.assign(64, true);
      std::vector<double> grad(kSums, 0);
      grad[index(on ? e1 : e0)] = grad[index(on ? f1 : f0)] = 1e-9;
      grad[index(on ? e0 : e1)] = grad[index(on ? f0 : f1)] = 1;
      Answer answer;
      add_gradient(c, grad, answer);
      const Outputs out = call(table, c, grad, Order::serial);
      const double got = get(out.gradient.data(), DType::float32);
      check(std::fabs(got - answer.gradient[0]) <= 1e-5 * std::fabs(answer.gradient[0]),
            std::string(table.isa) + ": a small slope is lost beside a large one");
    }
  }
}

/// A few targets keep their digits beside many others.
void a_few_items_among_many(const cpu::KernelTable& table) {
  Case c = typical(SegmentationMode::binary, 100000);
  c.samples = 1;
  c.target_share = 0;
  c.scale = 12;
  fill(c, 21);
  for (const std::size_t i : {17U, 18U, 50001U}) {
    c.t[i] = 1;
    c.x[i] = 9.5;
  }
  const Answer answer = sums_of(c);
  const Outputs out = call(table, c, std::vector<double>(kSums, 0), Order::serial);
  for (std::size_t i = 0; i < kSums; ++i) {
    check(std::fabs(out.sums[i] - answer.sums[i]) <= 1e-6 * answer.sizes[i],
          std::string(table.isa) + ": " + kSegmentationSumNames[i] + " of a few items among many");
  }
}

/// Counts, and what a softmax has none of.
bool stays(SegmentationMode mode, std::size_t sum) {
  using enum SegmentationSum;
  return sum == index(n) || sum == index(t) ||
         (mode == SegmentationMode::multiclass && (sum == index(e0) || sum == index(f0) || sum == index(tx)));
}

/// One valid NaN, Inf or impossible target makes all sums NaN but the counts; the evidence counts it.
void poison(const cpu::KernelTable& table) {
  for (const SegmentationMode mode : kModes) {
    for (const int merging : mode == SegmentationMode::multiclass ? std::vector{0, 3} : std::vector{0}) {
      for (const double bad : {kNan, kInf, -kInf, 99.0, -1.0}) {
        const bool logit = !(std::fabs(bad) < 100);
        Case c = typical(mode, 520);
        c.validity = logit ? 2 : 0;
        c.target = DType::int16;
        c.merging = merging;
        fill_case(c, 10);
        const auto at = static_cast<std::size_t>(std::find(c.v.begin(), c.v.end(), true) - c.v.begin());
        if (logit) {  // the last class of the first valid position
          c.x[at + static_cast<std::size_t>(c.softmax() ? (c.classes - 1) * c.positions : 0)] = bad;
        } else {
          c.t[3] = bad;
        }
        const Outputs out = call(table, c, std::vector<double>(gradients_for(c).size(), kNan), Order::serial);
        bool right = true;
        for (std::size_t i = 0; i < out.sums.size(); ++i) {
          right = right && std::isnan(out.sums[i]) != stays(mode, i % kSums);
        }
        check(right, std::string(table.isa) + ": something bad is silent");
        check(out.field(Segmentation::nonfinite) == (logit ? 1 : 0) &&
                  out.field(Segmentation::out_of_range) == (logit ? 0 : 1),
              std::string(table.isa) + ": what is bad is not counted");
        bool spared = true;
        for (std::size_t i = 0; i < c.x.size(); ++i) {
          const auto sample = static_cast<std::size_t>(c.classes * c.positions);
          const std::size_t flag = c.softmax() ? i / sample * sample + i % static_cast<std::size_t>(c.positions) : i;
          const double g = get(out.gradient.data() + i * sizeof(float), DType::float32);
          spared = spared && (c.v[flag] ? std::isnan(g) : g == 0);
        }
        check(spared, std::string(table.isa) + ": a poisoned gradient is not NaN where valid and 0 elsewhere");
      }
    }
  }
}

}  // namespace
}  // namespace fastmine::test

int main() {
  using namespace fastmine::test;
  const Tables tables = tables_of(&fastmine::cpu::KernelTable::segmentation_sums);
  sizes(tables);
  types(tables);
  options(tables);
  many_classes(tables);
  merged_classes(tables);
  large_logits(tables);
  if (kOnlyRaces) {
    return report();
  }
  for (const fastmine::cpu::KernelTable* table : tables) {
    evidence_of_merged_classes(*table);
    confident_mistakes_keep_a_gradient(*table);
    uneven_slopes_keep_their_digits(*table);
    a_few_items_among_many(*table);
    poison(*table);
  }
  return report();
}
