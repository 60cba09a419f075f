// fastmine::mined_pairs on CUDA devices; its backward pass is that of batch_hard. Compiled and linked; not yet run on a
// GPU.
#include "kernels/cuda/mined_pairs.h"

#include "torch/cuda/device.h"
#include "torch/rank_inputs.h"

namespace fastmine {
namespace {

SevenMined mined_pairs(const Tensor& embeddings, const Tensor& labels, const MaybeTensor& valid,
                       const MaybeTensor& ref_embeddings, const MaybeTensor& ref_labels, const MaybeTensor& ref_valid,
                       const std::string& metric, const std::string& positive, const std::string& negative,
                       const std::vector<int64_t>& ranks, const std::optional<double>& window,
                       const MaybeTensor& groups, const MaybeTensor& ref_groups, bool group_positives,
                       const MaybeTensor& self_index, const MaybeTensor& seed, double cutoff,
                       double nonzero_loss_cutoff, bool wide) {
  for (const MaybeTensor& other :
       {MaybeTensor(labels), valid, ref_embeddings, ref_labels, ref_valid, groups, ref_groups, self_index, seed}) {
    check_same_device(embeddings, other, "an input");
  }
  const torch::stable::accelerator::DeviceGuard guard(embeddings.get_device_index());
  const auto make = beside(embeddings);
  Ranked r;
  const MinedPairs problem = rank_problem(r, make, embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid,
                                          metric, positive, negative, ranks, window, groups, ref_groups,
                                          group_positives, self_index, seed, cutoff, nonzero_loss_cutoff);
  const Tensor workspace = make_workspace(embeddings, cuda::mined_pairs_workspace(problem));
  check_launch(cuda::mined_pairs(problem, workspace.mutable_data_ptr(), current_stream(embeddings)));
  return mined_of(r, make, wide);
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CUDA, m) {
  if (!fastmine::unserved().empty()) {
    return;
  }
  m.impl("mined_pairs", TORCH_BOX(&fastmine::mined_pairs));
}
