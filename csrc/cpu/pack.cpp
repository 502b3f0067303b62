#include "pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "../common/bfloat16.h"

namespace fastdistil::cpu {
namespace {

// A padded [n, k] matrix on its way to being packed; what is not written stays zero.
struct Dense {
  int n;
  int k;
  std::vector<float> values;
  std::vector<float> bias;

  Dense(int rows, int columns)
      : n(rows), k(columns), values(static_cast<std::size_t>(rows) * columns), bias(rows) {}
  float* row(int i) { return values.data() + static_cast<std::size_t>(i) * k; }
  const float* row(int i) const { return values.data() + static_cast<std::size_t>(i) * k; }
};

AlignedBuffer padded_vector(const float* values, int count, int padded) {
  AlignedBuffer buffer(padded * sizeof(float));
  std::memcpy(buffer.data(), values, count * sizeof(float));
  return buffer;
}

void store_element(char* out, int element_bytes, float value) {
  if (element_bytes == 2) {
    const BFloat16 rounded = to_bfloat16(value);
    std::memcpy(out, &rounded, sizeof rounded);
  } else {
    std::memcpy(out, &value, sizeof value);
  }
}

PackedMatrix pack_matrix(const Dense& dense, const PanelFormat& format) {
  const int per_step = 4 / format.element_bytes;
  const int tile_columns = kTileRowBytes / format.element_bytes;
  PackedMatrix packed;
  packed.panels = dense.n / format.columns;
  packed.k_tiles = dense.k / tile_columns;
  packed.panel_bytes = static_cast<std::size_t>(format.columns) * dense.k * format.element_bytes;
  packed.data = AlignedBuffer(packed.panel_bytes * packed.panels);
  packed.bias = padded_vector(dense.bias.data(), dense.n, dense.n);
  char* out = packed.data.data();
  for (int panel = 0; panel < packed.panels; ++panel) {
    for (int tile = 0; tile < packed.k_tiles; ++tile) {
      for (int group = 0; group < format.columns / format.lanes; ++group) {
        const int first = panel * format.columns + group * format.lanes;
        for (int step = 0; step < kTileRowBytes / 4; ++step) {
          for (int lane = 0; lane < format.lanes; ++lane) {
            const float* row = dense.row(first + lane) + tile * tile_columns + step * per_step;
            for (int e = 0; e < per_step; ++e, out += format.element_bytes)
              store_element(out, format.element_bytes, row[e]);
          }
        }
      }
    }
  }
  return packed;
}

LayerNormWeights pack_norm(const std::string& name, const Shape& shape,
                           const WeightSource& weights) {
  return {padded_vector(weights(name + ".weight"), shape.hidden, shape.hidden_padded()),
          padded_vector(weights(name + ".bias"), shape.hidden, shape.hidden_padded())};
}

// Rows [part * inner, ...) of the QKV matrix: one head after another, each padded to head_padded.
void place_projection(Dense& qkv, int part, const Shape& shape, const float* weight,
                      const float* bias, float scale) {
  for (int h = 0; h < shape.heads; ++h) {
    for (int d = 0; d < shape.head_dim(); ++d) {
      const int source = h * shape.head_dim() + d;
      const int target = part * shape.inner() + h * shape.head_padded() + d;
      const float* from = weight + static_cast<std::size_t>(source) * shape.hidden;
      std::transform(from, from + shape.hidden, qkv.row(target),
                     [=](float w) { return w * scale; });
      qkv.bias[target] = bias[source] * scale;
    }
  }
}

PackedMatrix pack_qkv(const std::string& name, const Shape& shape, const PanelFormat& format,
                      const WeightSource& weights) {
  Dense qkv(3 * shape.inner(), shape.hidden_padded());
  // softmax(q k / sqrt(d)) = 2^(q' k - max) / sum with q' = q log2(e) / sqrt(d).
  const auto scale =
      static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(shape.head_dim())));
  const char* parts[] = {"q_lin", "k_lin", "v_lin"};
  for (int part = 0; part < 3; ++part) {
    const std::string linear = name + "." + parts[part];
    place_projection(qkv, part, shape, weights(linear + ".weight"), weights(linear + ".bias"),
                     part == 0 ? scale : 1.0f);
  }
  return pack_matrix(qkv, format);
}

// The attention output: its k runs over the padded heads.
PackedMatrix pack_attention_out(const std::string& name, const Shape& shape,
                                const PanelFormat& format, const WeightSource& weights) {
  Dense dense(shape.hidden_padded(), shape.inner());
  const float* weight = weights(name + ".weight");
  const float* bias = weights(name + ".bias");
  for (int i = 0; i < shape.hidden; ++i) {
    for (int h = 0; h < shape.heads; ++h)
      std::copy_n(weight + static_cast<std::size_t>(i) * shape.hidden + h * shape.head_dim(),
                  shape.head_dim(), dense.row(i) + h * shape.head_padded());
    dense.bias[i] = bias[i];
  }
  return pack_matrix(dense, format);
}

PackedMatrix pack_linear(const std::string& name, int n, int k, const PanelFormat& format,
                         const WeightSource& weights) {
  Dense dense(round_up(n, kColumnMultiple), round_up(k, kColumnMultiple));
  const float* weight = weights(name + ".weight");
  for (int i = 0; i < n; ++i)
    std::copy_n(weight + static_cast<std::size_t>(i) * k, k, dense.row(i));
  std::copy_n(weights(name + ".bias"), n, dense.bias.begin());
  return pack_matrix(dense, format);
}

}  // namespace

Model pack_model(const Shape& shape, const PanelFormat& format, const WeightSource& weights) {
  Model model;
  model.shape = shape;
  model.word_embeddings = weights("embeddings.word_embeddings.weight");
  model.position_embeddings = weights("embeddings.position_embeddings.weight");
  if (shape.segments > 0)
    model.segment_embeddings = weights("embeddings.token_type_embeddings.weight");
  model.embedding_norm = pack_norm("embeddings.LayerNorm", shape, weights);
  for (int i = 0; i < shape.layers; ++i) {
    const std::string name = "transformer.layer." + std::to_string(i);
    Layer layer;
    layer.qkv = pack_qkv(name + ".attention", shape, format, weights);
    layer.attention_out = pack_attention_out(name + ".attention.out_lin", shape, format, weights);
    layer.attention_norm = pack_norm(name + ".sa_layer_norm", shape, weights);
    layer.ffn_in =
        pack_linear(name + ".ffn.lin1", shape.intermediate, shape.hidden, format, weights);
    layer.ffn_out =
        pack_linear(name + ".ffn.lin2", shape.hidden, shape.intermediate, format, weights);
    layer.output_norm = pack_norm(name + ".output_layer_norm", shape, weights);
    model.layers.push_back(std::move(layer));
  }
  return model;
}

}  // namespace fastdistil::cpu
