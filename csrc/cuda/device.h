// What the kernels of this folder stand on: 16-bit numbers, wide loads, copies in the background,
// the tensor cores. For nvcc each is an instruction or two; for a host compiler csrc/emulation
// plays it.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define FASTDISTIL_DEVICE __device__ __forceinline__
#define FASTDISTIL_HOST_DEVICE __host__ __device__ __forceinline__
#else
#include "../emulation/cuda.h"
#include "../emulation/tensor_core.h"
#define FASTDISTIL_DEVICE inline
#define FASTDISTIL_HOST_DEVICE inline
#endif

namespace fastdistil::cuda {

constexpr int kWarpSize = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

// --- 16-bit numbers ------------------------------------------------------------------------------

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

#if !defined(__CUDACC__)
namespace host {

inline float float_of_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float widen(BFloat16 x) { return float_of_bits(std::uint32_t{x.bits} << 16); }

inline float widen(Float16 x) {
  const std::uint32_t sign = std::uint32_t{x.bits & 0x8000u} << 16;
  const std::uint32_t exponent = x.bits >> 10 & 31u, fraction = x.bits & 1023u;
  if (exponent == 31) return float_of_bits(sign | 0x7f800000u | fraction << 13);
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                        : std::ldexp(static_cast<float>(fraction | 1024u),
                                                     static_cast<int>(exponent) - 25);
  return sign != 0 ? -magnitude : magnitude;
}

// To nearest, ties to even. A NaN becomes 0x7fff, as cvt.rn makes it.
inline std::uint16_t narrow(float value, BFloat16) {
  std::uint32_t u;
  std::memcpy(&u, &value, sizeof u);
  if (value != value) return 0x7fff;
  return static_cast<std::uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

inline std::uint16_t narrow(float value, Float16) {
  if (value != value) return 0x7fff;
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  if (magnitude == 0.0f) return sign;  // which has no exponent
  int exponent;
  std::frexp(magnitude, &exponent);
  // The spacing of numbers around this one; nearbyint rounds ties to even.
  const int spacing = std::max(exponent - 11, -24);
  const float rounded = std::nearbyint(std::ldexp(magnitude, -spacing));
  const auto units = static_cast<std::uint32_t>(rounded);  // up to 2048
  if (spacing == -24) return static_cast<std::uint16_t>(sign | units);
  const auto biased = static_cast<std::uint32_t>(spacing + 25);
  return static_cast<std::uint16_t>(sign | ((biased << 10) + (units - 1024u)));
}

}  // namespace host
#endif

FASTDISTIL_DEVICE float to_float(float x) { return x; }
#if defined(__CUDACC__)
FASTDISTIL_DEVICE float to_float(BFloat16 x) {
  return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}
FASTDISTIL_DEVICE float to_float(Float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
#else
FASTDISTIL_DEVICE float to_float(BFloat16 x) { return host::widen(x); }
FASTDISTIL_DEVICE float to_float(Float16 x) { return host::widen(x); }
#endif

// Two numbers of T as the 32 bits that hold them, `low` at the lower address. Rounded to nearest.
template <class T>
FASTDISTIL_DEVICE unsigned pack_pair(float low, float high);
#if defined(__CUDACC__)
template <>
FASTDISTIL_DEVICE unsigned pack_pair<BFloat16>(float low, float high) {
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
template <>
FASTDISTIL_DEVICE unsigned pack_pair<Float16>(float low, float high) {
  unsigned pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
#else
template <>
FASTDISTIL_DEVICE unsigned pack_pair<BFloat16>(float low, float high) {
  return host::narrow(low, BFloat16{}) | unsigned{host::narrow(high, BFloat16{})} << 16;
}
template <>
FASTDISTIL_DEVICE unsigned pack_pair<Float16>(float low, float high) {
  return host::narrow(low, Float16{}) | unsigned{host::narrow(high, Float16{})} << 16;
}
#endif

template <class T>
FASTDISTIL_DEVICE float2 unpack_pair(unsigned pair) {
  return make_float2(to_float(T{static_cast<std::uint16_t>(pair)}),
                     to_float(T{static_cast<std::uint16_t>(pair >> 16)}));
}

template <class T>
FASTDISTIL_DEVICE T from_float(float x) {
  return T{static_cast<std::uint16_t>(pack_pair<T>(x, 0.0f))};
}
template <>
FASTDISTIL_DEVICE float from_float<float>(float x) {
  return x;
}

// --- threads -------------------------------------------------------------------------------------

// threadIdx.x, asked for every time: a compiler does not know that it is the same one again.
FASTDISTIL_DEVICE int thread_index() {
#if defined(__CUDACC__)
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
#else
  return static_cast<int>(threadIdx.x);
#endif
}

// --- functions -----------------------------------------------------------------------------------

// 2^x; the GPU's own approximation is good to two units in the last place.
FASTDISTIL_DEVICE float fast_exp2(float x) {
#if defined(__CUDACC__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);
#endif
}

// x / y; the GPU's own approximation is good to two units in the last place.
FASTDISTIL_DEVICE float fast_divide(float x, float y) {
#if defined(__CUDACC__)
  float z;
  asm("div.full.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
#else
  return x / y;
#endif
}

FASTDISTIL_DEVICE float exact_sqrt(float x) {
#if defined(__CUDACC__)
  return __fsqrt_rn(x);
#else
  return std::sqrt(x);
#endif
}

FASTDISTIL_DEVICE float infinity() {
#if defined(__CUDACC__)
  return __int_as_float(0x7f800000);
#else
  return host::float_of_bits(0x7f800000u);
#endif
}

// --- memory --------------------------------------------------------------------------------------

// The block's dynamic shared memory, aligned to 16 bytes.
FASTDISTIL_DEVICE char* shared_memory() {
#if defined(__CUDACC__)
  extern __shared__ __align__(16) char memory[];
  return memory;
#else
  return emulation::shared_memory();
#endif
}

// 16 bytes from global to shared memory in the background. They are there for the thread that asked
// for them after async_wait, and for others after a barrier behind that.
FASTDISTIL_DEVICE void async_copy_16(void* shared, const void* global) {
#if defined(__CUDACC__)
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
#else
  emulation::async_copy(shared, global, 16);
#endif
}

// Likewise 8 bytes.
FASTDISTIL_DEVICE void async_copy_8(void* shared, const void* global) {
#if defined(__CUDACC__)
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(address), "l"(global) : "memory");
#else
  emulation::async_copy(shared, global, 8);
#endif
}

// Ends a group of copies.
FASTDISTIL_DEVICE void async_commit() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulation::async_commit();
#endif
}

// Waits until at most kPending of this thread's groups are under way.
template <int kPending>
FASTDISTIL_DEVICE void async_wait() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  emulation::async_wait(kPending);
#endif
}

// --- tensor cores --------------------------------------------------------------------------------

// Row-major A [16, 16] and column-major B [16, 8] of T, float sums [16, 8]; see
// emulation/tensor_core.h for which lane holds what. sums += A B.
template <class T>
FASTDISTIL_DEVICE void multiply_add(float (&sums)[4], const unsigned (&a)[4], unsigned b0,
                                    unsigned b1);
#if defined(__CUDACC__)
#define FASTDISTIL_MMA(T, NAME)                                                                 \
  template <>                                                                                   \
  FASTDISTIL_DEVICE void multiply_add<T>(float (&sums)[4], const unsigned (&a)[4], unsigned b0, \
                                         unsigned b1) {                                         \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME                         \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"         \
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));               \
  }
FASTDISTIL_MMA(BFloat16, "bf16")
FASTDISTIL_MMA(Float16, "f16")
#undef FASTDISTIL_MMA
#else
template <class T>
FASTDISTIL_DEVICE void multiply_add(float (&sums)[4], const unsigned (&a)[4], unsigned b0,
                                    unsigned b1) {
  emulation::MmaOperands operands{{a[0], a[1], a[2], a[3]}, {b0, b1}, {}};
  std::memcpy(operands.c, sums, sizeof sums);
  const emulation::MmaSums result =
      emulation::mma_m16n8k16(operands, [](std::uint16_t bits) { return host::widen(T{bits}); });
  std::memcpy(sums, result.d, sizeof sums);
}
#endif

// Four 8 x 8 matrices of 16-bit numbers from shared memory: lane 8 m + r gives the address of row r
// of matrix m, and gets in out[m] the pair that mma wants of it (kTransposed: of its transpose).
template <bool kTransposed>
FASTDISTIL_DEVICE void load_matrices(unsigned (&out)[4], const void* row) {
#if defined(__CUDACC__)
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
  }
#else
  const emulation::Matrices matrices = emulation::ldmatrix_x4(row, kTransposed);
  std::memcpy(out, matrices.r, sizeof out);
#endif
}

// --- reductions within a warp --------------------------------------------------------------------

// The same order of additions in every lane: all lanes end with the same bits.
FASTDISTIL_DEVICE float warp_sum(float x) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    x += __shfl_xor_sync(kFullWarp, x, distance);
  }
  return x;
}

}  // namespace fastdistil::cuda
