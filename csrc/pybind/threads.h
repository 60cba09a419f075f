// Threads for the NumPy entry points: started for the call, gone after it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace fastmine {

/// Run f(begin, end) over [0, tasks) in at most `threads` ranges of at least `grain`.
template <class F>
void parallel_for(std::int64_t tasks, std::int64_t grain, int threads, const F& f) {
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

}  // namespace fastmine
