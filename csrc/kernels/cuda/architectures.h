// Which devices a list of architectures, as CMake writes it, has code for, and whether it has a device's own.
#pragma once

#include <string_view>

namespace fastmine::cuda {

/// One entry: "90a-real" is code for that device, "90-virtual" PTX, "90" both.
constexpr bool architecture_serves(std::string_view entry, int capability) {
  int compiled = 0;
  std::size_t at = 0;
  for (; at < entry.size() && entry[at] >= '0' && entry[at] <= '9'; ++at) {
    compiled = compiled * 10 + (entry[at] - '0');
  }
  if (compiled == 0) {
    return true;  // "native", "all": whoever built it knows
  }
  const bool exact = at < entry.size() && entry[at] == 'a';
  if (exact) {
    return capability == compiled;
  }
  const std::string_view kind = entry.substr(at);
  const bool code = kind != "-virtual" && capability / 10 == compiled / 10 && capability >= compiled;
  const bool ptx = kind != "-real" && kind != "f-real" && capability >= compiled;
  return code || ptx;
}

/// Whether a device of this compute capability (90 for 9.0) can run what was compiled for these, between commas.
constexpr bool architectures_serve(std::string_view list, int capability) {
  while (!list.empty()) {
    const std::size_t end = list.find(',') < list.size() ? list.find(',') : list.size();
    if (architecture_serves(list.substr(0, end), capability)) {
      return true;
    }
    list.remove_prefix(end < list.size() ? end + 1 : end);
  }
  return false;
}

/// Whether such a list names an architecture with what only that device has, "90a".
constexpr bool architectures_name(std::string_view list, std::string_view architecture) {
  while (!list.empty()) {
    const std::size_t end = list.find(',') < list.size() ? list.find(',') : list.size();
    const std::string_view entry = list.substr(0, end);
    if (entry.substr(0, entry.find('-')) == architecture) {
      return true;
    }
    list.remove_prefix(end < list.size() ? end + 1 : end);
  }
  return false;
}

}  // namespace fastmine::cuda
