#include "kernels/mined_pairs.h"

#include "kernels/cpu/batch_hard_evidence.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/grain.h"
#include "kernels/cpu/mined_pairs_plan.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {
namespace mined {
namespace {

constexpr double kInf = __builtin_inf();

/// What a pair is ranked by, ascending.
enum class Rule { distance, random, weighted };

template <class W>
constexpr W kRounding = static_cast<W>(sizeof(W) == 8 ? 0x1p-50 : 0x1p-21);

/// At least (at most) `value`, in W.
template <class W>
W above(double value) {
  return static_cast<W>(::fabs(value) < kInf ? value + ::fabs(value) * static_cast<double>(kRounding<W>) : value);
}
template <class W>
W below(double value) {
  return -above<W>(-value);
}

/// The constants of distance-weighted sampling.
struct Weights {
  double near, far;    // of the logarithms of d^2 and of 1 - d^2 / 4 in minus the log weight
  double least, most;  // the squares of the cutoffs
  double spread;       // how much faster than d^2 the log weight may change
  double rounding;     // of its terms in float32, and of those of the race

  explicit Weights(const MinedPairs& q)
      : near(0.5 * static_cast<double>(q.x.d - 2)),
        far(0.5 * static_cast<double>(q.x.d - 3)),
        least(q.cutoff * q.cutoff),
        most(q.nonzero_loss_cutoff * q.nonzero_loss_cutoff) {
    const double rest = 1 - 0.25 * most;
    spread = ::fabs(near) / least + ::fabs(far) / (4 - most);
    const double sizes = ::fabs(near) * larger(1.0, larger(::fabs(::log(least)), ::fabs(::log(most)))) +
                         ::fabs(far) * (larger(1.0, ::fabs(::log(rest))) + 1 / rest);
    rounding = 1e-6 * (24 + sizes);
  }
};

/// The pairs of one sign of a sliver of anchors, while they are looked for.
template <class W>
struct Search {
  const Plan<W>& plan;
  const MinedSign& sign;
  const Lists& lists;
  Lanes<W> lanes_of;
  Weights weights;
  std::int64_t sliver, first;  // its first position
  double direction;            // of distance: 1 from the nearest on, -1 from the farthest on
  bool bounded;                // `low` and `high` rule pairs out
  std::int64_t count[kSliver<W>];
  alignas(64) double error[kSliver<W>];  // of the keys of a sliver across
  alignas(64) W limit[kSliver<W>];       // what is above that comes too late
  alignas(64) W low[kSliver<W>], high[kSliver<W>];
  double nearest[kSliver<W>], farthest[kSliver<W>];  // bounds on keys
  double bound[kSliver<W>];                          // the window: remoteness of the first positive; NaN: no window

  Search(const Plan<W>& p, const MinedSign& wanted, const Lists& kept, std::int64_t s)
      : plan(p), sign(wanted), lists(kept), lanes_of(p, s), weights(p.problem), sliver(s), first(p.rows.x.first(s)) {
    direction = sign.order == PairOrder::farthest ? -1 : 1;
    bounded = false;
    for (std::size_t r = 0; r < kSliver<W>; ++r) {
      count[r] = 0;
      error[r] = 0;
      nearest[r] = -kInf;
      farthest[r] = kInf;
      bound[r] = __builtin_nan("");
    }
  }

