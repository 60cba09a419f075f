// Compiled once, for every CPU: std:: templates are welcome here, unlike in the sources compiled per instruction set.
#include "kernels/cpu/order.h"

#include <algorithm>
#include <bit>

namespace fastmine::cpu {
namespace {

constexpr int kDigit = 11;                    // bits sorted in one pass: 2048 counters stay in cache
constexpr std::int64_t kWorthCounting = 128;  // with fewer rows, comparing them is cheaper
constexpr std::size_t kValues = std::size_t{1} << kDigit;

/// How far a label is above the least one.
std::uint64_t above(std::int64_t label, std::int64_t least) {
  return static_cast<std::uint64_t>(label) - static_cast<std::uint64_t>(least);
}

/// Bring rows, from `from` to `to`, into the order of one digit of their labels; equal digits stay in order.
void sort_by_digit(const std::int64_t* labels, std::int64_t least, int shift, const std::int64_t* from,
                   std::int64_t* to, std::int64_t count) {
  std::int64_t begin[kValues] = {};
  const auto digit = [=](std::int64_t row) { return (above(labels[row], least) >> shift) % kValues; };
  for (std::int64_t k = 0; k < count; ++k) {
    ++begin[digit(from[k])];
  }
  std::int64_t total = 0;
  for (std::int64_t& place : begin) {
    const std::int64_t size = place;
    place = total;
    total += size;
  }
  for (std::int64_t k = 0; k < count; ++k) {
    to[begin[digit(from[k])]++] = from[k];
  }
}

}  // namespace

void sort_by_label(const std::int64_t* labels, std::int64_t* rows, std::int64_t* spare, std::int64_t count) noexcept {
  bool sorted = true;
  std::int64_t least = count > 0 ? labels[rows[0]] : 0, most = least;
  for (std::int64_t k = 1; k < count; ++k) {
    const std::int64_t label = labels[rows[k]];
    sorted = sorted && labels[rows[k - 1]] <= label;
    least = std::min(least, label);
    most = std::max(most, label);
  }
  if (sorted) {
    return;
  }
  if (count < kWorthCounting) {
    std::sort(rows, rows + count, [labels](std::int64_t a, std::int64_t b) {
      return labels[a] != labels[b] ? labels[a] < labels[b] : a < b;
    });
    return;
  }
  const int bits = static_cast<int>(std::bit_width(above(most, least)));
  std::int64_t* from = rows;
  std::int64_t* to = spare;
  for (int shift = 0; shift < bits; shift += kDigit) {
    sort_by_digit(labels, least, shift, from, to, count);
    std::swap(from, to);
  }
  if (from != rows) {
    std::copy(from, from + count, rows);
  }
}

void sort_values(double* values, std::int64_t count) noexcept { std::sort(values, values + count); }

}  // namespace fastmine::cpu
