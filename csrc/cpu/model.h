// What a prepared model is: its shape, and its weights packed for one instruction set.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "../common/aligned_buffer.h"
#include "../common/tiles.h"

namespace fastdistil::cpu {

enum class Activation { kGelu, kGeluTanh, kRelu, kSilu };

struct Shape {
  int hidden = 0;
  int heads = 0;
  int intermediate = 0;
  int layers = 0;
  int vocabulary = 0;
  int positions = 0;
  int segments = 0;  // 0: the checkpoint has no segment embeddings
  float layer_norm_eps = 1e-12f;
  Activation activation = Activation::kGelu;

  int head_dim() const { return hidden / heads; }
  // Padded sizes: what the kernels see. The padding is zero in weights and activations.
  int hidden_padded() const { return round_up(hidden, kColumnMultiple); }
  int head_padded() const { return round_up(head_dim(), kColumnMultiple); }
  int inner() const { return heads * head_padded(); }  // width of Q, of K, of V and of the context
  int intermediate_padded() const { return round_up(intermediate, kColumnMultiple); }
};

// A weight matrix [n, k] cut into panels of a few output columns, each panel laid out in the order
// in which a micro-kernel reads it: [panel][k tile][column group][step][lane][k pair]. A step is
// four bytes of k (one fp32, two bf16 or four int8), a column group is one vector of outputs.
struct PackedMatrix {
  AlignedBuffer data;
  AlignedBuffer bias;  // fp32 [panels * panel columns], zero where there is none
  int panels = 0;
  int columns = 0;  // panels * panel columns
  int k_tiles = 0;
  std::size_t panel_bytes = 0;
  // int8 only: fp32 [columns], w = column_scale * v with v in -127..127; and for each piece of k by
  // which products are taken, fp32 [pieces, columns], column_scale * the sum of v over the piece.
  AlignedBuffer column_scale;
  AlignedBuffer piece_sums;
  int piece_tiles = 0;  // k tiles in a piece

  const char* panel(int index) const { return data.data() + index * panel_bytes; }
  // Of the piece that begins with that k tile.
  const float* column_sums(int first_k_tile) const {
    return piece_sums.as<float>() + static_cast<std::size_t>(first_k_tile / piece_tiles) * columns;
  }
  std::size_t bytes() const {
    return data.size() + bias.size() + column_scale.size() + piece_sums.size();
  }
};

struct LayerNormWeights {
  AlignedBuffer weight;  // fp32 [hidden_padded], zero in the padding: padded columns stay zero
  AlignedBuffer bias;

  std::size_t bytes() const { return weight.size() + bias.size(); }
};

struct Layer {
  PackedMatrix qkv;  // softmax scale and log2(e) folded into Q
  PackedMatrix attention_out;
  LayerNormWeights attention_norm;
  PackedMatrix ffn_in;
  PackedMatrix ffn_out;
  LayerNormWeights output_norm;
};

// What is packed once, and shared by all models with equal weights.
struct PackedWeights {
  LayerNormWeights embedding_norm;
  std::vector<Layer> layers;

  std::size_t bytes() const {
    std::size_t total = embedding_norm.bytes();
    for (const Layer& layer : layers) {
      for (const PackedMatrix* matrix :
           {&layer.qkv, &layer.attention_out, &layer.ffn_in, &layer.ffn_out})
        total += matrix->bytes();
      total += layer.attention_norm.bytes() + layer.output_norm.bytes();
    }
    return total;
  }
};

// Row-major fp32; they belong to the caller, who keeps them alive.
struct EmbeddingTables {
  const float* words = nullptr;      // [vocabulary, hidden]
  const float* positions = nullptr;  // [positions, hidden]
  const float* segments = nullptr;   // [segments, hidden], or null where there are none
};

struct Model {
  Shape shape;
  EmbeddingTables tables;
  std::shared_ptr<const PackedWeights> packed;
};

enum class Pooling { kNone, kMean, kCls, kMax };

constexpr int kAllRows = -1;

// One call's input and output. Pointers belong to the caller.
struct Batch {
  const std::int32_t* input_ids = nullptr;    // [tokens]
  const std::int32_t* positions = nullptr;    // [tokens]
  const std::int32_t* segment_ids = nullptr;  // [tokens] or null (segment 0 everywhere)
  const std::int32_t* cu_seqlens = nullptr;   // [sequences + 1]
  int sequences = 0;
  int tokens = 0;
  Pooling pooling = Pooling::kNone;
  bool normalize = false;
  // The tokens whose states are wanted, strictly ascending: [row_count]. Not to be pooled.
  const std::int32_t* rows = nullptr;
  int row_count = kAllRows;
  float* out =
      nullptr;  // [tokens, hidden], [row_count, hidden], or [sequences, hidden] when pooled

  // Whether the last layer has rows that nobody reads.
  bool reads_some() const { return row_count != kAllRows || pooling == Pooling::kCls; }
};

// A row whose last state is read: its place in the chunk, and among the batch's `rows`.
struct RowRead {
  int row;
  int index;
};

// Whole sequences that go through all layers together.
struct Span {
  int sequence;  // index in the batch
  int row;       // first row in the chunk
  int length;
  // Its part of the chunk's `reads`.
  int read_begin = 0;
  int read_end = 0;
};

struct Chunk {
  std::vector<Span> spans;
  std::vector<RowRead> reads;  // ascending; only where the batch reads some rows, not all
  int rows = 0;
  int longest = 0;
};

}  // namespace fastdistil::cpu
