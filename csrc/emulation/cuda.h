// The words of CUDA C++ that kernels are written in, for a host compiler: what nvcc knows itself.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "execution.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)

using dim3 = fastdistil::emulation::Dim3;

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

#define threadIdx (::fastdistil::emulation::position().thread)
#define blockIdx (::fastdistil::emulation::position().block)
#define blockDim (::fastdistil::emulation::position().block_size)
#define gridDim (::fastdistil::emulation::position().grid_size)

inline void __syncthreads() { fastdistil::emulation::sync_threads(); }
inline void __syncwarp() { fastdistil::emulation::sync_warp(); }
// One host thread: what is written is seen.
inline void __threadfence() {}

// Shuffles and votes, of whole warps only: the mask must be full.
template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  namespace emulation = fastdistil::emulation;
  if (mask != 0xffffffffu) throw emulation::Error("emulation: a shuffle of part of a warp");
  struct Given {
    T value;
    int source;
  };
  return emulation::warp<Given, T>("__shfl_sync", {value, source}, [](auto& given, auto& results) {
    for (int lane = 0; lane < emulation::kWarpSize; ++lane) {
      *results[lane] = given[given[lane]->source % emulation::kWarpSize]->value;
    }
  });
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
  return __shfl_sync(mask, value, fastdistil::emulation::position().lane ^ distance);
}

// Lanes below `distance` keep their own.
template <class T>
T __shfl_up_sync(unsigned mask, T value, int distance) {
  const int lane = fastdistil::emulation::position().lane;
  return __shfl_sync(mask, value, lane < distance ? lane : lane - distance);
}

inline unsigned __ballot_sync(unsigned mask, bool vote) {
  namespace emulation = fastdistil::emulation;
  if (mask != 0xffffffffu) throw emulation::Error("emulation: a vote of part of a warp");
  return emulation::warp<bool, unsigned>("__ballot_sync", vote, [](auto& given, auto& results) {
    unsigned votes = 0;
    for (int lane = 0; lane < emulation::kWarpSize; ++lane) {
      votes |= static_cast<unsigned>(*given[lane]) << lane;
    }
    for (unsigned* result : results) *result = votes;
  });
}

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Byte i of the result is the byte of {high, low} that nibble i of the selector names.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const std::uint64_t bytes = std::uint64_t{high} << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned which = selector >> (4 * i) & 7u;
    result |= static_cast<unsigned>(bytes >> (8 * which) & 0xffu) << (8 * i);
  }
  return result;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

// Atomics: one host thread, and no turn ends inside.
template <class T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address = before + value;
  return before;
}
template <class T>
T atomicOr(T* address, T value) {
  const T before = *address;
  *address = before | value;
  return before;
}

using std::fmaf;
using std::fmax;
using std::max;
using std::min;
