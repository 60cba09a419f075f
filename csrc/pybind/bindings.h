// What the parts of fastmine._native share.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "kernels/cpu/dispatch.h"
#include "kernels/dtype.h"

namespace fastmine {

/// The kernels of the best instruction set here, or of the one that FASTMINE_ISA names; chosen at the first call.
const cpu::KernelTable& kernels();

void bind_embeddings(pybind11::module_& m);
void bind_segmentation_loss(pybind11::module_& m);

}  // namespace fastmine
