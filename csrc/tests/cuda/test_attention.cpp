// The attention of short sequences against the definition in double.
#include "arrays.h"

namespace fastdistil::tests {
namespace {

using cuda::kLongestShort;

// Every boundary of tiles of 8 and 16 keys, of blocks of 64, of warps for 16 queries.
const std::vector<int> kMixedLengths = {17, 0, 128, 1, 65, 2, 127, 15, 33, 16, 64, 0, 31, 100, 63};

template <class Function>
void for_both_types(Function&& function) {
  function(BFloat16{});
  function(Float16{});
}

template <class T>
struct AttentionCase {
  int heads, head_dim, longest;
  float scale;
  Array<std::int32_t> cu_seqlens;
  Array<T> qkv;

  AttentionCase(int heads_, int head_dim_, const std::vector<int>& lengths)
      : heads(heads_),
        head_dim(head_dim_),
        longest(0),
        // Softmax by exp2, as the caller scales it.
        scale(static_cast<float>(1.4426950408889634 / std::sqrt(head_dim_))),
        cu_seqlens(lengths.size() + 1) {
    cu_seqlens[0] = 0;
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      cu_seqlens[i + 1] = cu_seqlens[i] + lengths[i];
      longest = std::max(longest, lengths[i]);
    }
    qkv = random_array<T>(tokens() * 3 * width(), 1, 0, 1.3);
  }
  // A part of another's sequences.
  AttentionCase(const AttentionCase& all, const std::vector<std::size_t>& sequences)
      : AttentionCase(all.heads, all.head_dim, all.lengths_of(sequences)) {
    scale = all.scale;
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      const Array<T> part = all.qkv.slice(all.start(sequences[i]) * 3 * width(),
                                          all.length(sequences[i]) * 3 * width());
      for (std::size_t j = 0; j < part.size(); ++j) qkv[start(i) * 3 * width() + j] = part[j];
    }
  }

  std::size_t width() const { return static_cast<std::size_t>(heads * head_dim); }
  std::size_t sequences() const { return cu_seqlens.size() - 1; }
  std::size_t start(std::size_t sequence) const {
    return static_cast<std::size_t>(cu_seqlens[sequence]);
  }
  std::size_t length(std::size_t sequence) const { return start(sequence + 1) - start(sequence); }
  std::size_t tokens() const { return start(sequences()); }
  std::vector<int> lengths_of(const std::vector<std::size_t>& which) const {
    std::vector<int> lengths;
    for (const std::size_t i : which) lengths.push_back(static_cast<int>(length(i)));
    return lengths;
  }
  std::string name() const {
    return std::string(type_name<T>()) + ", " + std::to_string(heads) + " heads of " +
           std::to_string(head_dim) + ", longest " + std::to_string(longest);
  }
  // Where Q (0), K (1) or V (2) of a token's head begins.
  std::size_t place(std::size_t token, int which, int head) const {
    return (token * 3 + static_cast<std::size_t>(which)) * width() +
           static_cast<std::size_t>(head * head_dim);
  }
  double at(std::size_t token, int which, int head, int i) const {
    return qkv.at(place(token, which, head) + static_cast<std::size_t>(i));
  }
  // number(token, which, head, i) for all of them.
  template <class Number>
  void fill(Number&& number) {
    for (std::size_t token = 0; token < tokens(); ++token) {
      for (int which = 0; which < 3; ++which) {
        for (int head = 0; head < heads; ++head) {
          for (int i = 0; i < head_dim; ++i) {
            qkv.set(place(token, which, head) + static_cast<std::size_t>(i),
                    number(token, which, head, i));
          }
        }
      }
    }
  }

  Array<T> run() const {
    Array<T> out(tokens() * width());
    cuda::short_attention(data_type<T>(),
                          {qkv.data(), cu_seqlens.data(), out.data(), static_cast<int>(sequences()),
                           heads, head_dim, longest, scale},
                          0);
    return out;
  }
  Array<T> run_of(std::size_t sequence, const Array<T>& out) const {
    return out.slice(start(sequence) * width(), length(sequence) * width());
  }

