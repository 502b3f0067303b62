// What the tests of kernels share: arrays that end where they end, random numbers, and the same run
// under several orders of threads.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "../../cuda/operations.h"
#include "../../emulation/execution.h"
#include "../check.h"

namespace fastdistil::tests {

using cuda::BFloat16;
using cuda::DataType;
using cuda::Float16;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// --- the types of data ---------------------------------------------------------------------------

template <class T>
constexpr DataType data_type() {
  if constexpr (std::is_same_v<T, BFloat16>) return DataType::kBFloat16;
  if constexpr (std::is_same_v<T, Float16>) return DataType::kFloat16;
  if constexpr (std::is_same_v<T, float>) return DataType::kFloat32;
}

template <class T>
const char* type_name() {
  if constexpr (std::is_same_v<T, BFloat16>) return "bf16";
  if constexpr (std::is_same_v<T, Float16>) return "fp16";
  if constexpr (std::is_same_v<T, float>) return "fp32";
}

// Calls test(T{}) for every T that kernels take.
template <class Test>
void for_every_type(Test&& test) {
  test(BFloat16{});
  test(Float16{});
  test(float{});
}

constexpr double kFloatRoundoff = 0x1p-24;

// How much rounding to T moves `value` at most.
template <class T>
double rounding_of(double value) {
  const double magnitude = std::abs(value);
  if constexpr (std::is_same_v<T, BFloat16>) return magnitude * 0x1p-8 + 0x1p-134;
  if constexpr (std::is_same_v<T, Float16>) return magnitude * 0x1p-11 + 0x1p-25;
  if constexpr (std::is_same_v<T, float>) return magnitude * kFloatRoundoff + 0x1p-150;
}

template <class T>
double to_double(T x) {
  if constexpr (std::is_integral_v<T>) {
    return static_cast<double>(x);
  } else {
    return static_cast<double>(cuda::to_float(x));
  }
}

template <class T>
T from_double(double x) {
  if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(x);
  } else {
    return cuda::from_float<T>(static_cast<float>(x));
  }
}

// --- arrays --------------------------------------------------------------------------------------

// Memory of exactly so many T, so that AddressSanitizer sees a step past its end; aligned to 16
// bytes, or `shift` elements behind such a place.
template <class T>
class Array {
 public:
  Array() : Array(0) {}
  explicit Array(std::size_t size, std::size_t shift = 0)
      : size_(size), shift_(shift), memory_(new T[size + shift]) {
    // What nobody writes is to be seen: a NaN in every type, -1 as an integer.
    if (size + shift > 0)
      std::memset(static_cast<void*>(memory_.get()), 0xff, bytes() + shift * sizeof(T));
  }
  Array(const Array& other) : Array(other.size_, other.shift_) { *this = other; }
  Array(Array&&) = default;
  Array& operator=(Array&&) = default;
  Array& operator=(const Array& other) {
    if (this == &other) return *this;
    if (size_ != other.size_ || shift_ != other.shift_) *this = Array(other.size_, other.shift_);
    if (size_ > 0) std::memcpy(static_cast<void*>(data()), other.data(), bytes());
    return *this;
  }

  static Array of(const std::vector<double>& values, std::size_t shift = 0) {
    Array array(values.size(), shift);
    for (std::size_t i = 0; i < values.size(); ++i) array[i] = from_double<T>(values[i]);
    return array;
  }

  T* data() { return memory_.get() + shift_; }
  const T* data() const { return memory_.get() + shift_; }
  std::size_t size() const { return size_; }
  std::size_t bytes() const { return size_ * sizeof(T); }
  T& operator[](std::size_t i) { return data()[i]; }
  const T& operator[](std::size_t i) const { return data()[i]; }
  // As the number it is, or changed to one.
  double at(std::size_t i) const { return to_double(data()[i]); }
  void set(std::size_t i, double value) { data()[i] = from_double<T>(value); }

  Array slice(std::size_t begin, std::size_t count) const {
    Array part(count);
    if (count > 0) std::memcpy(static_cast<void*>(part.data()), data() + begin, part.bytes());
    return part;
  }

 private:
  std::size_t size_, shift_;
  std::unique_ptr<T[]> memory_;
};

template <class T>
bool same_bits(const Array<T>& a, const Array<T>& b) {
  return a.size() == b.size() && (a.size() == 0 || std::memcmp(a.data(), b.data(), a.bytes()) == 0);
}

// Normally distributed.
template <class T>
Array<T> random_array(std::size_t size, unsigned seed, double mean = 0, double deviation = 1,
                      std::size_t shift = 0) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal(mean, deviation);
  Array<T> array(size, shift);
  for (std::size_t i = 0; i < size; ++i) array.set(i, normal(generator));
  return array;
}

// Uniform in [low, high].
inline Array<std::int32_t> random_integers(std::size_t size, unsigned seed, int low, int high) {
  std::mt19937 generator(seed);
  std::uniform_int_distribution<int> uniform(low, high);
  Array<std::int32_t> array(size);
  for (std::size_t i = 0; i < size; ++i) array[i] = uniform(generator);
  return array;
}

// --- checks --------------------------------------------------------------------------------------

// run() gives an Array (or anything that same_bits compares), computed anew each time: the bits of
// the first run, in every order of threads. Returns that.
template <class Run>
auto same_in_every_order(Run&& run, const std::string& what, int orders = 3) {
  emulation::set_seed(0);
  auto first = run();
  for (int seed = 1; seed < orders; ++seed) {
    emulation::set_seed(static_cast<unsigned>(seed));
    CHECK(same_bits(first, run()), what + ", seed " + std::to_string(seed));
  }
  emulation::set_seed(0);
  return first;
}

// got[i] is expected[i] within tolerance(i), or both are NaN, or the same infinity. Reports the
// worst once.
template <class T, class Tolerance>
bool all_close(const Array<T>& got, const std::vector<double>& expected, Tolerance&& tolerance,
               const std::string& what) {
  if (!CHECK(got.size() == expected.size(), what)) return false;
  double worst = 0;
  std::size_t where = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double value = got.at(i);
    if (std::isnan(value) && std::isnan(expected[i])) continue;
    if (value == expected[i]) continue;
    double excess = std::abs(value - expected[i]) / tolerance(i);
    if (std::isnan(excess)) excess = kInfinity;
    if (excess > worst) {
      worst = excess;
      where = i;
    }
  }
  if (worst <= 1) return true;
  return CHECK(worst <= 1, what + ": element " + std::to_string(where) + " is " +
                               std::to_string(got.at(where)) + ", not " +
                               std::to_string(expected[where]) + "; " + std::to_string(worst) +
                               " times the tolerance");
}

}  // namespace fastdistil::tests
