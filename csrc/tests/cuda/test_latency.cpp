// The low-latency encoder against the encoder in double precision.
#include "latency_under_test.h"

namespace fastdistil::tests {
namespace {

// Root of the mean square error over the largest magnitude.
template <class Values>
double error_of(const Values& got, const std::vector<double>& want) {
  double squares = 0, largest = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double d = got.at(i) - want[i];
    squares += d * d;
    largest = std::max(largest, std::abs(want[i]));
  }
  return std::sqrt(squares / static_cast<double>(want.size())) / largest;
}

struct Doubles {
  const std::vector<double>& values;
  double at(std::size_t i) const { return values[i]; }
};

// The error that rounding operands costs whoever computes; the engine also rounds what it hands
// from step to step, the residual stream among it: as many roundings again, and a half for good
// measure.
double allowed(const cpu::Shape& shape, const Weights& weights, const Sequences& s,
               const std::vector<double>& exact, LatencyWeights kept) {
  const std::vector<double> rounded = oracle_forward(shape, weights, s, Format::kBf16);
  const double bf16 = 2.5 * error_of(Doubles{rounded}, exact);
  return kept == LatencyWeights::kFloat16 ? bf16 / 8 : bf16;  // three bits more
}

struct Case {
  int hidden, layers, segments;
  std::vector<int> lengths;
  int blocks = 17;
  cpu::Activation activation = cpu::Activation::kGelu;

  cpu::Shape shape() const {
    cpu::Shape shape = latency_shape(hidden, layers, segments);
    shape.activation = activation;
    return shape;
  }
  std::string name() const {
    std::string text = std::to_string(hidden) + " x " + std::to_string(layers) + ":";
    for (int length : lengths) text += " " + std::to_string(length);
    return text;
  }
};

// The larger ones are slow in the emulation: `thorough` ones run in several orders and as a chain.
template <LatencyWeights kWeights>
void check_forward(const Case& c, bool thorough = true) {
  const cpu::Shape shape = c.shape();
  const Weights weights = random_weights(shape, 7);
  const Sequences s = random_sequences(shape, c.lengths, 3);
  const bool int8 = kWeights == LatencyWeights::kInt8;
  const Weights used = int8 ? rounded_to_int8(shape, weights) : weights;
  const std::vector<double> exact = oracle_forward(shape, used, s, Format::kExact);
  LatencyUnderTest<kWeights> engine(shape, weights);
  engine.blocks = c.blocks;
  const auto result =
      same_in_every_order([&] { return engine.run(s).hidden; }, c.name(), thorough ? 3 : 1);
  const double error = error_of(result, exact);
  const double most = allowed(shape, used, s, exact, kWeights);
  CHECK(error <= most, c.name() + ": " + std::to_string(error) + " of " + std::to_string(most));
  if (!thorough) return;
  engine.chain = true;
  CHECK(same_bits(engine.run(s).hidden, result), c.name() + ", as a chain");
}

TEST(latency_computes_the_encoder) {
  check_forward<LatencyWeights::kBFloat16>({128, 2, 0, {1}});
  check_forward<LatencyWeights::kBFloat16>({128, 2, 2, {16}});
  check_forward<LatencyWeights::kBFloat16>({128, 3, 0, {17}});
  check_forward<LatencyWeights::kBFloat16>({128, 1, 0, {5, 0, 16, 9, 1}});
  check_forward<LatencyWeights::kBFloat16>({128, 2, 0, {65, 40}, 23});
  check_forward<LatencyWeights::kBFloat16>({128, 1, 0, {200, 56}, 19}, false);
  check_forward<LatencyWeights::kBFloat16>({384, 1, 2, {7, 12}}, false);
  check_forward<LatencyWeights::kBFloat16>({768, 1, 0, {13}}, false);
  check_forward<LatencyWeights::kBFloat16>({1024, 1, 0, {3, 18}}, false);
}

TEST(latency_computes_the_encoder_in_fp16) {
  check_forward<LatencyWeights::kFloat16>({128, 2, 0, {11, 3}});
  check_forward<LatencyWeights::kFloat16>({384, 1, 0, {20}}, false);
}

TEST(latency_computes_the_encoder_with_int8_weights) {
  check_forward<LatencyWeights::kInt8>({128, 2, 2, {11, 3}});
  check_forward<LatencyWeights::kInt8>({384, 1, 0, {20}}, false);
  check_forward<LatencyWeights::kInt8>({768, 1, 0, {4}}, false);
}

TEST(latency_knows_every_activation) {
  for (const auto activation :
       {cpu::Activation::kGeluTanh, cpu::Activation::kRelu, cpu::Activation::kSilu}) {
    check_forward<LatencyWeights::kBFloat16>({128, 1, 0, {6}, 17, activation}, false);
  }
}

struct Engine {
  cpu::Shape shape = latency_shape(128, 2);
  Weights weights = random_weights(shape, 7);
  LatencyUnderTest<LatencyWeights::kBFloat16> engine{shape, weights};

