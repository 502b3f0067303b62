// AVX-512's fp32 traits: 8 rows x 32 columns in 16 zmm registers, twice to a tile of 16 rows.
#pragma once

#include "forward.h"
#include "kernels.h"
#include "micro_vector.h"
#include "pack_avx512.h"
#include "pack_fp32.h"
#include "simd_avx512.h"

namespace fastdistil::cpu {
namespace {

struct Avx512Fp32 : VectorIsa<Avx512, Fp32MultiplyAdd<Avx512>, 8, float> {
  using AttentionIsa = Avx512Fp32;

  static void pack_keys(const char* rows, std::size_t stride, int valid, char* out) {
    transpose_steps(rows, stride, valid, out);
  }
  static void pack_values(const char* rows, std::size_t stride, int valid, char* out) {
    pack_values_fp32<16>(rows, stride, valid, out);
  }
};

}  // namespace
}  // namespace fastdistil::cpu
