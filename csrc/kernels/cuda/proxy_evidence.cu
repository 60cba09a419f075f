#include "kernels/cuda/proxy_evidence.h"

#include "kernels/cuda/rows.cuh"

namespace fastmine::cuda {
namespace {

using namespace mining;

/// Blocks add up the fields themselves; anchors and the norm of the sum are known at the end.
constexpr int kFields = static_cast<int>(Proxy::count);

struct EvidenceWork {
  ProxyEvidence problem;
  RowSet x;
  std::int32_t* seen;  // [classes]: how many valid rows have been counted of each
  double* parts;       // [blocks, kFields]

  /// Of kThreads rows and as many class vectors each.
  FASTMINE_HOST_DEVICE std::int64_t blocks() const {
    return divide_up(problem.x.n > problem.vectors ? problem.x.n : problem.vectors, kThreads);
  }
};

EvidenceWork lay_out(const ProxyEvidence& problem, Arena& arena) {
  EvidenceWork work{};
  work.problem = problem;
  work.x.rows = problem.x;
  work.x.valid = problem.valid;
  work.x.metric = Metric::euclidean;
  work.x.kind = arena.take<std::uint8_t>(problem.x.n);
  work.x.norm = arena.take<double>(problem.x.n);
  work.x.squared = arena.take<double>(problem.x.n);
  work.x.raw_sums = arena.take<double>(work.x.blocks() * problem.x.d);
  work.seen = arena.take<std::int32_t>(problem.classes);
  work.parts = arena.take<double>(work.blocks() * kFields);
  return work;
}

/// One block: some rows, and the sum of those that take part and are finite.
template <class S>
FASTMINE_KERNEL(kThreads, 2)
look_at_batch(FASTMINE_PARAMETER EvidenceWork work) {
  const RowSet& set = work.x;
  const std::int64_t first = block_index() * set.block(), rest = set.rows.n - first, d = set.rows.d;
  const std::int64_t rows = rest < set.block() ? rest : set.block();
  for (std::int64_t r = warp_index(); r < rows; r += kWarps) {
    look_at_row<S>(set, first + r);
  }
  barrier();
  for (std::int64_t k = thread_index(); k < d; k += kThreads) {
    double sum = 0;
    for (std::int64_t i = first; i < first + rows; ++i) {
      if ((set.kind[i] & (kSkipped | kPoisoned)) == 0) {
        sum += value_of<double>(row_of<S>(set.rows, i)[k]);
      }
    }
    set.raw_sums[block_index() * d + k] = sum;
  }
}

/// One thread: nothing has been seen of a class.
FASTMINE_KERNEL(kThreads, 2)
clear_classes(FASTMINE_PARAMETER EvidenceWork work) {
  const std::int64_t k = block_index() * kThreads + thread_index();
  if (k < work.problem.classes) {
    work.seen[k] = 0;
  }
}

FASTMINE_DEVICE double combine_field(int field, double a, double b) {
  switch (static_cast<Proxy>(field)) {
    case Proxy::positive_distance_max:
      return a != a || a > b ? a : b;
    case Proxy::negative_distance_min:
      return a != a || a < b ? a : b;
    default:
      return a + b;
  }
}

/// The fields while they are added up.
struct Fields {
  double value[kFields];

