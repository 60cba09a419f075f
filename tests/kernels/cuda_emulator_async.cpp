// The asynchronous part of the emulator: copies that arrive by themselves, barriers that count their bytes, and
// products by the warpgroup, from a reading of the PTX ISA that shares nothing with kernels/cuda/warpgroup.h.
//
// Each happens at once or as late as it may, by chance: a copy when all threads wait, a product when its thread waits
// for it. Until then what it will write is NaN. So a wait that is missing, or of the wrong phase, shows in the results,
// and so does a slice that is overwritten while it is still multiplied. What no program may do ends it.
#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <vector>

#include "cuda_emulator.h"
#include "kernels/cuda/warpgroup.h"

namespace fastmine::cuda::emulator {
namespace {

constexpr int kGroupThreads = 128;
constexpr std::size_t kGroupDepth = 16;

struct Barrier {
  int pending = 1;          // arrivals before the current phase may end
  std::int64_t bytes = 0;   // announced and not yet there
  std::uint32_t ended = 0;  // phases
  bool shown = false;       // to the asynchronous proxy
};

struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
  std::uint64_t* barrier;
};

/// Products of a thread that have begun: its rows of a, all columns of b.
struct Product {
  std::uint64_t a, b;
  bool committed;
  std::vector<float> terms;  // if both were read at once: all that is added to the sums
};

struct Thread {
  std::vector<Product> products;
  float* sum = nullptr;      // of all of them
  std::vector<float> saved;  // what the sums were
  bool fenced = false;
  std::size_t multiplied = 0;  // products since the block began
};

std::map<const std::uint64_t*, Barrier> barriers;
std::vector<Copy> copies;
std::vector<Thread> threads;  // none until one asks: few kernels multiply by the warpgroup, and every block begins anew
std::map<int, std::vector<std::pair<std::uint64_t, std::uint64_t>>> said;  // by each warpgroup, product by product

Thread& running() {
  if (threads.empty()) {
    threads.resize(1024);
  }
  return threads[static_cast<std::size_t>(place().thread_index)];
}

Barrier& barrier_at(const std::uint64_t* address) {
  const auto found = barriers.find(address);
  if (found == barriers.end() || !found->second.shown) {
    stop("a barrier that was not made, or not shown to the copies");
  }
  return found->second;
}

void end_phase_if_due(Barrier& barrier) {
  if (barrier.pending == 0 && barrier.bytes == 0) {
    ++barrier.ended;
    barrier.pending = 1;
  }
}

void arrive(const Copy& copy) {
  std::memcpy(copy.to, copy.from, copy.bytes);
  Barrier& barrier = barrier_at(copy.barrier);
  barrier.bytes -= static_cast<std::int64_t>(copy.bytes);
  end_phase_if_due(barrier);
}

/// Matrix descriptor: bits 0-13, 16-29 and 32-45 are bits 4-17 of the start address, of the leading dimension byte
/// offset and of the stride dimension byte offset; 49-51 the base offset, 62-63 the swizzling mode.
struct Matrix {
  explicit Matrix(std::uint64_t descriptor)
      : start(bits(descriptor, 0, 14) << 4),
        leading(bits(descriptor, 16, 14) << 4),
        stride(bits(descriptor, 32, 14) << 4) {
    if (bits(descriptor, 49, 3) != 0 || bits(descriptor, 62, 2) != 0) {
      stop("a swizzled matrix, which nobody here writes");
    }
    if ((descriptor & ~0x3fff3fff3fffULL) != 0) {
      stop("bits in a matrix descriptor that have no meaning");
    }
  }
  static std::uint32_t bits(std::uint64_t of, int from, int count) {
    return static_cast<std::uint32_t>(of >> from & ((1ULL << count) - 1));
  }

  /// K-major without swizzle: 8 x 8 elements of 2 bytes are 8 rows of 16 bytes in one piece. From the first to the
  /// second 16 bytes of a row it is the leading dimension byte offset, from 8 rows to the next 8 the stride dimension
  /// byte offset.
  std::array<float, kGroupDepth> row(int index) const {
    const auto r = static_cast<std::uint32_t>(index);
    std::array<float, kGroupDepth> elements{};
    for (std::uint32_t k = 0; k < kGroupDepth; k += 8) {
      std::uint16_t halves[8];
      std::memcpy(halves, shared_at(start + r / 8 * stride + r % 8 * 16 + k / 8 * leading, 16), 16);
      for (std::uint32_t e = 0; e < 8; ++e) {
        const std::uint32_t single = static_cast<std::uint32_t>(halves[e]) << 16;
        std::memcpy(&elements[k + e], &single, 4);
      }
    }
    return elements;
  }

  std::uint32_t start, leading, stride;
};

/// What a product adds to the sums of the running thread. Sum i is of row i / 2 % 2 of two and of column 8 (i / 4) + 2
/// (lane % 4) + i % 2; the two rows of lane l of warp w are 16 w + l / 4 and 8 further.
std::vector<float> terms_of(std::uint64_t a, std::uint64_t b, std::size_t sums) {
  const Matrix left(a), right(b);
  const int thread = place().thread_index % kGroupThreads, warp = thread / 32, lane = thread % 32;
  const std::array<float, kGroupDepth> rows[2] = {left.row(16 * warp + lane / 4), left.row(16 * warp + lane / 4 + 8)};
  std::vector<float> terms(sums, 0);
  for (std::size_t i = 0; i < sums; i += i % 4 == 1 ? 3 : 1) {  // and with it the other row of the same column
    const auto column = right.row(static_cast<int>(i) / 4 * 8 + lane % 4 * 2 + static_cast<int>(i) % 2);
    for (std::size_t k = 0; k < kGroupDepth; ++k) {
      terms[i] += rows[0][k] * column[k];
      terms[i + 2] += rows[1][k] * column[k];
    }
  }
  return terms;
}

}  // namespace

