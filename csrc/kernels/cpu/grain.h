// How many tasks of a step are worth a thread of their own, which takes some ten microseconds to come.
#pragma once

#include <cstdint>

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {

/// Tasks of `work` multiply-adds each.
inline constexpr std::int64_t worth_a_thread(std::int64_t work) {
  constexpr std::int64_t worthwhile = 2'000'000;  // thirty microseconds at best
  return work < 1 ? worthwhile : (worthwhile + work - 1) / work;
}

/// Tasks that read, convert and write so many elements each; one costs as much as thirty multiply-adds in registers.
inline constexpr std::int64_t reading_worth_a_thread(std::int64_t elements) { return worth_a_thread(30 * elements); }

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
