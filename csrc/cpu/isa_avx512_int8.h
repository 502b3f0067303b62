// AVX-512 VNNI's traits: VPDPBUSD for FMA, four products a lane and step. Attention is another
// instruction set's: its operands are products of activations, which int8 serves badly.
#pragma once

#include "forward.h"
#include "kernels.h"
#include "micro_vector.h"
#include "simd_avx512.h"

namespace fastdistil::cpu {
namespace {

// Unsigned activations by signed weights, sums in 32-bit integers, exact.
struct DotInt8 {
  static FASTDISTIL_INLINE Avx512 apply(Avx512 a, Avx512 b, Avx512 c) {
    return {_mm512_castsi512_ps(_mm512_dpbusd_epi32(
        _mm512_castps_si512(c.v), _mm512_castps_si512(a.v), _mm512_castps_si512(b.v)))};
  }
};

template <class Attention>
struct Avx512Int8 : VectorIsa<Avx512, DotInt8, 8, std::uint8_t> {
  using AttentionIsa = Attention;
};

}  // namespace
}  // namespace fastdistil::cpu
