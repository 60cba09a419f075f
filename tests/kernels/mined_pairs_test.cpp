// Mining by rank, of every instruction set against loops in float64 that list all candidates and sort them.
#include "kernels/mined_pairs.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "check.h"

namespace fastmine::test {
namespace {

constexpr Metric kMetrics[] = {Metric::euclidean, Metric::sqeuclidean, Metric::cosine, Metric::dot};
constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr auto kEvidence = static_cast<std::size_t>(Mining::count) + 2;

struct Batch {
  std::int64_t n, m, d, label_count;
  std::vector<float> x, y;
  std::vector<std::int64_t> labels, ref_labels, groups, ref_groups, self_index;
  std::vector<unsigned char> sets, ref_sets, valid, ref_valid;
  bool self, with_sets, grouped;
};

struct Options {
  Metric metric;
  PairOrder positive, negative;
  std::int64_t first_p, last_p, first_n, last_n;
  bool windowed, group_positives;
  double window;
};

Batch draw(Random& random, std::int64_t n, std::int64_t m, std::int64_t d, bool self, bool with_sets, bool grouped) {
  Batch b{};
  b.n = n;
  b.m = self ? n : m;
  b.d = d;
  b.label_count = 37;
  b.self = self;
  b.with_sets = with_sets;
  b.grouped = grouped;
  const auto fill = [&](std::int64_t count, auto& rows, auto& labels, auto& groups, auto& sets, auto& valid) {
    for (std::int64_t i = 0; i < count; ++i) {
      double squared = 0;
      const std::size_t begin = rows.size();
      for (std::int64_t k = 0; k < d; ++k) {
        rows.push_back(static_cast<float>(random() - 0.5));
        squared += std::pow(static_cast<double>(rows.back()), 2);
      }
      for (std::size_t k = begin; k < rows.size(); ++k) {
        rows[k] = static_cast<float>(static_cast<double>(rows[k]) / std::sqrt(squared));
      }
      labels.push_back(random.below(7) - 3);
      groups.push_back((random.below(4) - 2) * 1'000'000'007'000);
      valid.push_back(random() < 0.85);
      for (std::int64_t label = 0; label < b.label_count; ++label) {
        sets.push_back(random() < 0.06);
      }
    }
  };
  fill(n, b.x, b.labels, b.groups, b.sets, b.valid);
  if (!self) {
    fill(m, b.y, b.ref_labels, b.ref_groups, b.ref_sets, b.ref_valid);
    for (std::int64_t i = 0; i < n; ++i) {
      b.self_index.push_back(random.below(m + 1) - 1);
    }
  }
  return b;
}

const bool* bools(const std::vector<unsigned char>& x) { return reinterpret_cast<const bool*>(x.data()); }

struct Found {
  Guarded<std::int64_t> positive_index, negative_index;
  Guarded<double> positive_distance, negative_distance;
  Guarded<bool> has_positive, has_negative;
  Guarded<double> evidence;

  Found(std::int64_t n, const Options& o)
      : positive_index(size(n, o.first_p, o.last_p)),
        negative_index(size(n, o.first_n, o.last_n)),
        positive_distance(positive_index.size()),
        negative_distance(negative_index.size()),
        has_positive(positive_index.size()),
        has_negative(negative_index.size()),
        evidence(kEvidence) {}

