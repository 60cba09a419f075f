// fastmine::mined_pairs on the CPU; its backward pass is that of batch_hard.
#include "torch/cpu/embeddings.h"
#include "torch/cpu/kernels.h"
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
  Ranked r;
  const MinedPairs problem = rank_problem(r, &make, embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid,
                                          metric, positive, negative, ranks, window, groups, ref_groups,
                                          group_positives, self_index, seed, cutoff, nonzero_loss_cutoff);
  run(*kernels().mined_pairs[result_type(embeddings) == ScalarType::Double], problem);
  return mined_of(r, &make, wide);
}

}  // namespace
}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CPU, m) { m.impl("mined_pairs", TORCH_BOX(&fastmine::mined_pairs)); }
