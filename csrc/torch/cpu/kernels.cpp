#include "torch/cpu/kernels.h"

#include <cstdlib>

#include "torch/compat.h"

namespace fastmine {

// Not chosen at load: an exception thrown while a library is being loaded ends the process.
const cpu::KernelTable& kernels() {
  static const cpu::KernelTable& table = []() -> const cpu::KernelTable& {
    const char* requested = std::getenv("FASTMINE_ISA");
    const cpu::KernelTable* selected = cpu::select(requested);
    FASTMINE_CHECK(selected != nullptr, "FASTMINE_ISA=", requested, " is not an instruction set of this build and CPU");
    return *selected;
  }();
  return table;
}

}  // namespace fastmine
