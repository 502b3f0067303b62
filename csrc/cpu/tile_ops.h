// The AMX tile instructions, or their emulation.
//
// Macros, because the instructions name their registers in the opcode: the number must be a
// literal. With FASTDISTIL_EMULATE_TILES the same names work on arrays, so that everything around
// the instructions (layouts, strides, order, tails) is tested on machines that do not have them.
#pragma once

#include <cstdint>
#include <cstring>

#include "../common/bfloat16.h"
#include "../common/tiles.h"

#if defined(FASTDISTIL_EMULATE_TILES)

namespace fastdistil::cpu {

// Intel SDM volume 2, TDPBF16PS, TDPBUSD, TILELOADD, TILESTORED, for full tiles of 16 rows of 64
// bytes.
struct EmulatedTiles {
  alignas(64) char data[8][kTileBytes];

  void zero(int t) { std::memset(data[t], 0, kTileBytes); }
  void load(int t, const char* p, std::size_t stride) {
    for (int r = 0; r < kTileRows; ++r) std::memcpy(data[t] + r * 64, p + r * stride, 64);
  }
  void store(int t, char* p, std::size_t stride) const {
    for (int r = 0; r < kTileRows; ++r) std::memcpy(p + r * stride, data[t] + r * 64, 64);
  }
  void dot_int8(int c, int a, int b) {
    for (int m = 0; m < 16; ++m) {
      std::int32_t sum[16];
      std::memcpy(sum, data[c] + m * 64, 64);
      for (int k = 0; k < 16; ++k) {
        for (int n = 0; n < 16; ++n) {
          for (int e = 0; e < 4; ++e)
            sum[n] += static_cast<std::uint8_t>(data[a][m * 64 + 4 * k + e]) *
                      static_cast<std::int8_t>(data[b][k * 64 + 4 * n + e]);
        }
      }
      std::memcpy(data[c] + m * 64, sum, 64);
    }
  }
  void dot_bf16(int c, int a, int b) {
    float x[16][32], y[16][32];  // y[k][2 n + e]: element e of pair k of column n
    widen(data[a], x);
    widen(data[b], y);
    for (int m = 0; m < 16; ++m) {
      float sum[16];
      std::memcpy(sum, data[c] + m * 64, 64);
      for (int k = 0; k < 16; ++k) {
        for (int n = 0; n < 16; ++n)
          sum[n] += x[m][2 * k] * y[k][2 * n] + x[m][2 * k + 1] * y[k][2 * n + 1];
      }
      std::memcpy(data[c] + m * 64, sum, 64);
    }
  }

 private:
  static void widen(const char* tile, float (*out)[32]) {
    BFloat16 elements[16][32];
    std::memcpy(elements, tile, kTileBytes);
    for (int r = 0; r < 16; ++r) {
      for (int j = 0; j < 32; ++j) out[r][j] = to_float(elements[r][j]);
    }
  }
};
inline thread_local EmulatedTiles emulated_tiles;

struct TileSession {};

}  // namespace fastdistil::cpu

#define TILE_ZERO(t) ::fastdistil::cpu::emulated_tiles.zero(t)
#define TILE_LOAD(t, p, stride) ::fastdistil::cpu::emulated_tiles.load(t, p, stride)
#define TILE_LOAD_STREAM(t, p, stride) ::fastdistil::cpu::emulated_tiles.load(t, p, stride)
#define TILE_STORE(t, p, stride) \
  ::fastdistil::cpu::emulated_tiles.store(t, reinterpret_cast<char*>(p), stride)
#define TILE_DOT_BF16(c, a, b) ::fastdistil::cpu::emulated_tiles.dot_bf16(c, a, b)
#define TILE_DOT_INT8(c, a, b) ::fastdistil::cpu::emulated_tiles.dot_int8(c, a, b)

#else

#include <immintrin.h>

namespace fastdistil::cpu {

// Configures all eight tiles as 16 rows x 64 bytes for this thread, and releases them again: a
// thread that keeps tiles makes every context switch save 8 KB.
struct TileSession {
  TileSession() {
    struct __attribute__((packed)) Config {
      std::uint8_t palette;
      std::uint8_t start_row;
      std::uint8_t reserved[14];
      std::uint16_t row_bytes[16];
      std::uint8_t rows[16];
    } config;
    std::memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int t = 0; t < 8; ++t) {
      config.row_bytes[t] = kTileRowBytes;
      config.rows[t] = kTileRows;
    }
    // Not _tile_loadconfig: GCC 12 does not see that it reads the struct and drops the stores.
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~TileSession() { _tile_release(); }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;
};

}  // namespace fastdistil::cpu

#define TILE_ZERO(t) _tile_zero(t)
#define TILE_LOAD(t, p, stride) _tile_loadd(t, p, stride)
#define TILE_LOAD_STREAM(t, p, stride) _tile_stream_loadd(t, p, stride)
#define TILE_STORE(t, p, stride) _tile_stored(t, p, stride)
#define TILE_DOT_BF16(c, a, b) _tile_dpbf16ps(c, a, b)
#define TILE_DOT_INT8(c, a, b) _tile_dpbusd(c, a, b)

#endif
