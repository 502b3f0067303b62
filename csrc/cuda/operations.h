// The fused operations of this folder as functions of addresses and sizes, for whoever binds or
// tests them. One file each; all arrays are dense and row-major, in GPU memory (host memory where
// the emulation plays the GPU), and fully checked by the caller: nothing here looks at what it
// points to. Every function queues one or more kernels on the stream and returns; CudaError if the
// driver will not have them.
#pragma once

#include <cstdint>

#include "launch.h"

namespace fastdistil::cuda {

enum class DataType { kBFloat16, kFloat16, kFloat32 };
enum class Activation { kNone, kGelu, kGeluTanh, kRelu, kSilu };
enum class Pooling { kMean, kCls, kMax };

// --- layernorm.cu --------------------------------------------------------------------------------

// out = LayerNorm(x + residual) * weight + bias, over rows of `width`.
struct LayerNormArguments {
  const void* x;         // [tokens, width]
  const void* residual;  // [tokens, width] or null
  const void* weight;    // [width]
  const void* bias;      // [width]
  void* out;             // [tokens, width]; may be x or residual
  int tokens, width;
  float eps;
};
void layernorm(DataType type, const LayerNormArguments& arguments, Stream stream);

// --- embedding.cu --------------------------------------------------------------------------------

// Bits of `errors`: an id outside its table. It is read as the nearest row there is.
constexpr int kWrongWord = 1, kWrongPosition = 2, kWrongSegment = 4;

// out = LayerNorm(words[id] + segments[segment] + positions[position]).
struct EmbeddingArguments {
  const std::int32_t* input_ids;    // [tokens]
  const std::int32_t* positions;    // [tokens]
  const std::int32_t* segment_ids;  // [tokens], or null for row 0
  const void* word;                 // [words, width]
  const void* position;             // [position_rows, width]
  const void* segment;              // [segments, width] or null
  const void* weight;               // [width]
  const void* bias;                 // [width]
  void* out;                        // [tokens, width]
  std::int32_t* errors;             // [1]
  int tokens, width, words, position_rows, segments;
  float eps;
};
void embed_layernorm(DataType type, const EmbeddingArguments& arguments, Stream stream);

// --- gelu.cu -------------------------------------------------------------------------------------

// out = activation(x + bias).
struct ActivationArguments {
  const void* x;     // [tokens, width]
  const void* bias;  // [width]
  void* out;         // [tokens, width]; may be x
  int tokens, width;
};
void bias_activation(DataType type, Activation activation, const ActivationArguments& arguments,
                     Stream stream);

// --- pooling.cu ----------------------------------------------------------------------------------

// One float32 vector for each sequence; zeros for a sequence of no tokens.
struct PoolingArguments {
  const void* hidden;              // [tokens, width]
  const std::int32_t* cu_seqlens;  // [sequences + 1]
  float* out;                      // [sequences, width]
  int sequences, width;
  bool normalize;
};
void pool(DataType type, Pooling pooling, const PoolingArguments& arguments, Stream stream);

// --- packing.cu ----------------------------------------------------------------------------------

// Where the kept tokens of a padded batch are; the scan over its rows runs on the device.
struct PackingArguments {
  const void* mask;          // [rows, width], entries of `mask_bytes`; all zero bits drop a token
  std::int64_t row_stride;   // entries from row to row
  int mask_bytes;            // 1, 2, 4 or 8
  bool mask_is_float;        // then -0.0 drops one too
  std::int32_t* cu_seqlens;  // [rows + 1]
  std::int32_t* positions;   // [places]: the column of each kept token, then zeros
  std::int64_t* indices;     // [places]: its place in the flattened batch, then zeros
  int rows, width, places;   // at most rows * width; what does not fit is left out
};
void pack(const PackingArguments& arguments, Stream stream);

// --- attention.cu --------------------------------------------------------------------------------

// Attention within each sequence of at most kLongestShort tokens.
constexpr int kLongestShort = 128;
struct AttentionArguments {
  const void* qkv;                 // [tokens, 3, heads, head_dim]; 16-bit types only
  const std::int32_t* cu_seqlens;  // [sequences + 1]; sequences of 0 to `longest` tokens
  void* out;                       // [tokens, heads * head_dim]
  int sequences, heads, head_dim;  // head_dim 32, 64 or 128
  int longest;                     // at most kLongestShort
  float scale;                     // scores are multiplied by it, and go into exp2
};
void short_attention(DataType type, const AttentionArguments& arguments, Stream stream);

}  // namespace fastdistil::cuda
