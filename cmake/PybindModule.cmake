# fastmine._native: the NumPy entry points and build information. Free of torch; one per CPython.

if(NOT Python_Development.Module_FOUND)
  message(FATAL_ERROR "${Python_EXECUTABLE} has no Python.h. Install its development headers
(Debian and Ubuntu: apt install python3-dev; Fedora: dnf install python3-devel), or configure with -DFASTMINE_PYBIND=OFF.")
endif()
if(NOT SKBUILD) # a plain CMake build: the pybind11 of the interpreter, if there is one
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -m pybind11 --cmakedir
    OUTPUT_VARIABLE pybind11_ROOT
    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
set(PYBIND11_FINDPYTHON ON)
find_package(pybind11 2.13 CONFIG REQUIRED)

pybind11_add_module(_native MODULE csrc/pybind/module.cpp csrc/pybind/embeddings.cpp csrc/pybind/segmentation_loss.cpp)
target_include_directories(_native PRIVATE csrc)
if(NOT FASTMINE_IN_PLACE)
  set_target_properties(_native PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 0)
endif()
string(JOIN " " kernel_flags ${FASTMINE_KERNEL_FLAGS})
target_compile_definitions(
  _native
  PRIVATE "FASTMINE_COMPILER=\"${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}\""
          "FASTMINE_VERSION=\"${PROJECT_VERSION}\"" "FASTMINE_BUILD_TYPE=\"${CMAKE_BUILD_TYPE}\""
          "FASTMINE_KERNEL_FLAGS=\"${kernel_flags}\"")
target_link_libraries(_native PRIVATE fastmine_kernels)