  // With u = 2^-24, n keys and d numbers to a head:
  // - a score is off by d u sum|q k|; the exponent scale (s - m) by that times the scale, for s and
  //   for m, and by two roundings of its own;
  // - so a weight p = 2^exponent is off by ln 2 times as much, relatively, by what exp2 rounds, and
  //   by a rounding wherever it shrinks;
  // - the weights' sum is off by these and n u; the sum of p v likewise, but there p is rounded to
  //   T. p is at most 1, and 1 for the largest score, so the sum is no less than 1.
  void check(const Array<T>& out) const {
    constexpr double kU = kFloatRoundoff, kLn2 = 0.6931471805599453;
    std::vector<double> expected(out.size()), tolerances(out.size());
    const auto size = static_cast<std::size_t>(head_dim);
    for (std::size_t sequence = 0; sequence < sequences(); ++sequence) {
      const std::size_t first = start(sequence), n = length(sequence);
      const double additions = static_cast<double>(n + 8) * kU;
      for (int head = 0; head < heads; ++head) {
        std::vector<double> numbers[3];
        for (int which = 0; which < 3; ++which) {
          for (std::size_t j = 0; j < n; ++j) {
            for (int i = 0; i < head_dim; ++i) {
              numbers[which].push_back(at(first + j, which, head, i));
            }
          }
        }
        for (std::size_t query = 0; query < n; ++query) {
          std::vector<double> scores(n), errors(n);
          double most = -kInfinity, largest_error = 0;
          for (std::size_t j = 0; j < n; ++j) {
            double magnitudes = 0;
            for (std::size_t i = 0; i < size; ++i) {
              const double term = numbers[0][query * size + i] * numbers[1][j * size + i];
              scores[j] += term * scale;
              magnitudes += std::abs(term * scale);
            }
            errors[j] = head_dim * kU * magnitudes;
            most = std::max(most, scores[j]);
            largest_error = std::max(largest_error, errors[j]);
          }
          double sum = 0, sum_error = 0;
          std::vector<double> context(size), context_error(size);
          for (std::size_t j = 0; j < n; ++j) {
            const double exponent = scores[j] - most, p = std::exp2(exponent);
            const double off = errors[j] + largest_error + 2 * kU * std::abs(exponent);
            const double error = p * (kLn2 * off + 8 * kU);
            const double rounded_error = error + rounding_of<T>(p + error);
            sum += p;
            sum_error += error;
            for (std::size_t i = 0; i < size; ++i) {
              const double v = numbers[2][j * size + i];
              context[i] += p * v;
              context_error[i] += std::abs(v) * (rounded_error + p * additions);
            }
          }
          for (std::size_t i = 0; i < size; ++i) {
            const double value = context[i] / sum;
            const double error =
                context_error[i] / sum + std::abs(value) * (sum_error / sum + additions + 3 * kU);
            const std::size_t place =
                (first + query) * width() + static_cast<std::size_t>(head) * size + i;
            expected[place] = value;
            tolerances[place] = error + rounding_of<T>(std::abs(value) + error);
          }
        }
      }
    }
    all_close(out, expected, [&](std::size_t i) { return tolerances[i]; }, name());
  }
};

TEST(attention_is_the_definition) {
  for_both_types([](auto t) {
    using T = decltype(t);
    for (const int head_dim : {32, 64, 128}) {
      const AttentionCase<T> mixed(head_dim == 64 ? 3 : 1, head_dim, kMixedLengths);
      mixed.check(mixed.run());
      // As many pieces to a block as have warps: of 4, 2 and 1.
      for (const std::vector<int>& lengths :
           {std::vector<int>{3, 16, 0, 1, 15, 8, 2}, {31, 32, 17, 0, 5}, {33, 64, 1}, {65, 2}}) {
        for (const int heads : {1, 3}) {
          const AttentionCase<T> all(heads, head_dim, lengths);
          all.check(all.run());
        }
      }
    }
    const AttentionCase<T> many(12, 64, {40, 7, 23});
    many.check(many.run());
  });
}

TEST(attention_of_other_scales_is_the_definition) {
  for_both_types([](auto t) {
    using T = decltype(t);
    for (const float scale : {1.0f, 0.01f}) {
      AttentionCase<T> all(2, 32, {70, 20, 1});
      all.scale = scale;
      all.check(all.run());
    }
  });
}

