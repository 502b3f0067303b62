// AVX-512 BF16's traits: the fp32 kernel with VDPBF16PS for FMA, two products a lane and step.
#pragma once

#include "forward.h"
#include "kernels.h"
#include "micro_vector.h"
#include "pack_avx512.h"
#include "simd_avx512.h"

namespace fastdistil::cpu {
namespace {

struct DotBf16 {
  static FASTDISTIL_INLINE Avx512 apply(Avx512 a, Avx512 b, Avx512 c) {
    return {_mm512_dpbf16_ps(c.v, (__m512bh)a.v, (__m512bh)b.v)};
  }
};

struct Avx512Bf16 : VectorIsa<Avx512, DotBf16, 8, BFloat16> {
  using AttentionIsa = Avx512Bf16;

  static void pack_keys(const char* rows, std::size_t stride, int valid, char* out) {
    transpose_steps(rows, stride, valid, out);
  }
  static void pack_values(const char* rows, std::size_t stride, int valid, char* out) {
    interleave_pairs(rows, stride, valid, out);
  }
};

}  // namespace
}  // namespace fastdistil::cpu
