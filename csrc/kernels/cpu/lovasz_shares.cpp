// Compiled once, for every CPU: counting and scattering, which no vector unit here does better.
#include "kernels/lovasz_shares.h"

#include <algorithm>
#include <bit>
#include <type_traits>
#include <utility>

namespace fastmine::cpu {
namespace {

constexpr std::int64_t kRoom = 8;  // groups that may be sorted at a time
constexpr int kDigit = 11;
constexpr std::size_t kBins = std::size_t{1} << kDigit;

template <class T>
using Key = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;

/// An error as a number that grows as it shrinks, and where it is.
template <class T>
struct Entry {
  Key<T> key;
  std::uint32_t position;
};

template <class T>
constexpr int kDigits = (static_cast<int>(sizeof(T)) * 8 - 1 + kDigit - 1) / kDigit;

struct Plan {
  LovaszShares problem;
  void* room;
};

std::int64_t groups_of(const LovaszShares& p) { return p.samples * p.classes; }

std::int64_t rooms_of(const LovaszShares& p) { return std::min(groups_of(p), kRoom); }

std::size_t entry_size(const LovaszShares& p) {
  return p.dtype == DType::float64 ? sizeof(Entry<double>) : sizeof(Entry<float>);
}

/// Both halves of one room.
std::size_t room_size(const LovaszShares& p) { return 2 * static_cast<std::size_t>(p.positions) * entry_size(p); }

template <class T>
struct Group {
  const T* errors;
  const T* target;
  const std::uint8_t* valid;
  std::int64_t valid_stride;
  std::int64_t positions;
  T* shares;
};

template <class T>
Group<T> group_of(const LovaszShares& p, std::int64_t i) {
  const std::int64_t offset = i * p.positions;
  const std::int64_t flags = i / p.classes * p.valid_stride[0] + i % p.classes * p.valid_stride[1];
  return {static_cast<const T*>(p.errors) + offset,
          static_cast<const T*>(p.target) + offset,
          p.valid == nullptr ? nullptr : p.valid + flags,
          p.valid_stride[2],
          p.positions,
          static_cast<T*>(p.shares) + offset};
}

/// Enter what is valid and count every digit; what is not has no share. Returns how many there are.
template <class T>
std::int64_t enter(const Group<T>& group, Entry<T>* entries, std::uint32_t (&counts)[kDigits<T>][kBins]) {
  constexpr Key<T> kMagnitude = static_cast<Key<T>>(-1) >> 1;  // without the sign, which a zero may have
  std::int64_t n = 0;
  for (std::int64_t i = 0; i < group.positions; ++i) {
    if (group.valid != nullptr && group.valid[i * group.valid_stride] == 0) {
      group.shares[i] = 0;
      continue;
    }
    const Key<T> key = kMagnitude - (std::bit_cast<Key<T>>(group.errors[i]) & kMagnitude);
    entries[n++] = {key, static_cast<std::uint32_t>(i)};
    for (int digit = 0; digit < kDigits<T>; ++digit) {
      ++counts[digit][key >> (digit * kDigit) & (kBins - 1)];
    }
  }
  return n;
}

/// Sorted by key, stable, least digit first; returns where they are.
template <class T>
const Entry<T>* sort(Entry<T>* entries, Entry<T>* other, std::int64_t n, std::uint32_t (&counts)[kDigits<T>][kBins]) {
  for (int digit = 0; digit < kDigits<T>; ++digit) {
    std::uint32_t* places = counts[digit];
    if (std::find(places, places + kBins, static_cast<std::uint32_t>(n)) != places + kBins) {
      continue;  // all agree
    }
    std::uint32_t place = 0;
    for (std::size_t bin = 0; bin < kBins; ++bin) {
      place += std::exchange(places[bin], place);
    }
    for (std::int64_t i = 0; i < n; ++i) {
      other[places[entries[i].key >> (digit * kDigit) & (kBins - 1)]++] = entries[i];
    }
    std::swap(entries, other);
  }
  return entries;
}

template <class T>
void write_shares(const Group<T>& group, const Entry<T>* sorted, std::int64_t n) {
  double left = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    left += static_cast<double>(group.target[sorted[i].position]);
  }
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint32_t at = sorted[i].position;
    const auto t = static_cast<double>(group.target[at]);
    left -= t;
    group.shares[at] = static_cast<T>(lovasz_share(t, left, i + 1));
  }
}

template <class T>
void share(const LovaszShares& p, std::int64_t i, void* room) {
  std::uint32_t counts[kDigits<T>][kBins] = {};
  const Group<T> group = group_of<T>(p, i);
  auto* entries = static_cast<Entry<T>*>(room);
  const std::int64_t n = enter(group, entries, counts);
  write_shares(group, sort(entries, entries + p.positions, n, counts), n);
}

std::int64_t tasks(const void* plan) { return rooms_of(static_cast<const Plan*>(plan)->problem); }

std::int64_t grain(const void* plan) {
  constexpr std::int64_t kThread = 2048;  // positions
  return 1 + kThread / (1 + static_cast<const Plan*>(plan)->problem.positions);
}

/// Every kRoom-th group, in a room of its own.
void run(void* plan, std::int64_t begin, std::int64_t end) {
  const auto& [problem, rooms] = *static_cast<const Plan*>(plan);
  for (std::int64_t task = begin; task < end; ++task) {
    void* room = static_cast<char*>(rooms) + static_cast<std::size_t>(task) * room_size(problem);
    for (std::int64_t i = task; i < groups_of(problem); i += kRoom) {
      problem.dtype == DType::float64 ? share<double>(problem, i, room) : share<float>(problem, i, room);
    }
  }
}

constexpr std::size_t kLine = 64;
static_assert(sizeof(Plan) <= 2 * kLine);

constexpr Stage kStages[] = {{&tasks, &grain, &run}};

}  // namespace

const StagedKernel<LovaszShares> lovasz_shares = {
    [](const LovaszShares& p) { return 2 * kLine + static_cast<std::size_t>(rooms_of(p)) * room_size(p); },
    [](const LovaszShares& p, void* workspace) -> void* {
      *static_cast<Plan*>(workspace) = {p, static_cast<char*>(workspace) + 2 * kLine};
      return workspace;
    },
    kStages,
    1,
};

}  // namespace fastmine::cpu
