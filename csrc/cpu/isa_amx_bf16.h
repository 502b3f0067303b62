// The AMX instruction set's traits, shared by the real kernels and the emulated ones of the tests.
#pragma once

#include "forward.h"
#include "kernels.h"
#include "micro_amx.h"
#include "pack_avx512.h"
#include "simd_avx512.h"

namespace fastdistil::cpu {
namespace {

struct AmxBf16 {
  using Vec = Avx512;
  using Elem = BFloat16;
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
    tiles_see_memory();
    if (rows > kTileRows) {
      multiply_tiles_32(a, a_block_stride, panel, k_tiles, backward, c, c_stride, prefetch,
                        background);
    } else {
      multiply_tiles_16(a, panel, k_tiles, backward, c, c_stride, prefetch, background);
    }
    tiles_see_memory();
  }
  static void pack_keys(const char* rows, std::size_t stride, int valid, char* out) {
    transpose_steps(rows, stride, valid, out);
  }
  static void pack_values(const char* rows, std::size_t stride, int valid, char* out) {
    interleave_pairs(rows, stride, valid, out);
  }
};

}  // namespace
}  // namespace fastdistil::cpu