  FASTMINE_DEVICE Fields() {
    FASTMINE_UNROLL for (int field = 0; field < kFields; ++field) { value[field] = 0; }
    (*this)[Proxy::positive_distance_max] = -static_cast<double>(__builtin_inf());
    (*this)[Proxy::negative_distance_min] = static_cast<double>(__builtin_inf());
  }
  FASTMINE_DEVICE double& operator[](Proxy field) { return value[static_cast<int>(field)]; }
};

/// What row i adds; W is the type of the cosines. A class counts for the first of its rows to come: which that is may
/// change, but not how many there are.
template <class W>
FASTMINE_DEVICE void count_row(const EvidenceWork& work, std::int64_t i, Fields& fields) {
  const ProxyEvidence& q = work.problem;
  const std::uint8_t kind = work.x.kind[i];
  const std::int64_t label = q.labels[i];
  const bool finite = (kind & kPoisoned) == 0, in_range = label >= 0 && label < q.classes;
  fields[Proxy::admitted] = 1;
  fields[Proxy::zero_rows] = (kind & kZero) != 0 ? 1 : 0;
  fields[Proxy::nonfinite_rows] = finite ? 0 : 1;
  fields[Proxy::negative_labels] = label < 0 ? 1 : 0;
  fields[Proxy::out_of_range] = in_range ? 0 : 1;
  fields[Proxy::norm_squared_sum] = finite ? work.x.squared[i] : 0;
  if (!in_range) {
    return;
  }
  const auto d_p = static_cast<double>(1 - static_cast<const W*>(q.cosine)[i]);
  const auto d_n = static_cast<double>(1 - static_cast<const W*>(q.nearest_other)[i]);
  fields[Proxy::valid] = 1;
  fields[Proxy::hard] = d_n < d_p ? 1 : 0;
  fields[Proxy::active] = q.active[i] ? 1 : 0;
  fields[Proxy::weight_sum] = q.weight == nullptr ? 1 : static_cast<double>(static_cast<const W*>(q.weight)[i]);
  fields[Proxy::positive_distance_sum] = fields[Proxy::positive_distance_max] = d_p;
  fields[Proxy::negative_distance_sum] = fields[Proxy::negative_distance_min] = d_n;
  fields[Proxy::classes] = atomic_next(&work.seen[label]) == 0 ? 1 : 0;
}

/// One block: kThreads rows and class vectors.
FASTMINE_KERNEL(kThreads, 2)
count_batch(FASTMINE_PARAMETER EvidenceWork work) {
  FASTMINE_SHARED(double, shared, kWarps* kFields);
  const ProxyEvidence& q = work.problem;
  const std::int64_t i = block_index() * kThreads + thread_index();
  Fields fields;
  if (i < q.x.n && takes_part(work.x, i)) {
    q.dtype == DType::float64 ? count_row<double>(work, i, fields) : count_row<float>(work, i, fields);
  }
  if (i < q.vectors) {
    const double norm = q.vector_norm[i];
    fields[Proxy::nonfinite_refs] = norm - norm == 0 ? 0 : 1;
    fields[Proxy::zero_refs] = norm == 0 ? 1 : 0;
  }
  const double part = combine_block(fields.value, shared, &combine_field);
  if (thread_index() < kFields) {
    work.parts[block_index() * kFields + thread_index()] = part;
  }
}

/// One block: the evidence.
FASTMINE_KERNEL(kThreads, 2)
write_batch(FASTMINE_PARAMETER EvidenceWork work) {
  FASTMINE_SHARED(double, shared, kWarps* kFields);
  FASTMINE_SHARED(double, all, kFields);
  const ProxyEvidence& q = work.problem;
  Fields fields;
  for (std::int64_t block = thread_index(); block < work.blocks(); block += kThreads) {
    FASTMINE_UNROLL for (int field = 0; field < kFields; ++field) {
      fields.value[field] = combine_field(field, fields.value[field], work.parts[block * kFields + field]);
    }
  }
  for (std::int64_t k = thread_index(); k < q.x.d; k += kThreads) {
    double total = 0;
    for (std::int64_t block = 0; block < work.x.blocks(); ++block) {
      total += work.x.raw_sums[block * q.x.d + k];
    }
    fields[Proxy::sum_norm_squared] += total * total;
  }
  const double sum = combine_block(fields.value, shared, &combine_field);
  if (thread_index() < kFields) {
    all[thread_index()] = sum;
  }
  barrier();
  if (thread_index() < kFields) {
    const auto at = [&](Proxy field) { return all[static_cast<int>(field)]; };
    const auto field = static_cast<Proxy>(thread_index());
    const bool extreme = field == Proxy::positive_distance_max || field == Proxy::negative_distance_min;
    q.evidence[thread_index()] = field == Proxy::anchors            ? static_cast<double>(q.x.n)
                                 : field == Proxy::has_positive     ? at(Proxy::valid)
                                 : field == Proxy::has_negative     ? at(Proxy::admitted)
                                 : extreme && at(Proxy::valid) == 0 ? 0
                                                                    : at(field);
  }
}

template <class S>
cudaError_t run(const EvidenceWork& work, cudaStream_t stream) {
  Launches launches(stream);
  launches(&clear_classes, divide_up(work.problem.classes, kThreads), kThreads, work);
  launches(&look_at_batch<S>, work.x.blocks(), kThreads, work);
  launches(&count_batch, work.blocks(), kThreads, work);
  launches(&write_batch, 1, kThreads, work);
  return launches.status();
}

}  // namespace

std::size_t proxy_evidence_workspace(const ProxyEvidence& q) noexcept {
  Arena arena(nullptr);
  lay_out(q, arena);
  return arena.used();
}

cudaError_t proxy_evidence(const ProxyEvidence& q, void* workspace, cudaStream_t stream) noexcept {
  Arena arena(workspace);
  const EvidenceWork work = lay_out(q, arena);
  switch (q.x.dtype) {
    case DType::float32:
      return run<float>(work, stream);
    case DType::float64:
      return run<double>(work, stream);
    case DType::bfloat16:
      return run<BFloat16>(work, stream);
    case DType::float16:
      return run<Half>(work, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace fastmine::cuda
