// The encoder on one chunk of whole sequences, from token ids to vectors, written once for every
// instruction set: embeddings, then in each layer attention and feed-forward block, each followed
// by residual + LayerNorm (Vaswani et al., arXiv 1706.03762, post-norm as in BERT). Every thread of
// the team runs this function on its share and meets the others between the steps.
//
// The residual stream stays in fp32 in `sums`: products are added to it, LayerNorms rewrite it.
// What enters a product is a rounded copy in tiles. fp32 and bf16 are rounded where they are
// computed; int8 needs the range of a whole row first, so its rows wait in bf16 or fp32 to be
// quantised.
//
// In the last layer every row gives its K and V, but all that comes after them is computed for
// those rows only whose states are read: they move to the front of the chunk, which is that short
// from there on. No row's sums depend on its place, so its bits are those of a whole forward.
#pragma once

#include <cstdint>
#include <cstring>

#include "attention.h"
#include "epilogues.h"
#include "gemm.h"
#include "kernels.h"
#include "layernorm.h"
#include "model.h"
#include "part_clock.h"
#include "pooling.h"
#include "quantise.h"
#include "team.h"
#include "workspace.h"

namespace fastdistil::cpu {

template <class Isa>
class Forward {
 public:
  // `clock`: null, or the stop-watch of this thread.
  static void run(const Model& model, const Batch& batch, const Chunk& chunk, Workspace& workspace,
                  Team& team, PartClock* clock) {
    [[maybe_unused]] const typename Isa::Session session{};
    Forward(model, batch, chunk, workspace, team, clock).run();
  }

 private:
  using V = typename Isa::Vec;
  using Elem = typename Isa::Elem;
  using Wide = typename Isa::AttentionIsa::Elem;
  static constexpr bool kQuantised = sizeof(Elem) == 1;
  static constexpr int kTileColumns = kTileRowBytes / static_cast<int>(sizeof(Elem));

  Forward(const Model& model, const Batch& batch, const Chunk& chunk, Workspace& workspace,
          Team& team, PartClock* clock)
      : model_(model),
        shape_(model.shape),
        batch_(batch),
        chunk_(chunk),
        ws_(workspace),
        team_(team),
        clock_(clock),
        rows_(chunk.rows) {}

  void run() {
    if (clock_ != nullptr) clock_->start();
    step(Part::kEmbed, rows_, [&](Range mine) { embed(mine); });
    for (int i = 0; i < shape_.layers; ++i) {
      const Layer& layer = model_.packed->layers[i];
      const bool last = i + 1 == shape_.layers;
      attention_block(layer, last && batch_.reads_some());
      feed_forward_block(layer);
      step(Part::kLayerNorm, rows_, [&](Range mine) {
        last ? last_layer_norm(layer.output_norm, mine) : layer_norm(layer.output_norm, mine);
      });
    }
    if (batch_.pooling != Pooling::kNone)
      step(Part::kPool, static_cast<int>(chunk_.spans.size()), [&](Range mine) { pool(mine); });
  }

  // The team does work(piece) for all of [0, count); nobody goes on before that is done.
  template <class Work>
  void step(Part part, int count, const Work& work) {
    step_with_end(part, count, [&](Range mine, int) { work(mine); });
  }
  // The same; work(piece, end) is told where the share ends that its piece is of.
  template <class Work>
  void step_with_end(Part part, int count, const Work& work) {
    team_.run(count, work);
    if (clock_ != nullptr) clock_->lap(part);
  }

  float* sums(int row) const { return ws_.sums.template at<float>(row, 0); }

  // Calls visit(row, token) for those rows: token is the row's index in the batch.
  template <class Visit>
  void for_each_token(Range rows, const Visit& visit) const {
    for (const Span& span : chunk_.spans) {
      const int begin = span.row > rows.begin ? span.row : rows.begin;
      const int end = span.row + span.length < rows.end ? span.row + span.length : rows.end;
      const int offset = batch_.cu_seqlens[span.sequence] - span.row;
      for (int row = begin; row < end; ++row) visit(row, row + offset);
    }
  }

