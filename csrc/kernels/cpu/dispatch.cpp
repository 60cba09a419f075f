#include "kernels/cpu/dispatch.h"

#include <cstring>

// FASTMINE_BASELINE_ALONE: built for one instruction set (see cmake/Kernels.cmake).
#if defined(__x86_64__) && !defined(FASTMINE_BASELINE_ALONE)
#define FASTMINE_X86_ISAS
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace fastmine::cpu {

namespace baseline {
extern const KernelTable table;
}
#if defined(FASTMINE_X86_ISAS)
namespace avx2 {
extern const KernelTable table;
}
namespace avx512 {
extern const KernelTable table;
}
namespace amx {
extern const KernelTable table;
}

namespace {

/// Whether there are tiles of bfloat16 and of bytes, and this process may use them.
bool tiles_allowed() noexcept {
#if defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned bf16 = 1U << 22, tiles = 1U << 24, bytes = 1U << 25;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & bf16) == 0 || (d & tiles) == 0 || (d & bytes) == 0) {
    return false;
  }
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

}  // namespace
#endif

const KernelTable* compiled(std::size_t i) noexcept {
  static constexpr const KernelTable* tables[] = {
#if defined(FASTMINE_X86_ISAS)
      &amx::table,
      &avx512::table,
      &avx2::table,
#endif
      &baseline::table,
  };
  return i < sizeof tables / sizeof tables[0] ? tables[i] : nullptr;
}

bool supported(const KernelTable& table) noexcept {
#if defined(FASTMINE_X86_ISAS)
  __builtin_cpu_init();
  // These builtins ask the operating system too (XGETBV). F16C is absent from the list because Clang before 18 cannot
  // ask for it; every CPU with AVX2 has it.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (&table == &amx::table) {
    return avx512 && tiles_allowed();
  }
  if (&table == &avx512::table) {
    return avx512;
  }
  if (&table == &avx2::table) {
    return avx2;
  }
#endif
  return &table == &baseline::table;
}

const KernelTable* select(const char* requested) noexcept {
  const bool any = requested == nullptr || *requested == '\0';
  for (std::size_t i = 0; const KernelTable* table = compiled(i); ++i) {
    if ((any || std::strcmp(requested, table->isa) == 0) && supported(*table)) {
      return table;
    }
  }
  return nullptr;
}

}  // namespace fastmine::cpu
