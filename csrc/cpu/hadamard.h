// The Walsh-Hadamard transform of rows on their way to int8, and of the weights they meet.
//
// A few channels of a transformer's activations are tens of times larger than the rest, and a few
// weights of the feed-forward block as well: rounded to 8 bits over such a range, all others lose
// most of their digits. H x, with H orthogonal, spreads each large value over its whole block, and
// (W H / n) (H x) = W x. It needs no calibration, and costs additions only. (Rotations before
// quantisation: Ashkboos et al., QuaRot, arXiv 2404.00456.)
//
// A row of `columns` is transformed in blocks of block_columns(columns). The full transform
// combines columns at distances 1, 2, 4, ... within a block; the coarse one, at less than half of
// the cost, only those at 16, 32, ...: enough for the feed-forward block, whose large activations
// are rare.
#pragma once

#include "../common/tiles.h"

namespace fastdistil::cpu {

enum class Rotation { kNone, kFull, kCoarse };

constexpr int kLargestBlock = 256;

constexpr int first_distance(Rotation rotation) { return rotation == Rotation::kFull ? 1 : 16; }

// The largest power of two, up to kLargestBlock, that divides the row; its width is padded to a
// multiple of kColumnMultiple.
constexpr int block_columns(int columns) {
  int block = kColumnMultiple;
  while (2 * block <= kLargestBlock && columns % (2 * block) == 0) block *= 2;
  return block;
}

// Within a vector: distances below V::kLanes.
template <class V, int kDistance = 1>
FASTDISTIL_INLINE V rotate_within(V x) {
  if constexpr (kDistance < V::kLanes) {
    return rotate_within<V, 2 * kDistance>(x.template sums_and_differences<kDistance>());
  } else {
    return x;
  }
}

// Across vectors: distances from V::kLanes (or 16, where that is more) to half of the block.
template <class V, Rotation kRotation, int kVectors>
FASTDISTIL_INLINE void rotate_block(V (&x)[kVectors]) {
  if constexpr (kRotation == Rotation::kFull) {
#pragma GCC unroll 32
    for (int i = 0; i < kVectors; ++i) x[i] = rotate_within(x[i]);
  }
  if constexpr (kRotation == Rotation::kNone) return;
  constexpr int kFirst = first_distance(kRotation) / V::kLanes;
#pragma GCC unroll 8
  for (int distance = kFirst > 0 ? kFirst : 1; distance < kVectors; distance *= 2) {
#pragma GCC unroll 32
    for (int i = 0; i < kVectors; ++i) {
      if ((i & distance) != 0) continue;
      const V sum = x[i] + x[i + distance];
      x[i + distance] = x[i] - x[i + distance];
      x[i] = sum;
    }
  }
}

// The same on a row of weights, divided by the number of columns that each result combines.
inline void rotate_weights(float* row, int columns, Rotation rotation) {
  if (rotation == Rotation::kNone) return;
  const int block = block_columns(columns);
  const int first = first_distance(rotation);
  for (int distance = first; distance < block; distance *= 2) {
    for (int begin = 0; begin < columns; begin += 2 * distance) {
      for (int i = begin; i < begin + distance; ++i) {
        const float sum = 0.5f * (row[i] + row[i + distance]);
        row[i + distance] = 0.5f * (row[i] - row[i + distance]);
        row[i] = sum;
      }
    }
  }
}

}  // namespace fastdistil::cpu
