// int8 on AVX-VNNI (laptops and desktops without AVX-512), attention in fp32.
#include "isa_avx2_int8.h"

namespace fastdistil::cpu {

const Kernels kAvx2Int8 =
    make_kernels<Avx2Int8>("avx2", "int8", "AVX-VNNI int8 kernels, attention in fp32", 256, 64);

}  // namespace fastdistil::cpu
