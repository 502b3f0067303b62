// The AMX micro-kernel: 32 (or 16) rows of A against one panel of 32 columns, bf16 or int8, the
// whole of k in the accumulator tiles.
//
// Tiles 0-3 hold C (2 x 2), 4-5 two row blocks of A, 6-7 two column groups of the panel: four loads
// feed four products, the best ratio that eight tile registers allow. Between the tile instructions
// run the background steps (the previous block's epilogue) and the prefetches of weights that come
// next: the matrix unit is busy for 16 cycles a product and the vector units would idle.
#pragma once

#include "prefetch.h"
#include "tile_ops.h"

namespace fastdistil::cpu {

// GCC's tile loads do not tell the compiler that they read memory; this does, once for a block.
FASTDISTIL_INLINE void tiles_see_memory() { asm volatile("" ::: "memory"); }

// The tile numbers are part of the opcode, so this cannot be a function.
#define TILE_DOT(c, a, b)   \
  if constexpr (kInt8) {    \
    TILE_DOT_INT8(c, a, b); \
  } else {                  \
    TILE_DOT_BF16(c, a, b); \
  }

template <bool kInt8, class Background>
FASTDISTIL_INLINE void multiply_tiles_32(const char* a, std::size_t a_block_stride,
                                         const char* panel, int k_tiles, bool backward, float* c,
                                         int c_stride, Prefetch& prefetch, Background& background) {
  const long step = backward ? -1 : 1;
  long k = backward ? k_tiles - 1 : 0;
  TILE_ZERO(0);
  TILE_ZERO(1);
  TILE_ZERO(2);
  TILE_ZERO(3);
  for (int i = 0; i < k_tiles; ++i, k += step) {
    const char* a0 = a + k * kTileBytes;
    const char* b0 = panel + k * 2 * kTileBytes;
    TILE_LOAD(4, a0, kTileRowBytes);
    TILE_LOAD_STREAM(6, b0, kTileRowBytes);
    TILE_DOT(0, 4, 6);
    background.step();
    TILE_LOAD_STREAM(7, b0 + kTileBytes, kTileRowBytes);
    TILE_DOT(1, 4, 7);
    TILE_LOAD(5, a0 + a_block_stride, kTileRowBytes);
    TILE_DOT(2, 5, 6);
    background.step();
    TILE_DOT(3, 5, 7);
    prefetch.step();
  }
  const std::size_t stride = c_stride * sizeof(float);
  TILE_STORE(0, c, stride);
  TILE_STORE(1, c + 16, stride);
  TILE_STORE(2, c + 16 * c_stride, stride);
  TILE_STORE(3, c + 16 * c_stride + 16, stride);
}

template <bool kInt8, class Background>
FASTDISTIL_INLINE void multiply_tiles_16(const char* a, const char* panel, int k_tiles,
                                         bool backward, float* c, int c_stride, Prefetch& prefetch,
                                         Background& background) {
  const long step = backward ? -1 : 1;
  long k = backward ? k_tiles - 1 : 0;
  TILE_ZERO(0);
  TILE_ZERO(1);
  for (int i = 0; i < k_tiles; ++i, k += step) {
    const char* b0 = panel + k * 2 * kTileBytes;
    TILE_LOAD(4, a + k * kTileBytes, kTileRowBytes);
    TILE_LOAD_STREAM(6, b0, kTileRowBytes);
    TILE_DOT(0, 4, 6);
    TILE_LOAD_STREAM(7, b0 + kTileBytes, kTileRowBytes);
    TILE_DOT(1, 4, 7);
    background.step();
    prefetch.step();
  }
  const std::size_t stride = c_stride * sizeof(float);
  TILE_STORE(0, c, stride);
  TILE_STORE(1, c + 16, stride);
}

// `steps` rounds of four products of one random tile with itself: see peak.h.
template <bool kInt8>
FASTDISTIL_INLINE void tile_products(const char* tile, long steps) {
  TILE_LOAD(4, tile, kTileRowBytes);
  TILE_LOAD(6, tile, kTileRowBytes);
  TILE_ZERO(0);
  TILE_ZERO(1);
  TILE_ZERO(2);
  TILE_ZERO(3);
  for (long step = 0; step < steps; ++step) {
    TILE_DOT(0, 4, 6);
    TILE_DOT(1, 4, 6);
    TILE_DOT(2, 4, 6);
    TILE_DOT(3, 4, 6);
  }
}

#undef TILE_DOT

}  // namespace fastdistil::cpu
