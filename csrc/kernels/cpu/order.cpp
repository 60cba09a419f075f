// Compiled once, for every CPU: std:: templates are welcome here, unlike in the sources compiled per instruction set.
#include "kernels/cpu/order.h"

#include <algorithm>

namespace fastmine::cpu {

void sort_by_label(const std::int64_t* labels, std::int64_t* rows, std::int64_t count) noexcept {
  const auto before = [labels](std::int64_t a, std::int64_t b) {
    return labels[a] != labels[b] ? labels[a] < labels[b] : a < b;
  };
  if (!std::is_sorted(rows, rows + count, before)) {
    std::sort(rows, rows + count, before);
  }
}

}  // namespace fastmine::cpu
