// fastmine::batch_hard, fastmine::triplet_loss and their backward pass on the CPU.
#include "kernels/batch_hard.h"

#include "kernels/triplet_loss.h"
#include "torch/cpu/embeddings.h"
#include "torch/cpu/kernels.h"
#include "torch/mining.h"

namespace fastmine {

Mined mine(const Tensor& embeddings, const Tensor& labels, const MaybeTensor& valid, const MaybeTensor& ref_embeddings,
           const MaybeTensor& ref_labels, const MaybeTensor& ref_valid, const MaybeTensor& self_index,
           const std::string& metric, const std::string& positive, const std::string& negative, int64_t extra) {
  Mined m;
  const BatchHard problem = mining_problem(m, &make, embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid,
                                           self_index, metric, positive, negative, extra);
  run(*kernels().batch_hard[result_type(embeddings) == ScalarType::Double], problem);
  return m;
}

Formula apply_formula(const Mined& m, const MaybeTensor& weight, const std::string& metric, const std::string& shape,
                      double margin, double leak, const std::string& on_empty, const std::string& reduction) {
  Formula f;
  cpu::triplet_loss(formula_problem(m, f, &make, weight, metric, shape, margin, leak, on_empty, reduction));
  return f;
}

std::tuple<Tensor, Tensor> mining_gradient(const Tensor& grad_positive, const Tensor& grad_negative,
                                           const MaybeTensor& slopes, const Tensor& embeddings,
                                           const MaybeTensor& ref_embeddings, const Tensor& positive_index,
                                           const Tensor& negative_index, const Tensor& has_positive,
                                           const Tensor& has_negative, const std::string& metric) {
  MinedGradient g;
  const BatchHardBackward problem =
      gradient_problem(g, &make, grad_positive, grad_negative, slopes, embeddings, ref_embeddings, positive_index,
                       negative_index, has_positive, has_negative, metric);
  run(*kernels().batch_hard_backward[result_type(embeddings) == ScalarType::Double], problem);
  return {g.grad_x, g.grad_y};
}

}  // namespace fastmine

STABLE_TORCH_LIBRARY_IMPL(fastmine, CPU, m) {
  m.impl("batch_hard", TORCH_BOX(&fastmine::mining_ops::batch_hard));
  m.impl("batch_hard_backward", TORCH_BOX(&fastmine::mining_ops::batch_hard_backward));
  m.impl("triplet_loss", TORCH_BOX(&fastmine::mining_ops::triplet_loss));
  m.impl("triplet_loss_backward", TORCH_BOX(&fastmine::mining_ops::triplet_loss_backward));
}
