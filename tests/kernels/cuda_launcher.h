// A CUDA launcher as a kernel of one stage, which the tests of the CPU kernels can run: in the emulator, in another
// order of blocks and threads each time.
#pragma once

#include "check.h"
#include "cuda_emulator.h"
#include "kernels/cuda/runtime.h"

namespace fastmine::test {

const bool kEmulated = true;  // of a program, which has one table

/// Of problems P, which need `bytes(problem)` of workspace.
template <class P, std::size_t (*bytes)(const P&) noexcept,
          cuda::cudaError_t (*launcher)(const P&, void*, cuda::cudaStream_t) noexcept>
struct Launched {
  struct Plan {
    P problem;
    void* workspace;
  };
  static constexpr std::size_t kPlanBytes = (sizeof(Plan) + 255) / 256 * 256;

  static std::size_t workspace(const P& problem) { return kPlanBytes + bytes(problem); }
  static void* plan(const P& problem, void* memory) {
    return ::new (memory) Plan{problem, static_cast<char*>(memory) + kPlanBytes};
  }
  static std::int64_t one(const void*) { return 1; }
  static void start(void* memory, std::int64_t begin, std::int64_t end) {
    static unsigned calls = 0;
    if (begin < end) {
      cuda::emulator::seed(++calls);
      const auto& p = *static_cast<Plan*>(memory);
      check(launcher(p.problem, p.workspace, nullptr) == cuda::cudaSuccess, "launching");
    }
  }

  static constexpr Stage kStages[] = {{&one, &one, &start}};
  static constexpr StagedKernel<P> kKernel{&workspace, &plan, kStages, 1};
};

/// The same kernel for every working type: it looks at the type of its inputs.
template <class P>
void set(const StagedKernel<P>* (&entries)[2], const StagedKernel<P>& kernel) {
  entries[0] = entries[1] = &kernel;
}

}  // namespace fastmine::test
