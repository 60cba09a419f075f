// Mining, its backward pass and the triplet formula of every instruction set against loops over all pairs in float64.
#include "kernels/batch_hard.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "check.h"
#include "kernels/triplet_loss.h"

namespace fastmine::test {

// Beside the tables: the formula, and how many kernels the emulator has started.
void triplet_loss(const TripletLoss& problem);
int launches();

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr Metric kMetrics[] = {Metric::euclidean, Metric::sqeuclidean, Metric::cosine, Metric::dot};
constexpr const char* kMetricNames[] = {"euclidean", "sqeuclidean", "cosine", "dot"};

/// Rows of float32 or float64 with a gap after each, labels and a mask.
struct Set {
  std::int64_t n, d, stride;
  DType dtype;
  std::vector<double> values;  // what the rows hold, [n, d]
  std::vector<float> singles;
  std::vector<double> doubles;
  std::vector<std::int64_t> labels;
  std::unique_ptr<bool[]> valid;

  Rows rows() const {
    const void* data = dtype == DType::float64 ? static_cast<const void*>(doubles.data()) : singles.data();
    return {data, dtype, n, d, stride};
  }
  const double* row(std::int64_t i) const { return values.data() + i * d; }
};

/// Small integers: every distance is exact, so ties are ties. Every seventh row repeats one before it.
Set make_set(Random& random, std::int64_t n, std::int64_t d, std::int64_t classes, DType dtype, bool masked) {
  Set s{n, d, d + 3, dtype, {}, {}, {}, {}, nullptr};
  s.valid = std::make_unique<bool[]>(static_cast<std::size_t>(n) + 1);
  s.singles.assign(static_cast<std::size_t>(n * s.stride), std::nanf(""));
  s.doubles.assign(static_cast<std::size_t>(n * s.stride), kNan);
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t k = 0; k < d; ++k) {
      const bool repeat = i > 0 && i % 7 == 0;
      const double v =
          repeat ? s.values[static_cast<std::size_t>((i / 2) * d + k)] : static_cast<double>(random.below(9) - 4);
      s.values.push_back(v);
      s.singles[static_cast<std::size_t>(i * s.stride + k)] = static_cast<float>(v);
      s.doubles[static_cast<std::size_t>(i * s.stride + k)] = v;
    }
    s.labels.push_back(random.below(classes) - 1);
    s.valid[static_cast<std::size_t>(i)] = !masked || random() < 0.7;
  }
  return s;
}

void poison(Set& s, std::int64_t i) {
  s.values[static_cast<std::size_t>(i * s.d)] = kNan;
  s.singles[static_cast<std::size_t>(i * s.stride)] = std::nanf("");
  if (!s.doubles.empty()) {
    s.doubles[static_cast<std::size_t>(i * s.stride)] = kNan;
  }
}

double distance(const double* x, const double* y, std::int64_t d, Metric metric) {
  double dot = 0, squared = 0, xx = 0, yy = 0;
  for (std::int64_t k = 0; k < d; ++k) {
    dot += x[k] * y[k];
    squared += (x[k] - y[k]) * (x[k] - y[k]);
    xx += x[k] * x[k];
    yy += y[k] * y[k];
  }
  switch (metric) {
    case Metric::euclidean:
      return std::sqrt(squared);
    case Metric::sqeuclidean:
      return squared;
    case Metric::cosine:
      return xx == 0 || yy == 0 ? 1 : 1 - dot / std::sqrt(xx * yy);
    case Metric::dot:
      return dot;
  }
  return kNan;
}

struct Choice {
  std::int64_t index = 0;
  double value = 0;
  bool found = false;
};

/// The first candidate of extreme farness (minus the similarity, for dot); a NaN before all.
template <class Accept>
Choice choose(const Set& x, const Set& y, std::int64_t i, Metric metric, bool farthest, Accept accept) {
  Choice best;
  const double sign = (metric == Metric::dot) != farthest ? -1 : 1;
  for (std::int64_t j = 0; j < y.n; ++j) {
    const double value = distance(x.row(i), y.row(j), x.d, metric);
    if (!accept(j, value) || std::isnan(best.value)) {
      continue;
    }
    if (!best.found || std::isnan(value) || sign * value < sign * best.value) {
      best = {j, value, true};
    }
  }
  return best;
}