  void embed(Range rows) const {
    const std::size_t hidden = shape_.hidden;
    for_each_token(rows, [&](int row, int token) {
      const float* word = model_.tables.words + batch_.input_ids[token] * hidden;
      const float* position = model_.tables.positions + batch_.positions[token] * hidden;
      const int segment_id = batch_.segment_ids != nullptr ? batch_.segment_ids[token] : 0;
      const float* segment =
          shape_.segments > 0 ? model_.tables.segments + segment_id * hidden : nullptr;
      float* out = sums(row);
      for (int j = 0; j < shape_.hidden_padded(); j += V::kLanes) {
        const int left = shape_.hidden - j > 0 ? shape_.hidden - j : 0;
        V x = V::load_first(word + j, left) + V::load_first(position + j, left);
        if (segment != nullptr) x = x + V::load_first(segment + j, left);
        x.store(out + j);
      }
      normalise(row, model_.packed->embedding_norm);
    });
  }

  // In place, and as the operand of the next product.
  void normalise(int row, const LayerNormWeights& norm) const {
    float* x = sums(row);
    const int padded = shape_.hidden_padded();
    layer_norm_row<V>(x, shape_.hidden, padded, shape_.layer_norm_eps, norm, [&](int column, V y) {
      y.store(x + column);
      if constexpr (!kQuantised) y.store(ws_.hidden.tiles.template at<Elem>(row, column));
    });
    if constexpr (kQuantised)
      ws_.hidden.scales[row] =
          quantise_row<V, Rotation::kFull>(x, padded, scratch_row(), ws_.hidden.tiles, row);
  }

  void layer_norm(const LayerNormWeights& norm, Range rows) const {
    for (int row = rows.begin; row < rows.end; ++row) normalise(row, norm);
  }

  void last_layer_norm(const LayerNormWeights& norm, Range rows) const {
    if (narrowed_) {
      for (int row = rows.begin; row < rows.end; ++row) {
        const RowRead& read = chunk_.reads[row];
        last_layer_norm(norm, row, read.row, read.index);
      }
    } else {
      for_each_token(rows, [&](int row, int token) { last_layer_norm(norm, row, row, token); });
    }
  }

  // The last LayerNorm's output leaves in fp32, unrounded: to the caller's row `index`, or to the
  // chunk's row `place`, to be pooled.
  void last_layer_norm(const LayerNormWeights& norm, int row, int place, int index) const {
    const bool pooled = batch_.pooling != Pooling::kNone;
    float* out = pooled ? ws_.final.template at<float>(place, 0)
                        : batch_.out + static_cast<std::size_t>(index) * shape_.hidden;
    layer_norm_row<V>(sums(row), shape_.hidden, shape_.hidden_padded(), shape_.layer_norm_eps, norm,
                      [&](int column, V y) {
                        if (pooled) {
                          y.store(out + column);
                        } else if (column < shape_.hidden) {
                          y.store_first(out + column, shape_.hidden - column);
                        }
                      });
  }

  // Where it narrows the chunk, what comes before needs all rows, and what comes after does not.
  void attention_block(const Layer& layer, bool narrows) {
    const PackedMatrix& qkv = layer.qkv;
    if (narrows) {
      const int queries = shape_.inner() / Isa::kPanelColumns;
      project(qkv, Range{queries, qkv.panels});
      narrow();
      project(qkv, Range{0, queries});
    } else {
      project(qkv, Range{0, qkv.panels});
    }
    attention();
    const PackedMatrix& out = layer.attention_out;
    const Add<Isa, true> to_sums{{out, 0, ws_.context.scales}, out.bias.as<float>(), ws_.sums};
    step_with_end(Part::kAttentionOut, out.panels, [&](Range mine, int end) {
      gemm<Isa>(ws_.context.tiles, rows_, out, mine, end, KRange{0, out.k_tiles}, to_sums);
    });
    step(Part::kLayerNorm, rows_, [&](Range mine) { layer_norm(layer.attention_norm, mine); });
  }

  // Those panels of Q, K and V, in this order.
  void project(const PackedMatrix& qkv, Range panels) {
    const Store<Isa, Identity, Wide, Rows> to_qkv{
        {qkv, 0, ws_.hidden.scales}, qkv.bias.as<float>(), ws_.qkv, 0};
    step_with_end(Part::kQkv, panels.size(), [&](Range mine, int end) {
      gemm<Isa>(ws_.hidden.tiles, rows_, qkv,
                Range{panels.begin + mine.begin, panels.begin + mine.end}, panels.begin + end,
                KRange{0, qkv.k_tiles}, to_qkv);
    });
  }

