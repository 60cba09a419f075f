# fastmine_torch_cpu.so: the ops, on the LibTorch stable ABI. It is built from torch's headers alone and serves every
# torch from 2.10 on and every Python. torch is found, never fetched.

include(cmake/FindTorchHeaders.cmake)

# torch loads its libraries RTLD_LOCAL, so ours must name libtorch.so itself to see its symbols. An empty library of
# that name is enough to link against; the real one answers at load.
file(WRITE "${PROJECT_BINARY_DIR}/torch_stub/empty.cpp" "")
add_library(torch_stub SHARED "${PROJECT_BINARY_DIR}/torch_stub/empty.cpp")
set_target_properties(torch_stub PROPERTIES OUTPUT_NAME torch LIBRARY_OUTPUT_DIRECTORY torch_stub)

function(fastmine_configure_torch_library library)
  set_target_properties(${library} PROPERTIES PREFIX "" SUFFIX .so)
  if(NOT FASTMINE_IN_PLACE) # all bindings at once, in a quarter of the time; one after the other where they are worked on
    set_target_properties(${library} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 0)
  endif()
  target_compile_definitions(${library} PRIVATE TORCH_TARGET_VERSION=0x020a000000000000ULL)
  target_compile_options(${library} PRIVATE "-ffile-prefix-map=${FASTMINE_TORCH_INCLUDE_DIR}/=")
  target_include_directories(${library} PRIVATE csrc)
  target_include_directories(${library} SYSTEM PRIVATE "${FASTMINE_TORCH_INCLUDE_DIR}")
  target_link_options(${library} PRIVATE -Wl,--no-as-needed)
  target_link_libraries(${library} PRIVATE torch_stub)
endfunction()

add_library(
  fastmine_torch_cpu MODULE
  csrc/torch/cpu/kernels.cpp
  csrc/torch/cpu/pairwise_distance.cpp
  csrc/torch/cpu/batch_all.cpp
  csrc/torch/cpu/batch_hard.cpp
  csrc/torch/cpu/lovasz_shares.cpp
  csrc/torch/cpu/margin_softmax.cpp
  csrc/torch/cpu/mined_pairs.cpp
  csrc/torch/cpu/pair_sums.cpp
  csrc/torch/cpu/proxy_evidence.cpp
  csrc/torch/cpu/segmentation_loss.cpp
  csrc/torch/cpu/segmentation_sums.cpp
  csrc/torch/cpu/segmentation_terms.cpp
  csrc/torch/cpu/selective_terms.cpp
  csrc/torch/cpu/triplet_terms.cpp)
fastmine_configure_torch_library(fastmine_torch_cpu)
target_link_libraries(fastmine_torch_cpu PRIVATE fastmine_kernels)
