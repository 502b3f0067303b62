// fp32 on AVX-512: 8 rows x 32 columns in 16 zmm registers, twice to a tile of 16 rows.
#include "forward.h"
#include "kernels.h"
#include "micro_vector.h"
#include "pack_avx512.h"
#include "pack_fp32.h"
#include "simd_avx512.h"

namespace fastdistil::cpu {
namespace {

struct Isa {
  using Vec = Avx512;
  using Elem = float;
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
      multiply_rows<Avx512, Fp32MultiplyAdd<Avx512>, 8>(a + r * kTileRowBytes, panel, k_tiles,
                                                        c + r * c_stride, c_stride, prefetch);
  }
  static void pack_keys(const char* rows, std::size_t stride, int valid, char* out) {
    transpose_steps(rows, stride, valid, out);
  }
  static void pack_values(const char* rows, std::size_t stride, int valid, char* out) {
    pack_values_fp32<16>(rows, stride, valid, out);
  }
};

}  // namespace

const Kernels kAvx512Fp32 = {"avx512", "fp32", "AVX-512 fp32 kernels", {4, 16, 32},
                             256,      48,     Isa::kFfnPiece,         Forward<Isa>::run};

}  // namespace fastdistil::cpu
