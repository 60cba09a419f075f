// Grouping rows by label.
#pragma once

#include <cstdint>

namespace fastmine::cpu {

/// Sort `rows` [count] by label, and by index within a label.
void sort_by_label(const std::int64_t* labels, std::int64_t* rows, std::int64_t count) noexcept;

}  // namespace fastmine::cpu
