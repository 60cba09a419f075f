// How a kernel with several steps is run: by whoever owns the threads, without knowing what the steps are.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastmine {

/// One step of a kernel. Its tasks are independent and may run in any order, on any thread, each once, in ranges that
/// are not empty; the next step starts when all have ended. The number of tasks may depend on what earlier steps found.
struct Stage {
  std::int64_t (*tasks)(const void* plan);
  /// Tasks worth a thread of their own; a step with fewer runs where it is called.
  std::int64_t (*grain)(const void* plan);
  void (*run)(void* plan, std::int64_t begin, std::int64_t end);
};

/// A kernel over a problem P (pointers and sizes). The caller provides `workspace(problem)` bytes, aligned to 64 and
/// uninitialised; `plan` lays it out, and every stage then gets the pointer that `plan` returned.
template <class P>
struct StagedKernel {
  std::size_t (*workspace)(const P& problem);
  void* (*plan)(const P& problem, void* workspace);
  const Stage* stages;
  int count;
};

}  // namespace fastmine
