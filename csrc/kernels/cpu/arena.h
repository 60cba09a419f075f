// Laying out a workspace: the same walk once over nothing, to measure it, and once over the memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/isa.h"
#include "kernels/stage.h"

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {

class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  /// Room for `count` elements, aligned to a cache line; a pointer to it, or null while measuring.
  template <class T>
  FASTMINE_INLINE T* take(std::int64_t count) {
    T* place = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return place;
  }

  std::size_t used() const { return used_; }

 private:
  char* base_;
  std::size_t used_ = 0;
};

/// The kernel over a problem P whose plan is what lay_out(problem, arena) returns, kept at the start of the workspace.
template <class P, auto lay_out, std::size_t N>
constexpr StagedKernel<P> staged(const Stage (&stages)[N]) {
  using Plan = decltype(lay_out(std::declval<const P&>(), std::declval<Arena&>()));
  const auto workspace = [](const P& problem) {
    Arena arena(nullptr);
    arena.take<Plan>(1);
    lay_out(problem, arena);
    return arena.used();
  };
  const auto plan = [](const P& problem, void* memory) -> void* {
    Arena arena(memory);
    Plan* place = arena.take<Plan>(1);
    *place = lay_out(problem, arena);
    return place;
  };
  return {workspace, plan, stages, static_cast<int>(N)};
}

FASTMINE_INLINE std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

template <class T>
FASTMINE_INLINE T smaller(T a, T b) {
  return b < a ? b : a;
}

template <class T>
FASTMINE_INLINE T larger(T a, T b) {
  return a < b ? b : a;
}

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
