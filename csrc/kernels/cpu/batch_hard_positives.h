// The farthest (or nearest) positive of every anchor.
#pragma once

#include "kernels/cpu/batch_hard_choice.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::mining {

/// Up to so many references of a label are all compared directly; more are screened first.
inline constexpr std::int64_t kFew = 24;

template <class W>
std::int64_t same(const Plan<W>& p, std::int64_t anchor) {
  return p.same_end[anchor] - p.same_begin[anchor];
}

template <class W>
FASTMINE_INLINE const W* packed_rows(const Plan<W>& p, std::int64_t position) {
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<W>);
  return p.a.sliver(position / sliver, p.problem.x.d) + position % sliver;
}

/// Semi-hard: the negative of an anchor must have a key above this one; -Inf: any may do.
template <class W>
void set_bound(const Plan<W>& p, std::int64_t anchor, double key) {
  const double error = screen_error(p, reach_of(p, anchor), {p.widest, p.most_lost});
  const double unit = p.rounded ? 0.5 : 1;
  p.bound[anchor] = key;
  p.floor[anchor] =
      static_cast<W>(key == -__builtin_inf() ? key : unit * (key - static_cast<double>(p.a.c[anchor]) - 2 * error));
}

template <class W>
void settle_positive(const Plan<W>& p, std::int64_t anchor, const Best& best) {
  const double sign = p.problem.easiest_positive ? 1 : -1;
  const std::int64_t i = p.a.row(anchor);
  const std::int64_t bad = first_poisoned(p, i, true);
  if (bad >= 0) {
    settle_poisoned(i, bad, p.problem.positive_index, p.problem.positive_distance, p.problem.has_positive);
  } else {
    settle(best, sign, p.problem.metric, i, p.problem.positive_index, p.problem.positive_distance,
           p.problem.has_positive);
  }
  if (!p.problem.semi_hard_negative) {
    return;
  }
  set_bound(p, anchor, best.found && bad < 0 ? sign * best.key : -__builtin_inf());
}

inline void consider(Best& best, double key, std::int64_t index) {
  if (better(key, index, best)) {
    best = {key, index, true};
  }
}

/// The keys of an anchor against `count` references from position `first` of b.
template <class W>
void keys_of(const Plan<W>& p, std::int64_t anchor, std::int64_t first, std::int64_t count, double* keys) {
  exact_keys<W>(p.problem.x, p.x_order[anchor], p.x.norm, p.problem.y, p.y_order + first, count, p.y.norm,
                p.problem.metric, keys);
}

/// A label with few anchors, which are their own references: each pair once.
template <class W>
void find_positives_of_class(const Plan<W>& p, std::int64_t begin, std::int64_t end) {
  const double sign = p.problem.easiest_positive ? 1 : -1;
  Best best[kFew] = {};
  double keys[kFew];
  for (std::int64_t a = begin; a < end; ++a) {
    keys_of(p, a, a + 1, end - a - 1, keys);
    for (std::int64_t b = a + 1; b < end; ++b) {
      const double key = sign * keys[b - a - 1];
      consider(best[a - begin], key, p.b.row(b));
      consider(best[b - begin], key, p.a.row(a));
    }
    settle_positive(p, a, best[a - begin]);
  }
}

/// The positive of an anchor among the first `count` references of its label, at most kFew.
template <class W>
Best positive_among(const Plan<W>& p, std::int64_t anchor, std::int64_t count) {
  const double sign = p.problem.easiest_positive ? 1 : -1;
  Best best{};
  double keys[kFew];
  keys_of(p, anchor, p.same_begin[anchor], count, keys);
  const std::int64_t own = itself(p.problem, p.a.row(anchor));
  for (std::int64_t k = 0; k < count; ++k) {
    const std::int64_t row = p.b.row(p.same_begin[anchor] + k);
    if (row != own) {
      consider(best, sign * keys[k], row);
    }
  }
  return best;
}

