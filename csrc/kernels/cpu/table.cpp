// This instruction set's kernels, by name.
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/isa.h"

#define FASTMINE_STRING_(x) #x
#define FASTMINE_STRING(x) FASTMINE_STRING_(x)

namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE {

extern const KernelTable table;
const KernelTable table = {
    .isa = FASTMINE_STRING(FASTMINE_ISA_NAMESPACE),
};

}  // namespace fastmine::cpu::FASTMINE_ISA_NAMESPACE
