// The embeddings' kernels against the definition in double.
#include "layernorm_oracle.h"

namespace fastdistil::tests {
namespace {

constexpr float kEps = 1e-12f;
constexpr int kWords = 19, kPositions = 11, kSegments = 2;

enum class Segments { kNone, kRowZero, kGiven };

template <class T>
struct EmbeddingCase {
  int tokens, width;
  Segments segments;
  Array<std::int32_t> input_ids, positions, segment_ids;
  Array<T> word, position, segment, weight, bias;

  EmbeddingCase(int tokens_, int width_, Segments segments_, std::size_t shift = 0)
      : tokens(tokens_),
        width(width_),
        segments(segments_),
        input_ids(ids(1, kWords)),
        positions(ids(2, kPositions)),
        segment_ids(ids(3, kSegments)),
        word(random_array<T>(kWords * columns(), 4, 0, 1, shift)),
        position(random_array<T>(kPositions * columns(), 5, 0, 0.5, shift)),
        segment(random_array<T>(kSegments * columns(), 6, 0, 0.5, shift)),
        weight(random_array<T>(columns(), 7, 1, 0.3, shift)),
        bias(random_array<T>(columns(), 8, 0, 0.5, shift)) {}

  Array<std::int32_t> ids(unsigned seed, int rows) const {
    return random_integers(static_cast<std::size_t>(tokens), seed, 0, rows - 1);
  }
  std::size_t columns() const { return static_cast<std::size_t>(width); }
  std::size_t size() const { return static_cast<std::size_t>(tokens) * columns(); }
  std::string name() const {
    return std::string(type_name<T>()) + " [" + std::to_string(tokens) + ", " +
           std::to_string(width) + "], segments " + std::to_string(static_cast<int>(segments));
  }

  Array<T> run(Array<std::int32_t>& errors, std::size_t shift = 0) const {
    Array<T> out(size(), shift);
    cuda::embed_layernorm(data_type<T>(),
                          {input_ids.data(), positions.data(),
                           segments == Segments::kGiven ? segment_ids.data() : nullptr, word.data(),
                           position.data(), segments == Segments::kNone ? nullptr : segment.data(),
                           weight.data(), bias.data(), out.data(), errors.data(), tokens, width,
                           kWords, kPositions, segments == Segments::kNone ? 0 : kSegments, kEps},
                          0);
    return out;
  }
  Array<T> run(std::size_t shift = 0) const {
    Array<std::int32_t> errors(1);
    errors[0] = 0;
    Array<T> out = run(errors, shift);
    CHECK(errors[0] == 0, name());
    return out;
  }

  static std::size_t clamped(std::int32_t id, int rows) {
    return static_cast<std::size_t>(std::min(std::max(id, 0), rows - 1));
  }
  Bounded expected() const {
    Bounded sums;
    for (std::size_t i = 0; i < size(); ++i) {
      const std::size_t token = i / columns(), column = i % columns();
      double sum = word.at(clamped(input_ids[token], kWords) * columns() + column);
      double error = 0;
      if (segments != Segments::kNone) {
        const std::size_t row =
            segments == Segments::kGiven ? clamped(segment_ids[token], kSegments) : 0;
        sum += segment.at(row * columns() + column);
        error += kFloatRoundoff * std::abs(sum);
      }
      sum += position.at(clamped(positions[token], kPositions) * columns() + column);
      error += kFloatRoundoff * std::abs(sum);
      sums.add(sum, error);
    }
    return layernorm_exactly(sums, weight, bias, kEps);
  }
  void check(const Array<T>& out) const {
    const Bounded wanted = expected();
    all_close(out, wanted.values, [&](std::size_t i) { return wanted.errors[i]; }, name());
  }
};

TEST(embeddings_are_the_definition) {
  for_every_type([](auto t) {
    using T = decltype(t);
    for (const int width : {1, 7, 8, 33, 100, 128, 384, 768, 1000, 1024, 3072}) {
      const EmbeddingCase<T> all(width > 1024 ? 2 : 5, width, Segments::kNone);
      all.check(same_in_every_order([&] { return all.run(); }, all.name(), 2));
    }
    for (const Segments segments : {Segments::kRowZero, Segments::kGiven}) {
      for (const int tokens : {0, 1, 37}) {
        const EmbeddingCase<T> all(tokens, 100, segments);
        all.check(all.run());
      }
      const EmbeddingCase<T> wide(2, 1536, segments);
      wide.check(wide.run());
    }
  });
}

TEST(embeddings_of_a_token_do_not_depend_on_the_others) {
  for_every_type([](auto t) {
    using T = decltype(t);
    for (const int width : {33, 768, 1100}) {
      const EmbeddingCase<T> all(6, width, Segments::kGiven);
      const Array<T> together = all.run();
      for (const std::size_t token : {0u, 3u, 5u}) {
        EmbeddingCase<T> one = all;
        one.tokens = 1;
        one.input_ids = all.input_ids.slice(token, 1);
        one.positions = all.positions.slice(token, 1);
        one.segment_ids = all.segment_ids.slice(token, 1);
        CHECK(same_bits(together.slice(token * all.columns(), all.columns()), one.run()),
              all.name());
      }
    }
  });
}

TEST(embeddings_from_unaligned_tables_have_the_same_bits) {
  for_every_type([](auto t) {
    using T = decltype(t);
    for (const int width : {128, 768, 1536}) {
      const EmbeddingCase<T> aligned(3, width, Segments::kGiven);
      const EmbeddingCase<T> shifted(3, width, Segments::kGiven, 1);
      CHECK(same_bits(aligned.run(), shifted.run(1)), aligned.name());
    }
  });
}

TEST(embeddings_read_the_nearest_row_and_note_it) {
  constexpr std::int32_t kLowest = std::numeric_limits<std::int32_t>::min();
  constexpr std::int32_t kHighest = std::numeric_limits<std::int32_t>::max();
  struct Wrong {
    Array<std::int32_t> EmbeddingCase<BFloat16>::* ids;
    std::int32_t id;
    int bit;
  };
  using Case = EmbeddingCase<BFloat16>;
  for (const int width : {64, 33, 1536}) {
    for (const Wrong& wrong : {Wrong{&Case::input_ids, kWords, cuda::kWrongWord},
                               Wrong{&Case::input_ids, kLowest, cuda::kWrongWord},
                               Wrong{&Case::positions, -1, cuda::kWrongPosition},
                               Wrong{&Case::positions, kHighest, cuda::kWrongPosition},
                               Wrong{&Case::segment_ids, kSegments, cuda::kWrongSegment}}) {
      Case all(5, width, Segments::kGiven);
      (all.*wrong.ids)[3] = wrong.id;
      Array<std::int32_t> errors(1);
      errors[0] = 8;  // what others have noted stays
      all.check(all.run(errors));
      CHECK(errors[0] == (8 | wrong.bit), all.name());
    }
  }
}

TEST(embeddings_hand_on_nan) {
  for_every_type([](auto t) {
    using T = decltype(t);
    EmbeddingCase<T> all(2, 768, Segments::kGiven);
    all.input_ids[0] = 1;
    all.input_ids[1] = 2;
    all.word.set(2 * 768 + 5, kNan);
    const Array<T> out = all.run();
    for (std::size_t i = 0; i < 768; ++i) {
      CHECK(std::isfinite(out.at(i)) && std::isnan(out.at(768 + i)), all.name());
    }
  });
}

}  // namespace
}  // namespace fastdistil::tests
