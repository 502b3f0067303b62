// The encoder on one chunk of whole sequences, from token ids to vectors, written once for every
// instruction set: embeddings, then in each layer attention and feed-forward block, each followed
// by residual + LayerNorm (Vaswani et al., arXiv 1706.03762, post-norm as in BERT). Every thread of
// the team runs this function on its share and meets the others between the steps.
#pragma once

#include "attention.h"
#include "epilogues.h"
#include "gemm.h"
#include "layernorm.h"
#include "model.h"
#include "pooling.h"
#include "team.h"
#include "workspace.h"

namespace fastdistil::cpu {

template <class Isa>
class Forward {
 public:
  static void run(const Model& model, const Batch& batch, const Chunk& chunk, Workspace& workspace,
                  const Team& team) {
    [[maybe_unused]] const typename Isa::Session session{};
    Forward(model, batch, chunk, workspace, team).run();
  }

 private:
  using V = typename Isa::Vec;
  using Elem = typename Isa::Elem;
  static constexpr int kTileColumns = kTileRowBytes / static_cast<int>(sizeof(Elem));

  Forward(const Model& model, const Batch& batch, const Chunk& chunk, Workspace& workspace,
          const Team& team)
      : model_(model),
        shape_(model.shape),
        batch_(batch),
        chunk_(chunk),
        ws_(workspace),
        team_(team) {}

  void run() {
    embed();
    team_.sync();
    for (int i = 0; i < shape_.layers; ++i) {
      const Layer& layer = model_.layers[i];
      attention_block(layer);
      feed_forward_block(layer);
      if (i + 1 < shape_.layers) {
        layer_norm(layer.output_norm);
      } else {
        last_layer_norm(layer.output_norm);
      }
      team_.sync();
    }
    if (batch_.pooling != Pooling::kNone) pool();
  }

  // Rows of `sums` that belong to this thread.
  Range rows() const { return team_.share(chunk_.rows); }
  float* sums(int row) const {
    return ws_.sums + static_cast<std::size_t>(row) * shape_.hidden_padded();
  }

  // Calls visit(row, token) for this thread's rows: token is the row's index in the batch.
  template <class Visit>
  void for_each_token(const Visit& visit) const {
    const Range mine = rows();
    for (const Span& span : chunk_.spans) {
      const int begin = span.row > mine.begin ? span.row : mine.begin;
      const int end = span.row + span.length < mine.end ? span.row + span.length : mine.end;
      const int offset = batch_.cu_seqlens[span.sequence] - span.row;
      for (int row = begin; row < end; ++row) visit(row, row + offset);
    }
  }

  void embed() const {
    const std::size_t hidden = shape_.hidden;
    for_each_token([&](int row, int token) {
      const float* word = model_.word_embeddings + batch_.input_ids[token] * hidden;
      const float* position = model_.position_embeddings + batch_.positions[token] * hidden;
      const int segment_id = batch_.segment_ids != nullptr ? batch_.segment_ids[token] : 0;
      const float* segment =
          shape_.segments > 0 ? model_.segment_embeddings + segment_id * hidden : nullptr;
      float* out = sums(row);
      for (int j = 0; j < shape_.hidden_padded(); j += V::kLanes) {
        const int left = shape_.hidden - j > 0 ? shape_.hidden - j : 0;
        V x = V::load_first(word + j, left) + V::load_first(position + j, left);
        if (segment != nullptr) x = x + V::load_first(segment + j, left);
        x.store(out + j);
      }
      normalise(row, model_.embedding_norm);
    });
  }

  void normalise(int row, const LayerNormWeights& norm) const {
    layer_norm_row<V>(sums(row), shape_.hidden, shape_.hidden_padded(), shape_.layer_norm_eps, norm,
                      [&](int column, V y) { y.store(ws_.hidden.template at<Elem>(row, column)); });
  }

  void layer_norm(const LayerNormWeights& norm) const {
    const Range mine = rows();
    for (int row = mine.begin; row < mine.end; ++row) normalise(row, norm);
  }

