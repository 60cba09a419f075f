# fastmine_torch_cuda.so: the CUDA kernels and their ops, a library of its own on the LibTorch stable ABI. It needs nvcc
# and torch's headers (those of a CPU-only torch will do), no GPU and no CUDA build of torch; it holds the CUDA runtime.
#
# FASTMINE_CUDA=AUTO builds it where nvcc is found and the torch found is a CUDA build, ON insists, OFF leaves it out.

set(fastmine_build_cuda OFF)
if(FASTMINE_CUDA STREQUAL "ON")
  set(fastmine_build_cuda ON)
elseif(FASTMINE_CUDA STREQUAL "AUTO")
  set(torch_version_file "${FASTMINE_TORCH_INCLUDE_DIR}/../version.py")
  set(torch_cuda "")
  if(EXISTS "${torch_version_file}")
    file(STRINGS "${torch_version_file}" torch_cuda REGEX "^cuda[^=]*= *['\"]")
  endif()
  find_program(FASTMINE_NVCC nvcc PATHS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
  if(NOT torch_cuda)
    message(STATUS "CUDA kernels: left out, the torch found is not a CUDA build (FASTMINE_CUDA=ON builds them anyway)")
  elseif(NOT FASTMINE_NVCC)
    message(STATUS "CUDA kernels: left out, no nvcc found (put it on PATH, or set CUDA_HOME)")
  else()
    set(fastmine_build_cuda ON)
  endif()
elseif(NOT FASTMINE_CUDA STREQUAL "OFF")
  message(FATAL_ERROR "FASTMINE_CUDA is AUTO, ON or OFF, not '${FASTMINE_CUDA}'.")
endif()

if(fastmine_build_cuda)
  if(FASTMINE_NVCC AND NOT CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_COMPILER "${FASTMINE_NVCC}")
  endif()
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES "${FASTMINE_CUDA_ARCHITECTURES}")
  endif()
  # All: nvcc's front end, half of its time, runs once, for PTX of compute_80; every GPU has code made of it, and the PTX
  # is there for later ones.
  set(fastmine_every_gpu OFF)
  if(CMAKE_CUDA_ARCHITECTURES STREQUAL "all")
    set(fastmine_every_gpu ON)
    set(CMAKE_CUDA_ARCHITECTURES OFF)
  endif()
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)

  # A kernel that spills registers is a mistake, found here and not on somebody's GPU.
  add_library(
    fastmine_kernels_cuda OBJECT
    csrc/kernels/cuda/batch_all.cu
    csrc/kernels/cuda/batch_all_backward.cu
    csrc/kernels/cuda/batch_all_formula.cu
    csrc/kernels/cuda/batch_hard.cu
    csrc/kernels/cuda/batch_hard_backward.cu
    csrc/kernels/cuda/lovasz_shares.cu
    csrc/kernels/cuda/margin_softmax.cu
    csrc/kernels/cuda/mined_pairs.cu
    csrc/kernels/cuda/pair_sums.cu
    csrc/kernels/cuda/pair_sums_backward.cu
    csrc/kernels/cuda/pairwise_distance.cu
    csrc/kernels/cuda/proxy_evidence.cu
    csrc/kernels/cuda/segmentation_loss.cu
    csrc/kernels/cuda/segmentation_sums.cu
    csrc/kernels/cuda/segmentation_terms.cu
    csrc/kernels/cuda/selective_terms.cu
    csrc/kernels/cuda/triplet_loss.cu
    csrc/kernels/cuda/triplet_terms.cu)
  target_include_directories(fastmine_kernels_cuda PRIVATE csrc)
  target_compile_options(
    fastmine_kernels_cuda PRIVATE --expt-relaxed-constexpr -Xptxas=-warn-spills,-warn-lmem-usage -Xfatbin=-compress-all
                                  "-Xcompiler=-Wall,-Wextra,-ffile-prefix-map=${PROJECT_SOURCE_DIR}/=")

  add_library(
    fastmine_torch_cuda MODULE
    csrc/torch/cuda/library.cpp
    csrc/torch/cuda/batch_all.cpp
    csrc/torch/cuda/batch_hard.cpp
    csrc/torch/cuda/lovasz_shares.cpp
    csrc/torch/cuda/margin_softmax.cpp
    csrc/torch/cuda/mined_pairs.cpp
    csrc/torch/cuda/pair_sums.cpp
    csrc/torch/cuda/pairwise_distance.cpp
    csrc/torch/cuda/proxy_evidence.cpp
    csrc/torch/cuda/segmentation_loss.cpp
    csrc/torch/cuda/segmentation_sums.cpp
    csrc/torch/cuda/segmentation_terms.cpp
    csrc/torch/cuda/selective_terms.cpp
    csrc/torch/cuda/triplet_terms.cpp)
  fastmine_configure_torch_library(fastmine_torch_cuda)
  set(compiled_for "${CMAKE_CUDA_ARCHITECTURES}")
  if(fastmine_every_gpu)
    set(compiled_for 80-real 86-real 90-real 90a-real 80-virtual) # 89 runs the code of 86, and its own would be the same
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
      list(APPEND compiled_for 100-real 120-real)
    endif()
  endif()
  list(JOIN compiled_for "," compiled_for_list)
  target_compile_definitions(fastmine_torch_cuda PRIVATE USE_CUDA FASTMINE_CUDA_COMPILED_FOR="${compiled_for_list}")
  target_include_directories(fastmine_torch_cuda SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  target_link_options(fastmine_torch_cuda PRIVATE -Wl,--exclude-libs,ALL)
  target_link_libraries(fastmine_torch_cuda PRIVATE $<TARGET_OBJECTS:fastmine_kernels_cuda> CUDA::cudart_static)

  # Only mining has code for what one architecture has alone: its code for Hopper comes from a front end of its own.
  if(fastmine_every_gpu)
    get_target_property(sources fastmine_kernels_cuda SOURCES)
    foreach(source IN LISTS sources)
      set(gpus "${compiled_for}")
      list(FILTER gpus INCLUDE REGEX "^[0-9]+-real$")
      set(own "")
      if(source MATCHES "/batch_hard\\.cu$")
        list(REMOVE_ITEM gpus 90-real)
        set(own --generate-code=arch=compute_90a,code=sm_90a)
      endif()
      list(TRANSFORM gpus REPLACE "^([0-9]+)-real$" "sm_\\1" OUTPUT_VARIABLE code)
      list(JOIN code "," code)
      set_property(
        SOURCE "${source}" APPEND PROPERTY COMPILE_OPTIONS "--generate-code=arch=compute_80,code=[${code},compute_80]"
                                           ${own})
    endforeach()
  endif()

  message(STATUS "CUDA kernels: nvcc ${CMAKE_CUDA_COMPILER_VERSION} for ${compiled_for_list}")
endif()
