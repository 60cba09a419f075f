// The matrix unit by the warpgroup, emulated: what its descriptors and waits do, and the screen of batch-hard mining
// that is made of them, against the screen by the warp and against mining in full.
#include "kernels/cuda/warpgroup.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cmath>

#include "check.h"
#include "cuda_emulator.h"

// The whole text of the kernels, as C++.
#include "kernels/cuda/batch_hard.cu"

namespace fastmine::test {

Tables tables() { return {}; }

namespace {

using namespace cuda::mining;
using cuda::MatrixUnit;
using cuda::thread_index;

// --- the instructions ------------------------------------------------------------------------------------------------

constexpr int kColumns = 16, kSums = kColumns / 2;  // of a product in this test

/// What a kernel leaves out.
enum class Without { nothing, arrival, its_phase, show, fence, commit, wait, last };

/// out [rounds, kGroupRows, kColumns] = the products of round after round of matrices, each brought to the same place.
struct Rounds {
  const std::uint16_t* a;  // [rounds, 2, kGroupRows, 8]: of 16 elements the first 8 of all rows, then the others
  const std::uint16_t* b;  // [rounds, 2, kColumns, 8]
  float* out;
  int rounds;
  Without without;
};

void multiply_rounds(const Rounds p) {
  FASTMINE_SHARED(Rounded::Vector, left, kGroupRows * 2);
  FASTMINE_SHARED(Rounded::Vector, right, kColumns * 2);
  FASTMINE_SHARED(Arrival, arrival, 1);
  if (thread_index() == 0) {
    make_arrival(arrival);
    if (p.without != Without::show) {
      show_arrivals();
    }
  }
  cuda::barrier();
  for (int round = 0; round < p.rounds; ++round) {
    if (thread_index() == 0) {
      announce(arrival, (kGroupRows + kColumns) * 32);
      start_bulk_copy(left, p.a + round * kGroupRows * kGroupDepth, kGroupRows * 32, arrival);
      start_bulk_copy(right, p.b + round * kColumns * kGroupDepth, kColumns * 32, arrival);
    }
    const auto parity = static_cast<std::uint32_t>(round % 2);
    if (p.without != Without::arrival) {
      wait_for_arrival(arrival, p.without == Without::its_phase ? 1 - parity : parity);
    }
    float sum[kSums] = {};
    if (p.without != Without::fence) {
      begin_products();
    }
    multiply_add(describe_matrix(left, kGroupRows * 16, 128), describe_matrix(right, kColumns * 16, 128), sum);
    if (p.without != Without::commit) {
      commit_products();
    }
    if (p.without != Without::wait) {
      wait_for_products(sum);
    }
    for (int i = 0; i < kSums; ++i) {
      const int row = warp_index() * 16 + i / 2 % 2 * 8 + lane_index() / 4;
      p.out[(round * kGroupRows + row) * kColumns + i / 4 * 8 + lane_index() % 4 * 2 + i % 2] = sum[i];
    }
    if (p.without == Without::arrival) {
      wait_for_arrival(arrival, parity);  // too late
    }
    cuda::barrier();
  }
}

/// Whether these rounds of small integers come out as they should, in this order of things.
bool multiplies(unsigned seed, Without without) {
  constexpr int kRounds = 3;
  Random random(seed);
  std::vector<float> a(kRounds * kGroupRows * kGroupDepth), b(kRounds * kColumns * kGroupDepth);
  for (std::vector<float>* matrix : {&a, &b}) {
    for (float& value : *matrix) {
      value = static_cast<float>(random.below(17) - 8);
    }
  }
  const auto packed = [](const std::vector<float>& rows, int count) {
    std::vector<std::uint16_t> halves(rows.size());
    for (std::size_t at = 0; at < rows.size(); ++at) {
      const auto k = static_cast<int>(at) % kGroupDepth, row = static_cast<int>(at) / kGroupDepth % count;
      const int round = static_cast<int>(at) / kGroupDepth / count;
      halves[static_cast<std::size_t>(((round * 2 + k / 8) * count + row) * 8 + k % 8)] =
          cuda::bfloat16_of_float(rows[at]);
    }
    return halves;
  };
  const std::vector<std::uint16_t> left = packed(a, kGroupRows), right = packed(b, kColumns);
  std::vector<float> out(kRounds * kGroupRows * kColumns, -1);
  cuda::emulator::seed(seed);
  cuda::launch(&multiply_rounds, 1, kGroup, nullptr, Rounds{left.data(), right.data(), out.data(), kRounds, without});
  bool right_everywhere = true;
  for (std::size_t at = 0; at < out.size(); ++at) {
    const std::size_t column = at % kColumns, row = at / kColumns, round = row / kGroupRows;
    float want = 0;
    for (std::size_t k = 0; k < kGroupDepth; ++k) {
      want += a[row * kGroupDepth + k] * b[(round * kColumns + column) * kGroupDepth + k];
    }
    right_everywhere = right_everywhere && out[at] == want;
  }
  return right_everywhere;
}

/// Whether it ends well and right, in a process of its own: the emulator ends one in which something goes wrong.
bool ends_well(unsigned seed, Without without) {
  const pid_t child = fork();
  if (child == 0) {
    std::freopen("/dev/null", "w", stderr);
    _exit(multiplies(seed, without) ? 0 : 1);
  }
  int status = -1;
  return child > 0 && waitpid(child, &status, 0) == child && status == 0;
}

void instructions() {
  for (unsigned seed = 1; seed <= 4; ++seed) {
    check(ends_well(seed, Without::nothing), "products of what was copied");
    for (int without = 1; without < static_cast<int>(Without::last); ++without) {
      check(!ends_well(seed, static_cast<Without>(without)), "found out: without " + std::to_string(without));
    }
  }
}

// --- the screen ------------------------------------------------------------------------------------------------------

struct Batch {
  std::int64_t n, d;
  std::vector<float> values;
  std::vector<std::int64_t> labels;
};

/// Small integers, which bfloat16 and every sum of their products hold; or normal numbers' poor relations.
Batch make_rows(Random& random, std::int64_t n, std::int64_t d, bool exact) {
  Batch rows{n, d, {}, {}};
  for (std::int64_t at = 0; at < n * d; ++at) {
    rows.values.push_back(exact ? static_cast<float>(random.below(9) - 4)
                                : static_cast<float>(random() + random() + random() - 1.5));
  }
  for (std::int64_t i = 0; i < n; ++i) {
    rows.labels.push_back(random.below(n / 3 + 2));
  }
  return rows;
}

/// What is mined, and the minima that screens in bfloat16 leave.
struct Found {
  std::vector<std::int64_t> positive, negative;
  std::vector<double> distances, evidence;
  std::vector<Ordered<float>> minima[2];  // by warps, by warpgroups

