// The micro-kernel of every instruction set without matrix tiles: a few rows of A against one panel
// of two vectors of columns, all sums in registers, four bytes of k a step.
//
// fp32, bf16 and int8 differ in one instruction. A step of k is four bytes in all (one fp32, two
// bf16 or four int8 that one dot-product instruction consumes), so the walk over memory is the same
// to the byte. The sums of int8 are integers: they pass through the registers of floats as bits.
#pragma once

#include <cstring>

#include "../common/tiles.h"
#include "epilogues.h"
#include "peak.h"
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

// A tile's rows, kRows at a time; the last few as a group of their own where kRows does not divide
// a tile.
template <class V, class MultiplyAdd, int kRows>
FASTDISTIL_INLINE void multiply_block(const char* a, int rows, const char* panel, int k_tiles,
                                      float* c, int c_stride, Prefetch& prefetch) {
  constexpr int kWhole = kTileRows / kRows * kRows;
  for (int r = 0; r < rows && r < kWhole; r += kRows)
    multiply_rows<V, MultiplyAdd, kRows>(a + r * kTileRowBytes, panel, k_tiles, c + r * c_stride,
                                         c_stride, prefetch);
  if constexpr (kWhole < kTileRows) {
    if (rows > kWhole)
      multiply_rows<V, MultiplyAdd, kTileRows - kWhole>(a + kWhole * kTileRowBytes, panel, k_tiles,
                                                        c + kWhole * c_stride, c_stride, prefetch);
  }
}

namespace {  // so that the linker never takes one instruction set's functions for another's

// What the traits of all instruction sets without matrix tiles have in common: vectors of V, steps
// of kRows rows, a step of k by MultiplyAdd, A in elements of Elem.
template <class V, class MultiplyAdd, int kRows, class A>
struct VectorIsa {
  using Vec = V;
  using Elem = A;
  using Sums = SumsOf<V, A>;
  static constexpr int kPanelColumns = 2 * V::kLanes;
  static constexpr int kBlockRows = kTileRows;
  static constexpr int kPassRows = kRows;
  static constexpr int kFfnPiece = 768;
  static constexpr std::size_t kPanelGroupBytes = 0;  // one panel at a time
  static constexpr bool kOverlapEpilogue = false;
  struct Session {};

  template <class Background>
  static void multiply(const char* a, std::size_t, int rows, const char* panel, int k_tiles, bool,
                       float* c, int c_stride, Prefetch& prefetch, Background&) {
    multiply_block<V, MultiplyAdd, kRows>(a, rows, panel, k_tiles, c, c_stride, prefetch);
  }
  static double peak(long steps) { return vector_peak<V, MultiplyAdd, A>(steps); }
};

}  // namespace

template <class V>
struct Fp32MultiplyAdd {
  static FASTDISTIL_INLINE V apply(V a, V b, V c) { return V::fma(a, b, c); }
};

}  // namespace fastdistil::cpu
