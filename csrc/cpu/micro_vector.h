// The micro-kernel of every instruction set without matrix tiles: a few rows of A against one panel
// of two vectors of columns, all sums in registers, four bytes of k a step.
//
// fp32 and bf16 differ in one instruction. A step of k is four bytes in both (one fp32, or two bf16
// that one dot-product instruction consumes), so the walk over memory is the same to the byte.
#pragma once

#include <cstring>

#include "../common/tiles.h"
#include "prefetch.h"

namespace fastdistil::cpu {

constexpr int kStepsPerTile = kTileRowBytes / 4;

// Four bytes of A, whatever they hold.
FASTDISTIL_INLINE float load_step(const char* p) {
  float step;
  std::memcpy(&step, p, sizeof step);
  return step;
}

// c[r][0 .. 2 lanes) = sum over k of a[r][k] * panel[k][..] for r < kRows. A is in tiles (`a`: the
// row's start in its first tile), the panel as PackedMatrix lays it out, c row-major fp32.
template <class V, class MultiplyAdd, int kRows>
FASTDISTIL_INLINE void multiply_rows(const char* a, const char* panel, int k_tiles, float* c,
                                     int c_stride, Prefetch& prefetch) {
  constexpr int kGroupBytes = kStepsPerTile * static_cast<int>(sizeof(V));
  V sum[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = V::zero();
  for (int tile = 0; tile < k_tiles; ++tile) {
#pragma GCC unroll 4
    for (int step = 0; step < kStepsPerTile; ++step) {
      const float* b = reinterpret_cast<const float*>(panel + step * sizeof(V));
      const V b0 = V::load(b);
      const V b1 = V::load(b + kGroupBytes / 4);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const V x = V::set(load_step(a + r * kTileRowBytes + step * 4));
        sum[r][0] = MultiplyAdd::apply(x, b0, sum[r][0]);
        sum[r][1] = MultiplyAdd::apply(x, b1, sum[r][1]);
      }
    }
    prefetch.step();
    a += kTileBytes;
    panel += 2 * kGroupBytes;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    sum[r][0].store(c + r * c_stride);
    sum[r][1].store(c + r * c_stride + V::kLanes);
  }
}

template <class V>
struct Fp32MultiplyAdd {
  static FASTDISTIL_INLINE V apply(V a, V b, V c) { return V::fma(a, b, c); }
};

}  // namespace fastdistil::cpu
