// The CPU implementations of the fastmine:: ops. Their schemas and fallbacks live in python/fastmine/_ops.py.
#include <cstdlib>

#include "kernels/cpu/dispatch.h"
#include "torch/compat.h"

namespace fastmine {
namespace {

/// The kernels of the best instruction set here, or of the one that FASTMINE_ISA names. Not chosen at load: an
/// exception thrown while a library is being loaded ends the process.
[[maybe_unused]] const cpu::KernelTable& kernels() {
  static const cpu::KernelTable& table = [&]() -> const cpu::KernelTable& {
    const char* requested = std::getenv("FASTMINE_ISA");
    const cpu::KernelTable* selected = cpu::select(requested);
    FASTMINE_CHECK(selected != nullptr, "FASTMINE_ISA=", requested, " is not an instruction set of this build and CPU");
    return *selected;
  }();
  return table;
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CPU, m) { (void)m; }
