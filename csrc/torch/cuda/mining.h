// What the bindings of batch-hard and batch-all losses share on CUDA devices: mined pairs and their gradient.
#pragma once

#include <string>
#include <tuple>

#include "torch/cuda/device.h"
#include "torch/mining_inputs.h"

namespace fastmine {

/// `extra` places are left at the end of the evidence, and stay for the caller to fill.
Mined mine(const Tensor& embeddings, const Tensor& labels, const MaybeTensor& valid, const MaybeTensor& ref_embeddings,
           const MaybeTensor& ref_labels, const MaybeTensor& ref_valid, const MaybeTensor& self_index,
           const std::string& metric, const std::string& positive, const std::string& negative, int64_t extra);

/// `slopes` [2, n], if any, are factors of the gradients.
std::tuple<Tensor, Tensor> mining_gradient(const Tensor& grad_positive, const Tensor& grad_negative,
                                           const MaybeTensor& slopes, const Tensor& embeddings,
                                           const MaybeTensor& ref_embeddings, const Tensor& positive_index,
                                           const Tensor& negative_index, const Tensor& has_positive,
                                           const Tensor& has_negative, const std::string& metric);

}  // namespace fastmine
