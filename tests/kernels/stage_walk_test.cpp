// Threads that walk through stages together: every task once, no stage before the one before it has ended, late threads
// waited for by nobody, larger teams where the work grows.
#include "threads/stage_walk.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "check.h"

namespace fastmine::test {
namespace {

constexpr int kStages = 5;
constexpr std::int64_t kTasks[kStages] = {1, 40, 0, 7, 300};

struct Walked {
  std::atomic<std::int64_t> ran[kStages][300] = {};
  std::atomic<std::int64_t> ended[kStages] = {};
  std::atomic<bool> early = false;
  std::int64_t grain[kStages] = {1, 1, 1, 1, 1};
  std::int64_t last_tasks = 0;  // found by stage 3: plain memory, which a later stage may read
};

template <int K>
std::int64_t tasks_of(const void* plan) {
  const Walked& w = *static_cast<const Walked*>(plan);
  return K == 4 ? w.last_tasks : kTasks[K];
}

template <int K>
std::int64_t grain_of(const void* plan) {
  return static_cast<const Walked*>(plan)->grain[K];
}

template <int K>
void run_of(void* plan, std::int64_t begin, std::int64_t end) {
  Walked& w = *static_cast<Walked*>(plan);
  for (int before = 0; before < K; ++before) {
    if (w.ended[before] != kTasks[before]) {
      w.early = true;
    }
  }
  for (std::int64_t task = begin; task < end; ++task) {
    ++w.ran[K][task];
    if (K == 3 && task == 6) {
      w.last_tasks = kTasks[4];
    }
  }
  w.ended[K] += end - begin;
}

constexpr Stage kStagesOfTest[kStages] = {
    {&tasks_of<0>, &grain_of<0>, &run_of<0>}, {&tasks_of<1>, &grain_of<1>, &run_of<1>},
    {&tasks_of<2>, &grain_of<2>, &run_of<2>}, {&tasks_of<3>, &grain_of<3>, &run_of<3>},
    {&tasks_of<4>, &grain_of<4>, &run_of<4>},
};

void expect_complete(const Walked& w, const char* what) {
  bool once = true;
  for (int k = 0; k < kStages; ++k) {
    for (std::int64_t task = 0; task < kTasks[k]; ++task) {
      once = once && w.ran[k][task] == 1;
    }
  }
  check(once, std::string(what) + ": every task runs once");
  check(!w.early, std::string(what) + ": no stage starts before the earlier ones have ended");
}

/// Walk; thread k of a team comes k x `delay` late. The sizes of the teams.
std::vector<std::int64_t> walk(Walked& walked, std::int64_t threads, std::chrono::milliseconds delay) {
  StageWalk walk(kStagesOfTest, kStages, &walked, threads);
  std::vector<std::int64_t> teams;
  while (const std::int64_t team = walk.next_team()) {
    teams.push_back(team);
    std::vector<std::thread> others;
    for (std::int64_t k = 1; k < team; ++k) {
      others.emplace_back([&walk, delay, k] {
        std::this_thread::sleep_for(k * delay);
        walk.join();
      });
    }
    walk.join();
    for (std::thread& thread : others) {
      thread.join();
    }
  }
  return teams;
}

void test_any_number_of_threads() {
  for (std::int64_t threads = 1; threads <= 6; ++threads) {
    for (int repeat = 0; repeat < 50; ++repeat) {
      Walked walked;
      walk(walked, threads, std::chrono::milliseconds(0));
      expect_complete(walked, "some threads");
    }
  }
}

void test_late_threads_are_not_waited_for_between_stages() {
  Walked walked;
  const auto start = std::chrono::steady_clock::now();
  const auto teams = walk(walked, 2, std::chrono::milliseconds(50));
  const auto took = std::chrono::steady_clock::now() - start;
  expect_complete(walked, "a late thread");
  check(teams == std::vector<std::int64_t>{2}, "one team for all stages");
  check(took < std::chrono::milliseconds(140), "a late thread costs its delay once, not once a stage");
}

void test_one_thread_needs_no_team() {
  Walked walked;
  check(walk(walked, 1, std::chrono::milliseconds(0)).empty(), "no team for one thread");
  expect_complete(walked, "one thread");
  Walked coarse;
  for (std::int64_t& grain : coarse.grain) {
    grain = 1000;
  }
  check(walk(coarse, 8, std::chrono::milliseconds(0)).empty(), "no team where no stage is worth it");
  expect_complete(coarse, "little work");
}

void test_the_team_grows_with_the_work() {
  Walked walked;
  walked.grain[1] = 20;  // worth two threads; the last stage all eight
  const auto teams = walk(walked, 8, std::chrono::milliseconds(0));
  expect_complete(walked, "growing work");
  check(teams == std::vector<std::int64_t>({2, 7}), "a stage worth more than twice the team gets a larger one");
}

}  // namespace
}  // namespace fastmine::test

int main() {
  using namespace fastmine::test;
  test_any_number_of_threads();
  test_late_threads_are_not_waited_for_between_stages();
  test_one_thread_needs_no_team();
  test_the_team_grows_with_the_work();
  return report();
}
