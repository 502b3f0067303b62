// Activations of float32, for kernels that round once, behind them.
//
//     gelu(x)      = x * Phi(x) = x / 2 * (1 + erf(x / sqrt(2)))       BERT's and DistilBERT's own
//     gelu_tanh(x) = x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))      "gelu_new" in checkpoints
//     relu(x)      = max(x, 0)
//     silu(x)      = x * sigmoid(x)
//
// Both GELUs are those of Hendrycks and Gimpel, arXiv:1606.08415. Their second is usually written
// with tanh(u), which is 2 sigmoid(2u) - 1. NaN gives NaN in all of them.
#pragma once

#include "operations.h"

namespace fastdistil::cuda {

// The exact GELU. With a = |x|, gelu(x) = max(x, 0) - a Phi(-a). Phi(-a) is 2^-p(a) with a p so
// smooth that a polynomial of degree 8 makes it as good as float32 allows: fitted for the least
// largest error of a Phi(-a), which is below 1e-7. Half the instructions of x / 2 (1 + erf), and a
// smaller error: nothing cancels where x is negative.
FASTDISTIL_DEVICE float gelu(float x) {
  // From 13 on, 2^-p(a) is zero in float32, as Phi(-a) almost is.
  const float a = fminf(fabsf(x), 14.0f);
  float p = fmaf(1.0511693e-06f, a, -1.6535600e-05f);
  p = fmaf(p, a, 6.9320296e-05f);
  p = fmaf(p, a, 4.4280044e-04f);
  p = fmaf(p, a, -7.4981647e-03f);
  p = fmaf(p, a, 5.2823107e-02f);
  p = fmaf(p, a, 4.5909271e-01f);
  p = fmaf(p, a, 1.1511189f);
  p = fmaf(p, a, 1.0f);
  // Not fmaxf, which drops NaN.
  return fmaf(-a, fast_exp2(-p), x < 0.0f ? 0.0f : x);
}

template <Activation kActivation>
FASTDISTIL_DEVICE float activate(float x) {
  if constexpr (kActivation == Activation::kGelu) {
    return gelu(x);
  } else if constexpr (kActivation == Activation::kGeluTanh) {
    const float u = 0.7978845608f * x * fmaf(0.044715f * x, x, 1.0f);
    return fast_divide(x, 1.0f + fast_exp2(u * -2.885390082f));  // 2 log2(e)
  } else if constexpr (kActivation == Activation::kRelu) {
    // A comparison, not a maximum: NaN stays NaN.
    return x < 0.0f ? 0.0f : x;
  } else if constexpr (kActivation == Activation::kSilu) {
    return fast_divide(x, 1.0f + fast_exp2(x * -1.442695041f));
  } else {
    static_assert(kActivation == Activation::kNone, "unknown activation");
    return x;
  }
}

}  // namespace fastdistil::cuda
