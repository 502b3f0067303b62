// The AMX kernels with emulated tile instructions: everything but the instructions themselves is
// the code that ships.
#define FASTDISTIL_EMULATE_TILES 1
#include "../cpu/isa_amx.h"
#include "make_int8_parts.h"

namespace fastdistil::cpu {

extern const Kernels kAmxBf16Emulated;
extern const Kernels kAmxInt8Emulated;
const Kernels kAmxBf16Emulated =
    make_kernels<AmxBf16>("amx-emulated", "bf16", "AMX bf16 tile kernels, emulated", 512, 192);
const Kernels kAmxInt8Emulated =
    make_kernels<AmxInt8>("amx-emulated", "int8", "AMX int8 tile kernels, emulated", 512, 192);

}  // namespace fastdistil::cpu

namespace fastdistil::tests {

extern const Int8Parts kAmxInt8EmulatedParts;
const Int8Parts kAmxInt8EmulatedParts = make_int8_parts<cpu::AmxInt8>(cpu::kAmxInt8Emulated);

}  // namespace fastdistil::tests
