// bf16 on AVX-512 BF16: the fp32 kernel with VDPBF16PS for FMA, two products a lane and step.
#include "forward.h"
#include "kernels.h"
#include "micro_vector.h"
#include "pack_avx512.h"
#include "simd_avx512.h"

namespace fastdistil::cpu {
namespace {

struct DotBf16 {
  static FASTDISTIL_INLINE Avx512 apply(Avx512 a, Avx512 b, Avx512 c) {
    return {_mm512_dpbf16_ps(c.v, (__m512bh)a.v, (__m512bh)b.v)};
  }
};

struct Isa {
  using Vec = Avx512;
  using Elem = BFloat16;
  static constexpr int kPanelColumns = 32;
  static constexpr int kBlockRows = kTileRows;
  static constexpr int kPassRows = 8;
  static constexpr int kFfnPiece = 768;
  static constexpr std::size_t kPanelGroupBytes = 0;  // one panel at a time
  static constexpr bool kOverlapEpilogue = false;
  struct Session {};

  template <class Background>
  static void multiply(const char* a, std::size_t, int rows, const char* panel, int k_tiles, bool,
                       float* c, int c_stride, Prefetch& prefetch, Background&) {
    for (int r = 0; r < rows; r += 8)
      multiply_rows<Avx512, DotBf16, 8>(a + r * kTileRowBytes, panel, k_tiles, c + r * c_stride,
                                        c_stride, prefetch);
  }
  static void pack_keys(const char* rows, std::size_t stride, int valid, char* out) {
    transpose_steps(rows, stride, valid, out);
  }
  static void pack_values(const char* rows, std::size_t stride, int valid, char* out) {
    interleave_pairs(rows, stride, valid, out);
  }
};

}  // namespace

const Kernels kAvx512Bf16 = {
    "avx512",       "bf16",           "AVX-512 BF16 dot-product kernels", {2, 16, 32}, 256, 64,
    Isa::kFfnPiece, Forward<Isa>::run};

}  // namespace fastdistil::cpu