  std::int64_t height() const { return plan.rows.x.height(sliver); }
  std::int64_t anchor(std::int64_t r) const { return plan.rows.x.order[first + r]; }
  double* values(std::int64_t r) const { return lists.values + (first + r) * sign.last; }
  std::int64_t* rows(std::int64_t r) const { return lists.rows + (first + r) * sign.last; }
};

/// How far: what orders as the key does, in the units of the distance.
double remoteness(double key, Metric metric) {
  return metric == Metric::euclidean ? ::sqrt(key) : metric == Metric::sqeuclidean ? key : 0.5 * key;
}
double key_at(double remote, Metric metric) {
  return metric == Metric::euclidean     ? (remote < 0 ? 0 : remote * remote)
         : metric == Metric::sqeuclidean ? remote
                                         : 2 * remote;
}

/// The key of rows i and j by direct difference; NaN where either is poisoned.
template <class W>
double key_of(const Plan<W>& p, std::int64_t i, std::int64_t j) {
  const RowSet &x = p.rows.x.set, &y = p.rows.y.set;
  return poisoned(x, i) || poisoned(y, j) ? __builtin_nan("")
                                          : exact_key<W>(x.rows, i, x.norm, y.rows, j, y.norm, x.metric);
}

/// Minus the log weight, in float64.
double log_density(const Weights& w, double key) {
  const double squared = larger(key, w.least);
  return w.near * ::log(squared) + w.far * ::log(1 - 0.25 * squared);
}

/// The largest value that may still be taken in, as a lane of the screen sees it.
template <Rule rule, class W>
void set_limit(Search<W>& s, std::int64_t r) {
  const double worst = s.count[r] == s.sign.last ? s.values(r)[s.sign.last - 1] : kInf;
  const double slack = rule == Rule::distance   ? s.error[r]
                       : rule == Rule::weighted ? s.weights.spread * s.error[r] + s.weights.rounding
                                                : 0;
  s.limit[r] = above<W>(worst + (worst == -kInf ? 0 : slack));
}

/// What all lanes need to know of sliver `across`.
template <Rule rule, class W>
void look_at_sliver(Search<W>& s, std::int64_t across) {
  const Packed<W>& own = s.plan.rows.x.packed;
  const double radius = static_cast<double>(s.plan.rows.y.packed.radius[across]);
  for (std::size_t r = 0; r < kSliver<W>; r += lanes<double>) {
    store(s.error + r,
          key_error<W>(s.plan.problem.x.d, load_double(own.norm + s.first + static_cast<std::int64_t>(r)), radius));
  }
  for (std::int64_t r = 0; r < s.height(); ++r) {
    set_limit<rule>(s, r);
    s.low[r] = below<W>(s.nearest[r] - s.error[r]);
    s.high[r] = above<W>(s.farthest[r] + s.error[r]);
  }
}

/// Take a pair in where it belongs, and the last one out.
template <class W>
void insert(Search<W>& s, std::int64_t r, double value, std::int64_t row) {
  double* values = s.values(r);
  std::int64_t* rows = s.rows(r);
  const auto before = [=](std::int64_t t) { return value < values[t] || (value == values[t] && row < rows[t]); };
  if (s.count[r] == s.sign.last && !before(s.sign.last - 1)) {
    return;
  }
  std::int64_t t = s.count[r] < s.sign.last ? s.count[r]++ : s.sign.last - 1;
  for (; t > 0 && before(t - 1); --t) {
    values[t] = values[t - 1];
    rows[t] = rows[t - 1];
  }
  values[t] = value;
  rows[t] = row;
}

/// Compare a pair that the screen let through.
template <Rule rule, class W>
FASTMINE_NOINLINE void take(Search<W>& s, std::int64_t r, std::int64_t across) {
  const Plan<W>& p = s.plan;
  const Metric metric = p.problem.metric;
  const std::int64_t j = p.rows.y.order[across];
  const double key = key_of(p, s.anchor(r), j);
  const double remote = remoteness(key, metric);
  if (remote <= s.bound[r] || remote >= s.bound[r] + p.problem.window) {
    return;
  }
  double value = s.direction * key;
  if constexpr (rule == Rule::weighted) {
    if (key >= s.weights.most) {
      return;
    }
    const double low = random_bits(p.anchor_hash[s.first + r], p.candidate_hash[across]) + 0.5;
    value = ::log(::log1p(low / (kRange - low))) + log_density(s.weights, key);
  } else if constexpr (rule == Rule::random) {
    value = random_bits(p.anchor_hash[s.first + r], p.candidate_hash[across]);
  }
  constexpr double kHighest = 1.7976931348623157e308;
  value = key != key ? -kInf : larger(smaller(value, kHighest), -kHighest);  // a NaN comes first
  insert(s, r, value, j);
  set_limit<rule>(s, r);
}

/// What a vector of pairs is ranked by, as far as the screen knows.
template <Rule rule, class W>
FASTMINE_INLINE Vec<W> screened(const Search<W>& s, Vec<W> key, std::size_t v, std::int64_t across) {
  if constexpr (rule == Rule::distance) {
    return static_cast<W>(s.direction) * key;
  } else {
    using U = std::make_unsigned_t<Position<W>>;
    const auto own = convert<U>(load<std::uint32_t, lanes<W>>(s.plan.anchor_hash + s.first + v * lanes<W>));
    const auto bits = bitcast<Position<W>>(random_bits(own, s.plan.candidate_hash[across]));
    if constexpr (rule == Rule::random) {
      return convert<W>(bits) + (key - key);  // a NaN of the key shows
    } else {
      const Weights& w = s.weights;
      const Vec<W> low = convert<W>(bits) + static_cast<W>(0.5);
      const Vec<W> high = convert<W>(0x7fffffff - bits) + static_cast<W>(0.5);
      const Vec<W> race = log_positive(log1p_positive(low / high));
      const Vec<W> least = fill<Vec<W>>(static_cast<W>(w.least)), most = fill<Vec<W>>(static_cast<W>(w.most));
      const Vec<W> squared = select(key < least, least, select(key > most, most, key));
      return race + static_cast<W>(w.near) * log_positive(squared) +
             static_cast<W>(w.far) * log_positive(1 - static_cast<W>(0.25) * squared);
    }
  }
}

/// Look through the pairs of the sliver with positions [begin, end) of one sliver across.
template <bool positive, Rule rule, class W>
FASTMINE_NOINLINE void scan(Search<W>& s, std::int64_t begin, std::int64_t end, const W* block) {
  const Plan<W>& p = s.plan;
  const LabelledRows<W>&x = p.rows.x, &y = p.rows.y;
  const std::int64_t start = begin / kWidth<W> * kWidth<W>;
  const std::int64_t same_begin = x.same_begin(s.sliver), same_end = x.same_end(s.sliver);
  const auto vectors = static_cast<std::size_t>(divide_up(s.height(), static_cast<std::int64_t>(lanes<W>)));
  // Elsewhere than among its own labels an anchor may be of their group, or find itself under another label.
  const bool everywhere = positive || p.problem.groups != nullptr || p.problem.self_index != nullptr;
  for (std::int64_t across = begin; across < end; ++across) {
    const bool mixed = everywhere || (across >= same_begin && across < same_end);
    for (std::size_t v = 0; v < vectors; ++v) {
      const auto at = static_cast<std::int64_t>(v * lanes<W>);
      const Vec<W> key =
          (load(x.packed.c + s.first + at) + y.packed.c[across]) - 2 * load(block + (across - start) * kWidth<W> + at);
      auto open = ~(screened<rule>(s, key, v, across) > load(s.limit + at));
      if (s.bounded) {
        open &= ~(key < load(s.low + at)) & ~(key > load(s.high + at));
      }
      open &= mixed ? s.lanes_of.template pairs<positive>(p, v, across) : s.lanes_of.live[v];
      if (any(open)) {
        Position<W> taken[lanes<W>];
        store(taken, open);
        for (std::int64_t lane = 0; lane < static_cast<std::int64_t>(lanes<W>); ++lane) {
          if (taken[lane] != 0) {
            take<rule>(s, at + lane, across);
          }
        }
      }
    }
  }
}

/// Walk the slivers across that may hold pairs of this sign.
template <bool positive, Rule rule, class W>
void find(Search<W>& s) {
  const Plan<W>& p = s.plan;
  const LabelledRows<W>&x = p.rows.x, &y = p.rows.y;
  const std::int64_t d = p.problem.x.d;
  const std::int64_t begin = positive ? x.same_begin(s.sliver) : 0, end = positive ? x.same_end(s.sliver) : y.count();
  alignas(64) W block[kSliver<W> * kSliver<W>] = {};
  for (std::int64_t from = begin; from < end;) {
    const std::int64_t across = from / kWidth<W>, to = smaller(end, (across + 1) * kWidth<W>);
    if (rule != Rule::random || s.bounded) {
      dot_block(y.packed.sliver(across, d), x.packed.sliver(s.sliver, d), static_cast<std::size_t>(d),
                static_cast<std::size_t>(to - across * kWidth<W>), static_cast<std::size_t>(s.height()), block);
    }
    look_at_sliver<rule>(s, across);
    scan<positive, rule>(s, from, to, block);
    from = to;
  }
}

template <bool positive, class W>
void find(Search<W>& s) {
  switch (s.sign.order) {
    case PairOrder::random:
      return find<positive, Rule::random>(s);
    case PairOrder::distance_weighted:
      if constexpr (!positive) {
        return find<positive, Rule::weighted>(s);
      }
      return;
    default:
      return find<positive, Rule::distance>(s);
  }
}

/// Bounds on the keys of negatives: from the window beyond the first mined positive, and of those that have a weight.
template <class W>
void set_bounds(Search<W>& negatives, const Search<W>& positives) {
  const Plan<W>& p = negatives.plan;
  const MinedPairs& q = p.problem;
  const bool weighted = q.negative.order == PairOrder::distance_weighted;
  negatives.bounded = q.windowed || weighted;
  for (std::int64_t r = 0; r < negatives.height(); ++r) {
    if (q.windowed && positives.count[r] > q.positive.first) {
      const double key = key_of(p, positives.anchor(r), positives.rows(r)[q.positive.first]);
      if (key == key) {
        negatives.bound[r] = remoteness(key, q.metric);
        negatives.nearest[r] = key;
        negatives.farthest[r] = key_at(negatives.bound[r] + q.window, q.metric);
      }
    }
    negatives.farthest[r] = weighted ? smaller(negatives.farthest[r], negatives.weights.most) : negatives.farthest[r];
  }
}

/// The pairs of the wanted ranks, to their places.
template <class W>
void write(const Search<W>& s, double* first_distance, bool* first_found) {
  const std::int64_t k = s.sign.last - s.sign.first;
  for (std::int64_t r = 0; r < s.height(); ++r) {
    const std::int64_t i = s.anchor(r);
    for (std::int64_t t = s.sign.first; t < s.count[r]; ++t) {
      const std::int64_t place = i * k + t - s.sign.first;
      s.sign.index[place] = s.rows(r)[t];
      s.sign.distance[place] = distance_of(key_of(s.plan, i, s.rows(r)[t]), s.plan.problem.metric);
      s.sign.found[place] = true;
    }
    first_distance[i] = s.sign.distance[i * k];
    first_found[i] = s.sign.found[i * k];
  }
}

// --- stages ----------------------------------------------------------------------------------------------------------

std::int64_t once(const void*) { return 1; }

template <class W>
std::int64_t mine_tasks(const void* plan) {
  return as_plan<W>(plan).rows.x.slivers();
}
template <class W>
std::int64_t mine_grain(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  return worth_a_thread(kWidth<W> * p.rows.y.count() * p.problem.x.d);
}
template <class W>
void mine_all(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  for (std::int64_t sliver = begin; sliver < end; ++sliver) {
    Search<W> positives(p, p.problem.positive, p.lists[0], sliver);
    find<true>(positives);
    write(positives, p.first_distance[0], p.first_found[0]);
    Search<W> negatives(p, p.problem.negative, p.lists[1], sliver);
    set_bounds(negatives, positives);
    find<false>(negatives);
    write(negatives, p.first_distance[1], p.first_found[1]);
  }
}

std::int64_t count_poisoned(const RowSet& set) {
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < set.rows.n; ++i) {
    count += takes_part(set, i) && poisoned(set, i);
  }
  return count;
}

/// Labels that any anchor has; with sets, of all those that may be in one.
template <class W>
std::int64_t count_classes(const Plan<W>& p) {
  const MinedPairs& q = p.problem;
  if (q.label_sets == nullptr) {
    return p.rows.classes;
  }
  std::int64_t classes = 0;
  for (std::int64_t label = 0; label < q.label_count; ++label) {
    bool any_has = false;
    for (std::int64_t k = 0; k < p.rows.x.count() && !any_has; ++k) {
      any_has = q.label_sets[p.rows.x.order[k] * q.label_count + label];
    }
    classes += any_has;
  }
  return classes;
}

template <class W>
void finish(void* plan, std::int64_t, std::int64_t) {
  const Plan<W>& p = as_plan<W>(plan);
  const MinedPairs& q = p.problem;
  BatchHard first{};  // as far as its evidence is concerned
  first.x = q.x;
  first.labels = q.labels;
  first.self = q.self;
  first.metric = q.metric;
  first.positive_distance = p.first_distance[0];
  first.negative_distance = p.first_distance[1];
  first.has_positive = p.first_found[0];
  first.has_negative = p.first_found[1];
  first.evidence = q.evidence;
  gather_evidence(first, p.rows.x.set, p.rows.total, count_classes(p), count_poisoned(p.rows.x.set),
                  count_poisoned(p.rows.y.set));
  double* extra = q.evidence + static_cast<int>(Mining::count);
  for (const MinedSign& sign : {q.positive, q.negative}) {
    double pairs = 0;
    for (std::int64_t k = 0; k < q.x.n * (sign.last - sign.first); ++k) {
      pairs += sign.found[k];
    }
    *extra++ = pairs;
  }
}

template <class W>
constexpr Stage kStages[] = {
    kLookStage<Plan<W>>,
    {&once, &once, &group_all<W>},
    {kPackStage<Plan<W>>.tasks, kPackStage<Plan<W>>.grain, &pack_all<W>},
    {&mine_tasks<W>, &mine_grain<W>, &mine_all<W>},
    {&once, &once, &finish<W>},
};

}  // namespace
}  // namespace mined

extern const MinedPairsKernel mined_pairs_float32;
extern const MinedPairsKernel mined_pairs_float64;
const MinedPairsKernel mined_pairs_float32 = staged<MinedPairs, mined::lay_out<float>>(mined::kStages<float>);
const MinedPairsKernel mined_pairs_float64 = staged<MinedPairs, mined::lay_out<double>>(mined::kStages<double>);

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
