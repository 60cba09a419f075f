// The emulator behind kernels/cuda/portable.h: what a test says to it.
#pragma once

namespace fastmine::cuda::emulator {

/// Blocks and threads take turns in the order that follows from this.
void seed(unsigned value);

}  // namespace fastmine::cuda::emulator
