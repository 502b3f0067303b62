// fp32 on AVX2 and FMA.
#include "isa_avx2_fp32.h"

namespace fastdistil::cpu {

const Kernels kAvx2Fp32 = make_kernels<Avx2Fp32>("avx2", "fp32", "AVX2 fp32 kernels", 256, 48);

}  // namespace fastdistil::cpu
