// Self-attention over packed sequences: softmax(Q K^T) V for each sequence and head, no padding, no
// mask. The scale and log2(e) are already in Q (folded into its weights), so softmax is 2^s.
//
// K and V of a head are packed once as weights are (see PackedMatrix), then every block of 16
// queries runs two products with the GEMM's own micro-kernel. The scores of a block fit the cache
// at any length a position table has, so the softmax is the plain three passes: no running rescale.
#pragma once

#include <cstring>
#include <limits>

#include "activation.h"
#include "gemm.h"
#include "model.h"
#include "workspace.h"

namespace fastdistil::cpu {

// One head of one sequence: where its Q, K and V rows start in the row-major qkv buffer.
struct HeadInput {
  const char* query;
  const char* key;
  const char* value;
  std::size_t stride;  // bytes from token to token
  int queries;
  int length;        // keys and values
  int head_columns;  // padded
};

template <class Isa>
struct Attention {
  using V = typename Isa::Vec;
  using Elem = typename Isa::Elem;
  static constexpr int kElementBytes = sizeof(Elem);
  static constexpr int kTileColumns = kTileRowBytes / kElementBytes;
  static constexpr int kGroupBytes = kTileRowBytes / 4 * V::kLanes * 4;
  static constexpr int kGroups = Isa::kPanelColumns / V::kLanes;
  static constexpr int kPanelTileBytes = kGroups * kGroupBytes;

  // K as the second operand of Q K^T: a column of the product is a key, k runs over the head.
  static void pack_keys(const HeadInput& head, char* packed) {
    const int k_tiles = head.head_columns / kTileColumns;
    for (int key = 0; key < head.length; key += Isa::kPanelColumns) {
      for (int tile = 0; tile < k_tiles; ++tile) {
        for (int group = 0; group < kGroups; ++group, packed += kGroupBytes) {
          const int first = key + group * V::kLanes;
          const int valid = head.length - first;
          if (valid <= 0) {
            std::memset(packed, 0, kGroupBytes);
          } else {
            Isa::pack_keys(head.key + first * head.stride + tile * kTileRowBytes, head.stride,
                           valid < V::kLanes ? valid : V::kLanes, packed);
          }
        }
      }
    }
  }

  // V as the second operand of P V: a column is one of the head's, k runs over the keys. Keys
  // beyond the length are zero: a zero weight times what lies there could be NaN.
  static void pack_values(const HeadInput& head, char* packed) {
    for (int column = 0; column < head.head_columns; column += Isa::kPanelColumns) {
      for (int key = 0; key < head.length; key += kTileColumns) {
        const int valid = head.length - key;
        for (int group = 0; group < kGroups; ++group, packed += kGroupBytes) {
          const int offset = (column + group * V::kLanes) * kElementBytes;
          Isa::pack_values(head.value + key * head.stride + offset, head.stride,
                           valid < kTileColumns ? valid : kTileColumns, packed);
        }
      }
    }
  }

  static void load_queries(const HeadInput& head, int first, int rows, char* tiles) {
    const int k_tiles = head.head_columns / kTileColumns;
    for (int tile = 0; tile < k_tiles; ++tile) {
      char* out = tiles + tile * kTileBytes;
      for (int r = 0; r < rows; ++r)
        std::memcpy(out + r * kTileRowBytes,
                    head.query + (first + r) * head.stride + tile * kTileRowBytes, kTileRowBytes);
      // Rows that a whole tile multiplies all the same.
      std::memset(out + rows * kTileRowBytes, 0, (kTileRows - rows) * kTileRowBytes);
    }
  }

