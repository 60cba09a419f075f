// The screen of the negatives: for every anchor and panel of references the least key, in the working type or, where a
// sample of the anchors says that it rules out enough, in bfloat16.
#pragma once

#include "kernels/cpu/batch_hard_positives.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::mining {

template <class W>
std::int64_t round_tasks(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  return p.rounded ? p.x_rounded.blocks() + (p.problem.self ? 0 : p.y_rounded.blocks()) : 0;
}

template <class W>
void round(void* plan, std::int64_t begin, std::int64_t end) {
  if constexpr (sizeof(W) == 4) {
    const Plan<W>& p = as_plan<W>(plan);
    const std::int64_t own = p.x_rounded.blocks();
    for (std::int64_t t = begin; t < end; ++t) {
      t < own ? round_block(p.a, p.problem.x.d, p.x_rounded, t) : round_block(p.b, p.problem.x.d, p.y_rounded, t - own);
    }
  }
}

template <class W>
void measure_panels(Plan<W>& p) {
  p.widest = p.most_lost = 0;
  for (std::int64_t panel = 0; panel < p.b_panels(); ++panel) {
    p.radius[panel] = p.lost[panel] = 0;
    for (std::int64_t s = panel * p.panel; s < smaller(p.b.slivers(), (panel + 1) * p.panel); ++s) {
      p.radius[panel] = larger(p.radius[panel], static_cast<double>(p.b.radius[s]));
    }
    for (std::int64_t k = panel * p.panel_rows(); p.rounded && k < smaller(p.b.count, (panel + 1) * p.panel_rows());
         ++k) {
      p.lost[panel] = larger(p.lost[panel], static_cast<double>(p.y_rounded.error[k]));
    }
    p.widest = larger(p.widest, p.radius[panel]);
    p.most_lost = larger(p.most_lost, p.lost[panel]);
  }
}

/// How many keys of a block's rows with the positions [begin, end) of other labels are not above `highest` nor, with
/// `Floored`, below the block's floors, halved like the keys.
template <bool Floored>
std::int64_t count_up_to(const float* highest, const Block& block, const Side& y, std::int64_t begin,
                         std::int64_t end) {
  using I = Vec<std::int32_t>;
  constexpr std::int64_t step = static_cast<std::int64_t>(lanes<float>);
  alignas(64) float products[kBlockRows * kGroup];
  I counts{};
  for (std::int64_t column = begin; column < end; column += kGroup) {
    multiply_block<1>(block.data, y.rows->group(column / kGroup), y.rows->depth, y.rows->half + column, products);
    for (std::int64_t r = 0; r < kBlockRows; ++r) {
      for (std::int64_t k = 0; k < kGroup; k += step) {
        const auto above = load(products + r * kGroup + k) > broadcast(highest[r]);
        const auto below = load(products + r * kGroup + k) < broadcast(Floored ? block.floor[r] : -__builtin_inff());
        counts -= ~above & ~below & (load(y.classes + column + k) != broadcast(block.classes[r]));
      }
    }
  }
  return fold(counts, [](auto a, auto b) { return a + b; });
}

/// Screen a few anchors spread over all. Where embeddings lie in clusters narrower than the rounding, or semi-hard
/// negatives begin where most distances are, bfloat16 leaves over candidate after candidate, and comparing them would
/// take longer than screening in float32 does.
template <bool Floored>
bool rounding_pays(const Plan<float>& p) {
  if (p.a.count == 0) {
    return false;
  }
  Block block;
  Reach<double> reach[kBlockRows];
  double above[kBlockRows];
  for (std::int64_t r = 0; r < kBlockRows; ++r) {
    const std::int64_t anchor = r * p.a.count / kBlockRows;
    reach[r] = reach_of(p, anchor);
    above[r] = -__builtin_inf();
    if constexpr (Floored) {
      guess_bound(p, anchor);
      above[r] = p.bound[anchor] - static_cast<double>(p.a.c[anchor]);
    }
    take_row<Floored>(side(p.x_rounded, p.a_class, p.floor), anchor, block, r);
  }
  [[maybe_unused]] const MatrixUnit unit;
  const Side y = side(p.y_rounded, p.b_class, p.floor);
  float nearest[kMostPanels][kBlockRows];
  double sure[kBlockRows];
  for (double& s : sure) {
    s = __builtin_inf();
  }
  for (std::int64_t J = 0; J < p.b_panels(); ++J) {
    screen_block<false, Floored>(block, y, J * p.panel_rows(), panel_end(p, p.y_rounded, J), true, nullptr, nearest[J]);
    for (std::int64_t r = 0; r < kBlockRows; ++r) {
      const double value = static_cast<double>(nearest[J][r]), error = panel_error(p, reach[r], J);
      sure[r] = value - error > above[r] ? smaller(sure[r], value + error) : sure[r];
    }
  }
  std::int64_t left = 0;
  for (std::int64_t J = 0; J < p.b_panels(); ++J) {
    float highest[kBlockRows];
    bool open = false;
    for (std::int64_t r = 0; r < kBlockRows; ++r) {
      highest[r] = static_cast<float>((sure[r] + panel_error(p, reach[r], J)) / 2);
      open = open || !(nearest[J][r] / 2 > highest[r]);
    }
    left += open ? count_up_to<Floored>(highest, block, y, J * p.panel_rows(), panel_end(p, p.y_rounded, J)) : 0;
  }
  // One candidate more takes about as long as 160 pairs of a full screen.
  return (left - kBlockRows) * 160 <= kBlockRows * p.b.count;
}

