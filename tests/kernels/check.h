// Just enough of a test framework: count, name what failed, say so in the exit code.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cpu/dispatch.h"
#include "kernels/stage.h"
#include "threads/stage_walk.h"

namespace fastmine::test {

inline int passed = 0;
inline int failed = 0;

/// One check; `what` names it, and a failure prints it.
inline void check(bool holds, const std::string& what) {
  ++(holds ? passed : failed);
  if (!holds && failed <= 20) {
    std::printf("FAILED %s\n", what.c_str());
  }
}

inline int report() {
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}

using Tables = std::vector<const cpu::KernelTable*>;

// A test is compiled once and linked twice: with the kernels of the CPU and cpu_tables.cpp, and with a cuda_*table.cpp,
// which has those of CUDA in the emulator.

/// The tables that this machine can run; the CUDA kernels are one.
Tables tables();

/// Whether they are emulated, which takes its time.
extern const bool kEmulated;

/// Without those that take the kernels of this op from the instruction set that they extend.
template <class Kernel>
Tables tables_of(const Kernel* (cpu::KernelTable::*op)[2]) {
  Tables found;
  for (const cpu::KernelTable* table : tables()) {
    std::erase_if(found, [&](const cpu::KernelTable* other) { return (other->*op)[0] == (table->*op)[0]; });
    found.push_back(table);
  }
  return found;
}

/// The same numbers everywhere, in [0, 1).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15U + 1) {}
  double operator()() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<double>(state_ >> 11) * 0x1p-53;
  }
  std::int64_t below(std::int64_t n) { return static_cast<std::int64_t>((*this)() * static_cast<double>(n)); }

 private:
  std::uint64_t state_;
};

/// Memory for an output: filled with ones (NaN in every floating type), with guards on both sides.
template <class T>
class Guarded {
 public:
  explicit Guarded(std::size_t n) : size_(n), bytes_(n * sizeof(T) + 2 * kGuard, 0xff) {
    std::memset(bytes_.data(), 0xa5, kGuard);
    std::memset(bytes_.data() + bytes_.size() - kGuard, 0xa5, kGuard);
  }
  T* data() { return reinterpret_cast<T*>(bytes_.data() + kGuard); }
  const T* data() const { return reinterpret_cast<const T*>(bytes_.data() + kGuard); }
  std::size_t size() const { return size_; }
  T operator[](std::size_t i) const { return data()[i]; }
  bool untouched_outside() const {
    for (std::size_t i = 0; i < kGuard; ++i) {
      if (bytes_[i] != 0xa5 || bytes_[bytes_.size() - 1 - i] != 0xa5) {
        return false;
      }
    }
    return true;
  }
  bool same_bits(const Guarded& other) const { return bytes_ == other.bytes_; }

 private:
  static constexpr std::size_t kGuard = 64;
  std::size_t size_;
  std::vector<unsigned char> bytes_;
};

#ifdef __SANITIZE_THREAD__
/// Whether nothing but races is looked for: what one thread does alone is then left out.
inline constexpr bool kOnlyRaces = true;
#else
inline constexpr bool kOnlyRaces = false;
#endif

/// How the tasks of a step are handed out.
enum class Order { serial, one_by_one_backwards, threads };

/// How a kernel is run: where only races are looked for, by threads and once.
inline constexpr Order kFirst = kOnlyRaces ? Order::threads : Order::serial;

/// How it is run again, to see that its bits do not depend on it. The emulator takes blocks and threads in another
/// order at every call.
inline std::vector<Order> orders_again() {
  if (kOnlyRaces) {
    return {};
  }
  return kEmulated ? std::vector{Order::serial} : std::vector{Order::one_by_one_backwards, Order::threads};
}

/// Every task of every step on its own, the last one first.
inline void run_backwards(const Stage* stages, int count, void* plan) {
  for (int k = 0; k < count; ++k) {
    for (std::int64_t task = stages[k].tasks(plan) - 1; task >= 0; --task) {
      stages[k].run(plan, task, task + 1);
    }
  }
}

/// On as many threads as given, however little there is to do.
inline void run_on_threads(const Stage* stages, int count, void* plan, std::int64_t threads) {
  std::vector<Stage> shared(stages, stages + count);
  for (Stage& stage : shared) {
    stage.grain = [](const void*) -> std::int64_t { return 1; };
  }
  StageWalk walk(shared.data(), count, plan, threads);
  while (const std::int64_t team = walk.next_team()) {
    std::vector<std::thread> others;
    for (std::int64_t k = 1; k < team; ++k) {
      others.emplace_back([&walk] { walk.join(); });
    }
    walk.join();
    for (std::thread& thread : others) {
      thread.join();
    }
  }
}

/// Run all steps of a kernel on a workspace full of NaN.
template <class P>
void run(const StagedKernel<P>& kernel, const P& problem, Order order = Order::serial) {
  constexpr std::size_t kLine = 64;
  const auto release = [](void* p) { ::operator delete(p, std::align_val_t(kLine)); };
  const std::size_t bytes = kernel.workspace(problem);
  const std::unique_ptr<void, decltype(release)> memory(::operator new(bytes, std::align_val_t(kLine)), release);
  std::memset(memory.get(), 0xff, bytes);
  void* plan = kernel.plan(problem, memory.get());
  if (order == Order::one_by_one_backwards) {
    run_backwards(kernel.stages, kernel.count, plan);
  } else {
    run_on_threads(kernel.stages, kernel.count, plan, order == Order::threads ? 3 : 1);
  }
}

}  // namespace fastmine::test
