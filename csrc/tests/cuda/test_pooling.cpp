// The kernels that pool against the definition in double.
#include "arrays.h"

namespace fastdistil::tests {
namespace {

using cuda::Pooling;

constexpr Pooling kPoolings[] = {Pooling::kMean, Pooling::kCls, Pooling::kMax};

template <class T>
struct PoolingCase {
  Pooling pooling;
  bool normalize;
  int width;
  Array<std::int32_t> cu_seqlens;
  Array<T> hidden;

  PoolingCase(Pooling pooling_, bool normalize_, int width_, const std::vector<int>& lengths,
              std::size_t shift = 0)
      : pooling(pooling_), normalize(normalize_), width(width_), cu_seqlens(lengths.size() + 1) {
    cu_seqlens[0] = 0;
    for (std::size_t i = 0; i < lengths.size(); ++i) cu_seqlens[i + 1] = cu_seqlens[i] + lengths[i];
    hidden = random_array<T>(end(sequences()) * columns(), 1, 0.2, 1, shift);
  }

  std::size_t columns() const { return static_cast<std::size_t>(width); }
  std::size_t sequences() const { return cu_seqlens.size() - 1; }
  std::size_t end(std::size_t sequence) const {
    return static_cast<std::size_t>(cu_seqlens[sequence]);
  }
  std::string name() const {
    return std::string(type_name<T>()) + ", pooling " + std::to_string(static_cast<int>(pooling)) +
           (normalize ? ", normalized" : "") + ", width " + std::to_string(width);
  }
  Array<float> run() const {
    Array<float> out(sequences() * columns());
    cuda::pool(data_type<T>(), pooling,
               {hidden.data(), cu_seqlens.data(), out.data(), static_cast<int>(sequences()), width,
                normalize},
               0);
    return out;
  }

  // One column of one sequence, and the error of float32: with u = 2^-24 and n tokens, n additions
  // after one another at most, and a division.
  double pooled(std::size_t sequence, std::size_t column, double& error) const {
    const std::size_t first = end(sequence), last = end(sequence + 1);
    const auto length = static_cast<double>(last - first);
    error = 0;
    if (first == last) return 0;
    if (pooling == Pooling::kCls) return hidden.at(first * columns() + column);
    double sum = 0, magnitudes = 0, largest = -kInfinity;
    for (std::size_t token = first; token < last; ++token) {
      const double value = hidden.at(token * columns() + column);
      sum += value;
      magnitudes += std::abs(value);
      largest = value > largest || std::isnan(value) ? value : largest;
    }
    if (pooling == Pooling::kMax) return largest;
    error = kFloatRoundoff * (magnitudes + std::abs(sum) / length);
    return sum / length;
  }
  void check(const Array<float>& out) const {
    std::vector<double> expected, tolerances;
    for (std::size_t sequence = 0; sequence < sequences(); ++sequence) {
      std::vector<double> values(columns()), errors(columns());
      double squares = 0, squared_errors = 0;
      for (std::size_t i = 0; i < columns(); ++i) {
        values[i] = pooled(sequence, i, errors[i]);
        squares += values[i] * values[i];
        squared_errors += errors[i] * errors[i];
      }
      // The norm is off by the root of the errors' squares, and by half of what its own sum is:
      // a thread adds at most 16 squares, then lanes, then warps.
      const double norm = normalize ? std::max(std::sqrt(squares), 1e-12) : 1.0;
      const double norm_error =
          normalize ? std::sqrt(squared_errors) / norm + (26 / 2 + 4) * kFloatRoundoff : 0.0;
      for (std::size_t i = 0; i < columns(); ++i) {
        const double value = values[i] / norm;
        expected.push_back(value);
        tolerances.push_back(errors[i] / norm + std::abs(value) * norm_error +
                             rounding_of<float>(value));
      }
    }
    all_close(out, expected, [&](std::size_t i) { return tolerances[i]; }, name());
  }
};

TEST(pooling_is_the_definition) {
  for_every_type([](auto t) {
    using T = decltype(t);
    for (const Pooling pooling : kPoolings) {
      for (const bool normalize : {false, true}) {
        for (const int width : {7, 100, 768}) {
          const PoolingCase<T> all(pooling, normalize, width, {17, 0, 1, 5});
          all.check(all.run());
        }
      }
      for (const int width : {1, 8, 1000, 3072, 8192}) {
        const PoolingCase<T> all(pooling, true, width, {3, 9});
        all.check(all.run());
      }
    }
  });
}

TEST(pooling_of_no_sequences_writes_nothing) {
  CHECK(PoolingCase<float>(Pooling::kMean, true, 64, {}).run().size() == 0);
}

TEST(pooling_of_long_sequences_is_the_definition) {
  for (const Pooling pooling : kPoolings) {
    const PoolingCase<BFloat16> all(pooling, true, 48, {512, 301});
    all.check(same_in_every_order([&] { return all.run(); }, all.name()));
  }
}

TEST(pooling_of_a_sequence_does_not_depend_on_the_others) {
  for_every_type([](auto t) {
    using T = decltype(t);
    for (const Pooling pooling : kPoolings) {
      for (const int width : {33, 768}) {
        const PoolingCase<T> all(pooling, true, width, {5, 70, 11});
        PoolingCase<T> one(pooling, true, width, {70});
        one.hidden = all.hidden.slice(5 * all.columns(), 70 * all.columns());
        CHECK(same_bits(all.run().slice(all.columns(), all.columns()), one.run()), all.name());
      }
    }
  });
}

TEST(pooling_of_unaligned_rows_has_the_same_bits) {
  for_every_type([](auto t) {
    using T = decltype(t);
    for (const Pooling pooling : kPoolings) {
      const PoolingCase<T> aligned(pooling, true, 128, {5, 30});
      const PoolingCase<T> shifted(pooling, true, 128, {5, 30}, 1);
      CHECK(same_bits(aligned.run(), shifted.run()), aligned.name());
    }
  });
}

TEST(pooling_hands_on_nan) {
  for_every_type([](auto t) {
    using T = decltype(t);
    for (const Pooling pooling : kPoolings) {
      for (const bool normalize : {false, true}) {
        for (const std::size_t token : {0u, 3u, 39u}) {
          PoolingCase<T> all(pooling, normalize, 100, {40, 2});
          all.hidden.set(token * 100 + 7, kNan);
          const Array<float> out = all.run();
          const bool is_read = pooling != Pooling::kCls || token == 0;
          for (std::size_t i = 0; i < 200; ++i) {
            const bool is_nan = is_read && (normalize ? i < 100 : i == 7);
            CHECK(std::isnan(out.at(i)) == is_nan, all.name());
          }
        }
      }
    }
  });
}

TEST(pooling_of_zeros_and_infinities) {
  PoolingCase<float> zeros(Pooling::kMean, true, 64, {3});
  for (std::size_t i = 0; i < zeros.hidden.size(); ++i) zeros.hidden.set(i, 0);
  const Array<float> out = zeros.run();
  for (std::size_t i = 0; i < 64; ++i) CHECK(out[i] == 0.0f);
  PoolingCase<float> lowest(Pooling::kMax, false, 64, {3});
  for (std::size_t i = 0; i < lowest.hidden.size(); ++i) lowest.hidden.set(i, -kInfinity);
  CHECK(lowest.run().at(5) == -kInfinity);
}

}  // namespace
}  // namespace fastdistil::tests