  Array<BFloat16> hidden(const Sequences& s) { return engine.run(s).hidden; }
};

// What one launch leaves must not show in the next, whether that has more rows or fewer.
TEST(latency_launches_do_not_meet) {
  Engine used;
  for (const int length : {40, 3, 17, 64, 1, 33, 40}) {
    const Sequences s = random_sequences(used.shape, {length}, static_cast<unsigned>(length));
    Engine fresh;
    used.engine.chain = length == 17 || length == 64;
    CHECK(same_bits(used.hidden(s), fresh.hidden(s)), "length " + std::to_string(length));
  }
}

TEST(latency_bits_are_a_sequence_s_own) {
  Engine one;
  const Sequences s = random_sequences(one.shape, {9, 16, 21, 1, 5}, 2);
  const Array<BFloat16> all = one.hidden(s);
  for (int i = 0; i < s.count(); ++i) {
    const int begin = s.cu_seqlens[i], end = s.cu_seqlens[i + 1];
    Sequences alone{{s.input_ids.begin() + begin, s.input_ids.begin() + end},
                    {s.positions.begin() + begin, s.positions.begin() + end},
                    {s.segment_ids.begin() + begin, s.segment_ids.begin() + end},
                    {0, end - begin}};
    const auto width = static_cast<std::size_t>(one.shape.hidden);
    const Array<BFloat16> part = all.slice(static_cast<std::size_t>(begin) * width,
                                           static_cast<std::size_t>(end - begin) * width);
    const std::string what = "sequence " + std::to_string(i);
    one.engine.rows_to_spare = 0;
    CHECK(same_bits(one.hidden(alone), part), what);
    one.engine.rows_to_spare = 90;
    one.engine.longest = 64;
    one.engine.blocks = 31;
    CHECK(same_bits(one.hidden(alone), part), what + ", sizes rounded up, other blocks");
    one.engine.longest = 0;
    one.engine.blocks = 17;
  }
}

// As the last states say, in float32: sums over so many tokens.
void check_pooling(Engine& e, const Sequences& s, cuda::Pooling pooling, bool normalize) {
  e.engine.pooled = false;
  const Array<BFloat16> hidden = e.hidden(s);
  e.engine.pooled = true;
  e.engine.pooling = pooling;
  e.engine.normalize = normalize;
  const Array<float> got = same_in_every_order([&] { return e.engine.run(s).vectors; }, "pooling");
  const std::size_t width = static_cast<std::size_t>(e.shape.hidden);
  std::vector<double> want;
  for (int i = 0; i < s.count(); ++i) {
    std::vector<double> vector(width, 0.0);
    const int begin = s.cu_seqlens[i], length = s.cu_seqlens[i + 1] - begin;
    const int count = pooling == cuda::Pooling::kCls ? std::min(length, 1) : length;
    double squares = 0;
    for (std::size_t j = 0; j < width; ++j) {
      double sum = 0, most = -kInfinity;
      for (int t = 0; t < count; ++t) {
        const double x = hidden.at(static_cast<std::size_t>(begin + t) * width + j);
        sum += x;
        most = std::max(most, x);
      }
      vector[j] = count == 0                        ? 0
                  : pooling == cuda::Pooling::kMax  ? most
                  : pooling == cuda::Pooling::kMean ? sum / count
                                                    : sum;
      squares += vector[j] * vector[j];
    }
    const double norm = normalize ? std::max(std::sqrt(squares), 1e-12) : 1;
    for (double x : vector) want.push_back(x / norm);
  }
  // 256 sums of numbers below 8 at most.
  all_close(got, want, [](std::size_t) { return 256 * 8 * kFloatRoundoff; }, "pooling");
}

TEST(latency_pools) {
  Engine e;
  const Sequences s = random_sequences(e.shape, {5, 0, 33, 1, 16}, 4);
  for (const auto pooling : {cuda::Pooling::kMean, cuda::Pooling::kCls, cuda::Pooling::kMax}) {
    for (const bool normalize : {false, true}) check_pooling(e, s, pooling, normalize);
  }
  e.engine.chain = true;
  check_pooling(e, s, cuda::Pooling::kMean, true);
}

TEST(latency_notes_wrong_ids) {
  Engine e;
  Sequences s = random_sequences(e.shape, {7, 12}, 4);
  CHECK(e.engine.run(s).errors == 0);
  s.input_ids[3] = e.shape.vocabulary;
  CHECK(e.engine.run(s).errors == cuda::kWrongWord);
  s.input_ids[3] = -2147483647;
  s.positions[18] = e.shape.positions + 1000;
  CHECK(e.engine.run(s).errors == (cuda::kWrongWord | cuda::kWrongPosition));
}

// A weight that is no number reaches every state, and ends no loop that waits for numbers.
TEST(latency_survives_not_a_number) {
  const cpu::Shape shape = latency_shape(128, 1);
  Weights weights = random_weights(shape, 7);
  weights.at("transformer.layer.0.ffn.lin1.bias")[5] = std::nanf("");
  LatencyUnderTest<LatencyWeights::kBFloat16> engine(shape, weights);
  const auto hidden = engine.run(random_sequences(shape, {20}, 4)).hidden;
  for (std::size_t i = 0; i < hidden.size(); ++i) {
    if (!CHECK(std::isnan(hidden.at(i)))) break;
  }
}

TEST(latency_refuses_what_it_has_no_kernel_for) {
  CHECK(cuda::latency_refusal(768, 12, 3072).empty());
  CHECK(cuda::latency_refusal(384, 12, 1536).empty());
  CHECK(cuda::latency_refusal(512, 8, 2048).find("512") != std::string::npos);
  CHECK(cuda::latency_refusal(768, 12, 1024).find("3072") != std::string::npos);
  CHECK(cuda::latency_refusal(768, 6, 3072).find("12 heads") != std::string::npos);
  Engine e;
  e.engine.blocks = cuda::kLatencyMostGroups - 1;
  bool refused = false;
  try {
    e.engine.run(random_sequences(e.shape, {3}, 1));
  } catch (const std::invalid_argument& error) {
    refused = std::string(error.what()).find("blocks is 15") != std::string::npos;
  }
  CHECK(refused);
}

}  // namespace
}  // namespace fastdistil::tests