  // Unnormalised weights 2^(s - max), rounded, into row `row` of a block of tiles; returns 1 / sum.
  static FASTDISTIL_INLINE float softmax_row(const float* scores, int length, int padded, int row,
                                             char* weights) {
    // Where all are -infinity, so is this, and -infinity less itself gives the NaN that torch
    // gives.
    V largest = V::set(-std::numeric_limits<float>::infinity());
    int j = 0;
    for (; j + V::kLanes <= length; j += V::kLanes) largest = largest.max(V::load(scores + j));
    float maximum = largest.largest();
    for (; j < length; ++j) maximum = scores[j] > maximum ? scores[j] : maximum;

    const V shift = V::set(maximum);
    V sum = V::zero();
    const Tiles tiles{weights, 0};
    for (j = 0; j < padded; j += V::kLanes) {
      const V weight = exp2(V::load(scores + j) - shift).first(length > j ? length - j : 0);
      sum = sum + weight;
      weight.store(tiles.at<Elem>(row, j));
    }
    return 1.0f / sum.sum();
  }

  template <class Destination>
  static void store_context(const float* sums, int head_columns, int rows, const float* inverse,
                            const Destination& context, int first_row, int first_column) {
    for (int r = 0; r < rows; ++r) {
      const V scale = V::set(inverse[r]);
      for (int j = 0; j < head_columns; j += V::kLanes)
        (V::load(sums + r * head_columns + j) * scale)
            .store(context.template at<Elem>(first_row + r, first_column + j));
    }
  }

  template <class Destination>
  static void run(const HeadInput& head, const ThreadScratch& scratch, const Destination& context,
                  int context_row, int context_column) {
    const int keys = round_up(head.length, kColumnMultiple);
    const int head_tiles = head.head_columns / kTileColumns;
    const int key_tiles = (head.length + kTileColumns - 1) / kTileColumns;
    Prefetch no_prefetch;
    NoBackground nothing;
    pack_keys(head, scratch.keys);
    pack_values(head, scratch.values);
    for (int first = 0; first < head.queries; first += kTileRows) {
      const int rows = head.queries - first < kTileRows ? head.queries - first : kTileRows;
      load_queries(head, first, rows, scratch.query);
      for (int p = 0; p * Isa::kPanelColumns < head.length; ++p)
        Isa::multiply(scratch.query, 0, rows, scratch.keys + p * head_tiles * kPanelTileBytes,
                      head_tiles, false, scratch.scores + p * Isa::kPanelColumns, keys, no_prefetch,
                      nothing);
      float inverse[kTileRows];
      for (int r = 0; r < rows; ++r)
        inverse[r] = softmax_row(scratch.scores + r * keys, head.length, key_tiles * kTileColumns,
                                 r, scratch.weights);
      for (int p = 0; p * Isa::kPanelColumns < head.head_columns; ++p)
        Isa::multiply(scratch.weights, 0, rows, scratch.values + p * key_tiles * kPanelTileBytes,
                      key_tiles, false, scratch.context + p * Isa::kPanelColumns, head.head_columns,
                      no_prefetch, nothing);
      store_context(scratch.context, head.head_columns, rows, inverse, context, context_row + first,
                    context_column);
    }
  }
};

// Some of a chunk's (sequence, head) pairs, in that order. The context may go where Q lies: a block
// of queries is read before its context is written, and nobody else reads those columns.
// `narrowed`: Q and the context have the chunk's reads for rows.
template <class Isa, class Destination>
void attend(const Shape& shape, const Chunk& chunk, const Rows& qkv, const ThreadScratch& scratch,
            Range pairs, bool narrowed, const Destination& context) {
  using Elem = typename Isa::Elem;
  const int head_columns = shape.head_padded();
  const std::size_t part = shape.inner() * sizeof(Elem);  // bytes of a row's Q, of its K, of its V
  for (int pair = pairs.begin; pair < pairs.end; ++pair) {
    const Span& span = chunk.spans[pair / shape.heads];
    const int column = pair % shape.heads * head_columns;
    const int first = narrowed ? span.read_begin : span.row;
    const int queries = narrowed ? span.read_end - span.read_begin : span.length;
    const char* query = reinterpret_cast<const char*>(qkv.at<Elem>(first, column));
    const char* key = reinterpret_cast<const char*>(qkv.at<Elem>(span.row, column)) + part;
    const HeadInput head{query, key, key + part, qkv.stride, queries, span.length, head_columns};
    Attention<Isa>::run(head, scratch, context, first, column);
  }
}

}  // namespace fastdistil::cpu
