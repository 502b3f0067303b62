// The AVX-VNNI kernels with VPDPBUSD emulated, for CPUs without it, and for valgrind: everything
// but that instruction is the code that ships.
#include "../cpu/isa_avx2_fp32.h"

namespace fastdistil::cpu {
namespace {

struct EmulatedDotInt8 {
  // The even bytes and the odd ones as 16-bit words: sums of two products of those cannot overflow.
  static FASTDISTIL_INLINE Avx2 apply(Avx2 a, Avx2 b, Avx2 c) {
    const __m256i codes = _mm256_castps_si256(a.v), weights = _mm256_castps_si256(b.v);
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(0xff)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(weights, 8), 8));
    const __m256i odd =
        _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), _mm256_srai_epi16(weights, 8));
    return {_mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_castps_si256(c.v), _mm256_add_epi32(even, odd)))};
  }
};

struct Avx2Int8Emulated : VectorIsa<Avx2, EmulatedDotInt8, 6, std::uint8_t> {
  using AttentionIsa = Avx2Fp32;
};

}  // namespace

extern const Kernels kAvx2Int8Emulated;
const Kernels kAvx2Int8Emulated = make_kernels<Avx2Int8Emulated>(
    "avx2-emulated", "int8", "AVX-VNNI int8 kernels, emulated", 256, 64);

}  // namespace fastdistil::cpu
