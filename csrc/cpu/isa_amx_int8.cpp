// int8 on AMX tiles, attention in bf16.
#include "isa_amx.h"

namespace fastdistil::cpu {

const Kernels kAmxInt8 =
    make_kernels<AmxInt8>("amx", "int8", "AMX int8 tile kernels, attention in bf16", 512, 192);

}  // namespace fastdistil::cpu
