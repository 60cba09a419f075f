// Several threads go through the steps of a kernel together: one fork and one join for all steps, or few of them.
//
// Between two steps nobody waits for a thread that has not come yet: who comes late takes part in the step that runs by
// then. On a busy machine, where a thread may come milliseconds late, a join after every step would wait each time.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "kernels/stage.h"

namespace fastmine {

/// A walk through the stages of one plan, by at most `threads` threads:
///
///     for (StageWalk walk(...); const std::int64_t team = walk.next_team();)
///       run walk.join() on each of `team` threads, the calling one among them
///
/// The stages that are not worth a second thread run inside next_team(). Which thread runs which task depends on time;
/// what the tasks are, and so every result, does not.
class StageWalk {
 public:
  StageWalk(const Stage* stages, int count, void* plan, std::int64_t threads)
      : stages_(stages), count_(count), plan_(plan), threads_(threads) {}

  /// Run what one thread can do as well as many; then how many should join, or 0 when all stages have ended.
  std::int64_t next_team() {
    if (pending_ == kNone) {
      pending_ = advance(0);
    }
    if (pending_ == count_) {
      return 0;
    }
    team_ = worth(steps_[pending_]);
    open_.store(pending_, std::memory_order_relaxed);
    return team_;
  }

  /// Take part until the team is dissolved: all stages have ended, or the next one deserves a larger team.
  void join() {
    for (int stage = 0; (stage = wait_for(stage)) != kNone; ++stage) {
      work(stage);
    }
  }

 private:
  static constexpr int kNone = -1;

  struct Step {
    alignas(64) std::atomic<std::int64_t> next{0};  // task to be taken
    alignas(64) std::atomic<std::int64_t> left{0};  // tasks that have not ended
    std::int64_t tasks = 0, grain = 1, range = 1;
  };

  std::int64_t worth(const Step& step) const { return std::min(threads_, step.tasks / step.grain); }

  /// Run the stages from `stage` on, up to one that is worth several threads, and make that one ready; its number.
  int advance(int stage) {
    for (; stage < count_; ++stage) {
      const std::int64_t tasks = stages_[stage].tasks(plan_);
      if (tasks == 0) {
        continue;
      }
      const std::int64_t grain = std::max<std::int64_t>(stages_[stage].grain(plan_), 1);
      const std::int64_t wanted = std::min(threads_, tasks / grain);
      if (wanted > 1) {
        make_ready(stage, tasks, grain, wanted);
        return stage;
      }
      stages_[stage].run(plan_, 0, tasks);
    }
    return stage;
  }

  void make_ready(int stage, std::int64_t tasks, std::int64_t grain, std::int64_t wanted) {
    constexpr std::int64_t kRanges = 16;  // a thread: enough to even out, few enough to reuse what is in cache
    if (!steps_) {
      steps_.reset(new Step[static_cast<std::size_t>(count_)]);
    }
    Step& step = steps_[stage];
    step.tasks = tasks;
    step.grain = grain;
    step.range = std::max(grain, tasks / (wanted * kRanges));
    step.left.store(tasks, std::memory_order_relaxed);
  }

  void work(int stage) {
    Step& step = steps_[stage];
    std::int64_t ended = 0;
    for (std::int64_t begin; (begin = step.next.fetch_add(step.range, std::memory_order_relaxed)) < step.tasks;) {
      const std::int64_t end = std::min(begin + step.range, step.tasks);
      stages_[stage].run(plan_, begin, end);
      ended += end - begin;
    }
    if (ended > 0 && step.left.fetch_sub(ended, std::memory_order_acq_rel) == ended) {
      pending_ = advance(stage + 1);
      const bool dissolve = pending_ == count_ || worth(steps_[pending_]) > 2 * team_;
      open_.store(dissolve ? kNone : pending_, std::memory_order_release);
    }
  }

  /// The stage that is open, from `stage` on; kNone when the team is dissolved.
  int wait_for(int stage) const {
    constexpr int kPatience = 4000;  // looks, some ten microseconds, before the processor is offered to others
    for (int look = 0;; ++look) {
      const int open = open_.load(std::memory_order_acquire);
      if (open >= stage || open == kNone) {
        return open;
      }
      if (look > kPatience) {
        std::this_thread::yield();
      }
    }
  }

  const Stage* stages_;
  int count_;
  void* plan_;
  std::int64_t threads_;
  std::int64_t team_ = 1;
  int pending_ = kNone;            // the stage that is ready, and `count_` at the end; those before it have ended
  std::atomic<int> open_{kNone};   // the stage that the team works on
  std::unique_ptr<Step[]> steps_;  // of the stages that several threads work on
};

}  // namespace fastmine
