// bf16 on AMX tiles.
#include "isa_amx_bf16.h"

namespace fastdistil::cpu {

const Kernels kAmxBf16 = {"amx", "bf16", "AMX bf16 tile kernels", {2, 16, 32},
                          512,   192,    AmxBf16::kFfnPiece,      Forward<AmxBf16>::run};

}  // namespace fastdistil::cpu