  // From here on the chunk's rows are its reads. No row moves to a place behind its own, so one
  // thread that takes them in order overwrites none that is still to move.
  void narrow() {
    const int count = static_cast<int>(chunk_.reads.size());
    step(Part::kQkv, 1, [&](Range) {
      for (int i = 0; i < count; ++i) {
        if (chunk_.reads[i].row != i) move_row(chunk_.reads[i].row, i);
      }
    });
    rows_ = count;
    narrowed_ = true;
  }

  // The residual stream, and the operand of the next product.
  void move_row(int from, int to) const {
    const int columns = shape_.hidden_padded();
    std::memcpy(sums(to), sums(from), columns * sizeof(float));
    const Tiles& tiles = ws_.hidden.tiles;
    for (int column = 0; column < columns; column += kTileColumns)
      std::memcpy(tiles.template at<Elem>(to, column), tiles.template at<Elem>(from, column),
                  kTileRowBytes);
    if constexpr (kQuantised) ws_.hidden.scales[to] = ws_.hidden.scales[from];
  }

  void attention() {
    using Attention = typename Isa::AttentionIsa;
    const int items = static_cast<int>(chunk_.spans.size()) * shape_.heads;
    const ThreadScratch& scratch = ws_.scratch[team_.scratch()];
    if constexpr (kQuantised) {
      step(Part::kAttention, items, [&](Range mine) {
        attend<Attention>(shape_, chunk_, ws_.qkv, scratch, mine, narrowed_, ws_.qkv);
      });
      step(Part::kQuantise, rows_, [&](Range mine) {
        quantise<Rotation::kNone>(mine, ws_.qkv, 0, shape_.inner(), ws_.context.tiles,
                                  ws_.context.scales);
      });
    } else {
      step(Part::kAttention, items, [&](Range mine) {
        attend<Attention>(shape_, chunk_, ws_.qkv, scratch, mine, narrowed_, ws_.context.tiles);
      });
    }
  }

  float* scratch_row() const { return ws_.scratch[team_.scratch()].row; }

  // Columns [begin, end) of those rows, whose codes begin at column 0 of `tiles`.
  template <Rotation kRotation>
  void quantise(Range rows, const Rows& values, int begin, int end, const Tiles& tiles,
                RowScale* scales) const {
    for (int row = rows.begin; row < rows.end; ++row)
      scales[row] = quantise_row<V, kRotation>(values.template at<Wide>(row, begin), end - begin,
                                               scratch_row(), tiles, row);
  }

  // The intermediate layer in pieces of kFfnPiece columns, each added to the sums before the next,
  // so that it need not leave the cache. A workspace may hold several pieces at once (small chunks
  // do): fewer steps, and still the same order of additions.
  void feed_forward_block(const Layer& layer) {
    const int columns = shape_.intermediate_padded();
    for (int begin = 0; begin < columns; begin += ws_.intermediate_columns) {
      const int held =
          columns - begin < ws_.intermediate_columns ? columns - begin : ws_.intermediate_columns;
      step_with_end(Part::kFfnIn, held / Isa::kPanelColumns,
                    [&](Range mine, int end) { feed_forward_in(layer.ffn_in, begin, mine, end); });
      if constexpr (kQuantised) {
        step(Part::kQuantise, rows_, [&](Range mine) {
          for_each_piece(held, [&](int from, int to) {
            quantise<Rotation::kCoarse>(mine, ws_.unquantised, from, to, piece_tiles(from),
                                        piece_scales(from));
          });
        });
      }
      step_with_end(Part::kFfnOut, layer.ffn_out.panels, [&](Range mine, int end) {
        for_each_piece(held, [&](int from, int to) {
          feed_forward_out(layer.ffn_out, begin + from, from, to, mine, end);
        });
      });
    }
  }

  // Calls visit(from, to) for the pieces of the columns that the workspace holds.
  template <class Visit>
  static void for_each_piece(int held, const Visit& visit) {
    for (int from = 0; from < held; from += Isa::kFfnPiece)
      visit(from, from + Isa::kFfnPiece < held ? from + Isa::kFfnPiece : held);
  }

