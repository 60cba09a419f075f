// Grouping rows by label, and putting numbers in order.
#pragma once

#include <cstdint>

namespace fastmine::cpu {

/// Sort `rows` [count], which stand in the order of their indices, by label, and by index within a label. `spare`
/// [count] is scratch memory.
void sort_by_label(const std::int64_t* labels, std::int64_t* rows, std::int64_t* spare, std::int64_t count) noexcept;

/// Sort values [count], none of them NaN, ascending.
void sort_values(double* values, std::int64_t count) noexcept;

}  // namespace fastmine::cpu
