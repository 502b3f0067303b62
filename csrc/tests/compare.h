// How far an engine's answer is from the oracle's, and how far its precision allows it to be.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "engine_under_test.h"

namespace fastdistil::tests {

struct Error {
  double largest = 0;    // over the largest magnitude
  double root_mean = 0;  // root of mean square, over the same
};

template <class T>
Error error_of(const std::vector<T>& got, const std::vector<double>& want) {
  double magnitude = 0;
  Error e;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double d = std::abs(static_cast<double>(got[i]) - want[i]);
    magnitude = std::max(magnitude, std::abs(want[i]));
    e.largest = std::max(e.largest, d);
    e.root_mean += d * d;
  }
  e.root_mean = std::sqrt(e.root_mean / static_cast<double>(want.size())) / magnitude;
  e.largest /= magnitude;
  return e;
}

// By precision, the error that the format itself costs on these inputs.
using FormatCosts = std::map<std::string, Error>;

inline FormatCosts format_costs(const cpu::Shape& shape, const Weights& weights, const Sequences& s,
                                const std::vector<double>& exact) {
  return {{"bf16", error_of(oracle_forward(shape, weights, s, Format::kBf16), exact)},
          {"int8", error_of(oracle_forward(shape, weights, s, Format::kInt8), exact)}};
}

inline std::string to_string(const Error& e) {
  return "largest " + std::to_string(e.largest) + ", rms " + std::to_string(e.root_mean);
}

// Bit for bit, so that a NaN equals itself.
inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

inline std::vector<float> rows_of(const std::vector<float>& all, int begin, int end, int width) {
  return {all.begin() + static_cast<long>(begin) * width,
          all.begin() + static_cast<long>(end) * width};
}

inline std::vector<float> rows_of(const std::vector<float>& all,
                                  const std::vector<std::int32_t>& rows, int width) {
  std::vector<float> out;
  for (const int row : rows)
    out.insert(out.end(), all.begin() + static_cast<long>(row) * width,
               all.begin() + static_cast<long>(row + 1) * width);
  return out;
}

// The sequences [first, last) as a batch of their own.
inline Sequences part_of(const Sequences& s, int first, int last) {
  const int begin = s.cu_seqlens[first], end = s.cu_seqlens[last];
  const auto cut = [&](const std::vector<std::int32_t>& v) {
    return std::vector<std::int32_t>(v.begin() + begin, v.begin() + end);
  };
  Sequences part{cut(s.input_ids), cut(s.positions), cut(s.segment_ids), {}};
  for (int i = first; i <= last; ++i) part.cu_seqlens.push_back(s.cu_seqlens[i] - begin);
  return part;
}

inline Sequences one_of(const Sequences& s, int index) { return part_of(s, index, index + 1); }

}  // namespace fastdistil::tests
