// fp32 operands of attention, packed as weights are: K transposed, V as it lies.
#pragma once

#include <cstring>

#include "../common/tiles.h"

namespace fastdistil::cpu {

// One column group and one k tile: out[step][key] = rows[key][step], zero for keys >= valid.
template <int kLanes>
FASTDISTIL_INLINE void pack_keys_fp32(const char* rows, std::size_t stride, int valid, char* out) {
  auto* packed = reinterpret_cast<float*>(out);
  for (int key = 0; key < kLanes; ++key) {
    const float* row = reinterpret_cast<const float*>(rows + key * stride);
    for (int step = 0; step < kTileRowBytes / 4; ++step)
      packed[step * kLanes + key] = key < valid ? row[step] : 0.0f;
  }
}

// out[key][column] = rows[key][column] for a group of columns, zero for keys >= valid.
template <int kLanes>
FASTDISTIL_INLINE void pack_values_fp32(const char* rows, std::size_t stride, int valid,
                                        char* out) {
  constexpr int kRowBytes = kLanes * 4;
  for (int key = 0; key < kTileRowBytes / 4; ++key) {
    if (key < valid) {
      std::memcpy(out + key * kRowBytes, rows + key * stride, kRowBytes);
    } else {
      std::memset(out + key * kRowBytes, 0, kRowBytes);
    }
  }
}

}  // namespace fastdistil::cpu