template <class W>
void measure(void* plan, std::int64_t, std::int64_t) {
  Plan<W>& p = as_plan<W>(plan);
  measure_panels(p);
  if constexpr (sizeof(W) == 4) {
    if (!p.rounded) {
      return;
    }
    p.rounded = p.problem.screen == Screen::rounded_always ||
                (p.problem.semi_hard_negative ? rounding_pays<true>(p) : rounding_pays<false>(p));
    if (!p.rounded) {
      p.panel = p.full_panel;
      p.nearest = p.full_nearest;
      measure_panels(p);
    }
    if (p.problem.screened != nullptr) {
      *p.problem.screened = p.rounded ? Screened::rounded : Screened::rounding_gave_up;
    }
  }
}

/// Bring one tile of products into the minima of its rows and, with `Mirror`, of its columns.
///
/// `Mixed`: some pairs may be of one label, and are left out. `Floored`: semi-hard, values below the floor are left
/// out.
template <class W, bool Mirror, bool Mixed, bool Floored>
FASTMINE_INLINE void screen_tile(const Plan<W>& p, const W* dots, std::int64_t row, std::int64_t column,
                                 Vec<W>* row_least, W* column_least) {
  using V = Vec<W>;
  using Id = typename Plan<W>::Id;
  const V none = broadcast(static_cast<W>(__builtin_inf()));
  for (std::size_t v = 0; v < kSliverVectors; ++v) {
    const V c = load(p.b.c + column + v * lanes<W>);
    const auto id = load<Id, lanes<W>>(p.b_class + column + v * lanes<W>);
    V of_columns = Mirror ? load(column_least + v * lanes<W>) : none;
    const V column_floor = Mirror && Floored ? load(p.floor + column + v * lanes<W>) : none;
    for (std::size_t r = 0; r < kTileRows<W>; ++r) {
      const std::int64_t i = row + static_cast<std::int64_t>(r);
      const V twice = load(dots + r * kSliver<W> + v * lanes<W>) * 2;
      V to_row = c - twice;
      V to_column = p.a.c[i] - twice;
      if constexpr (Floored) {
        to_row = select(to_row < p.floor[i], none, to_row);
        to_column = Mirror ? select(to_column < column_floor, none, to_column) : to_column;
      }
      if constexpr (Mixed) {
        const auto same = id == broadcast<Id, lanes<W>>(p.a_class[i]);
        to_row = select(same, none, to_row);
        to_column = Mirror ? select(same, none, to_column) : to_column;
      }
      row_least[r] = least(row_least[r], to_row);
      if constexpr (Mirror) {
        of_columns = least(of_columns, to_column);
      }
    }
    if constexpr (Mirror) {
      store(column_least + v * lanes<W>, of_columns);
    }
  }
}

template <class W>
bool share_a_class(const Plan<W>& p, std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns) {
  return p.a_class[row + rows - 1] >= p.b_class[column] && p.b_class[column + columns - 1] >= p.a_class[row];
}

/// Rows of panel I against columns of panel J: writes the minima of I's rows over J and, with Mirror, of J's over I.
template <class W, bool Mirror, bool Floored>
void screen_panels(const Plan<W>& p, std::int64_t I, std::int64_t J) {
  constexpr std::int64_t sliver = static_cast<std::int64_t>(kSliver<W>);
  constexpr std::int64_t tile_rows = static_cast<std::int64_t>(kTileRows<W>);
  using V = Vec<W>;
  const V none = broadcast(static_cast<W>(__builtin_inf()));
  alignas(64) W dots[kTileRows<W> * kSliver<W>];
  V row_least[kSliver<W>];
  const std::int64_t d = p.problem.x.d;
  const std::int64_t a_end = smaller(p.a.slivers(), (I + 1) * p.panel);
  const std::int64_t b_end = smaller(p.b.slivers(), (J + 1) * p.panel);
  W* mirrored = p.nearest + I * p.stride;
  if constexpr (Mirror) {
    for (std::int64_t k = J * p.panel * sliver; k < b_end * sliver; ++k) {
      mirrored[k] = none[0];
    }
  }
  for (std::int64_t a = I * p.panel; a < a_end; ++a) {
    const std::int64_t height = smaller(sliver, p.a.count - a * sliver);
    for (V& v : row_least) {
      v = none;
    }
    for (std::int64_t b = J * p.panel; b < b_end; ++b) {
      const std::int64_t column = b * sliver, width = smaller(sliver, p.b.count - column);
      for (std::int64_t r = 0; r < height; r += tile_rows) {
        const std::int64_t row = a * sliver + r;
        dot_tile<W, kTileRows<W>>(p.a.sliver(a, d) + r, p.b.sliver(b, d), static_cast<std::size_t>(d), dots);
        if (share_a_class(p, row, smaller(tile_rows, height - r), column, width)) {
          screen_tile<W, Mirror, true, Floored>(p, dots, row, column, row_least + r, mirrored + column);
        } else {
          screen_tile<W, Mirror, false, Floored>(p, dots, row, column, row_least + r, mirrored + column);
        }
      }
    }
    for (std::int64_t r = 0; r < height; ++r) {
      p.nearest[J * p.stride + a * sliver + r] = least_of(row_least[r]);
    }
  }
}

