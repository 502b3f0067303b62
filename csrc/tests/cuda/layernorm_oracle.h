// LayerNorm in double, and how far float32 may be from it.
#pragma once

#include "arrays.h"

namespace fastdistil::tests {

// Numbers in double, each with the error that float32 may make of it.
struct Bounded {
  std::vector<double> values, errors;

  void reserve(std::size_t size) {
    values.reserve(size);
    errors.reserve(size);
  }
  void add(double value, double error) {
    values.push_back(value);
    errors.push_back(error);
  }
};

// Additions one after the other, at most, in a sum over a row: of a thread's numbers, between
// lanes, between warps.
constexpr int kDeepestSum = 32 + 5 + 5;

// Rows of `width` sums, with what their rounding costs; the result is rounded to T.
//
// With u = 2^-24 and k additions in a row, the mean is off by k u mean|s|, a difference by that,
// its own rounding and the sum's; the variance's relative error is twice the root of the mean
// square of these over the deviation, and (k + 2) u. The rest is a rounding per operation.
template <class T>
Bounded layernorm_exactly(const Bounded& sums, const Array<T>& weight, const Array<T>& bias,
                          float eps) {
  constexpr double kU = kFloatRoundoff;
  const std::size_t width = weight.size();
  const auto n = static_cast<double>(width);
  Bounded result;
  result.reserve(sums.values.size());
  for (std::size_t start = 0; start < sums.values.size(); start += width) {
    const double* s = sums.values.data() + start;
    const double* s_errors = sums.errors.data() + start;
    double mean = 0, mean_error = 0, variance = 0, squared_errors = 0;
    for (std::size_t i = 0; i < width; ++i) {
      mean += s[i] / n;
      mean_error += (s_errors[i] + (kDeepestSum + 1) * kU * std::abs(s[i])) / n;
    }
    const auto error_of = [&](std::size_t i) {
      return s_errors[i] + mean_error + kU * std::abs(s[i] - mean);
    };
    for (std::size_t i = 0; i < width; ++i) {
      variance += (s[i] - mean) * (s[i] - mean) / n;
      squared_errors += error_of(i) * error_of(i) / n;
    }
    const double scale = 1 / std::sqrt(variance + eps);
    const double scale_error = scale * std::sqrt(squared_errors) + (kDeepestSum / 2 + 4) * kU;
    for (std::size_t i = 0; i < width; ++i) {
      const double w = weight.at(i), product = (s[i] - mean) * scale * w;
      const double value = product + bias.at(i);
      const double error = std::abs(w) * scale * error_of(i) +
                           std::abs(product) * (scale_error + 2 * kU) + kU * std::abs(value);
      result.add(value, error + rounding_of<T>(std::abs(value) + error));
    }
  }
  return result;
}

}  // namespace fastdistil::tests
