// LayerNorm's kernels against the definition in double.
#include "layernorm_oracle.h"

namespace fastdistil::tests {
namespace {

constexpr float kEps = 1e-12f;

template <class T>
struct LayerNormCase {
  int tokens, width;
  bool has_residual;
  Array<T> x, residual, weight, bias;

  // With a shift no array begins at a multiple of 16 bytes.
  LayerNormCase(int tokens_, int width_, bool has_residual_, std::size_t shift = 0)
      : tokens(tokens_),
        width(width_),
        has_residual(has_residual_),
        x(random_array<T>(size(), 1, 0.5, 2, shift)),
        residual(random_array<T>(has_residual ? size() : 0, 2, -1, 1, shift)),
        weight(random_array<T>(columns(), 3, 1, 0.3, shift)),
        bias(random_array<T>(columns(), 4, 0, 0.5, shift)) {}

  std::size_t columns() const { return static_cast<std::size_t>(width); }
  std::size_t size() const { return static_cast<std::size_t>(tokens) * columns(); }
  std::string name() const {
    return std::string(type_name<T>()) + " [" + std::to_string(tokens) + ", " +
           std::to_string(width) + "]" + (has_residual ? " + residual" : "");
  }

  void run_into(Array<T>& out, const Array<T>& x_used, const Array<T>& residual_used) const {
    cuda::layernorm(data_type<T>(),
                    {x_used.data(), has_residual ? residual_used.data() : nullptr, weight.data(),
                     bias.data(), out.data(), tokens, width, kEps},
                    0);
  }
  Array<T> run(std::size_t shift = 0) const {
    Array<T> out(size(), shift);
    run_into(out, x, residual);
    return out;
  }
  // One of the rows, by itself.
  Array<T> run_alone(int row) const {
    LayerNormCase one(*this);
    const std::size_t start = static_cast<std::size_t>(row) * columns();
    one.tokens = 1;
    one.x = x.slice(start, columns());
    if (has_residual) one.residual = residual.slice(start, columns());
    return one.run();
  }

  Bounded expected() const {
    Bounded sums;
    for (std::size_t i = 0; i < size(); ++i) {
      const double sum = x.at(i) + (has_residual ? residual.at(i) : 0.0);
      sums.add(sum, has_residual ? kFloatRoundoff * std::abs(sum) : 0.0);
    }
    return layernorm_exactly(sums, weight, bias, kEps);
  }
  void check() const {
    const Array<T> out = same_in_every_order([&] { return run(); }, name(), 2);
    const Bounded wanted = expected();
    all_close(out, wanted.values, [&](std::size_t i) { return wanted.errors[i]; }, name());
  }
};

TEST(layernorm_is_the_definition) {
  for_every_type([](auto t) {
    using T = decltype(t);
    for (const int width : {1, 7, 8, 33, 100, 128, 384, 768, 1000, 1024}) {
      LayerNormCase<T>(5, width, width % 2 == 0).check();
    }
    for (const int width : {1025, 3072, 4096, 8192}) LayerNormCase<T>(2, width, true).check();
    for (const int tokens : {0, 1, 37}) {
      LayerNormCase<T>(tokens, 768, true).check();
      LayerNormCase<T>(tokens, 33, false).check();
    }
  });
}

TEST(layernorm_of_a_row_does_not_depend_on_the_others) {
  for_every_type([](auto t) {
    using T = decltype(t);
    for (const int width : {33, 768, 1100, 1536}) {
      const LayerNormCase<T> all(6, width, true);
      const Array<T> together = all.run();
      for (const int row : {0, 3, 5}) {
        const auto start = static_cast<std::size_t>(row) * all.columns();
        CHECK(same_bits(together.slice(start, all.columns()), all.run_alone(row)), all.name());
      }
    }
  });
}

TEST(layernorm_of_unaligned_rows_has_the_same_bits) {
  for_every_type([](auto t) {
    using T = decltype(t);
    for (const int width : {128, 384, 768, 1024, 1536}) {
      const LayerNormCase<T> aligned(3, width, true), shifted(3, width, true, 1);
      CHECK(same_bits(aligned.run(), shifted.run(1)), aligned.name());
    }
  });
}

TEST(layernorm_works_in_place) {
  for_every_type([](auto t) {
    using T = decltype(t);
    for (const int width : {100, 768, 2048}) {
      const LayerNormCase<T> all(5, width, true);
      const Array<T> expected = all.run();
      Array<T> x = all.x, residual = all.residual;
      all.run_into(x, x, all.residual);
      CHECK(same_bits(x, expected), all.name());
      all.run_into(residual, all.x, residual);
      CHECK(same_bits(residual, expected), all.name());
    }
  });
}

TEST(layernorm_hands_on_nan) {
  for_every_type([](auto t) {
    using T = decltype(t);
    for (const int width : {33, 768, 2048}) {
      for (const double bad : {kNan, kInfinity}) {
        LayerNormCase<T> all(3, width, true);
        all.x.set(all.columns() + all.columns() / 2, bad);
        const Array<T> out = all.run();
        for (std::size_t i = 0; i < all.columns(); ++i) {
          CHECK(std::isfinite(out.at(i)) && std::isfinite(out.at(2 * all.columns() + i)) &&
                    std::isnan(out.at(all.columns() + i)),
                all.name());
        }
      }
    }
  });
}

TEST(layernorm_of_equal_numbers_is_the_bias) {
  LayerNormCase<float> all(2, 768, false);
  for (std::size_t i = 0; i < all.size(); ++i) all.x.set(i, i < all.columns() ? 0.0 : 4.0);
  const Array<float> out = all.run();
  CHECK(same_bits(out.slice(0, all.columns()), all.bias));
  CHECK(same_bits(out.slice(all.columns(), all.columns()), all.bias));
}

TEST(layernorm_refuses_rows_that_are_too_wide) {
  bool refused = false;
  try {
    LayerNormCase<BFloat16>(1, 8193, false).run();
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  CHECK(refused);
}

}  // namespace
}  // namespace fastdistil::tests
