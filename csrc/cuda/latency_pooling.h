// The low-latency encoder's vectors: one for each sequence, from last states that other blocks
// publish.
#pragma once

#include "latency_layout.h"
#include "published.h"

namespace fastdistil::cuda {

// A thread takes eight columns of every kParts-th token; the parts are added up in order, so that a
// vector's bits depend on its sequence alone.
template <class T, int kHidden>
class LatencyPooling {
 public:
  static constexpr int kWarps = latency_warps(kHidden), kThreads = kWarps * kWarpSize;
  static constexpr int kVectors = kHidden / 8, kParts = kThreads / kVectors;
  static_assert(kParts >= 1, "");
  // The parts, and a sum of each warp.
  static constexpr int kSharedBytes = (kParts * kHidden + kWarps) * 4;

  // Tokens [start, start + length) of the last states [rows, hidden].
  FASTDISTIL_DEVICE LatencyPooling(Pooling pooling, const T* last, int start, int length,
                                   int thread)
      : pooling_(pooling),
        first_(last + start * kHidden),
        count_(pooling == Pooling::kCls ? min(length, 1) : length),
        thread_(thread) {}

  // Writes the vector to out [hidden]. All threads of the block; `parts` is of kSharedBytes.
  FASTDISTIL_DEVICE void run(float* parts, float* out, bool normalize) const {
    __syncthreads();
    if (thread_ / kVectors < kParts) pool_part(parts);
    __syncthreads();
    const float tokens = static_cast<float>(max(count_, 1));
    float squares = 0.0f;
    for (int i = thread_; i < kHidden; i += kThreads) {
      float number = parts[i];
      for (int part = 1; part < kParts; ++part) number = joined(number, parts[part * kHidden + i]);
      if (count_ == 0) number = 0.0f;
      if (pooling_ == Pooling::kMean) number /= tokens;
      // Nobody else reads this column's parts.
      parts[i] = number;
      squares += number * number;
    }
    float norm = 1.0f;
    if (normalize) {
      norm = exact_sqrt(block_total(squares, parts + kParts * kHidden));
      // NaN stays NaN.
      norm = norm < 1e-12f ? 1e-12f : norm;
    }
    for (int i = thread_; i < kHidden; i += kThreads) out[i] = parts[i] / norm;
  }

 private:
  // Tokens that a thread asks for before it looks at the first.
  static constexpr int kAtOnce = 4;

  FASTDISTIL_DEVICE float joined(float a, float b) const {
    if (pooling_ != Pooling::kMax) return a + b;
    return a > b || a != a ? a : b;
  }

  FASTDISTIL_DEVICE void pool_part(float* parts) const {
    const int part = thread_ / kVectors, column = thread_ % kVectors * 8;
    float sums[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[i] = pooling_ == Pooling::kMax ? -infinity() : 0.0f;
#pragma unroll 1
    for (int first = part; first < count_; first += kParts * kAtOnce) {
      uint4 words[kAtOnce];
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const int token = first + n * kParts;
        if (token < count_) words[n] = load_published(vector(token, column));
      }
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const int token = first + n * kParts;
        if (token < count_) add(sums, wait_for(words[n], vector(token, column)));
      }
    }
    float4* to = reinterpret_cast<float4*>(parts + part * kHidden + column);
    to[0] = make_float4(sums[0], sums[1], sums[2], sums[3]);
    to[1] = make_float4(sums[4], sums[5], sums[6], sums[7]);
  }

  FASTDISTIL_DEVICE const uint4* vector(int token, int column) const {
    return reinterpret_cast<const uint4*>(first_ + token * kHidden + column);
  }

  FASTDISTIL_DEVICE void add(float (&sums)[8], const uint4& words) const {
    const unsigned pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = unpack_pair<T>(pairs[i]);
      sums[2 * i] = joined(sums[2 * i], pair.x);
      sums[2 * i + 1] = joined(sums[2 * i + 1], pair.y);
    }
  }

  // The sum over the block, the same bits in every thread.
  FASTDISTIL_DEVICE float block_total(float x, float* of_warps) const {
    x = warp_sum(x);
    if (thread_ % kWarpSize == 0) of_warps[thread_ / kWarpSize] = x;
    __syncthreads();
    float total = of_warps[0];
    for (int warp = 1; warp < kWarps; ++warp) total += of_warps[warp];
    return total;
  }

  Pooling pooling_;
  const T* first_;
  int count_, thread_;
};

}  // namespace fastdistil::cuda
