// pairwise_distance and batch_hard on NumPy arrays. python/fastmine/numpy.py validates and makes rows dense.
#include <optional>
#include <string>

#include <pybind11/stl.h>

#include "kernels/batch_hard.h"
#include "kernels/pairwise_distance.h"
#include "kernels/triplet_loss.h"
#include "pybind/bindings.h"
#include "pybind/threads.h"

namespace fastmine {
namespace {

namespace py = pybind11;

using Labels = py::array_t<std::int64_t, py::array::c_style>;
using Flags = py::array_t<bool, py::array::c_style>;

Rows rows_of(const py::array& x) {
  const char kind = x.dtype().kind();
  const auto bytes = x.itemsize();
  if (x.ndim() != 2 || kind != 'f' || (bytes != 2 && bytes != 4 && bytes != 8) ||
      (x.size() > 0 && x.shape(1) > 1 && x.strides(1) != bytes)) {
    throw py::value_error("expected a matrix of float16, float32 or float64 with dense rows");
  }
  const DType type = bytes == 2 ? DType::float16 : bytes == 4 ? DType::float32 : DType::float64;
  return {x.data(), type, x.shape(0), x.shape(1), x.strides(0) / bytes};
}

Metric metric_of(const std::string& name) {
  if (name == "euclidean") return Metric::euclidean;
  if (name == "sqeuclidean") return Metric::sqeuclidean;
  if (name == "cosine") return Metric::cosine;
  if (name == "dot") return Metric::dot;
  throw py::value_error("unknown metric " + name);
}

py::array pairwise_distance(const py::array& x, const std::optional<py::array>& y, const std::string& metric,
                            int threads) {
  PairwiseDistance problem{};
  problem.x = rows_of(x);
  problem.y = y ? rows_of(*y) : problem.x;
  problem.self = !y;
  problem.metric = metric_of(metric);
  const bool wide = problem.x.dtype == DType::float64;
  if (problem.x.d != problem.y.d || problem.x.dtype != problem.y.dtype) {
    throw py::value_error("x and y do not match");
  }
  const py::dtype type = wide ? py::dtype::of<double>() : py::dtype::of<float>();
  py::array distance(type, {problem.x.n, problem.y.n});
  problem.distance = distance.mutable_data();
  const auto& kernel = *kernels().pairwise_distance[wide];
  const py::gil_scoped_release unlocked;
  run(kernel, problem, threads);
  return distance;
}

py::tuple batch_hard(const py::array& x, const Labels& labels, const std::optional<Flags>& valid,
                     const std::optional<py::array>& y, const std::optional<Labels>& ref_labels,
                     const std::optional<Flags>& ref_valid, const std::string& metric, bool easiest_positive,
                     bool semi_hard_negative, int threads) {
  BatchHard problem{};
  problem.x = rows_of(x);
  problem.self = !y;
  problem.y = y ? rows_of(*y) : problem.x;
  const Labels& other_labels = y ? ref_labels.value() : labels;
  const std::optional<Flags>& other_valid = y ? ref_valid : valid;
  const auto fits = [](const auto& array, const Rows& rows) { return array.ndim() == 1 && array.shape(0) == rows.n; };
  if (problem.x.d != problem.y.d || problem.x.dtype != problem.y.dtype || !fits(labels, problem.x) ||
      !fits(other_labels, problem.y) || (valid && !fits(*valid, problem.x)) ||
      (other_valid && !fits(*other_valid, problem.y))) {
    throw py::value_error("embeddings, labels and masks do not match");
  }
  problem.labels = labels.data();
  problem.valid = valid ? valid->data() : nullptr;
  problem.ref_labels = other_labels.data();
  problem.ref_valid = other_valid ? other_valid->data() : nullptr;
  problem.metric = metric_of(metric);
  problem.easiest_positive = easiest_positive;
  problem.semi_hard_negative = semi_hard_negative;

  const std::int64_t n = problem.x.n;
  py::array_t<std::int64_t> positive_index(n), negative_index(n);
  py::array_t<double> positive_distance(n), negative_distance(n), evidence(static_cast<py::ssize_t>(Mining::count));
  py::array_t<bool> has_positive(n), has_negative(n);
  problem.positive_index = positive_index.mutable_data();
  problem.negative_index = negative_index.mutable_data();
  problem.positive_distance = positive_distance.mutable_data();
  problem.negative_distance = negative_distance.mutable_data();
  problem.has_positive = has_positive.mutable_data();
  problem.has_negative = has_negative.mutable_data();
  problem.evidence = evidence.mutable_data();
  const auto& kernel = *kernels().batch_hard[problem.x.dtype == DType::float64];
  {
    const py::gil_scoped_release unlocked;
    run(kernel, problem, threads);
  }
  return py::make_tuple(positive_index, negative_index, positive_distance, negative_distance, has_positive,
                        has_negative, evidence);
}

py::tuple mining_fields() {
  py::list names;
  for (const char* name : kMiningFields) {
    names.append(name);
  }
  return py::tuple(names);
}

}  // namespace

void bind_embeddings(py::module_& m) {
  m.attr("MINING_FIELDS") = mining_fields();
  m.def("pairwise_distance", &pairwise_distance, py::arg("x"), py::arg("y").none(true), py::arg("metric"),
        py::arg("threads"), "See fastmine.numpy.pairwise_distance.");
  m.def("batch_hard", &batch_hard, py::arg("embeddings"), py::arg("labels"), py::arg("valid").none(true),
        py::arg("ref_embeddings").none(true), py::arg("ref_labels").none(true), py::arg("ref_valid").none(true),
        py::arg("metric"), py::arg("easiest_positive"), py::arg("semi_hard_negative"), py::arg("threads"),
        "See fastmine.numpy.batch_hard.");
}

}  // namespace fastmine
