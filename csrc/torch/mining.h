// Batch-hard mining and what follows from it, as the binding of each device does it, and the ops that are made of
// these, the same text on any device. A device's header comes first: beside(tensor) gives what allocates there.
#pragma once

#include <optional>
#include <string>
#include <tuple>

#include "torch/mining_inputs.h"

namespace fastmine {

/// `extra` places are left at the end of the evidence, and stay for the caller to fill.
Mined mine(const Tensor& embeddings, const Tensor& labels, const MaybeTensor& valid, const MaybeTensor& ref_embeddings,
           const MaybeTensor& ref_labels, const MaybeTensor& ref_valid, const MaybeTensor& self_index,
           const std::string& metric, const std::string& positive, const std::string& negative, int64_t extra);

/// The triplet loss of mined pairs; it fills in the first two extra places of their evidence. `weight` is dense.
Formula apply_formula(const Mined& mined, const MaybeTensor& weight, const std::string& metric,
                      const std::string& shape, double margin, double leak, const std::string& on_empty,
                      const std::string& reduction);

/// `slopes`, if any, are factors of the gradients.
std::tuple<Tensor, Tensor> mining_gradient(const Tensor& grad_positive, const Tensor& grad_negative,
                                           const MaybeTensor& slopes, const Tensor& embeddings,
                                           const MaybeTensor& ref_embeddings, const Tensor& positive_index,
                                           const Tensor& negative_index, const Tensor& has_positive,
                                           const Tensor& has_negative, const std::string& metric);

namespace mining_ops {

using Seven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

inline Seven batch_hard(const Tensor& embeddings, const Tensor& labels, const MaybeTensor& valid,
                        const MaybeTensor& ref_embeddings, const MaybeTensor& ref_labels, const MaybeTensor& ref_valid,
                        const std::string& metric, const std::string& positive, const std::string& negative,
                        const MaybeTensor& self_index, bool wide) {
  const Mined m =
      mine(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, self_index, metric, positive, negative, 0);
  const int64_t n = m.embeddings.size(0);
  const ScalarType type = wide ? ScalarType::Double : result_type(embeddings);
  const auto make = beside(embeddings);
  Tensor d_p = make({n}, type), d_n = make({n}, type);
  torch::stable::copy_(d_p, torch::stable::select(m.distances, 0, 0));
  torch::stable::copy_(d_n, torch::stable::select(m.distances, 0, 1));
  return {m.positive_index, m.negative_index, d_p, d_n, m.has_positive, m.has_negative, m.evidence};
}

inline Seven triplet_loss(const Tensor& embeddings, const Tensor& labels, const MaybeTensor& valid,
                          const MaybeTensor& ref_embeddings, const MaybeTensor& ref_labels,
                          const MaybeTensor& ref_valid, const std::string& metric, const std::string& positive,
                          const std::string& negative, const std::string& shape, double margin, double leak,
                          const std::string& on_empty, const std::string& reduction, const MaybeTensor& weight,
                          const MaybeTensor& self_index) {
  const Mined m =
      mine(embeddings, labels, valid, ref_embeddings, ref_labels, ref_valid, self_index, metric, positive, negative, 2);
  const Formula f = apply_formula(m, dense(weight), metric, shape, margin, leak, on_empty, reduction);
  return {f.loss, m.positive_index, m.negative_index, m.has_positive, m.has_negative, f.slopes, m.evidence};
}

inline std::tuple<Tensor, Tensor> batch_hard_backward(const Tensor& grad_positive, const Tensor& grad_negative,
                                                      const Tensor& embeddings, const MaybeTensor& ref_embeddings,
                                                      const Tensor& positive_index, const Tensor& negative_index,
                                                      const Tensor& has_positive, const Tensor& has_negative,
                                                      const std::string& metric) {
  return mining_gradient(grad_positive, grad_negative, std::nullopt, embeddings, ref_embeddings, positive_index,
                         negative_index, has_positive, has_negative, metric);
}

inline std::tuple<Tensor, Tensor> triplet_loss_backward(const Tensor& grad, const Tensor& slopes,
                                                        const Tensor& embeddings, const MaybeTensor& ref_embeddings,
                                                        const Tensor& positive_index, const Tensor& negative_index,
                                                        const Tensor& has_positive, const Tensor& has_negative,
                                                        const std::string& metric) {
  return mining_gradient(grad, grad, slopes, embeddings, ref_embeddings, positive_index, negative_index, has_positive,
                         has_negative, metric);
}

}  // namespace mining_ops
}  // namespace fastmine
