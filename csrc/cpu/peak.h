// How many multiply-adds an instruction set does at most: nothing but its product, on registers
// full of random numbers (zeros flatter: they cost less power, so the clock stays higher).
#pragma once

#include <cstdint>

#include "../common/bfloat16.h"
#include "../common/tiles.h"

namespace fastdistil::cpu {
namespace {

// One tile of ordinary numbers of that type.
template <class Elem>
void fill_random(char* tile) {
  // Linear congruential (Numerical Recipes): the standard library's generators would be compiled
  // once for each instruction set, and the linker would keep any one of them for all.
  std::uint32_t state = 1;
  auto* elements = reinterpret_cast<Elem*>(tile);
  for (int i = 0; i < kTileBytes / static_cast<int>(sizeof(Elem)); ++i) {
    state = state * 1664525u + 1013904223u;
    const float uniform = static_cast<float>(state >> 8) * (1.0f / (1 << 23)) - 1.0f;
    if constexpr (sizeof(Elem) == 4) {
      elements[i] = uniform;
    } else if constexpr (sizeof(Elem) == 2) {
      elements[i] = to_bfloat16(uniform);
    } else {
      elements[i] = static_cast<std::uint8_t>(state >> 24);
    }
  }
}

// So that the compiler takes no product for known from the last round.
template <class V>
FASTDISTIL_INLINE void keep_alive(V& a, V& b) {
#if defined(__x86_64__)
  asm volatile("" : "+v"(a.v), "+v"(b.v));
#elif defined(__aarch64__)
  asm volatile("" : "+w"(a.v), "+w"(b.v));
#else
  static_cast<void>(a);
  static_cast<void>(b);
#endif
}

// Runs `steps` rounds of 12 independent products; returns how many multiply-adds that were.
template <class V, class MultiplyAdd, class Elem>
double vector_peak(long steps) {
  constexpr int kChains = 12;
  alignas(64) char random[kTileBytes];
  fill_random<Elem>(random);
  const auto* numbers = reinterpret_cast<const float*>(random);
  V sum[kChains];
#pragma GCC unroll 16
  // Each chain begins elsewhere: equal ones would be computed once.
  for (int i = 0; i < kChains; ++i) sum[i] = V::load(numbers + (2 + i) * V::kLanes);
  V a = V::load(numbers);
  V b = V::load(numbers + V::kLanes);
  for (long step = 0; step < steps; ++step) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sum[i] = MultiplyAdd::apply(a, b, sum[i]);
    keep_alive(a, b);
  }
  volatile float sink = 0;
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) sink = sink + sum[i].sum();
  return static_cast<double>(steps) * kChains * V::kLanes * (4 / sizeof(Elem));
}

}  // namespace
}  // namespace fastdistil::cpu
