// Large pages under large tensors.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fastmine {

inline constexpr std::int64_t kLargeElements = std::int64_t{4} << 20;  // fewer are never 32 MiB

/// Ask for pages of 2 MiB under a block that nobody has written yet. From 32 MiB on malloc maps every block anew, and
/// each 4 KiB of it would cost a page fault, more time than computing what is written there. Linux gives what it can,
/// and nothing depends on it.
inline void prefer_large_pages(void* data, std::size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr std::size_t kLeast = std::size_t{32} << 20;
  constexpr std::uintptr_t kPage = std::uintptr_t{2} << 20;
  if (bytes >= kLeast) {
    const auto address = reinterpret_cast<std::uintptr_t>(data);
    const std::uintptr_t begin = (address + kPage - 1) / kPage * kPage, end = (address + bytes) / kPage * kPage;
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  }
#else
  static_cast<void>(data), static_cast<void>(bytes);
#endif
}

}  // namespace fastmine