  bool same(const Found& o) const {
    return positive == o.positive && negative == o.negative && distances == o.distances && evidence == o.evidence;
  }
};

Found mine(const Batch& x, const Batch& y, Metric metric, Screen screen, MatrixUnit unit, unsigned seed) {
  const auto n = static_cast<std::size_t>(x.n);
  Found found{std::vector<std::int64_t>(n),
              std::vector<std::int64_t>(n),
              std::vector<double>(2 * n),
              std::vector<double>(static_cast<std::size_t>(Mining::count)),
              {}};
  const auto has = std::make_unique<bool[]>(2 * n), valid = std::make_unique<bool[]>(n + static_cast<std::size_t>(y.n));
  std::fill_n(valid.get(), x.n + y.n, true);
  valid[3] = false;
  BatchHard q{};
  q.x = {x.values.data(), DType::float32, x.n, x.d, x.d};
  q.y = {y.values.data(), DType::float32, y.n, y.d, y.d};
  q.self = &x == &y;
  q.labels = x.labels.data();
  q.ref_labels = y.labels.data();
  q.valid = valid.get();
  q.ref_valid = q.self ? valid.get() : valid.get() + x.n;
  q.metric = metric;
  q.screen = screen;
  q.positive_index = found.positive.data();
  q.negative_index = found.negative.data();
  q.positive_distance = found.distances.data();
  q.negative_distance = found.distances.data() + x.n;
  q.has_positive = has.get();
  q.has_negative = has.get() + x.n;
  q.evidence = found.evidence.data();
  std::vector<double> memory(cuda::batch_hard_workspace(q) / sizeof(double) + 32, std::nan(""));
  void* const base = reinterpret_cast<void*>((reinterpret_cast<std::uintptr_t>(memory.data()) + 255) / 256 * 256);
  cuda::emulator::seed(seed);
  check(cuda::batch_hard(q, base, nullptr, unit) == cuda::cudaSuccess, "launching");
  if (screen != Screen::full) {
    Arena arena(base);
    const Plan<float> plan = lay_out<float>(q, arena);
    Launches launches(nullptr);
    for (const MatrixUnit by : {MatrixUnit::by_warp, MatrixUnit::by_warpgroup}) {
      cuda::screen<Rounded>(launches, {plan, false, false, false, When::always, 1, 0, piece_of(x.n)}, by);
      found.minima[by == MatrixUnit::by_warpgroup].assign(plan.nearest, plan.nearest + plan.panels * x.n);
    }
  }
  return found;
}

bool close(Ordered<float> a, Ordered<float> b) {
  const float x = unordered(a), y = unordered(b);
  return x == y || std::fabs(x - y) < 1e-4F * (1 + std::fabs(y));
}

void screens() {
  struct Case {
    std::int64_t n, m, d;  // m = 0: one set
  };
  // One slice and several, more than there are stages, and rows that are too wide; strips that begin and end anywhere.
  const Case cases[] = {{200, 0, 3}, {321, 0, 70}, {150, 230, 40}, {64, 193, 250}, {131, 0, 736}, {70, 0, 737}};
  unsigned seed = 0;
  for (const Case& c : cases) {
    for (const bool exact : {true, false}) {
      ++seed;
      Random random(seed);
      const Batch x = make_rows(random, c.n, c.d, exact), other = make_rows(random, c.m, c.d, exact);
      const Batch& y = c.m == 0 ? x : other;
      const Metric metric = exact ? Metric::dot : Metric::euclidean;
      const std::string name = std::to_string(c.n) + " x " + std::to_string(c.m) + " x " + std::to_string(c.d);
      const Found want = mine(x, y, metric, Screen::full, MatrixUnit::by_warp, seed);
      const Found got = mine(x, y, metric, Screen::rounded_always, MatrixUnit::by_warpgroup, seed);
      check(got.same(want), name + ": the pairs of a screen in full");
      check(std::any_of(got.minima[0].begin(), got.minima[0].end(),
                        [](Ordered<float> v) { return std::isfinite(unordered(v)); }),
            name + ": there are minima");
      check(exact ? got.minima[0] == got.minima[1]
                  : std::equal(got.minima[0].begin(), got.minima[0].end(), got.minima[1].begin(), close),
            name + (exact ? ": the same minima, exact" : ": the same minima"));
    }
  }
}

}  // namespace
}  // namespace fastmine::test

int main() {
  fastmine::test::instructions();
  fastmine::test::screens();
  return fastmine::test::report();
}
