// The encoder in plain double precision, straight from its definition: what every kernel is held
// to. With `rounded`, operands are rounded to bf16 where a bf16 engine must round them (weights,
// and every activation that enters a product): how much error the format itself costs.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "../cpu/model.h"

namespace fastdistil::tests {

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
                                   const Sequences& sequences, bool rounded);

}  // namespace fastdistil::tests
