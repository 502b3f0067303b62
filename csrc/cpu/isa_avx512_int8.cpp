// int8 on AVX-512 VNNI, attention in fp32.
#include "isa_avx512_int8.h"

#include "isa_avx512_fp32.h"

namespace fastdistil::cpu {

const Kernels kAvx512Int8 = make_kernels<Avx512Int8<Avx512Fp32>>(
    "avx512", "int8", "AVX-512 VNNI int8 kernels, attention in fp32", 256, 64);

}  // namespace fastdistil::cpu
