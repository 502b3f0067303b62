// bfloat16 as its bit pattern, and the scalar conversions that packing uses.
#pragma once

#include <cstdint>
#include <cstring>

#include "tiles.h"

namespace fastdistil {

struct BFloat16 {
  std::uint16_t bits;
};

// Round to nearest, ties to even; a NaN stays a NaN (its payload could round to infinity
// otherwise).
FASTDISTIL_INLINE BFloat16 to_bfloat16(float value) {
  std::uint32_t u;
  std::memcpy(&u, &value, sizeof u);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>((u >> 16) | 0x40u)};
  u += 0x7fffu + ((u >> 16) & 1u);
  return {static_cast<std::uint16_t>(u >> 16)};
}

FASTDISTIL_INLINE float to_float(BFloat16 value) {
  const std::uint32_t u = static_cast<std::uint32_t>(value.bits) << 16;
  float f;
  std::memcpy(&f, &u, sizeof f);
  return f;
}

}  // namespace fastdistil
