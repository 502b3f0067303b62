// fp32 on any CPU the compiler knows: 128-bit vectors, 4 rows x 8 columns in registers.
#include "forward.h"
#include "kernels.h"
#include "micro_vector.h"
#include "pack_fp32.h"
#include "simd_portable.h"

namespace fastdistil::cpu {
namespace {

struct Isa {
  using Vec = Portable;
  using Elem = float;
  static constexpr int kPanelColumns = 8;
  static constexpr int kBlockRows = kTileRows;
  static constexpr int kPassRows = 4;
  static constexpr int kFfnPiece = 768;
  static constexpr std::size_t kPanelGroupBytes = 0;  // one panel at a time
  static constexpr bool kOverlapEpilogue = false;
  struct Session {};

  template <class Background>
  static void multiply(const char* a, std::size_t, int rows, const char* panel, int k_tiles, bool,
                       float* c, int c_stride, Prefetch& prefetch, Background&) {
    for (int r = 0; r < rows; r += 4)
      multiply_rows<Portable, Fp32MultiplyAdd<Portable>, 4>(a + r * kTileRowBytes, panel, k_tiles,
                                                            c + r * c_stride, c_stride, prefetch);
  }
  static void pack_keys(const char* rows, std::size_t stride, int valid, char* out) {
    pack_keys_fp32<4>(rows, stride, valid, out);
  }
  static void pack_values(const char* rows, std::size_t stride, int valid, char* out) {
    pack_values_fp32<4>(rows, stride, valid, out);
  }
};

}  // namespace

const Kernels kPortableFp32 = {
    "portable",     "fp32",           "portable fp32 kernels (128-bit vectors)", {4, 4, 8}, 256, 32,
    Isa::kFfnPiece, Forward<Isa>::run};

}  // namespace fastdistil::cpu
