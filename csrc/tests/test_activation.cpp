// The polynomial functions against the C library in double, at the error each promises.
#include <cmath>

#include "../cpu/activation.h"
#include "../cpu/simd_portable.h"
#include "check.h"

namespace fastdistil::tests {
namespace {

using cpu::Portable;

// The largest of error(x, f(x)) over [low, high], in steps that hit no nice numbers.
template <class Function, class ErrorOf>
double largest_error(double low, double high, Function f, ErrorOf error) {
  double largest = 0;
  const double step = (high - low) / 200003;
  for (double x = low; x <= high; x += step) {
    const auto input = static_cast<float>(x);
    largest = std::max(largest, error(static_cast<double>(input),
                                      static_cast<double>(f(Portable::set(input)).v[0])));
  }
  return largest;
}

double gelu_exactly(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }

template <class Function, class Exact>
double absolute_error(double low, double high, Function f, Exact exact) {
  return largest_error(low, high, f, [&](double x, double y) { return std::abs(y - exact(x)); });
}

TEST(exp2_is_within_its_bound) {
  const double error = largest_error(
      -126, 126, [](Portable x) { return cpu::exp2(x); },
      [](double x, double y) { return std::abs(y / std::exp2(x) - 1); });
  CHECK(error < 2e-7, std::to_string(error));
  CHECK(cpu::exp2(Portable::set(-1e30f)).v[0] < 1e-37f);
  CHECK(cpu::exp2(Portable::set(0.0f)).v[0] == 1.0f);
}

TEST(gelu_is_within_its_bound) {
  const double error =
      absolute_error(-12, 12, [](Portable x) { return cpu::gelu(x); }, gelu_exactly);
  CHECK(error < 1e-6, std::to_string(error));
  const double tail = largest_error(
      -6, -0.01, [](Portable x) { return cpu::gelu(x); },
      [](double x, double y) { return std::abs(y / gelu_exactly(x) - 1); });
  CHECK(tail < 1e-4, std::to_string(tail));
  CHECK(cpu::gelu(Portable::set(100.0f)).v[0] == 100.0f);
  CHECK(std::abs(cpu::gelu(Portable::set(-100.0f)).v[0]) < 1e-30f);
}

TEST(gelu_for_bf16_is_within_its_bound) {
  const double error =
      absolute_error(-8, 8, [](Portable x) { return cpu::gelu_for_bf16(x); }, gelu_exactly);
  CHECK(error < 7e-5, std::to_string(error));
}

TEST(the_other_activations_are_within_theirs) {
  const double tanh_error = absolute_error(
      -12, 12, [](Portable x) { return cpu::gelu_tanh(x); },
      [](double x) {
        return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
      });
  CHECK(tanh_error < 3e-6, std::to_string(tanh_error));
  const double silu_error = absolute_error(
      -30, 30, [](Portable x) { return cpu::silu(x); },
      [](double x) { return x / (1 + std::exp(-x)); });
  CHECK(silu_error < 6e-6, std::to_string(silu_error));
}

}  // namespace
}  // namespace fastdistil::tests
