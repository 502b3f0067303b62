// The last layer computed for some rows only gives each of them the bits of a whole forward.
#include <numeric>
#include <random>
#include <stdexcept>

#include "../cpu/rows_read.h"
#include "check.h"
#include "compare.h"

namespace fastdistil::tests {
namespace {

using cpu::Activation;
using cpu::Pooling;
using cpu::Shape;
using Indices = std::vector<std::int32_t>;

// Several chunks, one of whose sequences is longer than its share.
const std::vector<int> kLengths = {1,  5, 0,  16, 17, 33,  31, 300, 2,  64, 0, 48,
                                   15, 9, 70, 1,  90, 110, 32, 64,  77, 3,  8, 0};

Indices some_rows(int tokens, unsigned one_in, unsigned seed) {
  std::mt19937 generator(seed);
  Indices rows;
  for (int row = 0; row < tokens; ++row) {
    if (generator() % one_in == 0) rows.push_back(row);
  }
  return rows;
}

std::vector<Indices> choices(const Sequences& s) {
  Indices all(s.tokens());
  std::iota(all.begin(), all.end(), 0);
  const Indices inner(all.begin() + s.cu_seqlens[7] + 100, all.begin() + s.cu_seqlens[7] + 180);
  return {{},
          all,
          inner,
          {0},
          {s.tokens() - 1},
          some_rows(s.tokens(), 2, 1),
          some_rows(s.tokens(), 30, 2),
          some_rows(s.tokens(), 400, 3)};
}

TEST(rows_read_have_the_bits_of_a_whole_forward) {
  const Shape shapes[] = {
      make_shape(64, 2, 900, 2, 0, Activation::kGelu),
      make_shape(40, 5, 33, 1, 2, Activation::kRelu),  // one layer; every padding at work
  };
  for (const Shape& shape : shapes) {
    const Weights weights = random_weights(shape, 1);
    const Sequences s = random_sequences(shape, kLengths, 2);
    for (const cpu::Kernels* kernels : kernels_under_test()) {
      const cpu::Encoder encoder = make_encoder(*kernels, shape, weights);
      const std::vector<float> all = run(encoder, shape, s, 1);
      for (const Indices& rows : choices(s)) {
        const std::vector<float> want = rows_of(all, rows, shape.hidden);
        for (const int threads : {1, 2, 5})
          CHECK(same_bits(run_rows(encoder, shape, s, rows, threads), want),
                name_of(*kernels) + ", " + std::to_string(rows.size()) + " rows, " +
                    std::to_string(threads) + " threads");
      }
    }
  }
}

TEST(a_team_reads_rows_of_a_few_tokens) {
  const Shape shape = make_shape(96, 3, 200, 2, 0, Activation::kSilu);
  const Weights weights = random_weights(shape, 3);
  const Sequences s = random_sequences(shape, {20, 0, 3}, 4);
  for (const cpu::Kernels* kernels : kernels_under_test()) {
    const cpu::Encoder encoder = make_encoder(*kernels, shape, weights);
    const std::vector<float> all = run(encoder, shape, s, 1);
    for (const Indices& rows : {Indices{0}, Indices{19, 20}, Indices{1, 2, 5, 17, 22}}) {
      for (const int threads : {1, 2, 3, 8})
        CHECK(
            same_bits(run_rows(encoder, shape, s, rows, threads), rows_of(all, rows, shape.hidden)),
            name_of(*kernels));
    }
  }
}

TEST(first_tokens_are_read_alone) {
  const Shape shape = make_shape(64, 2, 128, 2, 0, Activation::kGelu);
  const Weights weights = random_weights(shape, 5);
  const Sequences s = random_sequences(shape, kLengths, 6);
  for (const cpu::Kernels* kernels : kernels_under_test()) {
    const cpu::Encoder encoder = make_encoder(*kernels, shape, weights);
    const std::vector<float> all = run(encoder, shape, s, 1);
    std::vector<float> want;
    for (int i = 0; i < s.count(); ++i) {
      const int first = s.cu_seqlens[i];
      const bool is_empty = s.cu_seqlens[i + 1] == first;
      const std::vector<float> row =
          is_empty ? std::vector<float>(shape.hidden, 0.0f) : rows_of(all, {first}, shape.hidden);
      want.insert(want.end(), row.begin(), row.end());
    }
    for (const int threads : {1, 2, 5})
      CHECK(same_bits(run(encoder, shape, s, threads, Pooling::kCls), want), name_of(*kernels));
  }
}

TEST(sequences_that_nobody_reads_are_planned_as_empty) {
  const Indices ends = {0, 4, 4, 9, 10};
  const Indices rows = {1, 3, 9};
  cpu::Batch batch;
  batch.cu_seqlens = ends.data();
  batch.sequences = 4;
  batch.tokens = 10;
  batch.rows = rows.data();
  batch.row_count = 3;
  CHECK(cpu::cu_seqlens_read(batch) == Indices({0, 4, 4, 4, 5}));

  cpu::Chunk chunk;
  chunk.spans = {{3, 0, 1}, {0, 1, 4}, {2, 5, 0}};
  cpu::find_reads(batch, chunk);
  const int want[][2] = {{0, 2}, {2, 0}, {4, 1}};  // row in the chunk, index in rows
  CHECK(chunk.reads.size() == 3);
  for (int i = 0; i < 3; ++i)
    CHECK(chunk.reads[i].row == want[i][0] && chunk.reads[i].index == want[i][1]);
  CHECK(chunk.spans[1].read_begin == 1 && chunk.spans[1].read_end == 3);
  CHECK(chunk.spans[2].read_begin == 3 && chunk.spans[2].read_end == 3);
}

TEST(rows_that_are_none_are_refused_by_name) {
  const Shape shape = make_shape(32, 1, 32, 1, 0, Activation::kGelu);
  const Weights weights = random_weights(shape, 7);
  const Sequences s = random_sequences(shape, {3, 4}, 8);
  const cpu::Encoder encoder = make_encoder(*cpu::usable_kernels().front(), shape, weights);
  const auto says = [&](const Indices& rows, const std::string& want) {
    std::string got = "nothing was refused";
    try {
      run_rows(encoder, shape, s, rows, 2);
    } catch (const std::invalid_argument& error) {
      got = error.what();
    }
    CHECK(got.find(want) != std::string::npos, "got: " + got);
  };
  says({0, 7}, "rows has 7 at index 1, outside the 7 tokens");
  says({-1, 3}, "rows has -1 at index 0");
  says({2, 5, 5}, "rows has 5 after 5: they must ascend");
  says({4, 2}, "rows has 2 after 4");
}

}  // namespace
}  // namespace fastdistil::tests
