// Problems for the segmentation kernels: what they are made of, the arrays that hold them, and float64 arithmetic for
// what they should come to.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>

#include "check.h"
#include "elements.h"
#include "kernels/segmentation_loss.h"

namespace fastmine::test {

inline constexpr DType kTargets[] = {DType::bool_, DType::uint8,   DType::int8,    DType::int16,    DType::int32,
                                     DType::int64, DType::float32, DType::float64, DType::bfloat16, DType::float16};

/// [samples, classes, positions] in any layout, with memory around each element that must not be read as one.
class Array {
 public:
  Array(DType type, std::int64_t samples, std::int64_t classes, std::int64_t positions, int layout) : type_(type) {
    switch (layout) {
      case 0:  // contiguous
        stride_[0] = classes * positions, stride_[1] = positions, stride_[2] = 1;
        break;
      case 1:  // channels last
        stride_[0] = classes * positions, stride_[1] = 1, stride_[2] = classes;
        break;
      case 2:  // every third element, backwards
        stride_[0] = 3 * classes * positions + 5, stride_[1] = 3 * positions, stride_[2] = -3;
        first_ = 3 * positions;
        break;
      case 4:  // rows in order, each with room after it up to whole packs
        stride_[1] = (positions + 7) / 8 * 8, stride_[0] = classes * stride_[1], stride_[2] = 1;
        break;
      default:  // samples innermost
        stride_[0] = 1, stride_[1] = samples * positions, stride_[2] = samples;
        break;
    }
    const std::int64_t longest =
        samples * std::abs(stride_[0]) + classes * std::abs(stride_[1]) + positions * std::abs(stride_[2]) + first_ + 8;
    bytes_.assign(static_cast<std::size_t>(longest) * size_of(type), 0xff);
  }
  void set(std::int64_t b, std::int64_t c, std::int64_t s, double value) { put(at(b, c, s), type_, value); }
  Grid grid() const {
    return {
        bytes_.data() + static_cast<std::size_t>(first_) * size_of(type_), type_, {stride_[0], stride_[1], stride_[2]}};
  }

 private:
  unsigned char* at(std::int64_t b, std::int64_t c, std::int64_t s) {
    const std::int64_t element = first_ + b * stride_[0] + c * stride_[1] + s * stride_[2];
    return bytes_.data() + static_cast<std::size_t>(element) * size_of(type_);
  }
  DType type_;
  std::int64_t stride_[3] = {}, first_ = 0;
  std::vector<unsigned char> bytes_;
};

/// What a problem reads: its shape, and the values that the arrays hold.
struct InputCase {
  std::string name;
  SegmentationMode mode = SegmentationMode::binary;
  std::int64_t samples = 1, classes = 1, positions = 1;
  DType logits = DType::float32, target = DType::uint8;
  int layout = 0;
  int validity = 0;      // 0 none given, 1 all, 2 half, 3 by sample, 4 nothing, 5 one item
  bool ignores = false;  // every other invalid item says so by its target alone, which is
  std::int64_t ignored = 99;
  bool soft = false;           // floating targets between 0 and 1
  std::size_t soft_every = 1;  // where soft: in one of so many packs of eight
  double scale = 4;            // of the logits
  double target_share = 0.3;

  std::vector<double> x{}, t{};
  std::vector<bool> v{};

  bool softmax() const { return mode == SegmentationMode::multiclass; }
  std::int64_t target_classes() const { return softmax() ? 1 : classes; }
  std::size_t at(std::int64_t b, std::int64_t c, std::int64_t s) const {
    return static_cast<std::size_t>((b * classes + c) * positions + s);
  }
  std::size_t target_at(std::int64_t b, std::int64_t c, std::int64_t s) const {
    return softmax() ? at(b, 0, s) : at(b, c, s);
  }
};

inline void fill(InputCase& c, std::uint64_t seed) {
  Random random(seed);
  const auto n = static_cast<std::size_t>(c.samples * c.classes * c.positions);
  c.x.assign(n, 0), c.t.assign(n, 0), c.v.assign(n, true);
  for (std::size_t i = 0; i < n; ++i) {
    c.x[i] = std::round(random() * 128 - 64) / 64 * c.scale;  // few digits: every type holds it
    c.t[i] = c.softmax() ? static_cast<double>(random.below(
                               c.target == DType::bool_ ? std::min<std::int64_t>(c.classes, 2) : c.classes))
             : c.soft && i / 8 % c.soft_every == 0 ? static_cast<double>(random.below(65)) / 64
                                                   : static_cast<double>(random() < c.target_share);
  }
  const std::int64_t one = random.below(std::max<std::int64_t>(c.positions, 1));
  for (std::int64_t b = 0; b < c.samples; ++b) {
    for (std::int64_t k = 0; k < c.classes; ++k) {
      for (std::int64_t s = 0; s < c.positions; ++s) {
        const bool coin = random() < 0.5;
        const bool flags[] = {true, true, coin, b % 2 == 1, false, s == one};
        c.v[c.target_at(b, k, s)] = flags[c.validity];
      }
    }
  }
}

inline double sigmoid(double x) { return x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x)); }
inline double softplus(double x) { return std::fmax(x, 0) + std::log1p(std::exp(-std::fabs(x))); }

