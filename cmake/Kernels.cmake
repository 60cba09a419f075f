# The kernels: one set of sources, compiled once per instruction set into its own namespace, shared as objects.
# csrc/kernels/cpu/dispatch.cpp holds the matching list and chooses at run time.

set(FASTMINE_CPU_KERNELS
    csrc/kernels/cpu/table.cpp
    csrc/kernels/cpu/pairwise_distance.cpp
    csrc/kernels/cpu/pairwise_distance_backward.cpp
    csrc/kernels/cpu/batch_hard.cpp
    csrc/kernels/cpu/batch_hard_backward.cpp
    csrc/kernels/cpu/margin_softmax.cpp
    csrc/kernels/cpu/mined_pairs.cpp
    csrc/kernels/cpu/paired_distance.cpp
    csrc/kernels/cpu/proxy_evidence.cpp
    csrc/kernels/cpu/pair_sums.cpp
    csrc/kernels/cpu/pair_sums_backward.cpp
    csrc/kernels/cpu/batch_all.cpp
    csrc/kernels/cpu/batch_all_backward.cpp
    csrc/kernels/cpu/segmentation_loss.cpp
    csrc/kernels/cpu/segmentation_sigmoid.cpp
    csrc/kernels/cpu/segmentation_softmax.cpp
    csrc/kernels/cpu/segmentation_softmax_backward.cpp
    csrc/kernels/cpu/segmentation_sums.cpp)

set(FASTMINE_COMMON_KERNELS # once, for every CPU
    csrc/kernels/cpu/batch_all_formula.cpp
    csrc/kernels/cpu/dispatch.cpp
    csrc/kernels/cpu/lovasz_shares.cpp
    csrc/kernels/cpu/order.cpp
    csrc/kernels/cpu/segmentation_formula.cpp
    csrc/kernels/cpu/segmentation_terms.cpp
    csrc/kernels/cpu/selective_terms.cpp
    csrc/kernels/cpu/triplet_loss.cpp
    csrc/kernels/cpu/triplet_terms.cpp)

# Each of these lets the compiler vectorise or contract without changing what isnan, isinf and sums of finite numbers
# mean; -ffast-math would. No signed zeros: else every broadcast and every zero accumulator costs an addition.
set(FASTMINE_KERNEL_FLAGS
    -fno-math-errno -fno-trapping-math -fno-signed-zeros -ffp-contract=fast -fno-exceptions -fno-rtti)
if(NOT FASTMINE_SANITIZE AND NOT CMAKE_BUILD_TYPE STREQUAL "Debug")
  list(APPEND FASTMINE_KERNEL_FLAGS -O3)
endif()

# A loop of a kilobyte that starts anywhere runs as fast in cache, and up to 20 % slower where its data come from memory.
set_source_files_properties(csrc/kernels/cpu/segmentation_sigmoid.cpp PROPERTIES COMPILE_OPTIONS -falign-loops=64)

add_library(fastmine_kernels INTERFACE)
target_include_directories(fastmine_kernels INTERFACE "${PROJECT_SOURCE_DIR}/csrc")

function(fastmine_add_kernels name)
  add_library(fastmine_kernels_${name} OBJECT ${ARGN})
  target_include_directories(fastmine_kernels_${name} PRIVATE csrc)
  target_compile_options(fastmine_kernels_${name} PRIVATE ${FASTMINE_KERNEL_FLAGS})
  target_sources(fastmine_kernels INTERFACE $<TARGET_OBJECTS:fastmine_kernels_${name}>)
endfunction()

function(fastmine_add_isa isa)
  fastmine_add_kernels(${isa} ${FASTMINE_CPU_KERNELS})
  target_compile_definitions(fastmine_kernels_${isa} PRIVATE FASTMINE_ISA_NAMESPACE=${isa})
  target_compile_options(fastmine_kernels_${isa} PRIVATE ${ARGN})
endfunction()

fastmine_add_kernels(common ${FASTMINE_COMMON_KERNELS})
fastmine_add_isa(baseline)
if(FASTMINE_SANITIZE STREQUAL "thread")
  # Who runs a task, and when, does not depend on the instruction set: one of them is enough.
  target_compile_definitions(fastmine_kernels_common PRIVATE FASTMINE_BASELINE_ALONE)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(avx2 -mavx2 -mfma -mf16c -mbmi -mbmi2)
  if(FASTMINE_SANITIZE STREQUAL "address")
    # Whether pointers wrap around, a fifth of the time of compiling, and whether whole numbers do, which takes vectors of
    # them apart, is asked of one of the binaries of a source.
    list(APPEND avx2 -fno-sanitize=pointer-overflow,signed-integer-overflow)
  endif()
  fastmine_add_isa(avx2 ${avx2})
  set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
  fastmine_add_isa(avx512 ${avx512})
  # AVX-512 and a matrix unit, for what multiplies all rows with all.
  set(amx ${avx512} -mamx-tile -mamx-bf16 -mamx-int8)
  fastmine_add_kernels(amx
    csrc/kernels/cpu/table.cpp
    csrc/kernels/cpu/batch_hard.cpp
    csrc/kernels/cpu/pair_sums.cpp
    csrc/kernels/cpu/pair_sums_backward.cpp
    csrc/kernels/cpu/batch_all.cpp
    csrc/kernels/cpu/batch_all_backward.cpp)
  target_compile_definitions(fastmine_kernels_amx PRIVATE FASTMINE_ISA_NAMESPACE=amx FASTMINE_ISA_EXTENDS=avx512)
  target_compile_options(fastmine_kernels_amx PRIVATE ${amx})
endif()