struct Options {
  Metric metric;
  bool self, easiest, semi_hard;
  Screen screen = Screen::automatic;
  const std::int64_t* self_index = nullptr;

  std::int64_t own(std::int64_t i) const {
    return self_index != nullptr ? self_index[static_cast<std::size_t>(i)] : self ? i : -1;
  }
};

struct Mined {
  explicit Mined(std::size_t n)
      : positive_index(n),
        negative_index(n),
        positive(n),
        negative(n),
        has_positive(n),
        has_negative(n),
        evidence(static_cast<std::size_t>(Mining::count)) {}
  Guarded<std::int64_t> positive_index, negative_index;
  Guarded<double> positive, negative;
  Guarded<bool> has_positive, has_negative;
  Guarded<double> evidence;
  Screened screened{};

  bool intact() const {
    return positive_index.untouched_outside() && negative_index.untouched_outside() && positive.untouched_outside() &&
           negative.untouched_outside() && has_positive.untouched_outside() && has_negative.untouched_outside() &&
           evidence.untouched_outside();
  }
  bool same_bits(const Mined& o) const {
    return positive_index.same_bits(o.positive_index) && negative_index.same_bits(o.negative_index) &&
           positive.same_bits(o.positive) && negative.same_bits(o.negative) && evidence.same_bits(o.evidence);
  }
};

Mined mine(const cpu::KernelTable& table, const Set& x, const Set& y, const Options& o, Order order) {
  Mined out(static_cast<std::size_t>(x.n));
  BatchHard p{};
  p.x = x.rows();
  p.labels = x.labels.data();
  p.valid = x.valid.get();
  p.y = y.rows();
  p.ref_labels = y.labels.data();
  p.ref_valid = y.valid.get();
  p.self = o.self;
  p.self_index = o.self_index;
  p.metric = o.metric;
  p.easiest_positive = o.easiest;
  p.semi_hard_negative = o.semi_hard;
  p.screen = o.screen;
  p.screened = &out.screened;
  p.positive_index = out.positive_index.data();
  p.negative_index = out.negative_index.data();
  p.positive_distance = out.positive.data();
  p.negative_distance = out.negative.data();
  p.has_positive = out.has_positive.data();
  p.has_negative = out.has_negative.data();
  p.evidence = out.evidence.data();
  run(*table.batch_hard[x.dtype == DType::float64], p, order);
  return out;
}

bool equal(double a, double b, double tolerance) {
  return (std::isnan(a) && std::isnan(b)) || std::abs(a - b) <= tolerance * (1 + std::abs(b));
}

/// Ties are exact for all metrics but cosine, where only the value is certain.
bool agrees(const Choice& want, std::int64_t index, double value, bool found, Metric metric) {
  const bool place = metric == Metric::cosine || index == want.index;
  return found == want.found && place && equal(value, want.value, 1e-12);
}

bool finds_the_right_pairs(const Mined& got, const Set& x, const Set& y, const Options& o) {
  bool right = true;
  for (std::int64_t i = 0; i < x.n && right; ++i) {
    const auto at = static_cast<std::size_t>(i);
    const bool in = x.valid[at];
    const auto takes_part = [&](std::int64_t j) { return in && y.valid[static_cast<std::size_t>(j)]; };
    const auto same = [&](std::int64_t j) { return y.labels[static_cast<std::size_t>(j)] == x.labels[at]; };
    const Choice positive = choose(x, y, i, o.metric, !o.easiest,
                                   [&](std::int64_t j, double) { return takes_part(j) && same(j) && j != o.own(i); });
    const double sign = o.metric == Metric::dot ? -1 : 1;
    Choice negative = choose(x, y, i, o.metric, false, [&](std::int64_t j, double value) {
      const bool eligible = !o.semi_hard || !positive.found || !(sign * value <= sign * positive.value);
      return takes_part(j) && !same(j) && eligible;
    });
    if (!negative.found) {
      negative = choose(x, y, i, o.metric, true, [&](std::int64_t j, double) { return takes_part(j) && !same(j); });
    }
    right = agrees(positive, got.positive_index[at], got.positive[at], got.has_positive[at], o.metric) &&
            (o.metric == Metric::cosine && o.semi_hard
                 ? got.has_negative[at] == negative.found
                 : agrees(negative, got.negative_index[at], got.negative[at], got.has_negative[at], o.metric));
  }
  return right;
}

