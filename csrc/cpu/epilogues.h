// What happens to a row of a finished block of sums (one panel wide) before it leaves the
// first-level cache. Each names where it writes; every bias vector is padded with zeros to whole
// panels.
#pragma once

#include "activation.h"
#include "model.h"

namespace fastdistil::cpu {

// + bias, rounded, row-major: Q, K and V, which attention reads by sequence and head.
template <class Isa>
struct StoreRows {
  using V = typename Isa::Vec;
  const float* bias;
  char* rows;
  std::size_t stride;

  FASTDISTIL_INLINE void row(const float* sums, int row, int column) const {
    auto* out = reinterpret_cast<typename Isa::Elem*>(rows + row * stride) + column;
    for (int j = 0; j < Isa::kPanelColumns; j += V::kLanes)
      (V::load(sums + j) + V::load(bias + column + j)).store(out + j);
  }
};

// activation(+ bias), rounded, in tiles: the feed-forward block's intermediate layer.
template <class Isa, Activation kActivation>
struct StoreActivation {
  using V = typename Isa::Vec;
  using Elem = typename Isa::Elem;
  const float* bias;
  Tiles tiles;
  int first_column;  // the column of the layer that is column 0 of `tiles`

  FASTDISTIL_INLINE void row(const float* sums, int row, int column) const {
    for (int j = 0; j < Isa::kPanelColumns; j += V::kLanes) {
      const V x = V::load(sums + j) + V::load(bias + column + j);
      activate<kActivation, V, Elem>(x).store(tiles.at<Elem>(row, column - first_column + j));
    }
  }
};

// + bias + residual, fp32: what a LayerNorm reads.
template <class Isa>
struct AddResidual {
  using V = typename Isa::Vec;
  using Elem = typename Isa::Elem;
  const float* bias;
  Tiles residual;
  float* sums_out;
  int stride;

  FASTDISTIL_INLINE void row(const float* sums, int row, int column) const {
    float* out = sums_out + static_cast<std::size_t>(row) * stride + column;
    for (int j = 0; j < Isa::kPanelColumns; j += V::kLanes) {
      const V x = V::load(sums + j) + V::load(bias + column + j);
      (x + V::load(residual.at<Elem>(row, column + j))).store(out + j);
    }
  }
};

// += : a further piece of k.
template <class Isa>
struct Accumulate {
  using V = typename Isa::Vec;
  float* sums_out;
  int stride;

  FASTDISTIL_INLINE void row(const float* sums, int row, int column) const {
    float* out = sums_out + static_cast<std::size_t>(row) * stride + column;
    for (int j = 0; j < Isa::kPanelColumns; j += V::kLanes)
      (V::load(out + j) + V::load(sums + j)).store(out + j);
  }
};

}  // namespace fastdistil::cpu
