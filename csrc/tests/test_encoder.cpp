// Whole forwards of every instruction set against the double-precision oracle, and the promises
// about batches: what a sequence gives does not depend on its neighbours, on threads or on pooling.
#include <sys/wait.h>
#include <unistd.h>

#include <stdexcept>
#include <thread>

#include "check.h"
#include "compare.h"

namespace fastdistil::tests {
namespace {

using cpu::Activation;
using cpu::Pooling;
using cpu::Shape;

const std::vector<int> kLengths = {1, 5, 0, 16, 17, 33, 31, 130, 2, 64};

TEST(forward_matches_the_oracle) {
  const Shape shapes[] = {
      make_shape(96, 3, 200, 2, 0, Activation::kGelu),
      make_shape(32, 1, 32, 1, 2, Activation::kRelu),
      make_shape(40, 5, 33, 2, 2, Activation::kGeluTanh),  // head_dim 8: every padding at work
      make_shape(128, 4, 1600, 1, 0, Activation::kSilu),   // several pieces of the intermediate
                                                           // layer
      make_shape(256, 2, 100, 1, 0, Activation::kGelu),    // head_dim 128
  };
  for (const Shape& shape : shapes) {
    const Weights weights = random_weights(shape, 1);
    const Sequences s = random_sequences(shape, kLengths, 2);
    const std::vector<double> exact = oracle_forward(shape, weights, s, Format::kExact);
    const FormatCosts costs = format_costs(shape, weights, s, exact);
    for (const cpu::Kernels* kernels : kernels_under_test()) {
      const cpu::Encoder encoder = make_encoder(*kernels, shape, weights);
      const Error e = error_of(run(encoder, shape, s, 2), exact);
      const std::string what =
          name_of(*kernels) + ", hidden " + std::to_string(shape.hidden) + ": " + to_string(e);
      if (std::strcmp(kernels->precision, "fp32") == 0) {
        CHECK(e.largest < 2e-6, what);
      } else {
        const Error& cost = costs.at(kernels->precision);
        CHECK(e.root_mean < 1.2 * cost.root_mean, what + "; the format: " + to_string(cost));
        CHECK(e.largest < 2 * cost.largest, what + "; the format: " + to_string(cost));
      }
    }
  }
}

TEST(a_sequence_gives_the_same_bits_in_every_batch) {
  const Shape shape = make_shape(64, 2, 900, 1, 0, Activation::kGelu);
  const Weights weights = random_weights(shape, 3);
  std::vector<int> lengths;
  for (int i = 0; i < 24; ++i) lengths.push_back((i * 37) % 61);
  lengths.push_back(200);
  const Sequences s = random_sequences(shape, lengths, 4);
  for (const cpu::Kernels* kernels : kernels_under_test()) {
    const cpu::Encoder encoder = make_encoder(*kernels, shape, weights);
    const std::vector<float> together = run(encoder, shape, s, 1);
    for (const int threads : {2, 3, 8})
      CHECK(run(encoder, shape, s, threads) == together, name_of(*kernels));
    const std::vector<float> pooled = run(encoder, shape, s, 3, Pooling::kMean, true);
    for (int i = 0; i < s.count(); ++i) {
      const Sequences alone = one_of(s, i);
      for (const int threads : {1, 4}) {
        CHECK(run(encoder, shape, alone, threads) ==
                  rows_of(together, s.cu_seqlens[i], s.cu_seqlens[i + 1], shape.hidden),
              name_of(*kernels) + ", sequence " + std::to_string(i));
        CHECK(run(encoder, shape, alone, threads, Pooling::kMean, true) ==
                  rows_of(pooled, i, i + 1, shape.hidden),
              name_of(*kernels) + ", sequence " + std::to_string(i));
      }
    }
  }
}

std::vector<double> pooled_by_hand(const std::vector<float>& hidden, const Sequences& s, int width,
                                   Pooling pooling, bool normalize) {
  std::vector<double> out;
  for (int i = 0; i < s.count(); ++i) {
    const int begin = s.cu_seqlens[i], end = s.cu_seqlens[i + 1];
    std::vector<double> v(width);
    for (int j = 0; j < width; ++j) {
      for (int t = begin; t < end; ++t) {
        const double x = hidden[t * width + j];
        if (pooling == Pooling::kMean) v[j] += x / (end - begin);
        if (pooling == Pooling::kCls && t == begin) v[j] = x;
        if (pooling == Pooling::kMax) v[j] = t == begin ? x : std::max(v[j], x);
      }
    }
    double norm = 0;
    for (const double x : v) norm += x * x;
    norm = normalize ? std::max(std::sqrt(norm), 1e-12) : 1.0;
    for (const double x : v) out.push_back(x / norm);
  }
  return out;
}

TEST(pooling_is_what_it_says) {
  const Shape shape = make_shape(40, 5, 64, 1, 0, Activation::kGelu);
  const Weights weights = random_weights(shape, 5);
  const Sequences s = random_sequences(shape, kLengths, 6);
  for (const cpu::Kernels* kernels : kernels_under_test()) {
    const cpu::Encoder encoder = make_encoder(*kernels, shape, weights);
    const std::vector<float> hidden = run(encoder, shape, s, 2);
    for (const Pooling pooling : {Pooling::kMean, Pooling::kCls, Pooling::kMax}) {
      for (const bool normalize : {false, true}) {
        const Error e = error_of(run(encoder, shape, s, 2, pooling, normalize),
                                 pooled_by_hand(hidden, s, shape.hidden, pooling, normalize));
        CHECK(e.largest < 1e-6, name_of(*kernels) + " " + std::to_string(e.largest));
      }
    }
  }
}

TEST(many_threads_may_call_at_once) {
  const Shape shape = make_shape(64, 2, 128, 2, 0, Activation::kGelu);
  const Weights weights = random_weights(shape, 7);
  const Sequences s = random_sequences(shape, {9, 40, 3, 77, 20, 20, 1}, 8);
  for (const cpu::Kernels* kernels : kernels_under_test()) {
    const cpu::Encoder encoder = make_encoder(*kernels, shape, weights);
    const std::vector<float> want = run(encoder, shape, s, 1);
    std::vector<int> wrong(8);
    std::vector<std::thread> callers;
    for (int t = 0; t < 8; ++t) {
      callers.emplace_back([&, t] {
        for (int i = 0; i < 10; ++i) wrong[t] += run(encoder, shape, s, 1 + t % 4) != want;
      });
    }
    for (std::thread& caller : callers) caller.join();
    for (const int count : wrong) CHECK(count == 0, name_of(*kernels));
  }
}

TEST(a_twin_shares_all_but_its_embedding_tables) {
  const Shape shape = make_shape(40, 5, 64, 1, 2, Activation::kGelu);
  const Weights weights = random_weights(shape, 11);
  Weights other = weights;
  for (auto& [name, values] : other) {
    if (name.find("_embeddings.") != std::string::npos) std::reverse(values.begin(), values.end());
  }
  const Sequences s = random_sequences(shape, kLengths, 12);
  for (const cpu::Kernels* kernels : kernels_under_test()) {
    const cpu::Encoder twin(make_encoder(*kernels, shape, weights),
                            [&](const std::string& name) { return other.at(name).data(); });
    CHECK(run(twin, shape, s, 2) == run(make_encoder(*kernels, shape, other), shape, s, 2),
          name_of(*kernels));
  }
}

#if !defined(__SANITIZE_THREAD__)  // ThreadSanitizer does not follow threads into a forked child
TEST(a_forked_child_computes_too) {
  const Shape shape = make_shape(64, 2, 128, 2, 0, Activation::kGelu);
  const Weights weights = random_weights(shape, 7);
  const Sequences s = random_sequences(shape, {40, 3, 77}, 8);
  const cpu::Encoder encoder = make_encoder(*cpu::usable_kernels().back(), shape, weights);
  const std::vector<float> want = run(encoder, shape, s, 4);
  const pid_t child = fork();
  if (child == 0) _exit(run(encoder, shape, s, 4) == want ? 0 : 1);
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
#endif

std::string refusal(const cpu::Encoder& encoder, const Shape& shape, const Sequences& s) {
  try {
    run(encoder, shape, s, 2);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "nothing was refused";
}

TEST(bad_input_is_refused_by_name) {
  const Shape shape = make_shape(32, 1, 32, 1, 2, Activation::kGelu);
  const Weights weights = random_weights(shape, 9);
  const cpu::Encoder encoder = make_encoder(*cpu::usable_kernels().front(), shape, weights);
  const Sequences good = random_sequences(shape, {3, 4}, 10);
  const auto says = [&](const Sequences& s, const std::string& want) {
    const std::string got = refusal(encoder, shape, s);
    CHECK(got.find(want) != std::string::npos, "got: " + got);
  };
  Sequences bad = good;
  bad.input_ids[4] = 97;
  says(bad, "input_ids has 97 at token 4, outside the vocabulary of 97 rows");
  bad.input_ids[4] = -1;
  says(bad, "input_ids has -1 at token 4");
  bad = good;
  bad.positions[2] = 600;
  says(bad, "positions has 600 at token 2, outside the position table of 600 rows");
  bad = good;
  bad.segment_ids[0] = 2;
  says(bad, "segment_ids has 2 at token 0");
  bad = good;
  bad.cu_seqlens = {0, 5, 3, 7};
  says(bad, "cu_seqlens falls from 5 to 3");
  bad.cu_seqlens = {1, 7};
  says(bad, "must start with 0");
  bad.cu_seqlens = {0, 8};
  says(bad, "cu_seqlens ends with 8 but there are 7 input_ids");
}

}  // namespace
}  // namespace fastdistil::tests