TEST(attention_has_the_same_bits_in_every_order) {
  for_both_types([](auto t) {
    using T = decltype(t);
    for (const std::vector<int>& lengths : {std::vector<int>{128, 50, 3}, {9, 16, 0, 1, 12}}) {
      const AttentionCase<T> all(3, 64, lengths);
      same_in_every_order([&] { return all.run(); }, all.name(), 6);
    }
  });
}

TEST(attention_of_a_sequence_does_not_depend_on_the_others) {
  for_both_types([](auto t) {
    using T = decltype(t);
    const AttentionCase<T> all(2, 32, kMixedLengths);
    const Array<T> out = all.run();
    std::vector<std::size_t> backwards;
    for (std::size_t i = all.sequences(); i-- > 0;) backwards.push_back(i);
    const AttentionCase<T> reversed(all, backwards);
    const Array<T> out_reversed = reversed.run();
    for (std::size_t i = 0; i < all.sequences(); ++i) {
      const Array<T> expected = all.run_of(i, out);
      CHECK(same_bits(expected, reversed.run_of(all.sequences() - 1 - i, out_reversed)));
      AttentionCase<T> alone(all, {i});
      for (const int longest : {alone.longest, 1, 16, 17, 48, 64, 100, 113, kLongestShort}) {
        if (longest < alone.longest) continue;
        alone.longest = longest;
        CHECK(same_bits(expected, alone.run()), alone.name());
      }
    }
  });
}

TEST(attention_of_a_head_does_not_depend_on_the_others) {
  const AttentionCase<BFloat16> all(3, 64, {70, 5});
  AttentionCase<BFloat16> one(1, 64, {70, 5});
  one.fill([&](std::size_t token, int which, int, int i) { return all.at(token, which, 1, i); });
  const Array<BFloat16> out = all.run(), alone = one.run();
  for (std::size_t token = 0; token < all.tokens(); ++token) {
    CHECK(same_bits(out.slice(token * 192 + 64, 64), alone.slice(token * 64, 64)));
  }
}

TEST(attention_keeps_nan_and_infinity_within_a_sequence) {
  for_both_types([](auto t) {
    using T = decltype(t);
    for (const std::vector<int>& lengths :
         {std::vector<int>{5, 16, 3, 1, 9}, {20, 31, 2}, {70, 100, 3}}) {
      const AttentionCase<T> all(2, 64, lengths);
      const Array<T> expected = all.run();
      for (const double poison : {kNan, kInfinity, -kInfinity}) {
        for (std::size_t poisoned = 0; poisoned < lengths.size(); ++poisoned) {
          AttentionCase<T> bad = all;
          bad.fill([&](std::size_t token, int which, int head, int i) {
            const bool inside = token >= bad.start(poisoned) && token < bad.start(poisoned + 1);
            return inside ? poison : all.at(token, which, head, i);
          });
          const Array<T> out = bad.run();
          for (std::size_t i = 0; i < lengths.size(); ++i) {
            if (i == poisoned) {
              const Array<T> here = bad.run_of(i, out);
              for (std::size_t j = 0; j < here.size(); ++j) CHECK(std::isnan(here.at(j)));
            } else {
              CHECK(same_bits(all.run_of(i, expected), all.run_of(i, out)), all.name());
            }
          }
        }
      }
    }
  });
}

// One number that is not finite goes where the definition has it go.
TEST(attention_hands_on_nan) {
  AttentionCase<BFloat16> all(2, 32, {40, 4});
  const Array<BFloat16> finite = all.run();
  const auto nans_with = [&](int which) {
    AttentionCase<BFloat16> bad = all;
    bad.qkv.set(bad.place(7, which, 1) + 5, kNan);
    const Array<BFloat16> out = bad.run();
    for (std::size_t token = 0; token < 44; ++token) {
      for (std::size_t i = 0; i < 64; ++i) {
        const bool of_head = token < 40 && i >= 32;
        const bool expected = which == 0   ? of_head && token == 7
                              : which == 1 ? of_head
                                           : of_head && i == 32 + 5;
        const std::size_t place = token * 64 + i;
        CHECK(std::isnan(out.at(place)) == expected, std::to_string(which));
        if (!expected) CHECK(out[place].bits == finite[place].bits, std::to_string(which));
      }
    }
  };
  for (int which = 0; which < 3; ++which) nans_with(which);
}

