// The CPU kernels in use.
#pragma once

#include "kernels/cpu/dispatch.h"

namespace fastmine {

/// The kernels of the best instruction set here, or of the one that FASTMINE_ISA names; chosen at the first call.
const cpu::KernelTable& kernels();

}  // namespace fastmine
