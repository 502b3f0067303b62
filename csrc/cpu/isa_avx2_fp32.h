// AVX2's fp32 traits: 6 rows x 16 columns in 12 of the 16 ymm registers (6 + 6 + 4 rows to a tile).
#pragma once

#include "forward.h"
#include "kernels.h"
#include "micro_vector.h"
#include "pack_fp32.h"
#include "simd_avx2.h"

namespace fastdistil::cpu {
namespace {

struct Avx2Fp32 : VectorIsa<Avx2, Fp32MultiplyAdd<Avx2>, 6, float> {
  using AttentionIsa = Avx2Fp32;

  static void pack_keys(const char* rows, std::size_t stride, int valid, char* out) {
    pack_keys_fp32<8>(rows, stride, valid, out);
  }
  static void pack_values(const char* rows, std::size_t stride, int valid, char* out) {
    pack_values_fp32<8>(rows, stride, valid, out);
  }
};

}  // namespace
}  // namespace fastdistil::cpu
