// Runs CUDA kernels on the CPU, one block after the other, each thread a fiber.
//
// What a GPU leaves open is shuffled: the order of the blocks and, between any two barriers, of the threads; now and
// then a warp runs ahead of all others as far as the barriers let it. So a race shows as bits that depend on the seed.
// Shared memory starts as NaN, each array in an allocation of its own, so that AddressSanitizer sees what runs past its
// end. A thread that misses a barrier or shuffle that others wait for ends the program, where a GPU would hang or go on
// with nonsense, and so does a wide access that is not aligned. What it cannot show: how the device rounds exp and
// reciprocals, its memory model, and speed.
// Copies and products that go on by themselves: cuda_emulator_async.cpp.
#include "cuda_emulator.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/cuda/portable.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace fastmine::cuda::emulator {
namespace {

constexpr std::size_t kStack = 256 * 1024;

enum class State : std::uint8_t { ready, at_block_barrier, at_warp_barrier, waiting, done };

struct Fiber {
  void* resume_at[5];
  std::unique_ptr<char[]> stack;
  bool started = false;
  State state = State::ready;
  std::size_t shared = 0;  // arrays taken so far
  std::size_t number = 0;  // said at the last barrier of the warp
  std::function<bool()> waits_for;
  void* fake_stack = nullptr;
};

struct Machine {
  std::mt19937 random{1};
  void* scheduler_at[5];
  std::vector<Fiber> fibers;
  std::vector<std::vector<double>> shared;
  const std::function<void()>* kernel = nullptr;
  Place place{};
  int launches = 0;
  void* fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  std::size_t scheduler_stack_size = 0;
};

Machine machine;

Fiber& running() { return machine.fibers[static_cast<std::size_t>(machine.place.thread_index)]; }

// Before a call of which the compiler sees that it does not return, AddressSanitizer would clean a whole stack.
#define FASTMINE_JUMP [[gnu::noinline, gnu::noipa, gnu::no_sanitize("address")]]

FASTMINE_JUMP void jump_to_scheduler() { __builtin_longjmp(machine.scheduler_at, 1); }

[[gnu::noinline]] void to_scheduler() {
  Fiber& fiber = running();
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&fiber.fake_stack, machine.scheduler_stack, machine.scheduler_stack_size);
#endif
  if (__builtin_setjmp(fiber.resume_at) == 0) {
    jump_to_scheduler();
  }
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(running().fake_stack, &machine.scheduler_stack, &machine.scheduler_stack_size);
#endif
}

void start() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack, &machine.scheduler_stack_size);
#endif
  for (;;) {  // one block after the other
    (*machine.kernel)();
    end_thread();
    running().state = State::done;
    to_scheduler();
  }
}

// A function of its own: a jump may not lie in the function that it leads back to. A context saves and restores the
// signal mask at every switch, two system calls; so it only serves to start.
FASTMINE_JUMP void go_on() {
  Fiber& fiber = running();
  if (!fiber.started) {
    fiber.started = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber.stack.get();
    context.uc_stack.ss_size = kStack;
    makecontext(&context, &start, 0);
    setcontext(&context);
  }
  __builtin_longjmp(fiber.resume_at, 1);
}

[[gnu::noinline]] void resume(int thread) {
  machine.place.thread_index = thread;
  if (running().stack == nullptr) {
    running().stack = std::make_unique<char[]>(kStack);
  }
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&machine.fake_stack, running().stack.get(), kStack);
#endif
  if (__builtin_setjmp(machine.scheduler_at) == 0) {
    go_on();
  }
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(machine.fake_stack, nullptr, nullptr);
#endif
}

/// Let the threads of a warp go on if all of them have come to its barrier.
bool release_warp(std::size_t first) {
  Fiber* const lanes = &machine.fibers[first];
  if (!std::all_of(lanes, lanes + kWarp, [](const Fiber& f) { return f.state == State::at_warp_barrier; })) {
    return false;
  }
  for (Fiber* lane = lanes; lane < lanes + kWarp; ++lane) {
    if (lane->number != lanes->number) {
      stop("threads that disagree about a shuffle");
    }
    lane->state = State::ready;
  }
  return true;
}

bool all_are(State state, int threads) {
  return std::all_of(machine.fibers.begin(), machine.fibers.begin() + threads,
                     [&](const Fiber& f) { return f.state == state; });
}

bool release_block(int threads) {
  if (!all_are(State::at_block_barrier, threads)) {
    return false;
  }
  for (int thread = 0; thread < threads; ++thread) {
    machine.fibers[static_cast<std::size_t>(thread)].state = State::ready;
  }
  return true;
}

/// Let these threads go on to their next barrier or shuffle, and those of these warps on from there, where all of a
/// warp have come; false if none could.
bool run_threads(const std::vector<int>& threads, int first_warp, int warps) {
  bool moved = false;
  for (const int thread : threads) {
    Fiber& fiber = machine.fibers[static_cast<std::size_t>(thread)];
    if (fiber.state == State::waiting && fiber.waits_for()) {
      fiber.state = State::ready;
    }
    if (fiber.state == State::ready) {
      resume(thread);
      moved = true;
    }
  }
  for (int warp = first_warp; warp < first_warp + warps; ++warp) {
    moved = release_warp(static_cast<std::size_t>(warp * kWarp)) || moved;
  }
  return moved;
}

