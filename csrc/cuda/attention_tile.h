// Attention of 16 queries over the keys of one sequence: what one warp does, all in registers but
// for K and V, which lie in shared memory.
//
// With s = q . k in float32, keys are taken kKeyBlock at a time: m is the largest s so far, l the
// sum of p = exp2(scale (s - m)), acc the sum of p v; where m grows, l and acc shrink by exp2(scale
// (m_old - m_new)) (Milakov and Gimelshein, arXiv 1805.02867; Dao, arXiv 2307.08691). The scores'
// fragments become the second product's operand without leaving their lanes. Blocks begin at the
// sequence's own first key, so its bits depend on its length alone.
#pragma once

#include "device.h"

namespace fastdistil::cuda {

constexpr int kQueryRows = 16;
constexpr int kKeyBlock = 64;

// Numbers from row to row of K and V in shared memory: eight more than a row has, so that the eight
// rows that ldmatrix reads at once lie in different banks.
template <int kHeadDim>
constexpr int kSharedStride = kHeadDim + 8;

FASTDISTIL_HOST_DEVICE constexpr int rounded_up(int value, int multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Bytes of shared memory for K and V of a sequence of that length, 16-bit numbers.
template <int kHeadDim>
FASTDISTIL_HOST_DEVICE constexpr int shared_bytes_of_keys(int length) {
  return 2 * rounded_up(length, 16) * kSharedStride<kHeadDim> * 2;
}

template <class T, int kHeadDim>
class AttentionTile {
 public:
  FASTDISTIL_DEVICE explicit AttentionTile(int lane) : lane_(lane) {}

  // The queries as A operands: word r of step k holds row g + 8 (r % 2), columns
  // 16 k + 2t + 8 (r / 2) and the next.
  unsigned queries[kHeadDim / 16][4];

  // All keys, `length` of them; K and V are [length rounded up to 16, kSharedStride], V's rows past
  // the last key hold zeros.
  FASTDISTIL_DEVICE void attend(const T* keys, const T* values, int length, float scale) {
    for (int row = 0; row < 2; ++row) {
      largest_[row] = -infinity();
      sum_[row] = 0.0f;
    }
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      for (int i = 0; i < 4; ++i) context_[n][i] = 0.0f;
    }
#pragma unroll 1
    for (int first = 0; first < length; first += kKeyBlock) {
      const int offset = first * kSharedStride<kHeadDim>;
      float scores[kKeyBlock / 8][4];
      score(scores, keys + offset, length - first);
      weigh(scores, scale);
      add_values(scores, values + offset, length - first);
    }
    // A row's sum is spread over the four lanes that hold it.
    for (int row = 0; row < 2; ++row) {
      sum_[row] += __shfl_xor_sync(kFullWarp, sum_[row], 1);
      sum_[row] += __shfl_xor_sync(kFullWarp, sum_[row], 2);
      sum_[row] = 1.0f / sum_[row];
    }
  }

  // Columns 8 n + 2t and the next of row g + 8 `row`, once all keys are in.
  FASTDISTIL_DEVICE unsigned pair(int n, int row) const {
    return pack_pair<T>(context_[n][2 * row] * sum_[row], context_[n][2 * row + 1] * sum_[row]);
  }

 private:
  // The address that this lane gives to ldmatrix for the 16 x 16 numbers at `tile`: of matrix
  // lane / 8 its row lane % 8. kRowsFirst: matrices 0 and 1 lie one below the other.
  template <bool kRowsFirst>
  FASTDISTIL_DEVICE const T* matrix_row(const T* tile) const {
    const int first = lane_ / 8 % 2 * 8, second = lane_ / 16 * 8;
    const int row = lane_ % 8 + (kRowsFirst ? first : second);
    return tile + row * kSharedStride<kHeadDim> + (kRowsFirst ? second : first);
  }

  FASTDISTIL_DEVICE void score(float (&scores)[kKeyBlock / 8][4], const T* keys, int left) {
    const int t = lane_ % 4;
#pragma unroll
    for (int j = 0; j < kKeyBlock / 16; ++j) {
      float (&low)[4] = scores[2 * j];
      float (&high)[4] = scores[2 * j + 1];
      for (int i = 0; i < 4; ++i) low[i] = high[i] = 0.0f;
      // The same for the whole warp.
      if (16 * j < left) {
        const T* tile = keys + 16 * j * kSharedStride<kHeadDim>;
#pragma unroll
        for (int k = 0; k < kHeadDim / 16; ++k) {
          unsigned b[4];
          load_matrices<false>(b, matrix_row<false>(tile + 16 * k));
          multiply_add<T>(low, queries[k], b[0], b[1]);
          multiply_add<T>(high, queries[k], b[2], b[3]);
        }
      }
      for (int i = 0; i < 4; ++i) {
        const int key = 16 * j + 2 * t + i % 2;
        if (key >= left) low[i] = -infinity();
        if (key + 8 >= left) high[i] = -infinity();
      }
    }
  }

  // Scores to weights, and what was summed before to the new scale.
  FASTDISTIL_DEVICE void weigh(float (&scores)[kKeyBlock / 8][4], float scale) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float most = largest_[row];
#pragma unroll
      for (int n = 0; n < kKeyBlock / 8; ++n) {
        most = fmaxf(most, fmaxf(scores[n][2 * row], scores[n][2 * row + 1]));
      }
      most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, 2));
      // Not scale s - scale m in one operation: for large scores what rounds scale m is large, too.
      const float shrink = fast_exp2((largest_[row] - most) * scale);
      largest_[row] = most;
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kKeyBlock / 8; ++n) {
        for (int i = 2 * row; i < 2 * row + 2; ++i) {
          scores[n][i] = fast_exp2((scores[n][i] - most) * scale);
          sum += scores[n][i];
        }
      }
      sum_[row] = sum_[row] * shrink + sum;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        context_[n][2 * row] *= shrink;
        context_[n][2 * row + 1] *= shrink;
      }
    }
  }

  FASTDISTIL_DEVICE void add_values(const float (&weights)[kKeyBlock / 8][4], const T* values,
                                    int left) {
#pragma unroll
    for (int j = 0; j < kKeyBlock / 16; ++j) {
      if (16 * j >= left) break;
      const float (&low)[4] = weights[2 * j];
      const float (&high)[4] = weights[2 * j + 1];
      const unsigned a[4] = {pack_pair<T>(low[0], low[1]), pack_pair<T>(low[2], low[3]),
                             pack_pair<T>(high[0], high[1]), pack_pair<T>(high[2], high[3])};
      const T* tile = values + 16 * j * kSharedStride<kHeadDim>;
#pragma unroll
      for (int n = 0; n < kHeadDim / 16; ++n) {
        unsigned b[4];
        load_matrices<true>(b, matrix_row<true>(tile + 16 * n));
        multiply_add<T>(context_[2 * n], a, b[0], b[1]);
        multiply_add<T>(context_[2 * n + 1], a, b[2], b[3]);
      }
    }
  }

  int lane_;
  float largest_[2], sum_[2];
  float context_[kHeadDim / 8][4];
};

}  // namespace fastdistil::cuda