void check_mining(const cpu::KernelTable& table, const Set& x, const Set& y, const Options& o,
                  const std::string& name) {
  const Mined got = mine(table, x, y, o, kFirst);
  if (!kOnlyRaces) {
    check(finds_the_right_pairs(got, x, y, o), name + ": pairs");
  }
  check(got.intact(), name + ": wrote outside");
  for (const Order again : orders_again()) {
    check(got.same_bits(mine(table, x, y, o, again)), name + ": run again");
  }
  Options rounded = o;
  rounded.screen = Screen::rounded_always;
  check(got.same_bits(mine(table, x, y, rounded, Order::threads)), name + ": screened in bfloat16");
  if (kEmulated) {  // elsewhere `automatic` does the same
    Options full = o;
    full.screen = Screen::full;
    check(got.same_bits(mine(table, x, y, full, Order::threads)), name + ": screened in full");
  }
}

/// Half of the combinations of some binary options, three in `bits` and the others counted by `turn`: those with an
/// even sum. So all of them but any one come in every combination.
bool covers(int turn, int bits) { return (turn + bits + bits / 2 + bits / 4) % 2 == 0; }

/// Of each metric and size, every combination of any three of type, references, kind of positive and of negative.
void mining(const cpu::KernelTable& table) {
  Random random(1);
  const std::int64_t sizes[] = {0, 1, 2, 5, 17, 48, 49, 97, 200};
  for (const std::int64_t n : sizes) {
    if (kEmulated && n > 60) {
      continue;
    }
    for (const DType dtype : {DType::float32, DType::float64}) {
      for (int k = 0; k < 4; ++k) {
        const std::int64_t d = 1 + random.below(40), classes = 1 + random.below(k == 0 ? 2 : 12);
        Set x = make_set(random, n, d, classes, dtype, k % 2 == 1);
        Set y = make_set(random, random.below(130), d, classes, dtype, k % 2 == 1);
        if (k == 3 && n > 2) {
          poison(x, n / 2);
          poison(x, n - 1);
        }
        if (k == 3 && y.n > 0) {
          poison(y, y.n / 3);
        }
        for (int bits = 0; bits < 8; ++bits) {
          if (!covers(static_cast<int>(dtype) + k + static_cast<int>(n), bits)) {
            continue;
          }
          const Options o{kMetrics[k], (bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0};
          check_mining(table, x, o.self ? x : y, o,
                       std::string(table.isa) + " " + kMetricNames[k] + " n=" + std::to_string(n) + " options " +
                           std::to_string(bits));
        }
      }
    }
  }
}

/// float32 rows of element(i, k), labels i % classes.
template <class F>
Set fill_set(std::int64_t n, std::int64_t d, std::int64_t classes, F element) {
  Set s{n, d, d, DType::float32, {}, {}, {}, {}, std::make_unique<bool[]>(static_cast<std::size_t>(n))};
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t k = 0; k < d; ++k) {
      s.singles.push_back(static_cast<float>(element(i, k)));
      s.values.push_back(static_cast<double>(s.singles.back()));
    }
    s.labels.push_back(i % classes);
    s.valid[static_cast<std::size_t>(i)] = true;
  }
  return s;
}

