// bf16 on AMX tiles.
#include "isa_amx.h"

namespace fastdistil::cpu {

const Kernels kAmxBf16 = make_kernels<AmxBf16>("amx", "bf16", "AMX bf16 tile kernels", 512, 192);

}  // namespace fastdistil::cpu
