# Sets FASTMINE_TORCH_INCLUDE_DIR to the headers of an installed torch >= 2.10, or stops with what to type.
# find_package(Torch) is not used: it wants CUDA, protobuf and the libraries, and all we need is headers.

if(FASTMINE_TORCH_INCLUDE)
  set(FASTMINE_TORCH_INCLUDE_DIR "${FASTMINE_TORCH_INCLUDE}")
else()
  execute_process(
    COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_LIST_DIR}/find_torch_include.py"
    OUTPUT_VARIABLE FASTMINE_TORCH_INCLUDE_DIR
    OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
endif()

# CMake re-wraps a message except for lines that begin with a space.
set(how_to_get_torch
    "
  fastmine compiles against the torch that it will run with and never downloads one:
  yours decides between CPU and CUDA. Type this, then repeat what you did:
      ${Python_EXECUTABLE} -m pip install torch==2.13.0
  torch is elsewhere, or hidden (python -m build, uv): FASTMINE_TORCH_INCLUDE=.../torch/include
  no torch ops, only the slower PyTorch reference:     FASTMINE_TORCH=OFF
  Either is a CMake variable: -D before it; through pip, -C cmake.define. before it.")

set(version_header "${FASTMINE_TORCH_INCLUDE_DIR}/torch/headeronly/version.h")
if(NOT EXISTS "${version_header}")
  message(FATAL_ERROR "No headers of torch >= 2.10 found.${how_to_get_torch}")
endif()
file(READ "${version_header}" text)
string(REGEX MATCH "VERSION_MAJOR ([0-9]+).*VERSION_MINOR ([0-9]+)" match "${text}")
set(torch_version "${CMAKE_MATCH_1}.${CMAKE_MATCH_2}")
if(torch_version VERSION_LESS 2.10)
  message(FATAL_ERROR "torch ${torch_version} in ${FASTMINE_TORCH_INCLUDE_DIR} is older than 2.10.${how_to_get_torch}")
endif()
message(STATUS "torch ${torch_version} headers: ${FASTMINE_TORCH_INCLUDE_DIR}")
