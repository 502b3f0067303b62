// Bias and activation against the definitions in double.
#include "arrays.h"

namespace fastdistil::tests {
namespace {

using cuda::Activation;

constexpr Activation kActivations[] = {Activation::kNone, Activation::kGelu, Activation::kGeluTanh,
                                       Activation::kRelu, Activation::kSilu};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

double tanh_argument(double x) { return 2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x); }

double exactly(Activation activation, double x) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kGelu:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case Activation::kGeluTanh:
      return x * sigmoid(tanh_argument(x));
    case Activation::kRelu:
      return x < 0 ? 0 : x;
    case Activation::kSilu:
      return x * sigmoid(x);
  }
  return kNan;
}

// How far float32 may be from it, before the rounding of the result. The argument of an exponential
// is rounded a few times, and x sigmoid(v) moves by |y| (1 - sigmoid(v)) for a v off by 1.
double error_of(Activation activation, double x) {
  constexpr double kU = kFloatRoundoff, kSmallest = 0x1p-126;
  const double y = std::abs(exactly(activation, x));
  const auto of_sigmoid = [&](double v, int roundings) {
    return y * (1 - sigmoid(v)) * std::abs(v) * roundings * kU + 4 * kU * y + kSmallest;
  };
  switch (activation) {
    case Activation::kGelu:
      return 1.5e-7 + kU * y;
    case Activation::kGeluTanh:
      return of_sigmoid(tanh_argument(x), 7);
    case Activation::kSilu:
      return of_sigmoid(x, 2);
    default:
      return 0;
  }
}

template <class T>
struct ActivationCase {
  Activation activation;
  int tokens, width;
  Array<T> x, bias;

  ActivationCase(Activation activation_, int tokens_, int width_, std::size_t shift = 0)
      : activation(activation_),
        tokens(tokens_),
        width(width_),
        x(random_array<T>(size(), 1, 0, 3, shift)),
        bias(random_array<T>(columns(), 2, 0, 1, shift)) {}

  std::size_t columns() const { return static_cast<std::size_t>(width); }
  std::size_t size() const { return static_cast<std::size_t>(tokens) * columns(); }
  std::string name() const {
    return std::string(type_name<T>()) + " [" + std::to_string(tokens) + ", " +
           std::to_string(width) + "], activation " + std::to_string(static_cast<int>(activation));
  }
  void run_into(Array<T>& out, const Array<T>& x_used) const {
    cuda::bias_activation(data_type<T>(), activation,
                          {x_used.data(), bias.data(), out.data(), tokens, width}, 0);
  }
  Array<T> run(std::size_t shift = 0) const {
    Array<T> out(size(), shift);
    run_into(out, x);
    return out;
  }
  void check(const Array<T>& out) const {
    std::vector<double> expected, tolerances;
    for (std::size_t i = 0; i < size(); ++i) {
      const double sum = x.at(i) + bias.at(i % columns());
      const double value = exactly(activation, sum);
      // No activation is steeper than 1.13.
      const double error = error_of(activation, sum) + 1.13 * kFloatRoundoff * std::abs(sum);
      expected.push_back(value);
      tolerances.push_back(error + rounding_of<T>(std::abs(value) + error));
    }
    all_close(out, expected, [&](std::size_t i) { return tolerances[i]; }, name());
  }
};

TEST(bias_activation_is_the_definition) {
  for_every_type([](auto t) {
    using T = decltype(t);
    for (const Activation activation : kActivations) {
      for (const int width : {1, 7, 33, 128, 1000}) {
        const ActivationCase<T> all(activation, 5, width);
        all.check(all.run());
      }
    }
    for (const int width : {8, 100, 384, 768, 1024, 3072, 4096}) {
      const ActivationCase<T> all(Activation::kGelu, 5, width);
      all.check(same_in_every_order([&] { return all.run(); }, all.name(), 2));
    }
    for (const int tokens : {0, 1, 3, 4, 37}) {
      for (const int width : {33, 768}) {
        const ActivationCase<T> all(Activation::kGelu, tokens, width);
        all.check(all.run());
      }
    }
  });
}

TEST(activations_are_right_everywhere) {
  constexpr int kSteps = 8192;
  for (const Activation activation : kActivations) {
    ActivationCase<float> all(activation, 1, kSteps);
    for (std::size_t i = 0; i < kSteps; ++i) {
      all.x.set(i, -20 + 40 * static_cast<double>(i) / kSteps);
      all.bias.set(i, 0);
    }
    all.x.set(0, 1e30);
    all.x.set(1, -1e30);
    all.x.set(2, -0.0);
    all.x.set(3, 1e-40);
    if (activation == Activation::kGeluTanh) all.x.set(1, -1e12);  // whose cube float32 has
    all.check(all.run());
  }
}

TEST(bias_activation_of_a_row_does_not_depend_on_the_others) {
  for_every_type([](auto t) {
    using T = decltype(t);
    for (const int width : {33, 768}) {
      const ActivationCase<T> all(Activation::kGelu, 6, width);
      const Array<T> together = all.run();
      for (const std::size_t row : {0u, 3u, 5u}) {
        ActivationCase<T> one = all;
        one.tokens = 1;
        one.x = all.x.slice(row * all.columns(), all.columns());
        CHECK(same_bits(together.slice(row * all.columns(), all.columns()), one.run()), all.name());
      }
    }
  });
}

TEST(bias_activation_of_unaligned_rows_has_the_same_bits) {
  for_every_type([](auto t) {
    using T = decltype(t);
    const ActivationCase<T> aligned(Activation::kGelu, 6, 768);
    const ActivationCase<T> shifted(Activation::kGelu, 6, 768, 1);
    CHECK(same_bits(aligned.run(), shifted.run(1)), aligned.name());
  });
}

TEST(bias_activation_works_in_place) {
  for_every_type([](auto t) {
    using T = decltype(t);
    for (const int width : {33, 768}) {
      const ActivationCase<T> all(Activation::kGelu, 6, width);
      Array<T> x = all.x;
      all.run_into(x, x);
      CHECK(same_bits(x, all.run()), all.name());
    }
  });
}

TEST(bias_activation_hands_on_nan_and_infinity) {
  for_every_type([](auto t) {
    using T = decltype(t);
    for (const Activation activation : kActivations) {
      ActivationCase<T> all(activation, 2, 64);
      all.x.set(5, kNan);
      all.x.set(64 + 7, kInfinity);
      all.bias.set(9, kNan);
      const Array<T> out = all.run();
      for (std::size_t i = 0; i < all.size(); ++i) {
        const bool is_nan = i == 5 || i % 64 == 9;
        CHECK(std::isnan(out.at(i)) == is_nan, all.name());
        CHECK((out.at(i) == kInfinity) == (i == 64 + 7), all.name());
      }
    }
  });
}

}  // namespace
}  // namespace fastdistil::tests
