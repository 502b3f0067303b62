// 8 fp32 lanes in a ymm register, with FMA. See simd_avx512.h for what each word means.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "../common/tiles.h"

namespace fastdistil::cpu {

struct Avx2 {
  static constexpr int kLanes = 8;
  __m256 v;

  static FASTDISTIL_INLINE Avx2 zero() { return {_mm256_setzero_ps()}; }
  static FASTDISTIL_INLINE Avx2 set(float x) { return {_mm256_set1_ps(x)}; }
  static FASTDISTIL_INLINE Avx2 load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static FASTDISTIL_INLINE Avx2 load_first(const float* p, int n) {
    return {_mm256_maskload_ps(p, mask(n))};
  }
  FASTDISTIL_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
  FASTDISTIL_INLINE void store_first(float* p, int n) const { _mm256_maskstore_ps(p, mask(n), v); }
  FASTDISTIL_INLINE Avx2 first(int n) const {
    return {_mm256_and_ps(v, _mm256_castsi256_ps(mask(n)))};
  }

  static FASTDISTIL_INLINE Avx2 load_integers(const float* p) {
    return {_mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  FASTDISTIL_INLINE void store_bytes(std::uint8_t* p) const {
    const __m256i x = _mm256_cvtps_epi32(v);
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
  }

  FASTDISTIL_INLINE Avx2 operator+(Avx2 o) const { return {_mm256_add_ps(v, o.v)}; }
  FASTDISTIL_INLINE Avx2 operator-(Avx2 o) const { return {_mm256_sub_ps(v, o.v)}; }
  FASTDISTIL_INLINE Avx2 operator*(Avx2 o) const { return {_mm256_mul_ps(v, o.v)}; }
  FASTDISTIL_INLINE Avx2 operator/(Avx2 o) const { return {_mm256_div_ps(v, o.v)}; }
  FASTDISTIL_INLINE Avx2 max(Avx2 o) const { return {_mm256_max_ps(v, o.v)}; }
  FASTDISTIL_INLINE Avx2 min(Avx2 o) const { return {_mm256_min_ps(v, o.v)}; }
  FASTDISTIL_INLINE Avx2 abs() const { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), v)}; }
  FASTDISTIL_INLINE float sum() const {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }
  FASTDISTIL_INLINE float smallest() const {
    __m128 x = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_min_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_min_ss(x, _mm_movehdup_ps(x)));
  }
  FASTDISTIL_INLINE float largest() const {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
  }

  static FASTDISTIL_INLINE Avx2 fma(Avx2 a, Avx2 b, Avx2 c) {
    return {_mm256_fmadd_ps(a.v, b.v, c.v)};
  }
  static FASTDISTIL_INLINE Avx2 where_negative(Avx2 x, Avx2 yes, Avx2 no) {
    return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(x.v, _mm256_setzero_ps(), _CMP_LT_OQ))};
  }
  template <int kDistance>
  FASTDISTIL_INLINE Avx2 sums_and_differences() const {
    if constexpr (kDistance == 1) {
      const __m256 sign = _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1);
      return {_mm256_fmadd_ps(v, sign, _mm256_permute_ps(v, 0xb1))};
    } else if constexpr (kDistance == 2) {
      const __m256 sign = _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1);
      return {_mm256_fmadd_ps(v, sign, _mm256_permute_ps(v, 0x4e))};
    } else {
      const __m256 sign = _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1);
      return {_mm256_fmadd_ps(v, sign, _mm256_permute2f128_ps(v, v, 1))};
    }
  }
  static FASTDISTIL_INLINE Avx2 where_nan(Avx2 x, Avx2 yes, Avx2 no) {
    return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q))};
  }
  FASTDISTIL_INLINE Avx2 rounded() const {
    return {_mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  FASTDISTIL_INLINE Avx2 times_power_of_two(Avx2 n) const {
    const __m256i exponent =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127)), 23);
    return {_mm256_mul_ps(v, _mm256_castsi256_ps(exponent))};
  }

 private:
  static FASTDISTIL_INLINE __m256i mask(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};

}  // namespace fastdistil::cpu
