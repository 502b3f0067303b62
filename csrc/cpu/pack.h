// From a checkpoint's fp32 tensors to the packed weights of a Model.
#pragma once

#include <functional>
#include <string>

#include "kernels.h"
#include "model.h"

namespace fastdistil::cpu {

// The address of the contiguous fp32 tensor of that canonical name; never null.
using WeightSource = std::function<const float*(const std::string& name)>;

// Folds (Q, K and V in one matrix; softmax scale and log2(e) into Q), pads and packs.
std::shared_ptr<const PackedWeights> pack_weights(const Shape& shape, const Kernels& kernels,
                                                  const WeightSource& weights);

// The embedding tables, which are not copied: they must outlive the model.
EmbeddingTables find_tables(const Shape& shape, const WeightSource& weights);

}  // namespace fastdistil::cpu
