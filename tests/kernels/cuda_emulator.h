// The emulator behind kernels/cuda/portable.h: what a test says to it, and what its asynchronous part
// (cuda_emulator_async.cpp) and the rest ask each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace fastmine::cuda::emulator {

/// Blocks and threads take turns in the order that follows from this.
void seed(unsigned value);

/// Kernels that have been launched.
int launches();

/// End the program, where a GPU would hang or go on with nonsense.
[[noreturn]] void stop(const char* why);

/// A number that follows from the seed.
unsigned chance();

/// The running thread goes on once this holds.
void wait_until(std::function<bool()> holds);

/// Where an array of the block would lie in the 228 KiB of shared memory, and what lies there: `bytes` of one array.
std::uint32_t shared_address(const void* pointer);
void* shared_at(std::uint32_t address, std::size_t bytes);

/// Of the asynchronous part: a block begins; one copy that is on its way arrives, false if none is; the running thread,
/// then the block, ends.
void begin_block();
bool bring_a_copy();
void end_thread();
void end_block();

}  // namespace fastmine::cuda::emulator
