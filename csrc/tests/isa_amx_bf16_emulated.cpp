// The AMX kernels with emulated tile instructions: everything but the instructions themselves is
// the code that ships.
#define FASTDISTIL_EMULATE_TILES 1
#include "../cpu/isa_amx_bf16.h"

namespace fastdistil::cpu {

extern const Kernels kAmxBf16Emulated;
const Kernels kAmxBf16Emulated = {"amx-emulated",
                                  "bf16",
                                  "AMX bf16 tile kernels, emulated",
                                  {2, 16, 32},
                                  512,
                                  192,
                                  AmxBf16::kFfnPiece,
                                  Forward<AmxBf16>::run};

}  // namespace fastdistil::cpu