  // The last LayerNorm's output leaves in fp32, unrounded: to the caller, or to be pooled.
  void last_layer_norm(const LayerNormWeights& norm) const {
    for_each_token([&](int row, int token) {
      const bool pooled = batch_.pooling != Pooling::kNone;
      float* out = pooled ? ws_.final + static_cast<std::size_t>(row) * shape_.hidden_padded()
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

  void attention_block(const Layer& layer) const {
    const StoreRows<Isa> to_qkv{layer.qkv.bias.as<float>(), ws_.qkv, ws_.qkv_stride};
    gemm<Isa>(ws_.hidden, chunk_.rows, layer.qkv, team_.share(layer.qkv.panels),
              KRange{0, 0, layer.qkv.k_tiles}, to_qkv);
    team_.sync();
    attend<Isa>(shape_, chunk_, ws_, team_);
    team_.sync();
    const PackedMatrix& out = layer.attention_out;
    const AddResidual<Isa> to_sums{out.bias.as<float>(), ws_.hidden, ws_.sums,
                                   shape_.hidden_padded()};
    gemm<Isa>(ws_.context, chunk_.rows, out, team_.share(out.panels), KRange{0, 0, out.k_tiles},
              to_sums);
    team_.sync();
    layer_norm(layer.attention_norm);
    team_.sync();
  }

  // The intermediate layer in pieces of kFfnPiece columns, each added to the sums before the next,
  // so that it need not leave the cache. A workspace may hold several pieces at once (small chunks
  // do): fewer barriers, and still the same order of additions.
  void feed_forward_block(const Layer& layer) const {
    const int columns = shape_.intermediate_padded();
    for (int begin = 0; begin < columns; begin += ws_.intermediate_columns) {
      const int held =
          columns - begin < ws_.intermediate_columns ? columns - begin : ws_.intermediate_columns;
      feed_forward_in(layer.ffn_in, begin, begin + held);
      team_.sync();
      for (int piece = begin; piece < begin + held; piece += Isa::kFfnPiece) {
        const int end =
            piece + Isa::kFfnPiece < begin + held ? piece + Isa::kFfnPiece : begin + held;
        feed_forward_out(layer.ffn_out, begin, piece, end);
      }
      team_.sync();
    }
  }

  void feed_forward_in(const PackedMatrix& weights, int begin, int end) const {
    switch (shape_.activation) {
      case Activation::kGelu:
        return feed_forward_in<Activation::kGelu>(weights, begin, end);
      case Activation::kGeluTanh:
        return feed_forward_in<Activation::kGeluTanh>(weights, begin, end);
      case Activation::kRelu:
        return feed_forward_in<Activation::kRelu>(weights, begin, end);
      case Activation::kSilu:
        return feed_forward_in<Activation::kSilu>(weights, begin, end);
    }
  }

  template <Activation kActivation>
  void feed_forward_in(const PackedMatrix& weights, int begin, int end) const {
    const Range mine = team_.share((end - begin) / Isa::kPanelColumns);
    const int first = begin / Isa::kPanelColumns;
    const StoreActivation<Isa, kActivation> to_intermediate{weights.bias.as<float>(),
                                                            ws_.intermediate, begin};
    gemm<Isa>(ws_.hidden, chunk_.rows, weights, Range{first + mine.begin, first + mine.end},
              KRange{0, 0, weights.k_tiles}, to_intermediate);
  }

  // Columns [begin, end) of the intermediate layer, of which the workspace holds those from `held`.
  void feed_forward_out(const PackedMatrix& weights, int held, int begin, int end) const {
    const KRange k{(begin - held) / kTileColumns, begin / kTileColumns,
                   (end - begin) / kTileColumns};
    const Range mine = team_.share(weights.panels);
    if (begin == 0) {
      const AddResidual<Isa> to_sums{weights.bias.as<float>(), ws_.hidden, ws_.sums,
                                     shape_.hidden_padded()};
      gemm<Isa>(ws_.intermediate, chunk_.rows, weights, mine, k, to_sums);
    } else {
      const Accumulate<Isa> to_sums{ws_.sums, shape_.hidden_padded()};
      gemm<Isa>(ws_.intermediate, chunk_.rows, weights, mine, k, to_sums);
    }
  }

  void pool() const {
    const Range mine = team_.share(static_cast<int>(chunk_.spans.size()));
    for (int i = mine.begin; i < mine.end; ++i) {
      const Span& span = chunk_.spans[i];
      pool_sequence<V>(ws_.final + static_cast<std::size_t>(span.row) * shape_.hidden_padded(),
                       shape_.hidden_padded(), span.length, shape_.hidden, batch_.pooling,
                       batch_.normalize,
                       batch_.out + static_cast<std::size_t>(span.sequence) * shape_.hidden);
    }
  }

  const Model& model_;
  const Shape& shape_;
  const Batch& batch_;
  const Chunk& chunk_;
  Workspace& ws_;
  const Team& team_;
};

}  // namespace fastdistil::cpu
