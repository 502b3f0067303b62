// Bias and activation in one pass: y = act(x + b), by default with the exact GELU.
//
//     x [T, N], bias [N] -> y [T, N]
//
// The activations are those of activation.h, which the epilogue of a product applies as well: this
// kernel runs only where a library did the product. It moves 2 T N elements and computes next to
// nothing. A thread takes 16 bytes of the same columns in a few rows, all of them under way at
// once, and reads their bias once. Arithmetic is in float32; one rounding, at the end.
#include "activation.h"
#include "rows.h"

namespace fastdistil::cuda {

namespace {

constexpr int kMostThreads = 128;
constexpr int kRowsPerThread = 4;

template <class T, Activation kActivation, bool kAligned>
__global__ void __launch_bounds__(kMostThreads)
    bias_activation_kernel(ActivationArguments arguments) {
  constexpr int kNumbers = kNumbersPerVector<T>;
  const int width = arguments.width;
  const std::int64_t vector = std::int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  const std::int64_t column = vector * kNumbers;
  if (column >= width) return;
  const int count = width - static_cast<int>(column);
  const std::int64_t first_token = std::int64_t{blockIdx.x} * kRowsPerThread;
  const std::int64_t start = first_token * width + column;
  const int rows = static_cast<int>(
      min(arguments.tokens - first_token, static_cast<std::int64_t>(kRowsPerThread)));

  const T* x = static_cast<const T*>(arguments.x) + start;
  uint4 packed[kRowsPerThread];
#pragma unroll
  for (int i = 0; i < kRowsPerThread; ++i) {
    packed[i] = load_vector<T, kAligned>(x + std::int64_t{i} * width, i < rows ? count : 0);
  }
  float bias[kNumbers];
  unpack_vector<T>(load_vector<T, kAligned>(static_cast<const T*>(arguments.bias) + column, count),
                   bias);
  T* out = static_cast<T*>(arguments.out) + start;
#pragma unroll
  for (int i = 0; i < kRowsPerThread; ++i) {
    float numbers[kNumbers];
    unpack_vector<T>(packed[i], numbers);
#pragma unroll
    for (int j = 0; j < kNumbers; ++j) numbers[j] = activate<kActivation>(numbers[j] + bias[j]);
    store_vector<T, kAligned>(out + std::int64_t{i} * width, numbers, i < rows ? count : 0);
  }
}

template <class T, Activation kActivation>
void launch_bias_activation(const ActivationArguments& arguments, Stream stream) {
  // Columns in equal shares: a block that is nearly empty costs as much as a full one.
  const int vectors = (arguments.width - 1) / kNumbersPerVector<T> + 1;
  const int blocks = (vectors - 1) / kMostThreads + 1;
  const int threads = ((vectors - 1) / (blocks * kWarpSize) + 1) * kWarpSize;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>((arguments.tokens - 1) / kRowsPerThread + 1),
                    static_cast<unsigned>(blocks));
  shape.block = dim3(static_cast<unsigned>(threads));
  const bool aligned =
      is_aligned(arguments.width * sizeof(T), {arguments.x, arguments.bias, arguments.out});
  launch("bias_activation",
         aligned ? bias_activation_kernel<T, kActivation, true>
                 : bias_activation_kernel<T, kActivation, false>,
         shape, stream, arguments);
}

template <class T>
void launch_any(Activation activation, const ActivationArguments& arguments, Stream stream) {
  switch (activation) {
    case Activation::kNone:
      return launch_bias_activation<T, Activation::kNone>(arguments, stream);
    case Activation::kGelu:
      return launch_bias_activation<T, Activation::kGelu>(arguments, stream);
    case Activation::kGeluTanh:
      return launch_bias_activation<T, Activation::kGeluTanh>(arguments, stream);
    case Activation::kRelu:
      return launch_bias_activation<T, Activation::kRelu>(arguments, stream);
    case Activation::kSilu:
      return launch_bias_activation<T, Activation::kSilu>(arguments, stream);
  }
}

}  // namespace

void bias_activation(DataType type, Activation activation, const ActivationArguments& arguments,
                     Stream stream) {
  if (arguments.tokens == 0 || arguments.width == 0) return;
  with_type(type, [&](auto t) { launch_any<decltype(t)>(activation, arguments, stream); });
}

}  // namespace fastdistil::cuda
