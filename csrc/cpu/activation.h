// Elementwise functions on vectors: 2^x, and the activations of the feed-forward block.
//
// Coefficients are minimax (Lawson-weighted least squares in double, rounded to fp32); the error
// stated with each is what fp32 evaluation gives, and csrc/tests/test_activation.cpp holds them to
// it.
#pragma once

#include "../common/tiles.h"
#include "model.h"

namespace fastdistil::cpu {

// 2^x, relative error below 1e-7 for x in [-126, 127]; clamped there. NaN stays NaN: of two
// operands, max and min give the second where one is.
template <class V>
FASTDISTIL_INLINE V exp2(V x) {
  x = V::set(127.0f).min(V::set(-126.0f).max(x));
  const V n = x.rounded();
  const V f = x - n;  // [-1/2, 1/2]
  V p = V::set(1.534580806e-4f);
  p = V::fma(p, f, V::set(1.339993090e-3f));
  p = V::fma(p, f, V::set(9.618489072e-3f));
  p = V::fma(p, f, V::set(5.550328642e-2f));
  p = V::fma(p, f, V::set(2.402264625e-1f));
  p = V::fma(p, f, V::set(6.931471825e-1f));
  p = V::fma(p, f, V::set(1.0f));
  return p.times_power_of_two(n);
}

// x * Phi(x), the erf form of Hendrycks and Gimpel, arXiv 1606.08415. The tail of the normal
// distribution is exp(-x^2/2) * g(t), t = 1 / (1 + 0.27 |x|), g a polynomial: the form of
// Abramowitz and Stegun 7.1.26. Absolute error below 4e-7, small relative error far into the
// negative tail.
template <class V>
FASTDISTIL_INLINE V gelu(V x) {
  const V a = x.abs();
  const V t = V::set(1.0f) / V::fma(V::set(0.27f), a, V::set(1.0f));
  V g = V::set(-1.359261274e-1f);
  g = V::fma(g, t, V::set(5.799022317e-1f));
  g = V::fma(g, t, V::set(-5.640675426e-1f));
  g = V::fma(g, t, V::set(5.499840379e-1f));
  g = V::fma(g, t, V::set(-7.393341511e-2f));
  g = V::fma(g, t, V::set(1.477933228e-1f));
  g = V::fma(g, t, V::set(-3.752510995e-3f));
  const V tail = g * exp2(a * a * V::set(-0.72134752f));  // 1 - Phi(|x|); -log2(e) / 2
  return x * V::where_negative(x, tail, V::set(1.0f) - tail);
}

// The same function where the result is rounded to bf16 or int8: Phi(x) - 1/2 as an odd polynomial,
// clamped at 4.5. Absolute error below 7e-5; no division and no exponential, so that it hides
// behind the matrix multiplication.
template <class V>
FASTDISTIL_INLINE V gelu_for_bf16(V x) {
  const V c = V::set(4.5f).min(V::set(-4.5f).max(x));
  const V u = c * c;
  V p = V::set(3.036416604e-11f);
  p = V::fma(p, u, V::set(-3.314658326e-9f));
  p = V::fma(p, u, V::set(1.590996135e-7f));
  p = V::fma(p, u, V::set(-4.451727818e-6f));
  p = V::fma(p, u, V::set(8.142514707e-5f));
  p = V::fma(p, u, V::set(-1.037591137e-3f));
  p = V::fma(p, u, V::set(9.585201740e-3f));
  p = V::fma(p, u, V::set(-6.598465145e-2f));
  p = V::fma(p, u, V::set(3.987126052e-1f));
  return x * V::fma(c, p, V::set(0.5f));
}

// x / (1 + exp(-x)).
template <class V>
FASTDISTIL_INLINE V silu(V x) {
  return x / (V::set(1.0f) + exp2(x * V::set(-1.442695041f)));
}

// x/2 (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3), is x / (1 + exp(-2u)).
template <class V>
FASTDISTIL_INLINE V gelu_tanh(V x) {
  const V u = V::fma(x * x * x, V::set(0.044715f), x);
  return x / (V::set(1.0f) + exp2(u * V::set(-2.302208198f)));  // -2 log2(e) sqrt(2/pi)
}

template <Activation kActivation, class V, class Elem>
FASTDISTIL_INLINE V activate(V x) {
  if constexpr (kActivation == Activation::kGelu) {
    if constexpr (sizeof(Elem) < 4) {
      return gelu_for_bf16(x);
    } else {
      return gelu(x);
    }
  } else if constexpr (kActivation == Activation::kGeluTanh) {
    return gelu_tanh(x);
  } else if constexpr (kActivation == Activation::kSilu) {
    return silu(x);
  } else {
    return V::zero().max(x);
  }
}

}  // namespace fastdistil::cpu
