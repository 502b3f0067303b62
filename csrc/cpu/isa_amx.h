// The AMX traits, shared by the real kernels and the emulated ones of the tests.
#pragma once

#include "forward.h"
#include "kernels.h"
#include "micro_amx.h"
#include "pack_avx512.h"
#include "peak.h"
#include "simd_avx512.h"

namespace fastdistil::cpu {
namespace {

template <class A>
struct TileIsa {
  using Vec = Avx512;
  using Elem = A;
  using Sums = SumsOf<Avx512, A>;
  static constexpr int kPanelColumns = 32;
  static constexpr int kBlockRows = 2 * kTileRows;
  static constexpr int kPassRows = kBlockRows;
  static constexpr int kFfnPiece = 768;
  // Half of a small second-level cache: the rest is the activations'.
  static constexpr std::size_t kPanelGroupBytes = std::size_t{384} << 10;
  static constexpr bool kOverlapEpilogue = true;
  using Session = TileSession;

  template <class Background>
  static void multiply(const char* a, std::size_t a_block_stride, int rows, const char* panel,
                       int k_tiles, bool backward, float* c, int c_stride, Prefetch& prefetch,
                       Background& background) {
    constexpr bool kInt8 = sizeof(Elem) == 1;
    tiles_see_memory();
    if (rows > kTileRows) {
      multiply_tiles_32<kInt8>(a, a_block_stride, panel, k_tiles, backward, c, c_stride, prefetch,
                               background);
    } else {
      multiply_tiles_16<kInt8>(a, panel, k_tiles, backward, c, c_stride, prefetch, background);
    }
    tiles_see_memory();
  }
  static double peak(long steps) {
    alignas(64) char random[kTileBytes];
    fill_random<Elem>(random);
    [[maybe_unused]] const Session session{};
    tiles_see_memory();
    tile_products<sizeof(Elem) == 1>(random, steps);
    return static_cast<double>(steps) * 4 * kTileRows * kTileRows * (kTileRowBytes / sizeof(Elem));
  }
};

struct AmxBf16 : TileIsa<BFloat16> {
  using AttentionIsa = AmxBf16;

  static void pack_keys(const char* rows, std::size_t stride, int valid, char* out) {
    transpose_steps(rows, stride, valid, out);
  }
  static void pack_values(const char* rows, std::size_t stride, int valid, char* out) {
    interleave_pairs(rows, stride, valid, out);
  }
};

struct AmxInt8 : TileIsa<std::uint8_t> {
  using AttentionIsa = AmxBf16;
};

}  // namespace
}  // namespace fastdistil::cpu
