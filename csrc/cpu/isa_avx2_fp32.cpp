// fp32 on AVX2 + FMA: 6 rows x 16 columns in 12 of the 16 ymm registers (6 + 6 + 4 rows to a tile).
#include "forward.h"
#include "kernels.h"
#include "micro_vector.h"
#include "pack_fp32.h"
#include "simd_avx2.h"

namespace fastdistil::cpu {
namespace {

struct Isa {
  using Vec = Avx2;
  using Elem = float;
  static constexpr int kPanelColumns = 16;
  static constexpr int kBlockRows = kTileRows;
  static constexpr int kPassRows = 6;
  static constexpr int kFfnPiece = 768;
  static constexpr std::size_t kPanelGroupBytes = 0;  // one panel at a time
  static constexpr bool kOverlapEpilogue = false;
  struct Session {};

  template <int kRows>
  static void multiply_some(const char* a, const char* panel, int k_tiles, float* c, int c_stride,
                            Prefetch& prefetch) {
    multiply_rows<Avx2, Fp32MultiplyAdd<Avx2>, kRows>(a, panel, k_tiles, c, c_stride, prefetch);
  }
  template <class Background>
  static void multiply(const char* a, std::size_t, int rows, const char* panel, int k_tiles, bool,
                       float* c, int c_stride, Prefetch& prefetch, Background&) {
    multiply_some<6>(a, panel, k_tiles, c, c_stride, prefetch);
    if (rows > 6)
      multiply_some<6>(a + 6 * kTileRowBytes, panel, k_tiles, c + 6 * c_stride, c_stride, prefetch);
    if (rows > 12)
      multiply_some<4>(a + 12 * kTileRowBytes, panel, k_tiles, c + 12 * c_stride, c_stride,
                       prefetch);
  }
  static void pack_keys(const char* rows, std::size_t stride, int valid, char* out) {
    pack_keys_fp32<8>(rows, stride, valid, out);
  }
  static void pack_values(const char* rows, std::size_t stride, int valid, char* out) {
    pack_values_fp32<8>(rows, stride, valid, out);
  }
};

}  // namespace

const Kernels kAvx2Fp32 = {"avx2", "fp32", "AVX2 fp32 kernels", {4, 8, 16},
                           256,    48,     Isa::kFfnPiece,      Forward<Isa>::run};

}  // namespace fastdistil::cpu
