// Shapes and batches that nobody would think of, the same ones in every run: finite, near the
// oracle, and the same bits whatever the threads and the neighbours.
// FASTDISTIL_RANDOM_SHAPES=n tries n of them.
#include <cstdlib>
#include <initializer_list>
#include <random>

#include "check.h"
#include "compare.h"

namespace fastdistil::tests {
namespace {

using cpu::Activation;
using cpu::Pooling;
using cpu::Shape;

class Dice {
 public:
  explicit Dice(unsigned seed) : generator_(seed) {}
  // Evenly in [low, high]. The standard's distributions differ between its libraries.
  int roll(int low, int high) {
    return low + static_cast<int>(generator_() % static_cast<unsigned>(high - low + 1));
  }
  template <class T>
  T pick(std::initializer_list<T> values) {
    return values.begin()[roll(0, static_cast<int>(values.size()) - 1)];
  }

 private:
  std::mt19937 generator_;
};

struct Case {
  Shape shape;
  std::vector<int> lengths;
  double work;
  std::string name;
};

// Multiply-adds of one forward, about.
double work(const Shape& shape, const std::vector<int>& lengths) {
  const double linear = 2.0 * shape.hidden * (2.0 * shape.inner() + shape.intermediate);
  double total = 0;
  for (const int length : lengths) total += length * (linear + 2.0 * length * shape.inner());
  return total * shape.layers;
}

// Small ones alone are held against the oracle, and emulated, in good time.
constexpr double kSmall = 3e6;
constexpr double kMedium = 1e7;
constexpr double kLarge = 6e7;

Case random_case(Dice& dice) {
  const int heads = dice.roll(1, 12);
  const int head_dim = std::max(8 / heads + 1, dice.roll(8, 200) / heads);
  const int most = dice.pick({40, 300, 1700});
  Case c;
  c.shape = make_shape(heads * head_dim, heads, dice.roll(1, most), dice.roll(1, 2),
                       dice.roll(0, 2), static_cast<Activation>(dice.roll(0, 3)));
  for (int count = dice.roll(1, 12); count > 0; --count)
    c.lengths.push_back(dice.roll(0, dice.pick({20, 20, 20, 80, 80, 512})));
  const double budget = dice.pick({kSmall, kSmall, kSmall, kMedium, kMedium, kLarge});
  while (work(c.shape, c.lengths) > budget) {
    if (c.lengths.size() > 1) {
      c.lengths.pop_back();
    } else {
      c.lengths[0] /= 2;
    }
  }
  c.work = work(c.shape, c.lengths);
  c.name = "hidden " + std::to_string(c.shape.hidden) + ", heads " + std::to_string(heads) +
           ", intermediate " + std::to_string(c.shape.intermediate) + ", lengths";
  for (const int length : c.lengths) c.name += " " + std::to_string(length);
  return c;
}

// Few rows even out less luck than those of forward_matches_the_oracle: wider bounds.
void check_error(const Error& e, const cpu::Kernels& kernels, const FormatCosts& costs,
                 const std::string& what) {
  if (std::strcmp(kernels.precision, "fp32") == 0) {
    CHECK(e.largest < 4e-6, what + ": " + to_string(e));
  } else {
    const Error& cost = costs.at(kernels.precision);
    CHECK(e.root_mean < 2 * cost.root_mean && e.largest < 4 * cost.largest,
          what + ": " + to_string(e) + "; the format: " + to_string(cost));
  }
}

// One call, and the same sequences by themselves, in two batches, by other numbers of threads, and
// only some of the rows.
std::vector<float> run_all_ways(const cpu::Encoder& encoder, const Case& c, const Sequences& s,
                                Dice& dice, const std::string& what) {
  const int count = s.count(), split = dice.roll(0, count);
  const auto rows = [&](const std::vector<float>& all, int first, int last) {
    return rows_of(all, s.cu_seqlens[first], s.cu_seqlens[last], c.shape.hidden);
  };
  const auto part = [&](int first, int last) {
    return run(encoder, c.shape, part_of(s, first, last), dice.roll(1, 8));
  };
  const std::vector<float> together = run(encoder, c.shape, s, 1);
  CHECK(same_bits(part(0, count), together), what);
  CHECK(same_bits(part(0, split), rows(together, 0, split)), what);
  CHECK(same_bits(part(split, count), rows(together, split, count)), what);
  for (int i = 0; i < count; ++i) CHECK(same_bits(part(i, i + 1), rows(together, i, i + 1)), what);

  std::vector<std::int32_t> read;
  for (int row = 0, step = dice.pick({1, 8, 60}); row < s.tokens(); row += dice.roll(1, step))
    read.push_back(row);
  CHECK(same_bits(run_rows(encoder, c.shape, s, read, dice.roll(1, 8)),
                  rows_of(together, read, c.shape.hidden)),
        what);

  const auto pooling = static_cast<Pooling>(dice.roll(1, 3));
  const bool normalize = dice.roll(0, 1) == 1;
  const std::vector<float> pooled = run(encoder, c.shape, s, 1, pooling, normalize);
  CHECK(same_bits(run(encoder, c.shape, s, dice.roll(2, 8), pooling, normalize), pooled), what);
  for (const std::vector<float>* values : {&together, &pooled}) {
    const auto is_finite = [](float x) { return std::isfinite(x); };
    CHECK(std::all_of(values->begin(), values->end(), is_finite), what);
  }
  return together;
}

int cases() {
  const char* wanted = std::getenv("FASTDISTIL_RANDOM_SHAPES");
#if defined(__SANITIZE_THREAD__)
  constexpr int kUsually = 12;  // each takes ten times as long, and a race shows in any
#else
  constexpr int kUsually = 60;
#endif
  return wanted != nullptr ? std::atoi(wanted) : kUsually;
}

TEST(random_shapes_keep_every_promise) {
  for (int i = 0; i < cases(); ++i) {
    Dice dice(1000 + i);
    const Case c = random_case(dice);
    const Weights weights = random_weights(c.shape, 2000 + i);
    const Sequences s = random_sequences(c.shape, c.lengths, 3000 + i);
    const bool with_oracle = c.work <= kSmall && s.tokens() > 0;
    std::vector<double> exact;
    FormatCosts costs;
    if (with_oracle) {
      exact = oracle_forward(c.shape, weights, s, Format::kExact);
      costs = format_costs(c.shape, weights, s, exact);
    }
    for (const cpu::Kernels* kernels : kernels_under_test()) {
      if (c.work > kSmall && kernels->isa == std::string("amx-emulated")) continue;
      const std::string what = name_of(*kernels) + ", shape " + std::to_string(i) + ": " + c.name;
      const cpu::Encoder encoder = make_encoder(*kernels, c.shape, weights);
      const std::vector<float> got = run_all_ways(encoder, c, s, dice, what);
      if (with_oracle) check_error(error_of(got, exact), *kernels, costs, what);
    }
  }
}

}  // namespace
}  // namespace fastdistil::tests
