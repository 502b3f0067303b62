// LayerNorm over a row (Ba, Kiros and Hinton, arXiv 1607.06450): (x - mean) / sqrt(var + eps) *
// weight + bias, statistics in fp32 in two passes (the one-pass formula loses digits where |mean|
// is large).
#pragma once

#include <cmath>

#include "model.h"

namespace fastdistil::cpu {

// x: fp32 [padded], of which `columns` count. write(column, V) receives the padded row; padded
// columns are zero because weight and bias are zero there.
template <class V, class Write>
FASTDISTIL_INLINE void layer_norm_row(const float* x, int columns, int padded, float eps,
                                      const LayerNormWeights& norm, const Write& write) {
  V sum = V::zero();
  for (int j = 0; j < columns; j += V::kLanes) sum = sum + V::load(x + j).first(columns - j);
  const V mean = V::set(sum.sum() / static_cast<float>(columns));
  V squares = V::zero();
  for (int j = 0; j < columns; j += V::kLanes) {
    const V d = (V::load(x + j) - mean).first(columns - j);
    squares = V::fma(d, d, squares);
  }
  const V scale = V::set(1.0f / std::sqrt(squares.sum() / static_cast<float>(columns) + eps));
  const float* weight = norm.weight.as<float>();
  const float* bias = norm.bias.as<float>();
  for (int j = 0; j < padded; j += V::kLanes) {
    const V y = (V::load(x + j) - mean) * scale;
    write(j, V::fma(y, V::load(weight + j), V::load(bias + j)));
  }
}

}  // namespace fastdistil::cpu
