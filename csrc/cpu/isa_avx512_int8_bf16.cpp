// int8 on AVX-512 VNNI, attention in bf16.
#include "isa_avx512_bf16.h"
#include "isa_avx512_int8.h"

namespace fastdistil::cpu {

const Kernels kAvx512Int8Bf16 = make_kernels<Avx512Int8<Avx512Bf16>>(
    "avx512", "int8", "AVX-512 VNNI int8 kernels, attention in bf16", 256, 64);

}  // namespace fastdistil::cpu