/// The arrays of a problem. Invalid items hold NaN, and targets out of range.
struct Arrays {
  explicit Arrays(const InputCase& of)
      : c(of),
        logits(c.logits, c.samples, c.classes, c.positions, c.layout),
        target(c.target, c.samples, c.target_classes(), c.positions, c.layout == 0 ? 0 : (c.layout + 1) % 4),
        valid(DType::bool_, c.samples, c.target_classes(), c.positions, c.layout == 0 ? 0 : (c.layout + 2) % 4) {
    for (std::int64_t b = 0; b < c.samples; ++b) {
      for (std::int64_t k = 0; k < c.classes; ++k) {
        for (std::int64_t s = 0; s < c.positions; ++s) {
          const bool seen = c.v[c.target_at(b, k, s)], ignored = c.ignores && s % 2 == 0;
          logits.set(b, k, s, seen ? c.x[c.at(b, k, s)] : kNan);
          if (k < c.target_classes()) {
            target.set(b, k, s,
                       seen                             ? c.t[c.target_at(b, k, s)]
                       : c.target == DType::bool_       ? 1
                       : is_float(c.target) && !ignored ? kNan
                                                        : static_cast<double>(c.ignored));
            valid.set(b, k, s, seen || ignored ? 1 : 0);
          }
        }
      }
    }
  }

  SegmentationInputs inputs() const {
    return {logits.grid(), target.grid(), c.validity == 0 ? Grid{nullptr, DType::bool_, {}} : valid.grid(),
            c.samples,     c.classes,     c.positions,
            c.mode,        nullptr,       c.ignores,
            c.ignored};
  }

  const InputCase& c;
  Array logits, target, valid;
};

/// p_k and log p_k of a softmax at one position.
inline std::vector<double> log_softmax(const InputCase& c, std::int64_t b, std::int64_t s) {
  double largest = -kInf, total = 0;
  for (std::int64_t k = 0; k < c.classes; ++k) {
    largest = std::fmax(largest, c.x[c.at(b, k, s)]);
  }
  for (std::int64_t k = 0; k < c.classes; ++k) {
    total += std::exp(c.x[c.at(b, k, s)] - largest);
  }
  std::vector<double> log_p;
  for (std::int64_t k = 0; k < c.classes; ++k) {
    log_p.push_back(c.x[c.at(b, k, s)] - largest - std::log(total));
  }
  return log_p;
}

/// The probability of the other classes, which does not cancel as 1 - p does.
inline double others(const std::vector<double>& p, std::size_t y) {
  double q = 0;
  for (std::size_t k = 0; k < p.size(); ++k) {
    q += k == y ? 0 : p[k];
  }
  return q;
}

/// Element by element: relative error, above a floor that is relative to the largest.
inline bool close(const std::vector<double>& want, const std::function<double(std::size_t)>& got, double relative,
                  double floor) {
  double largest = 0;
  for (const double value : want) {
    largest = std::fmax(largest, std::fabs(value));
  }
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double error = std::fabs(got(i) - want[i]);
    if (!(error <= relative * std::fabs(want[i]) + floor * largest)) {
      return false;
    }
  }
  return true;
}

inline std::string describe(const InputCase& c) {
  return "mode " + std::to_string(static_cast<int>(c.mode)) + " [" + std::to_string(c.samples) + ", " +
         std::to_string(c.classes) + ", " + std::to_string(c.positions) + "] logits " +
         std::to_string(static_cast<int>(c.logits)) + " target " + std::to_string(static_cast<int>(c.target)) +
         " layout " + std::to_string(c.layout) + " validity " + std::to_string(c.validity) + (c.soft ? " soft" : "") +
         (c.ignores ? " ignores" : "");
}

inline constexpr SegmentationMode kModes[] = {SegmentationMode::binary, SegmentationMode::multilabel,
                                              SegmentationMode::multiclass};

}  // namespace fastmine::test