/// Task: a pair of panels; with one set, each unordered pair once.
template <class W>
std::int64_t screen_tasks(const void* plan) {
  const Plan<W>& p = as_plan<W>(plan);
  const std::int64_t n = p.a_panels();
  return p.problem.self ? n * (n + 1) / 2 : n * p.b_panels();
}

/// The pair of panels that is task `task`.
template <class W>
void locate(const Plan<W>& p, std::int64_t task, std::int64_t& I, std::int64_t& J) {
  const std::int64_t columns = p.b_panels();
  I = 0;
  while (task >= (p.problem.self ? columns - I : columns)) {
    task -= p.problem.self ? columns - I : columns;
    ++I;
  }
  J = (p.problem.self ? I : 0) + task;
}

template <class W, bool Floored>
void screen_range(const Plan<W>& p, std::int64_t begin, std::int64_t end) {
  std::int64_t I, J;
  locate(p, begin, I, J);
  for (std::int64_t t = begin; t < end; ++t) {
    if (p.problem.self && I != J) {
      screen_panels<W, true, Floored>(p, I, J);
    } else {
      screen_panels<W, false, Floored>(p, I, J);
    }
    if (++J == p.b_panels()) {
      ++I;
      J = p.problem.self ? I : 0;
    }
  }
}

/// The same in bfloat16, for rows of panel I against columns of panels [J, end).
template <bool Floored>
void screen_rounded_panels(const Plan<float>& p, Block& block, std::int64_t I, std::int64_t J, std::int64_t end) {
  const Side x = side(p.x_rounded, p.a_class, p.floor), y = side(p.y_rounded, p.b_class, p.floor);
  const std::int64_t mirrored = !p.problem.self ? end : J == I ? J + 1 : J;  // the first panel whose columns count
  const std::int64_t first = mirrored * p.panel_rows(), last = panel_end(p, p.y_rounded, end - 1);
  float* column_least = p.nearest + I * p.stride;
  for (std::int64_t k = first; k < last; ++k) {
    column_least[k] = static_cast<float>(__builtin_inf());
  }
  for (std::int64_t row = I * p.panel_rows(); row < panel_end(p, p.x_rounded, I); row += kBlockRows) {
    for (std::int64_t r = 0; r < kBlockRows; ++r) {
      take_row<Floored>(x, row + r, block, r);
    }
    const std::int64_t height = smaller(kBlockRows, p.a.count - row);
    for (std::int64_t panel = J; panel < end; ++panel) {
      const std::int64_t column = panel * p.panel_rows(), stop = panel_end(p, p.y_rounded, panel);
      const bool mixed = share_a_class(p, row, height, column, smaller(stop, p.b.count) - column);
      float* nearest = p.nearest + panel * p.stride + row;
      if (panel >= mirrored) {
        screen_block<true, Floored>(block, y, column, stop, mixed, column_least, nearest);
      } else {
        screen_block<false, Floored>(block, y, column, stop, mixed, nullptr, nearest);
      }
    }
  }
  for (std::int64_t k = first; k < last; ++k) {
    column_least[k] = 2 * (column_least[k] - p.y_rounded.half[k]);
  }
}

template <bool Floored>
void screen_rounded_range(const Plan<float>& p, std::int64_t begin, std::int64_t end) {
  [[maybe_unused]] const MatrixUnit unit;
  Block block;
  std::int64_t I, J;
  locate(p, begin, I, J);
  for (std::int64_t t = begin; t < end;) {
    const std::int64_t width = smaller(end - t, p.b_panels() - J);
    screen_rounded_panels<Floored>(p, block, I, J, J + width);
    t += width;
    ++I;
    J = p.problem.self ? I : 0;
  }
}

template <class W>
void screen(void* plan, std::int64_t begin, std::int64_t end) {
  const Plan<W>& p = as_plan<W>(plan);
  if constexpr (sizeof(W) == 4) {
    if (p.rounded) {
      p.problem.semi_hard_negative ? screen_rounded_range<true>(p, begin, end)
                                   : screen_rounded_range<false>(p, begin, end);
      return;
    }
  }
  p.problem.semi_hard_negative ? screen_range<W, true>(p, begin, end) : screen_range<W, false>(p, begin, end);
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE::mining
