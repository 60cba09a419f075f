// What the bindings of the ops on embeddings share on the CPU: memory, and running a staged kernel.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/stage.h"
#include "threads/stage_walk.h"
#include "torch/cpu/large_pages.h"
#include "torch/rows.h"

namespace fastmine {

/// A dense CPU tensor of this shape and type, uninitialised; straight from the allocator, since the op `empty` takes
/// three times as long to find as to run.
inline Tensor make(torch::headeronly::IntHeaderOnlyArrayRef shape, ScalarType type) {
  std::vector<int64_t> strides(shape.size());
  int64_t next = 1;
  for (size_t d = shape.size(); d-- > 0; next *= std::max<int64_t>(shape[d], 1)) {
    strides[d] = next;
  }
  const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(),
                                                         strides.data(), dtype, aoti_torch_device_type_cpu(), 0,
                                                         &handle));
  Tensor tensor(handle);
  if (next >= kLargeElements) {
    prefer_large_pages(tensor.mutable_data_ptr(), static_cast<size_t>(tensor.numel()) * size_of(dtype_of(type)));
  }
  return tensor;
}

/// Allocates beside a tensor.
inline auto beside(const Tensor&) { return &make; }

/// Lay out the workspace of a kernel and run its stages, each on as many threads as torch allows.
template <class P>
void run(const StagedKernel<P>& kernel, const P& problem) {
  constexpr size_t kLine = 64;
  const Tensor memory = make({static_cast<int64_t>(kernel.workspace(problem) + kLine)}, ScalarType::Byte);
  const auto address = reinterpret_cast<uintptr_t>(memory.mutable_data_ptr());
  void* plan = kernel.plan(problem, reinterpret_cast<void*>((address + kLine - 1) / kLine * kLine));
  StageWalk walk(kernel.stages, kernel.count, plan, torch::stable::get_num_threads());
  while (const int64_t team = walk.next_team()) {
    torch::stable::parallel_for(0, team, 1, [&](int64_t, int64_t) { walk.join(); });
  }
}

}  // namespace fastmine
