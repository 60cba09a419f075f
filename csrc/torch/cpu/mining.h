// What the bindings of batch-hard and batch-all losses share: mined pairs, the formula on them, their gradient.
#pragma once

#include <string>
#include <tuple>

#include "torch/cpu/embeddings.h"

namespace fastmine {

/// The tensors that mining reads, made such that kernels can, and those that it writes.
struct Mined {
  Tensor embeddings, labels, ref_embeddings, ref_labels;
  MaybeTensor valid, ref_valid, self_index;
  Tensor positive_index, negative_index, distances, has_positive, has_negative, evidence;
};

inline const bool* flags(const MaybeTensor& mask) {
  return mask ? static_cast<const bool*>(mask->const_data_ptr()) : nullptr;
}

/// Integers or float64 numbers, one for each of n anchors; null where there are none.
template <class T>
const T* for_anchors(const MaybeTensor& x, int64_t n) {
  FASTMINE_CHECK(!x || x->numel() == n, "one per anchor");
  return x ? static_cast<const T*>(x->const_data_ptr()) : nullptr;
}

/// `extra` places are left at the end of the evidence, and stay for the caller to fill.
Mined mine(const Tensor& embeddings, const Tensor& labels, const MaybeTensor& valid, const MaybeTensor& ref_embeddings,
           const MaybeTensor& ref_labels, const MaybeTensor& ref_valid, const MaybeTensor& self_index,
           const std::string& metric, const std::string& positive, const std::string& negative, int64_t extra);

struct Formula {
  Tensor loss, slopes;
};

/// The triplet loss of mined pairs; it fills in the first two extra places of their evidence.
Formula apply_formula(const Mined& mined, const MaybeTensor& weight, const std::string& metric,
                      const std::string& shape, double margin, double leak, const std::string& on_empty,
                      const std::string& reduction);

/// The gradient of a loss by an anchor: one number for each, or one for all of them.
inline void check_grad(const Tensor& grad, int64_t n) {
  FASTMINE_CHECK(grad.dim() == 0 || (grad.dim() == 1 && grad.size(0) == n), "one gradient per anchor, or one for all");
}
/// The gradients by the distances of these pairs; of a matrix of pairs one after another.
inline Tensor for_pairs(const Tensor& grad, const Tensor& pairs) {
  if (pairs.dim() == 1) {
    check_grad(grad, pairs.size(0));
    return grad;
  }
  FASTMINE_CHECK(grad.dim() == 2 && grad.numel() == pairs.numel(), "one gradient per pair");
  return torch::stable::flatten(dense(grad), 0, 1);
}
inline int64_t step(const Tensor& grad) { return grad.dim() == 0 ? 0 : grad.stride(0); }

/// `slopes` [2, n], if any, are factors of the gradients.
std::tuple<Tensor, Tensor> mining_gradient(const Tensor& grad_positive, const Tensor& grad_negative,
                                           const MaybeTensor& slopes_in, const Tensor& embeddings,
                                           const MaybeTensor& ref_embeddings, const Tensor& positive_index,
                                           const Tensor& negative_index, const Tensor& has_positive,
                                           const Tensor& has_negative, const std::string& metric);

}  // namespace fastmine
