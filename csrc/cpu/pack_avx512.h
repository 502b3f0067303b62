// Packing for attention with 512-bit registers: 16 x 16 transposes of four-byte steps for K, and
// pairs of bf16 rows interleaved for V.
#pragma once

#include <immintrin.h>

#include "../common/tiles.h"

namespace fastdistil::cpu {

// out[step][key] = rows[key][step] for 16 steps of four bytes and 16 keys, zero for keys >= valid.
FASTDISTIL_INLINE void transpose_steps(const char* rows, std::size_t stride, int valid, char* out) {
  __m512i r[16], t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i)
    r[i] = i < valid ? _mm512_loadu_si512(rows + i * stride) : _mm512_setzero_si512();
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  // r[4 i + j] now holds steps j, j + 4, j + 8, j + 12 of keys 4 i .. 4 i + 3: gather the lanes.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i low = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88);
    const __m512i high = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
    const __m512i low2 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
    const __m512i high2 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
    _mm512_storeu_si512(out + j * 64, _mm512_shuffle_i32x4(low, low2, 0x88));
    _mm512_storeu_si512(out + (j + 8) * 64, _mm512_shuffle_i32x4(low, low2, 0xdd));
    _mm512_storeu_si512(out + (j + 4) * 64, _mm512_shuffle_i32x4(high, high2, 0x88));
    _mm512_storeu_si512(out + (j + 12) * 64, _mm512_shuffle_i32x4(high, high2, 0xdd));
  }
}

// out[pair][column] = (rows[2 pair][column], rows[2 pair + 1][column]) for 16 bf16 columns and 16
// pairs of keys, zero for keys >= valid.
FASTDISTIL_INLINE void interleave_pairs(const char* rows, std::size_t stride, int valid,
                                        char* out) {
  for (int pair = 0; pair < 16; ++pair) {
    const char* row = rows + 2 * pair * stride;
    __m512i even = _mm512_setzero_si512();
    __m512i odd = _mm512_setzero_si512();
    if (2 * pair < valid)
      even = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row)));
    if (2 * pair + 1 < valid)
      odd =
          _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + stride)));
    _mm512_storeu_si512(out + pair * 64, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
  }
}

}  // namespace fastdistil::cpu
