// Threads for the NumPy entry points: started for the call, gone after it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "kernels/stage.h"

namespace fastmine {

/// Run f(begin, end) over [0, tasks) in at most `threads` ranges of at least `grain`, none of them empty.
template <class F>
void parallel_for(std::int64_t tasks, std::int64_t grain, int threads, const F& f) {
  if (tasks == 0) {
    return;
  }
  const std::int64_t workers = std::clamp<std::int64_t>(tasks / std::max<std::int64_t>(grain, 1), 1, threads);
  std::vector<std::thread> started;
  for (std::int64_t k = 1; k < workers; ++k) {
    started.emplace_back([&f, tasks, workers, k] { f(tasks * k / workers, tasks * (k + 1) / workers); });
  }
  f(std::int64_t{0}, tasks / workers);
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
  for (int k = 0; k < kernel.count; ++k) {
    const Stage& stage = kernel.stages[k];
    parallel_for(stage.tasks(plan), stage.grain(plan), threads,
                 [&](std::int64_t begin, std::int64_t end) { stage.run(plan, begin, end); });
  }
}

}  // namespace fastmine