TEST(attention_of_large_scores_does_not_overflow) {
  for_both_types([](auto t) {
    using T = decltype(t);
    // As large as T has them, short of where a sum of 64 squares leaves float.
    const double size = std::is_same_v<T, Float16> ? 60000 : 0x1p59;
    for (const int length : {1, 5, 17, 40, 90, 128}) {
      AttentionCase<T> all(1, 64, {length, 3});
      const auto value = [](std::size_t token, int i) {
        return static_cast<double>(token % 31) - i;
      };
      // All scores equal, and far above or below the zeros that fill up tiles: the values' mean.
      for (const double sign : {1.0, -1.0}) {
        all.fill([&](std::size_t token, int which, int, int i) {
          return which == 2 ? value(token, i) : which == 1 ? sign * size : size;
        });
        const Array<T> out = all.run();
        for (int i = 0; i < 64; ++i) {
          double mean = 0, magnitude = 0;
          for (int j = 0; j < length; ++j) {
            mean += value(static_cast<std::size_t>(j), i) / length;
            magnitude += std::abs(value(static_cast<std::size_t>(j), i)) / length;
          }
          for (int j = 0; j < length; ++j) {
            const double got = out.at(static_cast<std::size_t>(j * 64 + i));
            CHECK(std::abs(got - mean) <= rounding_of<T>(mean) + 300 * kFloatRoundoff * magnitude,
                  all.name());
          }
        }
      }
      // Every key far above the one before, or below it: the last one's values, or the first one's.
      for (const bool rising : {true, false}) {
        all.fill([&](std::size_t token, int which, int, int i) {
          if (which == 2) return value(token, i);
          if (which == 0) return size;
          const double step = size / kLongestShort * static_cast<double>(token);
          return rising ? step : -step;
        });
        const Array<T> out = all.run();
        const auto winner = static_cast<std::size_t>(rising ? length - 1 : 0);
        for (std::size_t i = 0; i < static_cast<std::size_t>(length) * 64; ++i) {
          CHECK(out.at(i) == value(winner, static_cast<int>(i % 64)), all.name());
        }
      }
    }
  });
}

TEST(attention_of_nothing_writes_nothing) {
  for_both_types([](auto t) {
    using T = decltype(t);
    CHECK(AttentionCase<T>(2, 64, {}).run().size() == 0);
    CHECK(AttentionCase<T>(2, 64, {0, 0, 0}).run().size() == 0);
    // Some room, but no tokens.
    AttentionCase<T> empty(2, 64, {0, 0});
    empty.longest = 70;
    CHECK(empty.run().size() == 0);
  });
}

TEST(attention_refuses_what_it_has_no_kernel_for) {
  const auto refusal = [](DataType type, int head_dim, int longest) -> std::string {
    const AttentionCase<BFloat16> all(1, head_dim, {4});
    Array<BFloat16> out(all.tokens() * all.width());
    try {
      cuda::short_attention(
          type,
          {all.qkv.data(), all.cu_seqlens.data(), out.data(), 1, 1, head_dim, longest, all.scale},
          0);
      return "";
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
  };
  const auto says = [](const std::string& text, const std::string& part) {
    CHECK(text.find(part) != std::string::npos, "'" + part + "' in '" + text + "'");
  };
  CHECK(refusal(DataType::kBFloat16, 64, 4).empty());
  says(refusal(DataType::kBFloat16, 48, 4), "head_dim is 48: supported are 32, 64, 128");
  says(refusal(DataType::kFloat16, 256, 4), "head_dim is 256");
  says(refusal(DataType::kBFloat16, 64, 129), "longest is 129: at most 128");
  says(refusal(DataType::kFloat16, 64, -1), "longest is -1");
  says(refusal(DataType::kFloat32, 64, 4), "type is fp32: supported are bf16, fp16");
}

}  // namespace
}  // namespace fastdistil::tests