  // Where a piece that begins at that column of the workspace has its codes and its scales.
  Tiles piece_tiles(int from) const {
    Tiles tiles = ws_.activated.tiles;
    tiles.data += static_cast<std::size_t>(from / kTileColumns) * kTileBytes;
    return tiles;
  }
  RowScale* piece_scales(int from) const {
    if constexpr (!kQuantised) return nullptr;
    return ws_.activated.scales + static_cast<std::size_t>(from / Isa::kFfnPiece) * ws_.scale_rows;
  }

  // Those panels of the columns from `begin` on.
  void feed_forward_in(const PackedMatrix& weights, int begin, Range panels, int end) const {
    switch (shape_.activation) {
      case Activation::kGelu:
        return feed_forward_in<Activation::kGelu>(weights, begin, panels, end);
      case Activation::kGeluTanh:
        return feed_forward_in<Activation::kGeluTanh>(weights, begin, panels, end);
      case Activation::kRelu:
        return feed_forward_in<Activation::kRelu>(weights, begin, panels, end);
      case Activation::kSilu:
        return feed_forward_in<Activation::kSilu>(weights, begin, panels, end);
    }
  }

  template <Activation kActivation>
  void feed_forward_in(const PackedMatrix& weights, int begin, Range panels, int end) const {
    using Function = Activate<kActivation, Elem>;
    const typename Isa::Sums products{weights, 0, ws_.hidden.scales};
    const float* bias = weights.bias.as<float>();
    const int first = begin / Isa::kPanelColumns;
    const auto multiply = [&](const auto& epilogue) {
      gemm<Isa>(ws_.hidden.tiles, rows_, weights, Range{first + panels.begin, first + panels.end},
                first + end, KRange{0, weights.k_tiles}, epilogue);
    };
    if constexpr (kQuantised) {
      multiply(Store<Isa, Function, Wide, Rows>{products, bias, ws_.unquantised, begin});
    } else {
      multiply(Store<Isa, Function, Elem, Tiles>{products, bias, ws_.activated.tiles, begin});
    }
  }

  // One piece: columns [from, to) of the workspace, which are those from `begin` of the layer.
  void feed_forward_out(const PackedMatrix& weights, int begin, int from, int to, Range panels,
                        int end) const {
    const int first_tile = begin / kTileColumns;
    const KRange k{first_tile, (to - from + kTileColumns - 1) / kTileColumns};
    const typename Isa::Sums products{weights, first_tile, piece_scales(from)};
    const float* bias = weights.bias.as<float>();
    if (begin == 0) {
      gemm<Isa>(piece_tiles(from), rows_, weights, panels, end, k,
                Add<Isa, true>{products, bias, ws_.sums});
    } else {
      gemm<Isa>(piece_tiles(from), rows_, weights, panels, end, k,
                Add<Isa, false>{products, bias, ws_.sums});
    }
  }

  void pool(Range spans) const {
    for (int i = spans.begin; i < spans.end; ++i) {
      const Span& span = chunk_.spans[i];
      pool_sequence<V>(ws_.final.template at<float>(span.row, 0),
                       static_cast<int>(ws_.final.stride / sizeof(float)), span.length,
                       shape_.hidden, batch_.pooling, batch_.normalize,
                       batch_.out + static_cast<std::size_t>(span.sequence) * shape_.hidden);
    }
  }

  const Model& model_;
  const Shape& shape_;
  const Batch& batch_;
  const Chunk& chunk_;
  Workspace& ws_;
  Team& team_;
  PartClock* const clock_;
  int rows_;               // at the front of the workspace's buffers
  bool narrowed_ = false;  // they are the chunk's reads
};

// An instruction set's table, from its traits.
template <class Isa>
constexpr Kernels make_kernels(const char* isa, const char* precision, const char* description,
                               int chunk_rows, int min_rows_per_thread) {
  constexpr PanelFormat kFormat{sizeof(typename Isa::Elem), Isa::Vec::kLanes, Isa::kPanelColumns};
  return {isa,
          precision,
          description,
          kFormat,
          sizeof(typename Isa::AttentionIsa::Elem),
          chunk_rows,
          min_rows_per_thread,
          Isa::kFfnPiece,
          Forward<Isa>::run,
          Isa::peak};
}

}  // namespace fastdistil::cpu
