// The CUDA kernels of formulas on what was compared before, as a table of kernels, like cuda_table.cpp.
#include "cuda_launcher.h"

// The whole text of the kernels, as C++.
#include "kernels/cuda/margin_softmax.cu"
#include "kernels/cuda/proxy_evidence.cu"
#include "kernels/cuda/selective_terms.cu"
#include "kernels/cuda/triplet_terms.cu"

namespace fastmine::test {

Tables tables() {
  static const cpu::KernelTable table = [] {
    cpu::KernelTable t{};
    t.isa = "cuda, emulated";
    set(t.margin_softmax, Launched<MarginSoftmax, &cuda::margin_softmax_workspace, &cuda::margin_softmax>::kKernel);
    set(t.paired_distance, Launched<PairedDistance, &cuda::paired_distance_workspace, &cuda::paired_distance>::kKernel);
    set(t.proxy_evidence, Launched<ProxyEvidence, &cuda::proxy_evidence_workspace, &cuda::proxy_evidence>::kKernel);
    return t;
  }();
  return {&table};
}

void triplet_terms(const TripletTerms& problem) {
  run(Launched<TripletTerms, &cuda::triplet_terms_workspace, &cuda::triplet_terms>::kKernel, problem);
}

void selective_terms(const SelectiveTerms& problem) {
  run(Launched<SelectiveTerms, &cuda::selective_terms_workspace, &cuda::selective_terms>::kKernel, problem);
}

}  // namespace fastmine::test
