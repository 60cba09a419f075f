// Sorting rows by group and label, or in each of several segments of the same length: tiles in shared memory, then one
// launch for each doubling of the sorted runs. Every item finds its place in the merged run by a binary search in the
// other run; no two items are equal, so the order is that of a stable sort, and nothing depends on timing.
//
// How many launches follows from the number of items: 1 for a tile, 7 for 65,536, 11 for 1,048,576.
#pragma once

#include "kernels/cuda/arena.h"
#include "kernels/cuda/warp.h"

namespace fastmine::cuda::mining {

struct Tagged {
  std::int64_t label;
  std::int32_t group, row;
};

FASTMINE_DEVICE bool before(const Tagged& a, const Tagged& b) {
  if (a.group != b.group) {
    return a.group < b.group;
  }
  return a.label != b.label ? a.label < b.label : a.row < b.row;
}

/// How many of `count` sorted items stand before `item`.
FASTMINE_DEVICE int rank_of(const Tagged& item, const Tagged* sorted, int count) {
  int begin = 0, end = count;
  while (begin < end) {
    const int middle = begin + (end - begin) / 2;
    if (before(sorted[middle], item)) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

/// Write the item at `place` of sorted runs of `width` items to where it is in runs of twice the width.
FASTMINE_DEVICE void merge_item(const Tagged* from, Tagged* to, int place, int width, int count) {
  const int run = place / width, other = (run ^ 1) * width;
  const int rest = count - other, length = rest < 0 ? 0 : rest < width ? rest : width;
  const Tagged item = from[place];
  to[(run & ~1) * width + place % width + rank_of(item, from + other, length)] = item;
}

/// Items that a block sorts; in the emulator so few that runs are merged.
#ifdef FASTMINE_EMULATE_CUDA
inline constexpr int kSortTile = 64;
#else
inline constexpr int kSortTile = 1024;
#endif

/// `count` items in each segment.
struct SortWork {
  Tagged* from;
  Tagged* to;
  int count, width;
};

/// Which of a segment's parts of `size` items a block works on.
struct SortPart {
  std::int64_t segment;  // its first item
  int begin;             // within the segment
};

FASTMINE_DEVICE SortPart sort_part(const SortWork& work, int size) {
  const std::int64_t parts = divide_up(work.count, size);
  return {block_index() / parts * work.count, static_cast<int>(block_index() % parts) * size};
}

/// One block: a tile.
static FASTMINE_KERNEL(kThreads, 2) sort_tiles(FASTMINE_PARAMETER SortWork work) {
  FASTMINE_SHARED(Tagged, tiles, 2 * kSortTile);
  const SortPart part = sort_part(work, kSortTile);
  Tagged* items = work.from + part.segment + part.begin;
  const int rest = work.count - part.begin, count = rest < kSortTile ? rest : kSortTile;
  for (int place = thread_index(); place < count; place += kThreads) {
    tiles[place] = items[place];
  }
  int now = 0;
  for (int width = 1; width < kSortTile; width *= 2, now ^= 1) {
    barrier();
    for (int place = thread_index(); place < count; place += kThreads) {
      merge_item(tiles + now * kSortTile, tiles + (now ^ 1) * kSortTile, place, width, count);
    }
  }
  barrier();
  for (int place = thread_index(); place < count; place += kThreads) {
    items[place] = tiles[now * kSortTile + place];
  }
}

static FASTMINE_KERNEL(kThreads, 2) merge_runs(FASTMINE_PARAMETER SortWork work) {
  const SortPart part = sort_part(work, kThreads);
  if (thread_index() < work.count - part.begin) {
    merge_item(work.from + part.segment, work.to + part.segment, part.begin + thread_index(), work.width, work.count);
  }
}

/// Where `sort` leaves what was in `items`.
inline Tagged* sorted_place(Tagged* items, Tagged* spare, std::int64_t count) {
  for (std::int64_t width = kSortTile; width < count; width *= 2) {
    Tagged* const sorted = spare;
    spare = items;
    items = sorted;
  }
  return items;
}

inline void sort(Launches& launches, Tagged* items, Tagged* spare, std::int64_t count, std::int64_t segments = 1) {
  SortWork work{items, spare, static_cast<int>(count), kSortTile};
  launches(&sort_tiles, segments * divide_up(count, kSortTile), kThreads, work);
  for (std::int64_t width = kSortTile; width < count; width *= 2) {
    work.width = static_cast<int>(width);
    launches(&merge_runs, segments * divide_up(count, kThreads), kThreads, work);
    Tagged* const sorted = work.to;
    work.to = work.from;
    work.from = sorted;
  }
}

}  // namespace fastmine::cuda::mining
