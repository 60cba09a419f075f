// What the bindings of batch-hard and batch-all losses share on the CPU: mined pairs, the formula on them, their
// gradient.
#pragma once

#include <string>
#include <tuple>

#include "torch/cpu/embeddings.h"
#include "torch/mining_inputs.h"

namespace fastmine {

/// `extra` places are left at the end of the evidence, and stay for the caller to fill.
Mined mine(const Tensor& embeddings, const Tensor& labels, const MaybeTensor& valid, const MaybeTensor& ref_embeddings,
           const MaybeTensor& ref_labels, const MaybeTensor& ref_valid, const MaybeTensor& self_index,
           const std::string& metric, const std::string& positive, const std::string& negative, int64_t extra);

/// The triplet loss of mined pairs; it fills in the first two extra places of their evidence.
Formula apply_formula(const Mined& mined, const MaybeTensor& weight, const std::string& metric,
                      const std::string& shape, double margin, double leak, const std::string& on_empty,
                      const std::string& reduction);

/// `slopes`, if any, are factors of the gradients.
std::tuple<Tensor, Tensor> mining_gradient(const Tensor& grad_positive, const Tensor& grad_negative,
                                           const MaybeTensor& slopes_in, const Tensor& embeddings,
                                           const MaybeTensor& ref_embeddings, const Tensor& positive_index,
                                           const Tensor& negative_index, const Tensor& has_positive,
                                           const Tensor& has_negative, const std::string& metric);

}  // namespace fastmine
