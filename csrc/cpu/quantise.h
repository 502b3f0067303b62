// Rows of activations rounded to unsigned bytes for the int8 products, each row by itself as it
// comes (dynamic quantisation: nothing to calibrate), over the range that its own values span. That
// range need not be symmetric: most of a GELU's output is positive.
#pragma once

#include <cstdint>

#include "../common/tiles.h"
#include "hadamard.h"

namespace fastdistil::cpu {

// x = scale * q + minimum, q in 0..255.
struct RowScale {
  float scale;
  float minimum;
};

// The range of a row's values while they pass.
template <class V>
struct RowRange {
  V low = V::set(3.0e38f);
  V high = V::set(-3.0e38f);
  V defect = V::zero();  // NaN once a value was NaN or infinite

  FASTDISTIL_INLINE void see(V x) {
    low = low.min(x);
    high = high.max(x);
    defect = defect + (x - x);
  }
};

template <class V, Rotation kRotation, int kVectors, class From>
FASTDISTIL_INLINE void rotate_row(const From* x, int columns, float* rotated, RowRange<V>& range) {
  for (int j = 0; j < columns; j += kVectors * V::kLanes) {
    V block[kVectors];
#pragma GCC unroll 32
    for (int i = 0; i < kVectors; ++i) block[i] = V::load(x + j + i * V::kLanes);
    rotate_block<V, kRotation>(block);
#pragma GCC unroll 32
    for (int i = 0; i < kVectors; ++i) {
      range.see(block[i]);
      block[i].store(rotated + j + i * V::kLanes);
    }
  }
}

// The codes of the (rotated) row x[0 .. columns) into row `row` of `tiles`; `scratch` holds a row.
// Where a value is NaN or infinite, so is the scale, and with it every sum of the row: no finite
// nonsense comes of it.
template <class V, Rotation kRotation, class From>
FASTDISTIL_INLINE RowScale quantise_row(const From* x, int columns, float* scratch,
                                        const Tiles& tiles, int row) {
  RowRange<V> range;
  if constexpr (kRotation == Rotation::kNone) {
    rotate_row<V, kRotation, 1>(x, columns, scratch, range);
  } else {
    switch (block_columns(columns)) {
      case 32:
        rotate_row<V, kRotation, 32 / V::kLanes>(x, columns, scratch, range);
        break;
      case 64:
        rotate_row<V, kRotation, 64 / V::kLanes>(x, columns, scratch, range);
        break;
      case 128:
        rotate_row<V, kRotation, 128 / V::kLanes>(x, columns, scratch, range);
        break;
      default:
        rotate_row<V, kRotation, kLargestBlock / V::kLanes>(x, columns, scratch, range);
    }
  }
  const float minimum = range.low.smallest() + range.defect.sum();
  const float width = range.high.largest() - minimum;
  // A row of equal values is its minimum; below the floor the inverse would overflow.
  const V inverse = V::set(width > 1e-30f ? 255.0f / width : 0.0f);
  const V shift = V::set(minimum);
  for (int j = 0; j < columns; j += V::kLanes)
    ((V::load(scratch + j) - shift) * inverse).store_bytes(tiles.at<std::uint8_t>(row, j));
  return {width / 255.0f, minimum};
}

}  // namespace fastdistil::cpu
