// AVX-VNNI's traits: VPDPBUSD for FMA, four products a lane and step, attention in fp32.
#pragma once

#include "isa_avx2_fp32.h"

namespace fastdistil::cpu {
namespace {

struct DotInt8 {
  static FASTDISTIL_INLINE Avx2 apply(Avx2 a, Avx2 b, Avx2 c) {
    return {_mm256_castsi256_ps(_mm256_dpbusd_avx_epi32(
        _mm256_castps_si256(c.v), _mm256_castps_si256(a.v), _mm256_castps_si256(b.v)))};
  }
};

struct Avx2Int8 : VectorIsa<Avx2, DotInt8, 6, std::uint8_t> {
  using AttentionIsa = Avx2Fp32;
};

}  // namespace
}  // namespace fastdistil::cpu
