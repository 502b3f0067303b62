// NaN and infinity: they reach what they reach in torch, and nothing else. A model that has gone
// bad must not look as if it had not, and one bad sequence must not spoil the batch.
#include <limits>
#include <numeric>

#include "../cpu/pooling.h"
#include "../cpu/simd_portable.h"
#include "check.h"
#include "compare.h"
#include "int8_parts.h"

namespace fastdistil::tests {
namespace {

using cpu::Activation;
using cpu::Pooling;
using cpu::Shape;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kWord = 96;  // the last of the vocabulary
constexpr int kPoisoned = 2;

// Few enough rows for one chunk; the word is in sequence kPoisoned alone, once.
Sequences sequences_with_the_word(const Shape& shape) {
  Sequences s = random_sequences(shape, {5, 0, 17, 33, 1, 20}, 2);
  for (std::int32_t& id : s.input_ids) id %= kWord;
  s.input_ids[s.cu_seqlens[kPoisoned] + 6] = kWord;
  return s;
}

constexpr Pooling kPoolings[] = {Pooling::kMean, Pooling::kCls, Pooling::kMax};

// The hidden states by one thread and by three, then the vectors of each pooling.
std::vector<std::vector<float>> all_outputs(const cpu::Encoder& encoder, const Shape& shape,
                                            const Sequences& s) {
  std::vector<std::vector<float>> outputs = {run(encoder, shape, s, 1), run(encoder, shape, s, 3)};
  for (const Pooling pooling : kPoolings)
    outputs.push_back(run(encoder, shape, s, 1, pooling, true));
  return outputs;
}

void check_only_the_poisoned_is_nan(const std::vector<float>& got, const std::vector<float>& clean,
                                    const std::vector<std::int32_t>& offsets, int width,
                                    const std::string& what) {
  for (int i = 0; i + 1 < static_cast<int>(offsets.size()); ++i) {
    const std::vector<float> rows = rows_of(got, offsets[i], offsets[i + 1], width);
    if (i == kPoisoned) {
      const auto is_nan = [](float x) { return std::isnan(x); };
      CHECK(std::all_of(rows.begin(), rows.end(), is_nan), what);
    } else {
      CHECK(same_bits(rows, rows_of(clean, offsets[i], offsets[i + 1], width)),
            what + ", sequence " + std::to_string(i));
    }
  }
}

TEST(a_bad_embedding_spoils_its_sequence_and_no_other) {
  const Shape shape = make_shape(40, 5, 900, 2, 0, Activation::kGelu);
  const Sequences s = sequences_with_the_word(shape);
  Weights weights = random_weights(shape, 1);
  float& value = weights["embeddings.word_embeddings.weight"][kWord * shape.hidden + 3];
  std::vector<std::int32_t> one_each(s.cu_seqlens.size());
  std::iota(one_each.begin(), one_each.end(), 0);
  for (const cpu::Kernels* kernels : kernels_under_test()) {
    // The word's table is read from where it is: the same encoder sees it change.
    const cpu::Encoder encoder = make_encoder(*kernels, shape, weights);
    const float good = value;
    const std::vector<std::vector<float>> clean = all_outputs(encoder, shape, s);
    for (const float bad : {kNaN, kInfinity, -kInfinity}) {
      value = bad;
      const std::vector<std::vector<float>> got = all_outputs(encoder, shape, s);
      for (std::size_t i = 0; i < got.size(); ++i)
        check_only_the_poisoned_is_nan(
            got[i], clean[i], i < 2 ? s.cu_seqlens : one_each, shape.hidden,
            name_of(*kernels) + ", " + std::to_string(bad) + ", output " + std::to_string(i));
      value = good;
      // What a call leaves in the workspace is nothing to the next.
      CHECK(same_bits(run(encoder, shape, s, 1), clean[0]), name_of(*kernels));
    }
  }
}

#if !defined(__SANITIZE_THREAD__)  // races do not depend on values, and it takes its time
enum class Kind { kFinite, kInfinite, kNaN };

Kind kind_of(double x) {
  if (std::isnan(x)) return Kind::kNaN;
  return std::isinf(x) ? Kind::kInfinite : Kind::kFinite;
}

// Of the values that are not what the oracle's are: how many should be finite, how many not.
struct Differences {
  int spoilt = 0;
  int hidden = 0;
};

Differences differences(const std::vector<float>& got, const std::vector<double>& want) {
  Differences found;
  for (std::size_t i = 0; i < want.size(); ++i) {
    if (kind_of(got[i]) == kind_of(want[i])) continue;
    ++(kind_of(want[i]) == Kind::kFinite ? found.spoilt : found.hidden);
  }
  return found;
}

TEST(a_bad_weight_reaches_what_it_reaches_in_the_oracle) {
  const Shape shapes[] = {
      make_shape(40, 5, 33, 2, 2, Activation::kGelu),
      make_shape(24, 3, 33, 1, 2, Activation::kRelu),
  };
  for (const Shape& shape : shapes) {
    Sequences s = random_sequences(shape, {5, 0, 17, 1, 12}, 2);
    s.input_ids[9] = 1;
    Weights weights = random_weights(shape, 1);
    for (auto& [name, values] : weights) {
      // In the middle, and where neither a vector nor a tile begins. Of the embedding tables, a row
      // that some sequences use: there, others must stay finite.
      const bool table = name.find("_embeddings") != std::string::npos;
      float& value = values[table ? shape.hidden + 3 : values.size() / 2 + 3];
      const float good = value;
      for (const float bad : {kNaN, kInfinity, -kInfinity}) {
        value = bad;
        const std::vector<double> want = oracle_forward(shape, weights, s, Format::kExact);
        for (const cpu::Kernels* kernels : kernels_under_test()) {
          const std::vector<float> got = run(make_encoder(*kernels, shape, weights), shape, s, 2);
          const Differences found = differences(got, want);
          const std::string what = name_of(*kernels) + ", " + name + " " + std::to_string(bad);
          CHECK(found.hidden == 0, what + ": " + std::to_string(found.hidden) + " hidden");
          // Relu makes zero of -infinity, for the tokens that have it; with int8, the column of an
          // infinite weight is NaN for all.
          const bool int8 = kernels->precision == std::string("int8");
          if (int8 && std::isinf(bad) && shape.activation == Activation::kRelu) continue;
          CHECK(found.spoilt == 0, what + ": " + std::to_string(found.spoilt) + " spoilt");
        }
      }
      value = good;
    }
  }
}
#endif

// The maximum of a column with a NaN is NaN, wherever in the sequence it is.
template <class Pool>
void check_maximum(const Pool& pool, const std::string& what) {
  constexpr int kLength = 5, kColumns = 37, kStride = 64;
  std::vector<float> rows(kLength * kStride), got(kColumns);
  for (int i = 0; i < kLength * kStride; ++i) rows[i] = static_cast<float>(i * 89 % 101 - 50);
  for (int bad = 0; bad < kLength * kColumns; ++bad) {
    std::vector<float> with_nan = rows;
    with_nan[bad / kColumns * kStride + bad % kColumns] = kNaN;
    pool(with_nan.data(), kStride, kLength, kColumns, got.data());
    for (int j = 0; j < kColumns; ++j) {
      float want = rows[j];
      for (int t = 1; t < kLength; ++t) want = std::max(want, rows[t * kStride + j]);
      CHECK(j == bad % kColumns ? std::isnan(got[j]) : got[j] == want, what);
    }
  }
}

TEST(a_maximum_keeps_a_nan) {
  const auto portable = [](const float* rows, int stride, int length, int columns, float* out) {
    cpu::pool_sequence<cpu::Portable>(rows, stride, length, columns, Pooling::kMax, false, out);
  };
  check_maximum(portable, "portable");
  for (const Int8Parts* parts : int8_parts_under_test())
    check_maximum(parts->pool, name_of(*parts->kernels));
}

}  // namespace
}  // namespace fastdistil::tests