  static std::size_t size(std::int64_t n, std::int64_t first, std::int64_t last) {
    return static_cast<std::size_t>(n * (last - first));
  }
  bool untouched_outside() const {
    return positive_index.untouched_outside() && negative_index.untouched_outside() &&
           positive_distance.untouched_outside() && negative_distance.untouched_outside() &&
           has_positive.untouched_outside() && has_negative.untouched_outside() && evidence.untouched_outside();
  }
  bool same_bits(const Found& other) const {
    return positive_index.same_bits(other.positive_index) && negative_index.same_bits(other.negative_index) &&
           positive_distance.same_bits(other.positive_distance) &&
           negative_distance.same_bits(other.negative_distance) && evidence.same_bits(other.evidence);
  }
};

Found mine(const cpu::KernelTable& table, const Batch& b, const Options& o, Order order) {
  Found found(b.n, o);
  MinedPairs q{};
  q.x = {b.x.data(), DType::float32, b.n, b.d, b.d};
  q.y = b.self ? q.x : Rows{b.y.data(), DType::float32, b.m, b.d, b.d};
  if (b.with_sets) {
    q.label_sets = bools(b.sets);
    q.ref_label_sets = b.self ? q.label_sets : bools(b.ref_sets);
    q.label_count = b.label_count;
  } else {
    q.labels = b.labels.data();
    q.ref_labels = b.self ? q.labels : b.ref_labels.data();
  }
  q.valid = bools(b.valid);
  q.ref_valid = b.self ? q.valid : bools(b.ref_valid);
  if (b.grouped) {
    q.groups = b.groups.data();
    q.ref_groups = b.self ? q.groups : b.ref_groups.data();
  }
  q.self = b.self;
  q.self_index = b.self ? nullptr : b.self_index.data();
  q.metric = o.metric;
  q.group_positives = o.group_positives;
  q.windowed = o.windowed;
  q.window = o.window;
  q.cutoff = 0.5;
  q.nonzero_loss_cutoff = 1.4;
  static constexpr std::uint64_t kSeed = 0x123456789abcdefU;
  q.seed = &kSeed;
  q.positive = {o.positive,
                o.first_p,
                o.last_p,
                found.positive_index.data(),
                found.positive_distance.data(),
                found.has_positive.data()};
  q.negative = {o.negative,
                o.first_n,
                o.last_n,
                found.negative_index.data(),
                found.negative_distance.data(),
                found.has_negative.data()};
  q.evidence = found.evidence.data();
  run(*table.mined_pairs[0], q, order);
  return found;
}

// --- the loops -------------------------------------------------------------------------------------------------------

std::uint32_t mix(std::uint32_t x) {
  x = (x ^ (x >> 16)) * 0x85ebca6bU;
  x = (x ^ (x >> 13)) * 0xc2b2ae35U;
  return x ^ (x >> 16);
}

std::uint32_t bits(std::int64_t i, std::int64_t j) {
  constexpr std::uint32_t low = 0x89abcdefU, high = 0x1234567U;
  const std::uint32_t a = mix(mix(static_cast<std::uint32_t>(i) + low) ^ high);
  return mix(a ^ mix(mix(static_cast<std::uint32_t>(j) + high) ^ (low ^ 0x9e3779b9U))) >> 1;
}

/// Distance, and how far: a similarity is far when it is small. NaN where either row holds one.
double distance(const Batch& b, Metric metric, std::int64_t i, std::int64_t j) {
  const float *x = b.x.data() + i * b.d, *y = (b.self ? b.x : b.y).data() + j * b.d;
  double dot = 0, squared = 0, xx = 0, yy = 0;
  for (std::int64_t k = 0; k < b.d; ++k) {
    const auto u = static_cast<double>(x[k]), v = static_cast<double>(y[k]);
    dot += u * v;
    squared += (u - v) * (u - v);
    xx += u * u;
    yy += v * v;
  }
  const double cosine = xx == 0 || yy == 0 ? 1 : 1 - dot / std::sqrt(xx * yy);
  return metric == Metric::euclidean     ? std::sqrt(squared)
         : metric == Metric::sqeuclidean ? squared
         : metric == Metric::cosine      ? cosine
                                         : dot;
}

struct Candidate {
  double key;
  std::int64_t row;
  double distance;
  bool operator<(const Candidate& other) const { return std::tie(key, row) < std::tie(other.key, other.row); }
};

/// Sort, and leave out those that have no weight.
std::vector<Candidate> ranked(std::vector<Candidate> all, PairOrder order, const Batch& b, Metric metric,
                              std::int64_t i) {
  std::vector<Candidate> kept;
  for (Candidate c : all) {
    const double remote = metric == Metric::dot ? -c.distance : c.distance;
    c.key = order == PairOrder::farthest ? -remote : remote;
    if (order == PairOrder::random) {
      c.key = bits(i, c.row);
    } else if (order == PairOrder::distance_weighted) {
      const double d = metric == Metric::euclidean     ? c.distance
                       : metric == Metric::sqeuclidean ? std::sqrt(c.distance)
                                                       : std::sqrt(2 * c.distance);
      const double capped = std::max(d, 0.5), dimension = static_cast<double>(b.d);
      const double weight =
          (2 - dimension) * std::log(capped) + (3 - dimension) / 2 * std::log(1 - capped * capped / 4);
      if (d >= 1.4) {
        continue;
      }
      c.key = std::log(-std::log(1 - (bits(i, c.row) + 0.5) / 0x1p31)) - weight;
    }
    c.key = std::isnan(c.distance) ? -kInf : c.key;
    kept.push_back(c);
  }
  std::sort(kept.begin(), kept.end());
  return kept;
}

/// Whether the kernel's pairs are those of the loops, or as far within rounding.
bool right(const Batch& b, const Options& o, const Found& found) {
  bool all = found.untouched_outside();
  double pairs[2] = {0, 0};
  for (std::int64_t i = 0; i < b.n; ++i) {
    std::vector<Candidate> candidates[2];
    for (std::int64_t j = 0; j < b.m; ++j) {
      const auto u = static_cast<std::size_t>(i), w = static_cast<std::size_t>(j);
      const bool itself = b.self ? i == j : b.self_index[u] == j;
      if (!b.valid[u] || !(b.self ? b.valid : b.ref_valid)[w] || itself) {
        continue;
      }
      bool same = b.labels[u] == (b.self ? b.labels : b.ref_labels)[w];
      if (b.with_sets) {
        same = false;
        for (std::int64_t label = 0; label < b.label_count; ++label) {
          const auto at = [&](const auto& sets, std::int64_t row) {
            return sets[static_cast<std::size_t>(row * b.label_count + label)] != 0;
          };
          same = same || (at(b.sets, i) && at(b.self ? b.sets : b.ref_sets, j));
        }
      }
      const bool together = b.grouped && b.groups[u] == (b.self ? b.groups : b.ref_groups)[w];
      if (!together || (same && o.group_positives)) {
        candidates[same ? 0 : 1].push_back({0, j, distance(b, o.metric, i, j)});
      }
    }
    const auto positives = ranked(candidates[0], o.positive, b, o.metric, i);
    const auto first = static_cast<std::size_t>(o.first_p);
    if (o.windowed && positives.size() > first) {
      const double sign = o.metric == Metric::dot ? -1 : 1, bound = sign * positives[first].distance;
      std::erase_if(candidates[1], [&](const Candidate& c) {
        return sign * c.distance <= bound || sign * c.distance >= bound + o.window;
      });
    }
    const auto negatives = ranked(candidates[1], o.negative, b, o.metric, i);
    const auto agree = [&](const std::vector<Candidate>& want, std::int64_t from, std::int64_t to, const auto& index,
                           const auto& distances, const auto& has) {
      for (std::int64_t t = from; t < to; ++t) {
        const auto place = static_cast<std::size_t>(i * (to - from) + t - from);
        const bool exists = t < static_cast<std::int64_t>(want.size());
        all = all && has[place] == exists;
        if (!exists) {
          all = all && index[place] == 0 && distances[place] == 0;
          continue;
        }
        const Candidate& c = want[static_cast<std::size_t>(t)];
        const double got = distances[place];
        const bool close =
            std::isnan(c.distance) ? std::isnan(got) : std::abs(got - c.distance) <= 1e-12 * (1 + std::abs(got));
        all = all && close && (index[place] == c.row || std::abs(got - c.distance) <= 1e-12);
        pairs[&want == &positives ? 0 : 1] += 1;
      }
    };
    agree(positives, o.first_p, o.last_p, found.positive_index, found.positive_distance, found.has_positive);
    agree(negatives, o.first_n, o.last_n, found.negative_index, found.negative_distance, found.has_negative);
  }
  return all && found.evidence[kEvidence - 2] == pairs[0] && found.evidence[kEvidence - 1] == pairs[1];
}

void test_pairs(const cpu::KernelTable& table) {
  constexpr std::tuple<PairOrder, PairOrder, bool> kOrders[] = {
      {PairOrder::farthest, PairOrder::nearest, false},
      {PairOrder::nearest, PairOrder::farthest, true},
      {PairOrder::random, PairOrder::random, false},
      {PairOrder::farthest, PairOrder::random, true},
      {PairOrder::farthest, PairOrder::distance_weighted, false},
      {PairOrder::random, PairOrder::distance_weighted, true},
  };
  Random random(1);
  int turn = 0;
  for (const Metric metric : kMetrics) {
    for (const auto& [positive, negative, windowed] : kOrders) {
      if (metric == Metric::dot && negative == PairOrder::distance_weighted) {
        continue;
      }
      for (int kind = 0; kind < 8; ++kind) {
        // So many references that most come when no place is left. Else the emulator, which takes its time, has every
        // option meet every other here and there.
        const bool many = kind >= 6;
        if (kEmulated && !many && ++turn % 5 != 0) {
          continue;
        }
        const std::int64_t n = kind == 5 ? 150 : many ? 24 : 61, m = many ? 331 : 97;
        Batch b = draw(random, n, m, kind == 4 ? 300 : 9, kind % 2 == 0 && !many, kind == 2 || kind == 3,
                       kind == 1 || kind == 3);
        if (kind == 7) {  // squares and products too large for float32
          for (std::vector<float>* rows : {&b.x, &b.y}) {
            for (float& x : *rows) {
              x *= 0x1p70F;
            }
          }
        }
        if (kind == 5) {  // nearly collapsed, with a row of no number
          for (std::size_t k = 0; k < b.y.size(); ++k) {
            b.y[k] = 1 + 1e-5F * b.y[k];
          }
          b.y[40] = std::numeric_limits<float>::quiet_NaN();
        }
        const Options o{metric, positive, negative, kind % 3 == 0 ? 1 : 0, 3, kind % 2, 6, windowed, kind != 3, 0.3};
        const Found found = mine(table, b, o, kFirst);
        const std::string what = std::string(table.isa) + ": metric " + std::to_string(static_cast<int>(metric)) +
                                 ", order " + std::to_string(static_cast<int>(negative)) + ", kind " +
                                 std::to_string(kind);
        if (!kOnlyRaces) {
          check(right(b, o, found), what);
        }
        for (const Order order : orders_again()) {
          check(found.same_bits(mine(table, b, o, order)), what + ": bits");
        }
      }
    }
  }
}

void test_nothing(const cpu::KernelTable& table) {
  Random random(2);
  const Options o{Metric::euclidean, PairOrder::farthest, PairOrder::nearest, 0, 2, 1, 3, true, true, 0.5};
  for (const std::int64_t n : {0, 1, 5}) {
    for (const std::int64_t m : {0, 1}) {
      const Batch b = draw(random, n, m, 3, false, n == 5, true);
      check(right(b, o, mine(table, b, o, Order::serial)), std::string(table.isa) + ": little or nothing");
    }
    const Batch b = draw(random, n, 0, 3, true, n == 1, false);
    check(right(b, o, mine(table, b, o, Order::threads)), std::string(table.isa) + ": little or nothing, one set");
  }
}

}  // namespace
}  // namespace fastmine::test

int main() {
  for (const auto* table : fastmine::test::tables_of(&fastmine::cpu::KernelTable::mined_pairs)) {
    fastmine::test::test_pairs(*table);
    fastmine::test::test_nothing(*table);
  }
  return fastmine::test::report();
}
