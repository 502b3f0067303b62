// 4 fp32 lanes by the compiler's vector extension: SSE2 on any x86-64, NEON on aarch64, and so on.
// See simd_avx512.h for what each word means.
#pragma once

#include <cstdint>
#include <cstring>

#include "../common/tiles.h"

namespace fastdistil::cpu {

struct Portable {
  static constexpr int kLanes = 4;
  typedef float Floats __attribute__((vector_size(16)));
  typedef std::int32_t Ints __attribute__((vector_size(16)));
  Floats v;

  static FASTDISTIL_INLINE Portable zero() { return {Floats{}}; }
  static FASTDISTIL_INLINE Portable set(float x) { return {Floats{x, x, x, x}}; }
  static FASTDISTIL_INLINE Portable load(const float* p) {
    Portable r;
    std::memcpy(&r.v, p, sizeof r.v);
    return r;
  }
  static FASTDISTIL_INLINE Portable load_first(const float* p, int n) {
    Portable r = zero();
    for (int i = 0; i < n && i < kLanes; ++i) r.v[i] = p[i];
    return r;
  }
  FASTDISTIL_INLINE void store(float* p) const { std::memcpy(p, &v, sizeof v); }
  FASTDISTIL_INLINE void store_first(float* p, int n) const {
    for (int i = 0; i < n && i < kLanes; ++i) p[i] = v[i];
  }
  FASTDISTIL_INLINE Portable first(int n) const {
    return select(Ints{0, 1, 2, 3} < n, v, Floats{});
  }

  FASTDISTIL_INLINE Portable operator+(Portable o) const { return {v + o.v}; }
  FASTDISTIL_INLINE Portable operator-(Portable o) const { return {v - o.v}; }
  FASTDISTIL_INLINE Portable operator*(Portable o) const { return {v * o.v}; }
  FASTDISTIL_INLINE Portable operator/(Portable o) const { return {v / o.v}; }
  FASTDISTIL_INLINE Portable max(Portable o) const { return select(v > o.v, v, o.v); }
  FASTDISTIL_INLINE Portable min(Portable o) const { return select(v < o.v, v, o.v); }
  FASTDISTIL_INLINE Portable abs() const { return {(Floats)((Ints)v & 0x7fffffff)}; }
  FASTDISTIL_INLINE float sum() const { return (v[0] + v[2]) + (v[1] + v[3]); }
  FASTDISTIL_INLINE float largest() const {
    const float a = v[0] > v[2] ? v[0] : v[2];
    const float b = v[1] > v[3] ? v[1] : v[3];
    return a > b ? a : b;
  }

  // Fused where the target has it; two roundings elsewhere.
  static FASTDISTIL_INLINE Portable fma(Portable a, Portable b, Portable c) {
    return {a.v * b.v + c.v};
  }
  static FASTDISTIL_INLINE Portable where_negative(Portable x, Portable yes, Portable no) {
    return select(x.v < 0.0f, yes.v, no.v);
  }
  static FASTDISTIL_INLINE Portable where_nan(Portable x, Portable yes, Portable no) {
    return select(x.v == x.v, no.v, yes.v);
  }
  // Adding 1.5 * 2^23 leaves no fraction bits, so the addition itself rounds (|x| < 2^22).
  FASTDISTIL_INLINE Portable rounded() const {
    const Portable magic = set(12582912.0f);
    return (*this + magic) - magic;
  }
  FASTDISTIL_INLINE Portable times_power_of_two(Portable n) const {
    const Ints exponent = (__builtin_convertvector(n.v, Ints) + 127) << 23;
    return {v * (Floats)exponent};
  }

 private:
  static FASTDISTIL_INLINE Portable select(Ints mask, Floats yes, Floats no) {
    return {(Floats)((mask & (Ints)yes) | (~mask & (Ints)no))};
  }
};

}  // namespace fastdistil::cpu
