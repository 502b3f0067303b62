#include "../cpu/isa_avx512_int8.h"
#include "make_int8_parts.h"

namespace fastdistil::tests {

using NoAttention = void;
extern const Int8Parts kAvx512Int8Parts;
const Int8Parts kAvx512Int8Parts = make_int8_parts<cpu::Avx512Int8<NoAttention>>(cpu::kAvx512Int8);

}  // namespace fastdistil::tests
