// fp32 on any CPU the compiler knows: 128-bit vectors, 4 rows x 8 columns in registers.
#include "forward.h"
#include "kernels.h"
#include "micro_vector.h"
#include "pack_fp32.h"
#include "simd_portable.h"

namespace fastdistil::cpu {
namespace {

struct PortableFp32 : VectorIsa<Portable, Fp32MultiplyAdd<Portable>, 4, float> {
  using AttentionIsa = PortableFp32;

  static void pack_keys(const char* rows, std::size_t stride, int valid, char* out) {
    pack_keys_fp32<4>(rows, stride, valid, out);
  }
  static void pack_values(const char* rows, std::size_t stride, int valid, char* out) {
    pack_values_fp32<4>(rows, stride, valid, out);
  }
};

}  // namespace

const Kernels kPortableFp32 = make_kernels<PortableFp32>(
    "portable", "fp32", "portable fp32 kernels (128-bit vectors)", 256, 32);

}  // namespace fastdistil::cpu