/// However rows lie, the bfloat16 screen changes no bit of the result, in any order of the tasks. Of each metric, both
/// values of each option.
void screens_agree(const cpu::KernelTable& table) {
  Random random(5);
  const auto normal = [&random] {
    return std::sqrt(-2 * std::log(1 - random())) * std::cos(6.283185307179586 * random());
  };
  std::vector<double> one(70);
  for (double& v : one) {
    v = normal();
  }
  const auto scaled = [&](double scale) { return [&, scale](std::int64_t, std::int64_t) { return scale * normal(); }; };
  const auto clusters = [&](double width) {
    return [&, width](std::int64_t i, std::int64_t k) {
      return one[static_cast<std::size_t>((k + 7 * (i % 5)) % 70)] + width * normal();
    };
  };
  const std::int64_t n = kEmulated ? 131 : 203, d = 70, classes = 40;
  struct Case {
    const char* name;
    Set x;
  };
  Case cases[] = {
      {"normal", fill_set(n, d, classes, scaled(1))},
      {"tiny", fill_set(n, d, classes, scaled(1e-18))},
      {"subnormal", fill_set(n, d, classes, scaled(1e-39))},
      {"huge", fill_set(n, d, classes, scaled(1e18))},
      {"huge and small",
       fill_set(n, d, classes, [&](std::int64_t i, std::int64_t) { return (i % 9 == 0 ? 1e25 : 1) * normal(); })},
      {"lognormal", fill_set(n, d, classes, [&](std::int64_t, std::int64_t) { return std::exp(3 * normal()); })},
      {"cauchy",
       fill_set(n, d, classes, [&](std::int64_t, std::int64_t) { return std::tan(3.14159 * (random() - 0.5)); })},
      {"collapsed", fill_set(n, d, classes, [&](std::int64_t, std::int64_t) { return 1 + 1e-6 * normal(); })},
      {"clusters", fill_set(n, d, classes, clusters(1e-1))},
      {"tight clusters", fill_set(n, d, classes, clusters(1e-5))},
      {"ties but for one bit", fill_set(n, d, classes,
                                        [&](std::int64_t i, std::int64_t k) {
                                          const auto v = static_cast<float>(one[static_cast<std::size_t>(k)]);
                                          return static_cast<double>(k == i % 70 && i % 3 != 0
                                                                         ? std::nextafter(v, i % 2 == 0 ? 9.F : -9.F)
                                                                         : v);
                                        })},
      {"equal",
       fill_set(n, d, classes, [&](std::int64_t, std::int64_t k) { return one[static_cast<std::size_t>(k)]; })},
      {"poisoned", fill_set(n, d, classes, scaled(1))},
  };
  poison(cases[12].x, 17);
  const Set refs = fill_set(150, d, classes, clusters(0.3));
  for (const Case& c : cases) {
    for (int k = 0; k < 4; ++k) {
      if (kEmulated && k != (&c - cases) % 4) {
        continue;
      }
      for (int bits = 0; bits < 4; ++bits) {
        if (!covers(static_cast<int>(&c - cases) / 4 + k, bits)) {
          continue;
        }
        Options o{kMetrics[k], (bits & 1) == 0, false, (bits & 2) != 0, Screen::full};
        const Set& y = o.self ? c.x : refs;
        const Mined want = mine(table, c.x, y, o, Order::serial);
        bool same = true;
        for (const Screen screen : {Screen::automatic, Screen::rounded, Screen::rounded_always}) {
          o.screen = screen;
          const Mined got = mine(table, c.x, y, o, Order::one_by_one_backwards);
          same = same && got.intact() && want.same_bits(got);
        }
        check(same, std::string(table.isa) + " in bfloat16: " + c.name + " " + kMetricNames[k] + " options " +
                        std::to_string(bits));
      }
    }
  }
  const auto screened = [&](const Set& x, Screen screen) {
    return mine(table, x, x, {Metric::euclidean, true, false, false, screen}, Order::serial).screened;
  };
  const std::string isa = table.isa;
  check(screened(cases[9].x, Screen::rounded) == Screened::rounding_gave_up, isa + ": gives up on tight clusters");
  check(screened(cases[9].x, Screen::rounded_always) == Screened::rounded, isa + ": but not where it must not");
  check(screened(cases[0].x, Screen::automatic) == Screened::full, isa + ": a small batch is screened in full");
  if (kEmulated) {  // too few panels to leave any out
    return;
  }
  check(screened(cases[0].x, Screen::rounded) == Screened::rounded, isa + ": bfloat16 serves ordinary rows");
  check(screened(cases[7].x, Screen::rounded) == Screened::rounded, isa + ": a collapse to one point is centred away");
  const Set large = fill_set(700, 64, 100, scaled(1));
  const auto screened_semi_hard = [&](const Set& x) {
    return mine(table, x, x, {Metric::euclidean, true, false, true, Screen::rounded}, Order::serial).screened;
  };
  check(screened_semi_hard(large) == Screened::rounding_gave_up,
        isa + ": gives up on semi-hard negatives among most of the distances");
  check((screened(large, Screen::automatic) == Screened::rounded) == (isa == "amx"), isa + ": a large one in bfloat16");
}

