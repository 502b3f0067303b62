// LayerNorm of a sum: y = (s - mean(s)) / sqrt(var(s) + eps) * weight + bias; s = x + residual.
//
//     x [T, D], residual [T, D] or none, weight [D], bias [D] -> y [T, D]
//
// mean and var are of one row; var is that of the population, taken in a second pass over the
// differences (Ba et al., arXiv:1607.06450, and torch.nn.functional.layer_norm). The sum, the
// statistics and the result are in float32, rounded once at the end.
//
// A row is in registers from when it is read until it is written, so y may be x or the residual.
#include "rows.h"

namespace fastdistil::cuda {

namespace {

template <class Shape>
__global__ void __launch_bounds__(Shape::Group::kMostThreads)
    layernorm_kernel(LayerNormArguments arguments) {
  const std::int64_t token = Shape::Group::row();
  if (token >= arguments.tokens) return;
  const int width = arguments.width;
  const PackedRow<Shape> x = load_row<Shape>(arguments.x, token, width);
  PackedRow<Shape> residual = {};
  if (arguments.residual != nullptr) {
    residual = load_row<Shape>(arguments.residual, token, width);
  }
  // Before the sums, which would have them wait: all that a row needs is under way at once.
  const PackedRow<Shape> weight = load_row<Shape>(arguments.weight, 0, width);
  const PackedRow<Shape> bias = load_row<Shape>(arguments.bias, 0, width);
  Row<Shape> values = to_numbers(x);
  if (arguments.residual != nullptr) add_row(values, residual);
  normalize_row(values, weight, bias, width, arguments.eps);
  store_row(arguments.out, token, width, values);
}

template <class T>
void launch_layernorm(const LayerNormArguments& arguments, Stream stream) {
  const bool aligned = is_aligned(
      arguments.width * sizeof(T),
      {arguments.x, arguments.residual, arguments.weight, arguments.bias, arguments.out});
  with_row_shape<T>(arguments.width, aligned, [&](auto shape) {
    using Shape = decltype(shape);
    launch("layernorm", layernorm_kernel<Shape>,
           blocks_for_rows<Shape>(arguments.tokens, arguments.width), stream, arguments);
  });
}

}  // namespace

void layernorm(DataType type, const LayerNormArguments& arguments, Stream stream) {
  if (arguments.tokens == 0) return;
  with_type(type, [&](auto t) { launch_layernorm<decltype(t)>(arguments, stream); });
}

}  // namespace fastdistil::cuda
