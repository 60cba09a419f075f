// Threads for the NumPy entry points: started for the call, gone after it.
#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "kernels/stage.h"
#include "threads/stage_walk.h"

namespace fastmine {

/// Run f on `count` threads, the calling one among them, or on as many as the process may have.
template <class F>
void on_threads(std::int64_t count, const F& f) {
  std::vector<std::thread> started;
  started.reserve(static_cast<std::size_t>(count - 1));
  try {
    for (std::int64_t k = 1; k < count; ++k) {
      started.emplace_back(f);
    }
  } catch (const std::system_error&) {  // tasks are taken by whoever is there
  }
  f();
  for (std::thread& thread : started) {
    thread.join();
  }
}

/// Lay out the workspace of a kernel and run its stages.
template <class P>
void run(const StagedKernel<P>& kernel, const P& problem, int threads) {
  constexpr std::size_t kLine = 64;
  const auto release = [](void* p) { ::operator delete(p, std::align_val_t(kLine)); };
  const std::unique_ptr<void, decltype(release)> memory(
      ::operator new(kernel.workspace(problem), std::align_val_t(kLine)), release);
  void* plan = kernel.plan(problem, memory.get());
  StageWalk walk(kernel.stages, kernel.count, plan, threads);
  while (const std::int64_t team = walk.next_team()) {
    on_threads(team, [&walk] { walk.join(); });
  }
}

}  // namespace fastmine