/// Zero rows are at cosine distance 1 from everything: the lowest index wins, however short the centred rows are.
void zero_rows_tie(const cpu::KernelTable& table) {
  Random random(9);
  const std::int64_t n = kEmulated ? 131 : 300;
  const Set x = fill_set(n, 64, n, [&](std::int64_t i, std::int64_t) { return i == 0 ? random() - 0.5 : 0; });
  for (const Screen screen : {Screen::full, Screen::rounded_always}) {
    const Mined got = mine(table, x, x, {Metric::cosine, true, false, false, screen}, Order::serial);
    bool right = got.negative_index[0] == 1;
    for (std::size_t i = 1; i < static_cast<std::size_t>(n); ++i) {
      right = right && got.negative_index[i] == 0 && got.negative[i] == 1;
    }
    check(right, std::string(table.isa) + ": zero rows tie");
  }
}

/// Unit vectors within `spread` of one point: what defeats |x|^2 + |y|^2 - 2 x.y in float32.
void collapsed(const cpu::KernelTable& table) {
  for (const double spread : {1e-1, 1e-3, 1e-5}) {
    Random random(7);
    Set x = make_set(random, 150, 24, 30, DType::float32, false);
    for (std::int64_t i = 0; i < x.n; ++i) {
      for (std::int64_t k = 0; k < x.d; ++k) {
        const auto v = static_cast<float>(1 + spread * (random() - 0.5));
        x.singles[static_cast<std::size_t>(i * x.stride + k)] = v;
        x.values[static_cast<std::size_t>(i * x.d + k)] = static_cast<double>(v);
      }
    }
    check_mining(table, x, x, {Metric::euclidean, true, false, false},
                 std::string(table.isa) + " spread " + std::to_string(spread));
  }
}

