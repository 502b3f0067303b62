// bf16 on AVX-512 BF16.
#include "isa_avx512_bf16.h"

namespace fastdistil::cpu {

const Kernels kAvx512Bf16 =
    make_kernels<Avx512Bf16>("avx512", "bf16", "AVX-512 BF16 dot-product kernels", 256, 64);

}  // namespace fastdistil::cpu
