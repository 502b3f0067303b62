// 16 fp32 lanes in a zmm register. The vocabulary is the same in simd_avx2.h and simd_portable.h;
// everything above it (norms, activations, softmax, pooling) is written once, on these words.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "../common/bfloat16.h"
#include "../common/tiles.h"

namespace fastdistil::cpu {

struct Avx512 {
  static constexpr int kLanes = 16;
  __m512 v;

  static FASTDISTIL_INLINE Avx512 zero() { return {_mm512_setzero_ps()}; }
  static FASTDISTIL_INLINE Avx512 set(float x) { return {_mm512_set1_ps(x)}; }
  static FASTDISTIL_INLINE Avx512 load(const float* p) { return {_mm512_loadu_ps(p)}; }
  // The first n lanes (0 <= n); the others are zero and their memory is not touched.
  static FASTDISTIL_INLINE Avx512 load_first(const float* p, int n) {
    return {_mm512_maskz_loadu_ps(mask(n), p)};
  }
  FASTDISTIL_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
  FASTDISTIL_INLINE void store_first(float* p, int n) const {
    _mm512_mask_storeu_ps(p, mask(n), v);
  }
  FASTDISTIL_INLINE Avx512 first(int n) const { return {_mm512_maskz_mov_ps(mask(n), v)}; }

  // 32-bit integer sums, as floats.
  static FASTDISTIL_INLINE Avx512 load_integers(const float* p) {
    return {_mm512_cvtepi32_ps(_mm512_loadu_si512(p))};
  }
  // Rounded to nearest even, as unsigned bytes; the lanes are in [0, 255].
  FASTDISTIL_INLINE void store_bytes(std::uint8_t* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(v)));
  }

  // bf16 operands: widened on load, rounded to nearest even on store.
  static FASTDISTIL_INLINE Avx512 load(const BFloat16* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
  }
#if defined(__AVX512BF16__)
  FASTDISTIL_INLINE void store(BFloat16* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(v));
  }
#endif

  FASTDISTIL_INLINE Avx512 operator+(Avx512 o) const { return {_mm512_add_ps(v, o.v)}; }
  FASTDISTIL_INLINE Avx512 operator-(Avx512 o) const { return {_mm512_sub_ps(v, o.v)}; }
  FASTDISTIL_INLINE Avx512 operator*(Avx512 o) const { return {_mm512_mul_ps(v, o.v)}; }
  FASTDISTIL_INLINE Avx512 operator/(Avx512 o) const { return {_mm512_div_ps(v, o.v)}; }
  // Of max and min the second operand comes back where either is NaN, in every instruction set.
  FASTDISTIL_INLINE Avx512 max(Avx512 o) const { return {_mm512_max_ps(v, o.v)}; }
  FASTDISTIL_INLINE Avx512 min(Avx512 o) const { return {_mm512_min_ps(v, o.v)}; }
  FASTDISTIL_INLINE Avx512 abs() const { return {_mm512_abs_ps(v)}; }
  FASTDISTIL_INLINE float sum() const { return _mm512_reduce_add_ps(v); }
  FASTDISTIL_INLINE float smallest() const { return _mm512_reduce_min_ps(v); }
  FASTDISTIL_INLINE float largest() const { return _mm512_reduce_max_ps(v); }

  // a * b + c with one rounding.
  static FASTDISTIL_INLINE Avx512 fma(Avx512 a, Avx512 b, Avx512 c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
  }
  static FASTDISTIL_INLINE Avx512 where_negative(Avx512 x, Avx512 yes, Avx512 no) {
    return {
        _mm512_mask_mov_ps(no.v, _mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_LT_OQ), yes.v)};
  }
  // Each lane and the one kDistance (a power of two) away: their sum in the lower of the two, their
  // difference in the higher.
  template <int kDistance>
  FASTDISTIL_INLINE Avx512 sums_and_differences() const {
    __m512 other;
    if constexpr (kDistance == 1) {
      other = _mm512_permute_ps(v, 0xb1);
    } else if constexpr (kDistance == 2) {
      other = _mm512_permute_ps(v, 0x4e);
    } else if constexpr (kDistance == 4) {
      other = _mm512_shuffle_f32x4(v, v, 0xb1);
    } else {
      other = _mm512_shuffle_f32x4(v, v, 0x4e);
    }
    constexpr int kHigher = kDistance == 1   ? 0xaaaa
                            : kDistance == 2 ? 0xcccc
                            : kDistance == 4 ? 0xf0f0
                                             : 0xff00;
    const __m512 sign = _mm512_mask_mov_ps(_mm512_set1_ps(1.0f), kHigher, _mm512_set1_ps(-1.0f));
    return {_mm512_fmadd_ps(v, sign, other)};
  }
  static FASTDISTIL_INLINE Avx512 where_nan(Avx512 x, Avx512 yes, Avx512 no) {
    return {_mm512_mask_mov_ps(no.v, _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q), yes.v)};
  }
  FASTDISTIL_INLINE Avx512 rounded() const { return {_mm512_roundscale_ps(v, 0)}; }
  // this * 2^n for integral n in [-126, 127].
  FASTDISTIL_INLINE Avx512 times_power_of_two(Avx512 n) const { return {_mm512_scalef_ps(v, n.v)}; }

 private:
  static FASTDISTIL_INLINE __mmask16 mask(int n) {
    return static_cast<__mmask16>(n >= 16 ? 0xffffu : (1u << n) - 1u);
  }
};

}  // namespace fastdistil::cpu
