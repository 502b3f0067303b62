// fp32 on AVX-512.
#include "isa_avx512_fp32.h"

namespace fastdistil::cpu {

const Kernels kAvx512Fp32 =
    make_kernels<Avx512Fp32>("avx512", "fp32", "AVX-512 fp32 kernels", 256, 48);

}  // namespace fastdistil::cpu
