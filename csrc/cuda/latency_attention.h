// The low-latency encoder's attention: one head of one sequence, from Q, K and V that other blocks
// publish to the context that others wait for.
#pragma once

#include "attention_tile.h"
#include "latency_layout.h"
#include "published.h"

namespace fastdistil::cuda {

constexpr int kTileRows = 16;

template <class T, int kHidden>
class LatencyHead {
 public:
  static constexpr int kHeadSize = latency_head_dim(kHidden), kHeads = kHidden / kHeadSize;
  static constexpr int kThreads = latency_warps(kHidden) * kWarpSize;

  // Tokens [start, start + length); Q, K and V [rows, 3 hidden].
  FASTDISTIL_DEVICE LatencyHead(const T* qkv, int start, int length, int head, int thread)
      : qkv_(qkv), start_(start), length_(length), column_(head * kHeadSize), thread_(thread) {}

  // Shared memory for K and V: shared_bytes_of_keys<kHeadSize>(length).
  FASTDISTIL_DEVICE void attend(T* keys, T* context) const {
    T* values = keys + rounded_up(length_, 16) * kSharedStride<kHeadSize>;
    read_keys(keys, values);
    __syncthreads();
#pragma unroll 1
    for (int first = thread_ / kWarpSize * kQueryRows; first < length_;
         first += kThreads / kWarpSize * kQueryRows) {
      AttentionTile<T, kHeadSize> tile(thread_ % kWarpSize);
      read_queries(tile, first);
      // Scale and log2(e) are in Q's weights.
      tile.attend(keys, values, length_, 1.0f);
      publish_context(tile, context, first);
    }
    __syncthreads();
  }

 private:
  FASTDISTIL_DEVICE int g() const { return thread_ % kWarpSize / 4; }
  FASTDISTIL_DEVICE int t() const { return thread_ % 4; }

  // Vectors of 16 bytes that a thread asks for before it looks at the first.
  static constexpr int kAtOnce = 4;
  static constexpr int kVectors = kHeadSize / 8;

  // K and then V, zeros up to a multiple of 16 rows.
  FASTDISTIL_DEVICE void read_keys(T* keys, T* values) const {
    const int rows = rounded_up(length_, 16), count = rows * kVectors;
#pragma unroll 1
    for (int first = thread_; first < 2 * count; first += kAtOnce * kThreads) {
      uint4 words[kAtOnce];
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const int i = first + n * kThreads;
        words[n] = is_token(i, count) ? load_published(vector(i, count)) : make_uint4(0, 0, 0, 0);
      }
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const int i = first + n * kThreads;
        if (i >= 2 * count) break;
        if (is_token(i, count)) words[n] = wait_for(words[n], vector(i, count));
        const int of_matrix = i < count ? i : i - count;
        T* row = (i < count ? keys : values) + of_matrix / kVectors * kSharedStride<kHeadSize>;
        *reinterpret_cast<uint4*>(row + of_matrix % kVectors * 8) = words[n];
      }
    }
  }

  // The i-th vector of K and V, `count` each.
  FASTDISTIL_DEVICE bool is_token(int i, int count) const {
    return i < 2 * count && (i < count ? i : i - count) / kVectors < length_;
  }
  FASTDISTIL_DEVICE const uint4* vector(int i, int count) const {
    const int of_matrix = i < count ? i : i - count;
    const int column = column_ + (i < count ? kHidden : 2 * kHidden) + of_matrix % kVectors * 8;
    const int place = (start_ + of_matrix / kVectors) * 3 * kHidden + column;
    return reinterpret_cast<const uint4*>(qkv_ + place);
  }

  FASTDISTIL_DEVICE const unsigned* query(int first, int k, int r) const {
    const int row = start_ + first + g() + r % 2 * 8;
    const int column = column_ + 16 * k + 2 * t() + r / 2 * 8;
    return reinterpret_cast<const unsigned*>(qkv_ + row * 3 * kHidden + column);
  }

  FASTDISTIL_DEVICE void read_queries(AttentionTile<T, kHeadSize>& tile, int first) const {
    const bool is_query[2] = {first + g() < length_, first + g() + 8 < length_};
#pragma unroll
    for (int k = 0; k < kHeadSize / 16; ++k) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        tile.queries[k][r] = is_query[r % 2] ? load_published(query(first, k, r)) : 0u;
      }
    }
#pragma unroll
    for (int k = 0; k < kHeadSize / 16; ++k) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        if (is_query[r % 2]) {
          tile.queries[k][r] = wait_for(tile.queries[k][r], query(first, k, r));
        }
      }
    }
    __syncwarp();
  }

  // As operands of the next product. Sequences begin anywhere, so a row may lie otherwise in its
  // tile than in the query's.
  FASTDISTIL_DEVICE void publish_context(const AttentionTile<T, kHeadSize>& tile, T* context,
                                         int first) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first + g() + 8 * half, token = start_ + row;
      if (row >= length_) continue;
      const int lane = token % 8 * 4 + t();
#pragma unroll
      for (int n = 0; n < kHeadSize / 8; ++n) {
        const int outputs = column_ / 8 + n;
        const int step = token / kTileRows * (kHidden / 16) + outputs / 2;
        unsigned* words = reinterpret_cast<unsigned*>(context) + (step * kWarpSize + lane) * 4;
        publish(words + outputs % 2 * 2 + token % kTileRows / 8, tile.pair(n, half));
      }
    }
  }

  const T* qkv_;
  int start_, length_, column_, thread_;
};

}  // namespace fastdistil::cuda
