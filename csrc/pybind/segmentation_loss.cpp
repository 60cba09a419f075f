// segmentation_sums: the reductions behind the segmentation losses, on NumPy arrays read where they lie.
#include "kernels/segmentation_loss.h"

#include <optional>
#include <string>
#include <vector>

#include <pybind11/stl.h>

#include "pybind/bindings.h"
#include "pybind/threads.h"

namespace fastmine {
namespace {

namespace py = pybind11;

using Shape = std::vector<std::int64_t>;

Shape shape_of(const py::array& a) { return {a.shape(), a.shape() + a.ndim()}; }

std::string text(const Shape& shape) { return py::str(py::cast(shape)).cast<std::string>(); }

std::string name_of(const py::dtype& type) { return py::str(type).cast<std::string>(); }

/// The kernels' name for a NumPy type, if they read it.
std::optional<DType> dtype_of(const py::dtype& type) {
  const auto bytes = type.itemsize();
  switch (type.kind()) {
    case 'b':
      return DType::bool_;
    case 'f':
      return bytes == 2   ? std::optional(DType::float16)
             : bytes == 4 ? std::optional(DType::float32)
             : bytes == 8 ? std::optional(DType::float64)
                          : std::nullopt;
    case 'i':
      return bytes == 1 ? DType::int8 : bytes == 2 ? DType::int16 : bytes == 4 ? DType::int32 : DType::int64;
    case 'u':
      return bytes == 1 ? std::optional(DType::uint8) : std::nullopt;
    default:
      return std::nullopt;
  }
}

/// An array that the kernels can read: of a type they know, native, aligned, whole elements apart. Copied only if not.
py::array readable(const char* name, const py::array& a) {
  py::dtype type = a.dtype();
  if (type.kind() == 'u' && type.itemsize() > 1) {
    type = py::dtype::of<std::int64_t>();
  }
  if (!dtype_of(type)) {
    throw py::type_error(std::string(name) + " must hold booleans, integers or floats of at most 8 bytes; got " +
                         name_of(a.dtype()));
  }
  bool walks = (a.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0;
  for (py::ssize_t d = 0; d < a.ndim(); ++d) {
    walks = walks && a.strides(d) % a.itemsize() == 0;
  }
  const py::dtype native = type.attr("newbyteorder")("=").cast<py::dtype>();
  if (walks && native.equal(a.dtype())) {
    return a;
  }
  return a.attr("astype")(native, py::arg("order") = "C").cast<py::array>();
}

/// An array whose dimensions from `first` on can be walked with one stride: itself, or a copy where it cannot.
struct Walkable {
  py::array owner;
  Grid grid;
};

/// `sizes` and `strides` (in elements) are those of `a`, or of `a` broadcast.
Walkable walkable(const py::array& a, const Shape& sizes, const Shape& strides, bool has_classes) {
  const std::size_t first = has_classes ? 2 : 1;
  Walkable w{a, {a.data(), *dtype_of(a.dtype()), {strides[0], has_classes ? strides[1] : 0, 0}}};
  const auto dims = static_cast<std::int64_t>(sizes.size() - first);
  if (!collapse(sizes.data() + first, strides.data() + first, dims, w.grid.stride[2])) {
    const py::module_ numpy = py::module_::import("numpy");
    const py::object whole = numpy.attr("broadcast_to")(a, sizes);
    const py::array copy = numpy.attr("ascontiguousarray")(whole).cast<py::array>();
    std::int64_t positions = 1;
    for (std::size_t d = first; d < sizes.size(); ++d) {
      positions *= sizes[d];
    }
    const std::int64_t classes = has_classes ? sizes[1] : 1;
    w = {copy, {copy.data(), w.grid.dtype, {classes * positions, has_classes ? positions : 0, 1}}};
  }
  return w;
}

Shape strides_of(const py::array& a) {
  Shape strides;
  for (py::ssize_t d = 0; d < a.ndim(); ++d) {
    strides.push_back(a.strides(d) / a.itemsize());
  }
  return strides;
}

Walkable walkable(const py::array& a, bool has_classes) { return walkable(a, shape_of(a), strides_of(a), has_classes); }

SegmentationMode mode_of(const std::string& name) {
  if (name == "binary") return SegmentationMode::binary;
  if (name == "multilabel") return SegmentationMode::multilabel;
  if (name == "multiclass") return SegmentationMode::multiclass;
  throw py::value_error("mode must be 'binary', 'multilabel' or 'multiclass'; got '" + name + "'");
}

void check_logits(const py::array& logits, SegmentationMode mode) {
  if (logits.dtype().kind() != 'f' || logits.itemsize() > 8) {
    throw py::type_error("logits must be float16, float32 or float64; got " + name_of(logits.dtype()) +
                         "; use logits.astype(np.float32)");
  }
  const bool softmax = mode == SegmentationMode::multiclass;
  const Shape shape = shape_of(logits);
  if (shape.size() < (mode == SegmentationMode::binary ? 1U : 2U) || (softmax && shape[1] < 2)) {
    throw py::value_error(
        "logits must have shape [B, ...] for binary, [B, C, ...] for multilabel, and at least 2 "
        "classes for multiclass; got " +
        text(shape));
  }
}

void check_target(const py::array& target, Shape expected, SegmentationMode mode) {
  if (mode == SegmentationMode::multiclass) {
    expected.erase(expected.begin() + 1);
    if (target.dtype().kind() == 'f') {
      throw py::type_error("multiclass target must hold integer class indices; got " + name_of(target.dtype()) +
                           "; use target.astype(np.int64)");
    }
  }
  if (shape_of(target) != expected) {
    throw py::value_error("target must have shape " + text(expected) + ", that of logits" +
                          (mode == SegmentationMode::multiclass ? " without the classes" : "") + "; got " +
                          text(shape_of(target)));
  }
}

/// valid [B], [B, C], [B, *S] or [B, C, *S], each 1 also, as the shape of logits (multiclass: with one class).
Walkable walkable_mask(const py::array& valid, const Shape& logits, SegmentationMode mode) {
  if (valid.dtype().kind() != 'b') {
    throw py::type_error("valid must be boolean; got " + name_of(valid.dtype()) + "; use valid > 0");
  }
  Shape shape = logits, sizes = shape_of(valid), strides = strides_of(valid);
  const bool multilabel = mode == SegmentationMode::multilabel;
  if (mode == SegmentationMode::multiclass) {
    shape[1] = 1;
  }
  const bool per_class = sizes.size() == 2 && (sizes[1] == 1 || (multilabel && sizes[1] == shape[1]));
  if (sizes.size() == 1 || per_class) {
    while (sizes.size() < shape.size()) {
      sizes.push_back(1);
      strides.push_back(0);
    }
  } else if (sizes.size() + 1 == shape.size() && (shape[1] == 1 || multilabel)) {  // the same for all classes
    sizes.insert(sizes.begin() + 1, 1);
    strides.insert(strides.begin() + 1, 0);
  }
  bool fits = sizes.size() == shape.size() && sizes[0] == shape[0];
  for (std::size_t d = 0; fits && d < shape.size(); ++d) {
    fits = sizes[d] == 1 || sizes[d] == shape[d];
    if (sizes[d] == 1) {
      strides[d] = 0;
    }
  }
  if (!fits) {
    throw py::value_error("valid must say for each sample [B], each class [B, C] or each element " + text(shape) +
                          " whether it is annotated; got shape " + text(shape_of(valid)));
  }
  // A view of valid with its own dimensions in the right places, so that it can be broadcast if it must be copied.
  const py::array view(valid.dtype(), sizes, strides, valid.data(), valid);
  return walkable(view, shape, strides, mode != SegmentationMode::binary);
}

void check_domain(const double* evidence, std::int64_t classes, SegmentationMode mode) {
  const auto field = [&](Segmentation f) { return evidence[static_cast<int>(f)]; };
  if (field(Segmentation::out_of_range) > 0) {
    const std::string last = mode == SegmentationMode::multiclass ? std::to_string(classes - 1) : "1";
    throw py::value_error("target must lie in 0 .. " + last + " where valid; got " +
                          py::str(py::float_(field(Segmentation::target_min))).cast<std::string>() + " .. " +
                          py::str(py::float_(field(Segmentation::target_max))).cast<std::string>() +
                          "; mark what to ignore with valid, divide masks of 0 and 255 by 255");
  }
}

py::dict segmentation_sums(const py::array& logits_in, const py::array& target_in,
                           const std::optional<py::array>& valid_in, const std::string& mode_name, int threads) {
  const SegmentationMode mode = mode_of(mode_name);
  const bool softmax = mode == SegmentationMode::multiclass, has_classes = mode != SegmentationMode::binary;
  check_logits(logits_in, mode);
  const Shape shape = shape_of(logits_in);
  check_target(target_in, shape, mode);
  const Walkable logits = walkable(readable("logits", logits_in), has_classes);
  const Walkable target = walkable(readable("target", target_in), has_classes && !softmax);
  std::optional<Walkable> valid;
  if (valid_in) {
    valid = walkable_mask(*valid_in, shape, mode);
  }

  SegmentationLoss problem{};
  problem.in.logits = logits.grid;
  problem.in.target = target.grid;
  problem.in.valid = valid ? valid->grid : Grid{nullptr, DType::bool_, {0, 0, 0}};
  problem.in.samples = shape[0];
  problem.in.classes = has_classes ? shape[1] : 1;
  problem.in.positions = 1;
  for (std::size_t d = has_classes ? 2 : 1; d < shape.size(); ++d) {
    problem.in.positions *= shape[d];
  }
  problem.in.mode = mode;
  problem.weights[static_cast<int>(softmax ? SegmentationTerm::ce : SegmentationTerm::bce)] = 1;
  problem.focal = {1, 1, 0};
  problem.empty = EmptyGroups::skip;
  problem.reduction = Reduction::mean;

  const std::int64_t samples = problem.in.samples, classes = problem.in.classes;
  std::vector<double> coefficients(static_cast<std::size_t>(samples * classes * 4));
  std::vector<double> sums(coefficients.size()), entropies(static_cast<std::size_t>(samples * 2));
  double evidence[static_cast<int>(Segmentation::count)], loss = 0;
  problem.loss = &loss;
  problem.loss_dtype = DType::float64;
  problem.coefficients = coefficients.data();
  problem.evidence = evidence;
  problem.sums = sums.data();
  problem.entropies = entropies.data();
  const auto& kernel = *kernels().segmentation_loss[logits.grid.dtype == DType::float64];
  {
    const py::gil_scoped_release unlocked;
    run(kernel, problem, threads);
  }
  check_domain(evidence, classes, mode);

  constexpr auto kDouble = static_cast<py::ssize_t>(sizeof(double));
  const auto column = [&](const std::vector<double>& table, std::ptrdiff_t k, const Shape& sizes,
                          const Shape& strides) {
    return py::array_t<double>(py::array_t<double>(sizes, strides, table.data() + k).attr("copy")());
  };
  const Shape groups{samples, classes}, strides{classes * 4 * kDouble, 4 * kDouble};
  py::dict found;
  found["annotated"] = column(sums, 0, groups, strides);
  found["target"] = column(sums, 1, groups, strides);
  found["prediction"] = column(sums, 2, groups, strides);
  found["overlap"] = column(sums, 3, groups, strides);
  found["cross_entropy"] = column(entropies, 0, {samples}, {2 * kDouble});
  return found;
}

py::tuple segmentation_fields() {
  py::list names;
  for (const char* name : kSegmentationFields) {
    names.append(name);
  }
  return py::tuple(names);
}

}  // namespace

void bind_segmentation_loss(py::module_& m) {
  m.attr("SEGMENTATION_FIELDS") = segmentation_fields();
  m.def("segmentation_sums", &segmentation_sums, py::arg("logits"), py::arg("target"), py::arg("valid").none(true),
        py::arg("mode"), py::arg("threads"), "See fastmine.numpy.segmentation_sums.");
}

}  // namespace fastmine
