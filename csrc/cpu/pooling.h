// One vector for a sequence: mean, first token (cls) or maximum of its token vectors, and L2
// normalisation. Tokens are taken in order, so the sum does not depend on the batch.
#pragma once

#include <cmath>

#include "model.h"

namespace fastdistil::cpu {

// rows: fp32 [length, stride]; out: fp32 [columns]. A sequence without tokens gives zeros.
template <class V>
FASTDISTIL_INLINE void pool_sequence(const float* rows, int stride, int length, int columns,
                                     Pooling pooling, bool normalize, float* out) {
  const int used = pooling == Pooling::kCls && length > 1 ? 1 : length;
  const V share =
      V::set(pooling == Pooling::kMean ? 1.0f / static_cast<float>(used > 0 ? used : 1) : 1.0f);
  V squares = V::zero();
  for (int j = 0; j < columns; j += V::kLanes) {
    V total = used > 0 ? V::load(rows + j) : V::zero();
    for (int r = 1; r < used; ++r) {
      const V x = V::load(rows + static_cast<std::size_t>(r) * stride + j);
      // A NaN stays, as in torch; the bare maximum would keep it or not by its place.
      total = pooling == Pooling::kMax ? V::where_nan(total, total, total.max(x)) : total + x;
    }
    total = (total * share).first(columns - j);
    squares = V::fma(total, total, squares);
    total.store_first(out + j, columns - j);
  }
  if (!normalize) return;
  const float norm = std::sqrt(squares.sum());
  // torch.nn.functional.normalize's floor.
  const V scale = V::set(1.0f / (norm > 1e-12f ? norm : 1e-12f));
  for (int j = 0; j < columns; j += V::kLanes)
    (V::load_first(out + j, columns - j) * scale).store_first(out + j, columns - j);
}

}  // namespace fastdistil::cpu