/// Both sides of every border between two ways: few pairs and many, labels of few rows and of many, rows of one chunk
/// and of several, panels of one sliver and of several; and labels from one end of int64 to the other, out of order.
/// Of each, every combination of any three of type, references, kind of positive and of negative.
void borders(const cpu::KernelTable& table) {
  struct Case {
    const char* name;
    std::int64_t n, m, d, per_label;
  };
  const Case cases[] = {{"48 rows", 48, 48, 20, 4},        {"49 rows", 49, 47, 20, 4},
                        {"24 of a label", 120, 96, 5, 24}, {"25 of a label", 125, 100, 5, 25},
                        {"26 of a label", 104, 78, 5, 26}, {"one label", 60, 60, 5, 60},
                        {"long rows", 72, 50, 300, 4},     {"a long tail", 60, 60, 263, 4},
                        {"wide panels", 900, 850, 3, 4},   {"few long rows", 20, 30, 261, 3}};
  for (const Case& c : cases) {
    if (kEmulated && c.n > 500) {
      continue;
    }
    for (const DType dtype : {DType::float32, DType::float64}) {
      Random random(static_cast<std::uint64_t>(c.n + c.d));
      Set x = make_set(random, c.n, c.d, 1, dtype, false), y = make_set(random, c.m, c.d, 1, dtype, false);
      for (Set* s : {&x, &y}) {
        for (std::int64_t i = 0; i < s->n; ++i) {
          const std::int64_t label = i * 7 % s->n / c.per_label;  // 7 does not divide any n: every label in full
          const auto spread = static_cast<std::uint64_t>(label) * 0x9e3779b97f4a7c15U;
          s->labels[static_cast<std::size_t>(i)] = static_cast<std::int64_t>(spread);
        }
      }
      for (int bits = 0; bits < (c.n > 500 ? 2 : 8); ++bits) {
        if (c.n < 500 && !covers(static_cast<int>(dtype), bits)) {
          continue;
        }
        const Options o{Metric::sqeuclidean, (bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0};
        check_mining(table, x, o.self ? x : y, o,
                     std::string(table.isa) + " " + c.name + " options " + std::to_string(bits));
      }
    }
  }
}

/// What mining takes on the device, by the number of rows: three launches where pairs are compared directly, two more
/// where they are screened tile by tile, and two again for semi-hard negatives.
void launches_are_few(const cpu::KernelTable& table) {
  Random random(13);
  for (const std::int64_t n : {48, 49, 128, 160}) {
    const Set x = make_set(random, n, 20, 12, DType::float32, false);
    for (const bool semi_hard : {false, true}) {
      const int before = launches();
      mine(table, x, x, {Metric::euclidean, true, false, semi_hard}, Order::serial);
      const int evidence = n > 64 ? 2 : 1, most = n <= 48 ? 2 : semi_hard ? 5 : 3;
      check(launches() - before == most + evidence, "launches for " + std::to_string(n) + " rows");
    }
  }
}

/// References that are the anchors themselves, in another order and with others between them: an anchor is not its own
/// positive, nor, where it is not among them, is anybody left out.
void anchors_among_references(const cpu::KernelTable& table) {
  Random random(17);
  for (const DType dtype : {DType::float32, DType::float64}) {
    Set x = make_set(random, 70, 9, 8, dtype, true), y = make_set(random, 95, 9, 8, dtype, true);
    std::vector<std::int64_t> own(70, -1);
    for (std::size_t i = 0; i < own.size(); i += i % 5 == 3 ? 2 : 1) {
      own[i] = 94 - static_cast<std::int64_t>(i);
      const auto from = static_cast<std::ptrdiff_t>(i), to = static_cast<std::ptrdiff_t>(own[i]);
      std::copy_n(x.values.begin() + from * x.d, x.d, y.values.begin() + to * y.d);
      std::copy_n(x.singles.begin() + from * x.stride, x.d, y.singles.begin() + to * y.stride);
      std::copy_n(x.doubles.begin() + from * x.stride, x.d, y.doubles.begin() + to * y.stride);
      y.labels[static_cast<std::size_t>(own[i])] = x.labels[i];
    }
    for (int bits = 0; bits < 4; ++bits) {
      const Options o{Metric::euclidean, false, (bits & 1) != 0, (bits & 2) != 0, Screen::automatic, own.data()};
      check_mining(table, x, y, o,
                   std::string(table.isa) + " anchors among references, options " + std::to_string(bits));
    }
  }
}

/// The gradient of sum of grad x distance against central differences of the same sum.
void backward(const cpu::KernelTable& table) {
  for (int k = 0; k < 4; ++k) {
    for (const bool self : {true, false}) {
      Random random(11 + static_cast<std::uint64_t>(k));
      Set x = make_set(random, 23, 6, 4, DType::float64, true), y = make_set(random, 19, 6, 4, DType::float64, true);
      for (Set* s : {&x, &y}) {
        for (std::int64_t i = 0; i < s->n; ++i) {
          for (std::int64_t j = 0; j < s->d; ++j) {
            const double v = random() - 0.5;
            s->doubles[static_cast<std::size_t>(i * s->stride + j)] =
                s->values[static_cast<std::size_t>(i * s->d + j)] = v;
          }
        }
      }
      Set& refs = self ? x : y;
      const Options o{kMetrics[k], self, false, false};
      const Mined m = mine(table, x, refs, o, Order::serial);
      const auto n = static_cast<std::size_t>(x.n);
      std::vector<double> weights(2 * n);
      for (double& w : weights) {
        w = random() - 0.5;
      }
      Guarded<double> grad_x(n * 6), grad_y(self ? 0 : static_cast<std::size_t>(y.n) * 6);
      BatchHardBackward b{};
      b.x = x.rows();
      b.y = refs.rows();
      b.self = self;
      b.metric = o.metric;
      b.positives = b.negatives = 1;
      b.positive_index = m.positive_index.data();
      b.negative_index = m.negative_index.data();
      b.has_positive = m.has_positive.data();
      b.has_negative = m.has_negative.data();
      b.grad_positive = weights.data();
      b.grad_negative = weights.data() + n;
      b.grad_dtype = DType::float64;
      b.grad_positive_stride = b.grad_negative_stride = 1;
      b.grad_x = grad_x.data();
      b.grad_y = grad_y.data();
      run(*table.batch_hard_backward[1], b, Order::threads);

      std::vector<double> between(n);  // factors of the distances of positives to negatives
      const auto total = [&] {
        double sum = 0;
        for (std::size_t i = 0; i < n; ++i) {
          const double* row = x.row(static_cast<std::int64_t>(i));
          sum += m.has_positive[i] ? weights[i] * distance(row, refs.row(m.positive_index[i]), 6, o.metric) : 0;
          sum += m.has_negative[i] ? weights[n + i] * distance(row, refs.row(m.negative_index[i]), 6, o.metric) : 0;
          if (m.has_positive[i] && m.has_negative[i]) {
            const double* positive = refs.row(m.positive_index[i]);
            sum += between[i] * distance(positive, refs.row(m.negative_index[i]), 6, o.metric);
          }
        }
        return sum;
      };
      bool right = grad_x.untouched_outside() && grad_y.untouched_outside();
      const auto probe = [&](Set& s, const Guarded<double>& grad) {
        for (std::size_t at = 0; at < s.values.size(); ++at) {
          const double kept = s.values[at], h = 1e-5;
          s.values[at] = kept + h;
          const double above = total();
          s.values[at] = kept - h;
          const double slope = (above - total()) / (2 * h);
          s.values[at] = kept;
          right = right && std::abs(grad[at] - slope) <= 1e-6 * (1 + std::abs(slope));
        }
      };
      probe(x, grad_x);
      if (!self) {
        probe(y, grad_y);
      }
      check(right, std::string(table.isa) + " gradient of " + kMetricNames[k] + (self ? "" : " to references"));

      // With a third pair of each anchor, and the weights as factors of one gradient for all.
      std::vector<double> slopes(weights);
      for (std::size_t i = 0; i < n; ++i) {
        between[i] = i % 3 == 0 ? 0 : random() - 0.5;
        slopes.push_back(between[i]);
      }
      const double one = 1;
      Guarded<double> third_x(n * 6), third_y(grad_y.size());
      BatchHardBackward with_third = b;
      with_third.slopes = slopes.data();
      with_third.between = true;
      with_third.grad_positive = with_third.grad_negative = &one;
      with_third.grad_positive_stride = with_third.grad_negative_stride = 0;
      with_third.grad_x = third_x.data();
      with_third.grad_y = third_y.data();
      run(*table.batch_hard_backward[1], with_third, Order::threads);
      right = third_x.untouched_outside() && third_y.untouched_outside();
      probe(x, third_x);
      if (!self) {
        probe(y, third_y);
      }
      check(right, std::string(table.isa) + " gradient of " + kMetricNames[k] + " between positives and negatives" +
                       (self ? "" : " of references"));

      // The same pairs as two of one sign, and none of the other.
      std::vector<std::int64_t> mined(2 * n), unused(n);
      std::vector<double> by_pair(2 * n);
      const auto has = std::make_unique<bool[]>(2 * n), none = std::make_unique<bool[]>(n);
      for (std::size_t i = 0; i < n; ++i) {
        mined[2 * i] = m.positive_index[i];
        mined[2 * i + 1] = m.negative_index[i];
        has[2 * i] = m.has_positive[i];
        has[2 * i + 1] = m.has_negative[i];
        by_pair[2 * i] = weights[i];
        by_pair[2 * i + 1] = weights[n + i];
      }
      Guarded<double> again_x(n * 6), again_y(grad_y.size());
      b.positives = 2;
      b.positive_index = mined.data();
      b.negative_index = unused.data();
      b.has_positive = has.get();
      b.has_negative = none.get();
      b.grad_positive = by_pair.data();
      b.grad_x = again_x.data();
      b.grad_y = again_y.data();
      run(*table.batch_hard_backward[1], b, Order::threads);
      bool same = again_x.untouched_outside() && again_y.untouched_outside();
      for (std::size_t at = 0; at < grad_x.size() + grad_y.size(); ++at) {
        const bool x_side = at < grad_x.size();
        const std::size_t place = x_side ? at : at - grad_x.size();
        same = same && equal(x_side ? again_x[place] : again_y[place], x_side ? grad_x[place] : grad_y[place], 1e-12);
      }
      check(same, std::string(table.isa) + " gradient of " + kMetricNames[k] + " by two pairs of one sign");
    }
  }
}

/// d_p - d_n + margin of -0.5, 0.5, and one anchor without a negative, by hand.
void formula() {
  const double d_p[] = {1, 2, 3}, d_n[] = {2, 2, 0};
  const bool has_p[] = {true, true, true}, has_n[] = {true, true, false};
  double loss[3], slopes[6], active = kNan, semi_hard = kNan;
  TripletLoss p{3,
                d_p,
                d_n,
                has_p,
                has_n,
                nullptr,
                Metric::euclidean,
                TripletShape::hinge,
                0.5,
                0.1,
                OnEmpty::zero,
                Reduction::mean,
                loss,
                DType::float64,
                slopes,
                &active,
                &semi_hard};
  triplet_loss(p);
  check(loss[0] == 0.25 && active == 1 && semi_hard == 1, "hinge: mean over the two valid anchors");
  check(slopes[0] == 0 && slopes[1] == 0.5 && slopes[2] == 0 && slopes[4] == -0.5, "hinge: slopes");
  p.shape = TripletShape::leaky;
  triplet_loss(p);
  check(equal(loss[0], (0.1 * -0.5 + 0.5) / 2, 1e-15), "leaky");
  p.shape = TripletShape::soft;
  p.reduction = Reduction::none;
  triplet_loss(p);
  check(equal(loss[0], std::log1p(std::exp(-0.5)), 1e-15) && loss[2] == 0 && active == 2, "soft");

  const bool none[] = {false, false, false};
  p.has_negative = none;
  p.reduction = Reduction::mean;
  p.on_empty = OnEmpty::pull;
  triplet_loss(p);
  check(loss[0] == 2 && equal(slopes[0], 1.0 / 3, 1e-15), "pull: the mean distance of the positives");
  p.has_negative = has_n;
  p.has_positive = none;
  p.on_empty = OnEmpty::push;
  triplet_loss(p);
  check(equal(loss[0], std::log1p(std::exp(-1.5)), 1e-15), "push: softplus(margin - d) over the negatives");
  p.on_empty = OnEmpty::zero;
  triplet_loss(p);
  check(loss[0] == 0 && slopes[3] == 0, "zero: nothing valid, nothing pulled");
}

/// A weighted mean of hinges over more anchors than a block has threads, against one loop.
void formula_of_many() {
  constexpr std::int64_t n = 500;
  Random random(3);
  std::vector<double> d_p(n), d_n(n), weight(n), slopes(2 * n);
  Guarded<bool> has_p(n), has_n(n);
  double sum = 0, weights = 0, active = kNan, semi_hard = kNan, want_active = 0, want_semi_hard = 0, loss = kNan;
  for (std::size_t i = 0; i < n; ++i) {
    d_p[i] = random();
    d_n[i] = random();
    weight[i] = random();
    has_p.data()[i] = random() < 0.9;
    has_n.data()[i] = random() < 0.9;
    if (has_p[i] && has_n[i]) {
      const double violation = d_p[i] - d_n[i] + 0.2;
      sum += weight[i] * std::max(violation, 0.0);
      weights += weight[i];
      want_active += violation > 0;
      want_semi_hard += violation > 0 && d_p[i] <= d_n[i];
    }
  }
  triplet_loss({n, d_p.data(), d_n.data(), has_p.data(), has_n.data(), weight.data(), Metric::euclidean,
                TripletShape::hinge, 0.2, 0, OnEmpty::zero, Reduction::mean, &loss, DType::float64, slopes.data(),
                &active, &semi_hard});
  bool right = equal(loss, sum / weights, 1e-12) && active == want_active && semi_hard == want_semi_hard;
  for (std::size_t i = 0; i < n; ++i) {
    const bool pulls = has_p[i] && has_n[i] && d_p[i] - d_n[i] + 0.2 > 0;
    right = right && equal(slopes[i], pulls ? weight[i] / weights : 0, 1e-12) && slopes[n + i] == -slopes[i];
  }
  check(right, "the mean over many anchors");
}

}  // namespace
}  // namespace fastmine::test

int main() {
  using namespace fastmine::test;
  for (const auto* table : tables()) {
    mining(*table);
    borders(*table);
    anchors_among_references(*table);
    backward(*table);
    if (kEmulated) {
      launches_are_few(*table);
    }
    if (!kOnlyRaces) {
      screens_agree(*table);
      zero_rows_tie(*table);
      collapsed(*table);
    }
  }
  formula();
  formula_of_many();
  return report();
}