void run_block(std::vector<int>& order) {
  const auto threads = static_cast<int>(order.size()), warps = threads / kWarp;
  machine.shared.clear();
  begin_block();
  for (int thread = 0; thread < threads; ++thread) {
    machine.fibers[static_cast<std::size_t>(thread)].state = State::ready;
    machine.fibers[static_cast<std::size_t>(thread)].shared = 0;
  }
  std::vector<int> lanes;
  while (!all_are(State::done, threads)) {
    std::shuffle(order.begin(), order.end(), machine.random);
    bool moved = false;
    if (machine.random() % 2 == 0) {  // all warps go on side by side
      moved = run_threads(order, 0, warps);
    } else {  // one warp goes on alone as far as it can, then the next
      const int first = static_cast<int>(machine.random() % static_cast<unsigned>(warps));
      for (int k = 0; k < warps; ++k) {
        const int warp = (first + k) % warps;
        lanes.clear();
        std::copy_if(order.begin(), order.end(), std::back_inserter(lanes),
                     [warp](int thread) { return thread / kWarp == warp; });
        while (run_threads(lanes, warp, 1)) {
          moved = true;
        }
      }
    }
    moved = release_block(threads) || moved;
    const bool early = chance() % 8 == 0;
    if ((early || !moved) && !bring_a_copy() && !moved) {  // as late as can be: when all wait for it
      stop("a barrier or shuffle that not all threads reach, or a wait that nothing ends");
    }
  }
  end_block();
}

}  // namespace

void seed(unsigned value) { machine.random.seed(value); }

int launches() { return machine.launches; }

void stop(const char* why) {
  std::fprintf(stderr, "CUDA emulator: %s\n", why);
  std::abort();
}

unsigned chance() { return static_cast<unsigned>(machine.random()); }

void wait_until(std::function<bool()> holds) {
  running().waits_for = std::move(holds);
  running().state = State::waiting;
  to_scheduler();
}

constexpr std::uint32_t kFirstAddress = 1024, kLargestShared = 228 * 1024;

std::uint32_t shared_address(const void* pointer) {
  std::uint32_t address = kFirstAddress;
  for (const std::vector<double>& array : machine.shared) {
    const std::size_t bytes = array.size() * sizeof(double);
    const auto at =
        static_cast<std::size_t>(static_cast<const char*>(pointer) - reinterpret_cast<const char*>(array.data()));
    if (at < bytes) {
      return address + static_cast<std::uint32_t>(at);
    }
    address += static_cast<std::uint32_t>((bytes + 127) / 128 * 128);
  }
  stop("an address that is not shared");
}

void* shared_at(std::uint32_t address, std::size_t bytes) {
  std::uint32_t first = kFirstAddress;
  for (std::vector<double>& array : machine.shared) {
    const std::size_t size = array.size() * sizeof(double);
    if (address >= first && address + bytes <= first + size) {
      return reinterpret_cast<char*>(array.data()) + (address - first);
    }
    first += static_cast<std::uint32_t>((size + 127) / 128 * 128);
    if (first > kLargestShared) {
      stop("more shared memory than a block can have");
    }
  }
  stop("shared memory outside of every array");
}

const Place& place() { return machine.place; }

void* shared(std::size_t bytes) {
  Fiber& fiber = running();
  if (fiber.shared == machine.shared.size()) {
    machine.shared.emplace_back((bytes + sizeof(double) - 1) / sizeof(double), __builtin_nan(""));
  }
  std::vector<double>& array = machine.shared[fiber.shared++];
  if (array.size() != (bytes + sizeof(double) - 1) / sizeof(double)) {
    stop("threads that disagree about shared memory");
  }
  return array.data();
}

void block_barrier() {
  running().state = State::at_block_barrier;
  to_scheduler();
}

void warp_barrier(std::size_t number) {
  running().number = number;
  running().state = State::at_warp_barrier;
  to_scheduler();
}

void expect_aligned(const void* p, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(p) % bytes != 0) {
    stop("an access that is not aligned");
  }
}

void run(std::int64_t blocks, int threads, const std::function<void()>& kernel) {
  if (blocks < 1 || threads < 1 || threads > 1024 || threads % kWarp != 0) {
    stop("a launch that no device accepts");
  }
  ++machine.launches;
  machine.kernel = &kernel;
  machine.fibers.resize(1024);
  std::vector<std::int64_t> order(static_cast<std::size_t>(blocks));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), machine.random);
  std::vector<int> thread_order(static_cast<std::size_t>(threads));
  std::iota(thread_order.begin(), thread_order.end(), 0);
  for (const std::int64_t block : order) {
    machine.place.block_index = block;
    run_block(thread_order);
  }
}

// Slow and plain, so that the conversions of the device have something to be compared with.

float float_of_half(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float sign = (bits & 0x8000) != 0 ? -1.0F : 1.0F;
  if (exponent == 31) {
    return fraction != 0 ? __builtin_nanf("") : sign * __builtin_inff();
  }
  return sign * (exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                               : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25));
}

std::uint16_t half_of_float(float x) {
  const auto sign = static_cast<std::uint16_t>(std::signbit(x) ? 0x8000 : 0);
  const float magnitude = std::fabs(x);
  if (x != x) {
    return 0x7fff;
  }
  if (magnitude >= 65520.0F) {
    return static_cast<std::uint16_t>(sign | 0x7c00);
  }
  const int exponent = magnitude < 0x1p-14F ? -14 : std::ilogb(magnitude);
  const auto units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  return static_cast<std::uint16_t>(sign | (units + (magnitude < 0x1p-14F ? 0 : (exponent + 14) << 10)));
}

std::uint16_t bfloat16_of_float(float x) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) {
    return 0x7fff;
  }
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace fastmine::cuda::emulator