void begin_block() {
  barriers.clear();
  said.clear();
  threads.clear();
}

bool bring_a_copy() {
  if (copies.empty()) {
    return false;
  }
  const auto at = copies.begin() + static_cast<std::ptrdiff_t>(chance() % copies.size());
  const Copy copy = *at;
  copies.erase(at);
  arrive(copy);
  return true;
}

void end_thread() {
  if (!threads.empty() && !running().products.empty()) {
    stop("a thread that ends before its products");
  }
}

void end_block() {
  if (!copies.empty()) {
    stop("a block that ends before its copies");
  }
  for (const auto& [group, products] : said) {
    for (int thread = group * kGroupThreads; thread < (group + 1) * kGroupThreads; ++thread) {
      if (threads[static_cast<std::size_t>(thread)].multiplied != products.size()) {
        stop("a product that not all threads of a warpgroup reach");
      }
    }
  }
}

void make_arrival(std::uint64_t* arrival) {
  if (shared_address(arrival) % 8 != 0 || !barriers.try_emplace(arrival).second) {
    stop("a barrier that is not aligned, or made twice");
  }
}

void show_arrivals() {
  for (auto& [address, barrier] : barriers) {
    barrier.shown = true;
  }
}

void announce(std::uint64_t* arrival, std::uint32_t bytes) {
  Barrier& barrier = barrier_at(arrival);
  if (barrier.pending == 0) {
    stop("more arrivals at a barrier than its phase has");
  }
  barrier.bytes += bytes;
  if (barrier.bytes >= 1 << 20) {
    stop("more bytes than a barrier counts");
  }
  --barrier.pending;
  end_phase_if_due(barrier);
}

void start_bulk_copy(void* shared, const void* global, std::uint32_t bytes, std::uint64_t* arrival) {
  if (bytes == 0 || bytes % 16 != 0 || shared_address(shared) % 16 != 0 ||
      reinterpret_cast<std::uintptr_t>(global) % 16 != 0) {
    stop("a bulk copy that is not of 16 bytes and aligned to them");
  }
  void* const to = shared_at(shared_address(shared), bytes);
  for (const Copy& other : copies) {
    const auto *begin = static_cast<char*>(to), *other_begin = static_cast<char*>(other.to);
    if (begin < other_begin + other.bytes && other_begin < begin + bytes) {
      stop("two copies to one place");
    }
  }
  barrier_at(arrival);
  std::memset(to, 0xff, bytes);
  const Copy copy{to, global, bytes, arrival};
  if (chance() % 2 == 0) {
    arrive(copy);
  } else {
    copies.push_back(copy);
  }
}

void wait_for_arrival(std::uint64_t* arrival, std::uint32_t parity) {
  const Barrier& barrier = barrier_at(arrival);
  if (parity > 1) {
    stop("a parity that is not 0 or 1");
  }
  wait_until([&barrier, parity] { return barrier.ended % 2 != parity; });
}

void begin_products() {
  warp_barrier(1);
  running().fenced = true;
}

void multiply_add(std::uint64_t a, std::uint64_t b, float* sum, int sums) {
  Thread& thread = running();
  std::vector<std::pair<std::uint64_t, std::uint64_t>>& group = said[place().thread_index / kGroupThreads];
  if (thread.multiplied == group.size()) {
    group.emplace_back(a, b);
  }
  if (group[thread.multiplied++] != std::pair(a, b)) {
    stop("threads of a warpgroup that disagree about a product");
  }
  if (!thread.fenced) {
    stop("a product without a fence since its sums were used");
  }
  const auto count = static_cast<std::size_t>(sums);
  if (thread.products.empty()) {
    thread.sum = sum;
    thread.saved.assign(sum, sum + count);
  }
  if (thread.sum != sum) {
    stop("products for two sets of sums at once");
  }
  thread.products.push_back({a, b, false, chance() % 2 == 0 ? terms_of(a, b, count) : std::vector<float>()});
  std::fill(sum, sum + count, __builtin_nanf(""));
}

void commit_products() {
  for (Product& product : running().products) {
    product.committed = true;
  }
}

void wait_for_products(float* sum, int sums) {
  warp_barrier(2);
  Thread& thread = running();
  const auto count = static_cast<std::size_t>(sums);
  if (thread.products.empty() || thread.sum != sum || !thread.products.back().committed) {
    stop("a wait for products that were not begun, or not committed");
  }
  for (const Product& product : thread.products) {
    const std::vector<float> terms = product.terms.empty() ? terms_of(product.a, product.b, count) : product.terms;
    for (std::size_t i = 0; i < count; ++i) {
      thread.saved[i] += terms[i];
    }
  }
  std::copy(thread.saved.begin(), thread.saved.end(), sum);
  thread.products.clear();
  thread.fenced = false;
}

}  // namespace fastmine::cuda::emulator
