// The encoder in plain double precision, straight from its definition: what every kernel is held
// to. In another format than kExact, operands are rounded where an engine of that precision must
// round them: how much error the format itself costs, whoever computes in it.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "../cpu/model.h"

namespace fastdistil::tests {

enum class Format {
  kExact,
  // Weights, and every activation that enters a product, to bf16; the residual stream stays.
  kBf16,
  // The linear products in int8, plainly: weights to 255 levels around zero for each output, rows
  // of activations to 256 levels between their least and their largest value, lin2's in pieces of
  // kInt8Piece columns. No rotation, no calibration. All else, attention first, as in kBf16.
  kInt8,
};
constexpr int kInt8Piece = 768;

using Weights = std::map<std::string, std::vector<float>>;

// Seeded weights at a scale where errors show: LayerNorms far from the identity, biases not zero.
Weights random_weights(const cpu::Shape& shape, unsigned seed);

struct Sequences {
  std::vector<std::int32_t> input_ids, positions, segment_ids, cu_seqlens;

  int count() const { return static_cast<int>(cu_seqlens.size()) - 1; }
  int tokens() const { return static_cast<int>(input_ids.size()); }
};

Sequences random_sequences(const cpu::Shape& shape, const std::vector<int>& lengths, unsigned seed);

// [tokens, hidden] last hidden states.
std::vector<double> oracle_forward(const cpu::Shape& shape, const Weights& weights,
                                   const Sequences& sequences, Format format);

}  // namespace fastdistil::tests
