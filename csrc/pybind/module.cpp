// fastmine._native: the kernels for NumPy arrays, and what this build is. Free of torch.
#include <cstdlib>
#include <string>
#include <vector>

#include <pybind11/stl.h>

#include "pybind/bindings.h"

namespace fastmine {
namespace {

namespace py = pybind11;

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (std::size_t i = 0; const cpu::KernelTable* table = cpu::compiled(i); ++i) {
    names.emplace_back(table->isa);
  }
  return names;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (std::size_t i = 0; const cpu::KernelTable* table = cpu::compiled(i); ++i) {
    if (cpu::supported(*table)) {
      names.emplace_back(table->isa);
    }
  }
  return names;
}

}  // namespace

const cpu::KernelTable& kernels() {
  static const cpu::KernelTable& table = []() -> const cpu::KernelTable& {
    const char* requested = std::getenv("FASTMINE_ISA");
    if (const cpu::KernelTable* selected = cpu::select(requested)) {
      return *selected;
    }
    std::string names;
    for (const std::string& name : available_isas()) {
      names += (names.empty() ? "" : ", ") + name;
    }
    throw py::value_error("FASTMINE_ISA=" + std::string(requested) + ", but this build and CPU have: " + names +
                          ". Unset it to use the first.");
  }();
  return table;
}

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = FASTMINE_VERSION;
  info["compiler"] = FASTMINE_COMPILER;
  info["build_type"] = FASTMINE_BUILD_TYPE;
  info["kernel_flags"] = FASTMINE_KERNEL_FLAGS;
  info["pybind11"] = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(
      PYBIND11_VERSION_MINOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_PATCH);
  return info;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "fastmine's CPU kernels for NumPy arrays, and what this build is.";
  m.attr("__version__") = FASTMINE_VERSION;
  m.def(
      "isa", [] { return kernels().isa; },
      "The instruction set in use: the best one here, or the one that FASTMINE_ISA names (ValueError if there is "
      "none).");
  m.def("available_isas", &available_isas, "The compiled instruction sets that this CPU can run, best first.");
  m.def("compiled_isas", &compiled_isas, "The instruction sets this build was compiled for, best first.");
  bind_embeddings(m);
  bind_segmentation_loss(m);
  m.def("build_info", &build_info, "Version, compiler, build type and kernel flags of this build.");
}

}  // namespace fastmine
