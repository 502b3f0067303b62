#include "../cpu/isa_avx2_int8.h"
#include "make_int8_parts.h"

namespace fastdistil::tests {

extern const Int8Parts kAvx2Int8Parts;
const Int8Parts kAvx2Int8Parts = make_int8_parts<cpu::Avx2Int8>(cpu::kAvx2Int8);

}  // namespace fastdistil::tests
