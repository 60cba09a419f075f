// What a launch refuses.
#include "check.h"
#include "kernels/cuda/portable.h"

int main() {
  using namespace fastmine;
  int runs = 0;
  const auto launched = [&](std::int64_t blocks) {
    void (*const kernel)(int*) = [](int* count) { *count += cuda::thread_index() == 0; };
    return cuda::launch(kernel, blocks, cuda::kWarp, nullptr, &runs);
  };
  test::check(launched(3) == cuda::cudaSuccess && runs == 3, "three blocks");
  for (const std::int64_t blocks : {std::int64_t{1} << 31, (std::int64_t{1} << 32) + 3}) {
    test::check(launched(blocks) == cuda::cudaErrorInvalidValue && runs == 3, "a grid that would wrap around");
  }
  return test::report();
}
