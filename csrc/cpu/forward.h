// The encoder on one chunk of whole sequences, from token ids to vectors, written once for every
// instruction set: embeddings, then in each layer attention and feed-forward block, each followed
// by residual + LayerNorm (Vaswani et al., arXiv 1706.03762, post-norm as in BERT). Every thread of
// the team runs this function on its share and meets the others between the steps.
//
// The residual stream stays in fp32 in `sums`: products are added to it, LayerNorms rewrite it.
// What enters a product is a rounded copy in tiles. fp32 and bf16 are rounded where they are
// computed; int8 needs the range of a whole row first, so its rows wait in bf16 or fp32 to be
// quantised.
#pragma once

#include <cstdint>

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
        clock_(clock) {}

  void run() {
    if (clock_ != nullptr) clock_->start();
    const int rows = chunk_.rows;
    step(Part::kEmbed, rows, [&](Range mine) { embed(mine); });
    for (int i = 0; i < shape_.layers; ++i) {
      const Layer& layer = model_.packed->layers[i];
      attention_block(layer);
      feed_forward_block(layer);
      const bool last = i + 1 == shape_.layers;
      step(Part::kLayerNorm, rows, [&](Range mine) {
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

  // The last LayerNorm's output leaves in fp32, unrounded: to the caller, or to be pooled.
  void last_layer_norm(const LayerNormWeights& norm, Range rows) const {
    for_each_token(rows, [&](int row, int token) {
      const bool pooled = batch_.pooling != Pooling::kNone;
      float* out = pooled ? ws_.final.template at<float>(row, 0)
                          : batch_.out + static_cast<std::size_t>(token) * shape_.hidden;
      layer_norm_row<V>(sums(row), shape_.hidden, shape_.hidden_padded(), shape_.layer_norm_eps,
                        norm, [&](int column, V y) {
                          if (pooled) {
                            y.store(out + column);
                          } else if (column < shape_.hidden) {
                            y.store_first(out + column, shape_.hidden - column);
                          }
                        });
    });
  }

  void attention_block(const Layer& layer) {
    const Store<Isa, Identity, Wide, Rows> to_qkv{
        {layer.qkv, 0, ws_.hidden.scales}, layer.qkv.bias.as<float>(), ws_.qkv, 0};
    step_with_end(Part::kQkv, layer.qkv.panels, [&](Range mine, int end) {
      gemm<Isa>(ws_.hidden.tiles, chunk_.rows, layer.qkv, mine, end, KRange{0, layer.qkv.k_tiles},
                to_qkv);
    });
    attention();
    const PackedMatrix& out = layer.attention_out;
    const Add<Isa, true> to_sums{{out, 0, ws_.context.scales}, out.bias.as<float>(), ws_.sums};
    step_with_end(Part::kAttentionOut, out.panels, [&](Range mine, int end) {
      gemm<Isa>(ws_.context.tiles, chunk_.rows, out, mine, end, KRange{0, out.k_tiles}, to_sums);
    });
    step(Part::kLayerNorm, chunk_.rows,
         [&](Range mine) { layer_norm(layer.attention_norm, mine); });
  }

  void attention() {
    using Attention = typename Isa::AttentionIsa;
    const int items = static_cast<int>(chunk_.spans.size()) * shape_.heads;
    const ThreadScratch& scratch = ws_.scratch[team_.scratch()];
    if constexpr (kQuantised) {
      step(Part::kAttention, items,
           [&](Range mine) { attend<Attention>(shape_, chunk_, ws_.qkv, scratch, mine, ws_.qkv); });
      step(Part::kQuantise, chunk_.rows, [&](Range mine) {
        quantise<Rotation::kNone>(mine, ws_.qkv, 0, shape_.inner(), ws_.context.tiles,
                                  ws_.context.scales);
      });
    } else {
      step(Part::kAttention, items, [&](Range mine) {
        attend<Attention>(shape_, chunk_, ws_.qkv, scratch, mine, ws_.context.tiles);
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
        step(Part::kQuantise, chunk_.rows, [&](Range mine) {
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
      gemm<Isa>(ws_.hidden.tiles, chunk_.rows, weights,
                Range{first + panels.begin, first + panels.end}, first + end,
                KRange{0, weights.k_tiles}, epilogue);
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
      gemm<Isa>(piece_tiles(from), chunk_.rows, weights, panels, end, k,
                Add<Isa, true>{products, bias, ws_.sums});
    } else {
      gemm<Isa>(piece_tiles(from), chunk_.rows, weights, panels, end, k,
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