/// An anchor with few references of its label.
template <class W>
void find_positive_among_few(const Plan<W>& p, std::int64_t anchor) {
  settle_positive(p, anchor, positive_among(p, anchor, same(p, anchor)));
}

/// Semi-hard: about where the negatives of an anchor begin. Of a large label only some are looked at.
template <class W>
void guess_bound(const Plan<W>& p, std::int64_t anchor) {
  const Best best = positive_among(p, anchor, smaller(kFew, same(p, anchor)));
  const double key = p.problem.easiest_positive ? best.key : -best.key;
  set_bound(p, anchor, best.found && ::fabs(key) < __builtin_inf() ? key : -__builtin_inf());
}

/// Those positions of one tile of rows that have many references of their label, against the slivers of these.
template <class W>
void find_positives_among_many(const Plan<W>& p, std::int64_t first) {
  constexpr std::int64_t tile_rows = static_cast<std::int64_t>(kTileRows<W>);
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<W>);
  alignas(64) W dots[kTileRows<W> * kSliver<W>];
  const std::int64_t rows = smaller(tile_rows, p.a.count - first);
  const double sign = p.problem.easiest_positive ? 1 : -1;
  Best best[kTileRows<W>] = {};
  double limit[kTileRows<W>];
  std::int64_t begin = p.b.count, end = 0;
  for (std::int64_t r = 0; r < rows; ++r) {
    limit[r] = __builtin_inf();
    if (same(p, first + r) > kFew) {
      begin = smaller(begin, p.same_begin[first + r]);
      end = larger(end, p.same_end[first + r]);
    }
  }
  for (std::int64_t s = begin / sliver; s * sliver < end; ++s) {
    dot_tile<W, kTileRows<W>>(packed_rows(p, first), p.b.sliver(s, p.problem.x.d),
                              static_cast<std::size_t>(p.problem.x.d), dots);
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t anchor = first + r, same_end = p.same_end[anchor];
      if (same(p, anchor) <= kFew) {
        continue;
      }
      Search<W> found = search(p, anchor, sign);
      found.best = best[r];
      found.limit = limit[r];
      const std::int64_t own = itself(p.problem, p.a.row(anchor));
      const double error =
          key_error<W>(p.problem.x.d, static_cast<double>(p.a.norm[anchor]), static_cast<double>(p.b.radius[s]));
      screen_products(p, s, dots + r * sliver);
      scan<kSliverVectors>(found, s * sliver, dots + r * sliver, W{1}, error,
                           {p.same_begin[anchor], same_end, same_end, same_end},
                           [&](std::int64_t position, double screened) {
                             if (p.b.row(position) != own && !(sign * screened - error > found.limit)) {
                               compare(found, position);
                             }
                           });
      best[r] = found.best;
      limit[r] = found.limit;
    }
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    if (same(p, first + r) > kFew) {
      settle_positive(p, first + r, best[r]);
    }
  }
}

/// Task: the positions of one tile of rows; with one set, small labels whole, by the task in which they begin.
template <class W>
std::int64_t tile_tasks(const void* plan) {
  return divide_up(as_plan<W>(plan).a.count, static_cast<std::int64_t>(kTileRows<W>));
}

template <class W>
void find_positives(void* plan, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t tile_rows = static_cast<std::int64_t>(kTileRows<W>);
  const Plan<W>& p = as_plan<W>(plan);
  for (std::int64_t t = begin; t < end; ++t) {
    bool many = false;
    for (std::int64_t anchor = t * tile_rows; anchor < smaller(p.a.count, (t + 1) * tile_rows); ++anchor) {
      if (same(p, anchor) > kFew) {
        many = true;
      } else if (!p.problem.self) {
        find_positive_among_few(p, anchor);
      } else if (p.same_begin[anchor] == anchor) {
        find_positives_of_class(p, anchor, p.same_end[anchor]);
      }
    }
    if (many) {
      find_positives_among_many(p, t * tile_rows);
    }
  }
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::mining
