#include "kernels/cpu/dispatch.h"

#include <cstring>

namespace fastmine::cpu {

namespace baseline {
extern const KernelTable table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const KernelTable table;
}
namespace avx512 {
extern const KernelTable table;
}
#endif

const KernelTable* compiled(std::size_t i) noexcept {
  static constexpr const KernelTable* tables[] = {
#if defined(__x86_64__)
      &avx512::table,
      &avx2::table,
#endif
      &baseline::table,
  };
  return i < sizeof tables / sizeof tables[0] ? tables[i] : nullptr;
}

bool supported(const KernelTable& table) noexcept {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // These builtins ask the operating system too (XGETBV). F16C is absent from the list because Clang before 18 cannot
  // ask for it; every CPU with AVX2 has it.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
  if (&table == &avx512::table) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
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
