#include "pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "../common/bfloat16.h"
#include "hadamard.h"

namespace fastdistil::cpu {
namespace {

constexpr int kStepBytes = 4;

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

// How a matrix's products are taken: by pieces of so many k (0: by all), and with int8 after what
// rotation of both operands.
struct Products {
  Rotation rotation = Rotation::kNone;
  int piece = 0;
};

// A row of weights as int8, symmetric: w = scale * v with v in -127..127. A row that holds a NaN or
// an infinity has that for its scale, so that its column of every product has it too.
float quantise_weights(const float* row, int k, std::int8_t* out) {
  float largest = 0;
  float defect = 0;
  for (int i = 0; i < k; ++i) {
    largest = std::max(largest, std::abs(row[i]));
    defect += row[i] - row[i];  // zero, or NaN for ever
  }
  if (defect != 0) return defect;
  const float scale = largest / 127.0f;
  // A subnormal scale has so few digits that w / scale may be beyond 127. Such weights add nothing.
  if (scale < std::numeric_limits<float>::min()) return 0;
  for (int i = 0; i < k; ++i) out[i] = static_cast<std::int8_t>(std::lrint(row[i] / scale));
  return scale;
}

// Rows of elements as the micro-kernels multiply them, [n, k padded to whole tiles], and with int8
// what PackedMatrix keeps of them.
std::vector<char> encode(Dense& dense, int k_padded, int element_bytes, Rotation rotation,
                         int piece, PackedMatrix& packed) {
  std::vector<char> encoded(static_cast<std::size_t>(dense.n) * k_padded * element_bytes);
  if (element_bytes == 1) {
    const int pieces = (k_padded + piece - 1) / piece;
    packed.column_scale = AlignedBuffer(dense.n * sizeof(float));
    packed.piece_sums = AlignedBuffer(static_cast<std::size_t>(pieces) * dense.n * sizeof(float));
  }
  for (int i = 0; i < dense.n; ++i) {
    char* out = encoded.data() + static_cast<std::size_t>(i) * k_padded * element_bytes;
    float* row = dense.row(i);
    if (element_bytes == 4) {
      std::memcpy(out, row, dense.k * sizeof(float));
    } else if (element_bytes == 2) {
      auto* rounded = reinterpret_cast<BFloat16*>(out);
      for (int j = 0; j < dense.k; ++j) rounded[j] = to_bfloat16(row[j]);
    } else {
      auto* values = reinterpret_cast<std::int8_t*>(out);
      for (int j = 0; j < dense.k; j += piece)
        rotate_weights(row + j, std::min(piece, dense.k - j), rotation);
      const float scale = quantise_weights(row, dense.k, values);
      packed.column_scale.as<float>()[i] = scale;
      for (int j = 0; j < k_padded; j += piece) {
        const int sum = std::accumulate(values + j, values + std::min(j + piece, k_padded), 0);
        packed.piece_sums.as<float>()[static_cast<std::size_t>(j / piece) * dense.n + i] =
            scale * static_cast<float>(sum);
      }
    }
  }
  return encoded;
}

// Rotates `dense` where int8 needs it.
PackedMatrix pack_matrix(Dense& dense, const PanelFormat& format, Products products) {
  const int tile_columns = kTileRowBytes / format.element_bytes;
  const int k = round_up(dense.k, tile_columns);
  const int piece = products.piece == 0 ? k : products.piece;
  PackedMatrix packed;
  packed.panels = dense.n / format.columns;
  packed.columns = dense.n;
  packed.k_tiles = k / tile_columns;
  packed.piece_tiles = piece / tile_columns;
  packed.panel_bytes = static_cast<std::size_t>(format.columns) * k * format.element_bytes;
  packed.data = AlignedBuffer(packed.panel_bytes * packed.panels);
  packed.bias = padded_vector(dense.bias.data(), dense.n, dense.n);
  const std::vector<char> encoded =
      encode(dense, k, format.element_bytes, products.rotation, piece, packed);
  const std::size_t row_bytes = static_cast<std::size_t>(k) * format.element_bytes;
  char* out = packed.data.data();
  for (int panel = 0; panel < packed.panels; ++panel) {
    for (int tile = 0; tile < packed.k_tiles; ++tile) {
      for (int group = 0; group < format.columns / format.lanes; ++group) {
        const int first = panel * format.columns + group * format.lanes;
        const char* in = encoded.data() + first * row_bytes + tile * kTileRowBytes;
        for (int step = 0; step < kTileRowBytes; step += kStepBytes) {
          for (int lane = 0; lane < format.lanes; ++lane, out += kStepBytes)
            std::memcpy(out, in + lane * row_bytes + step, kStepBytes);
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
  return pack_matrix(qkv, format, {Rotation::kFull});
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
  return pack_matrix(dense, format, {Rotation::kNone});
}

PackedMatrix pack_linear(const std::string& name, int n, int k, const PanelFormat& format,
                         const WeightSource& weights, Products products) {
  Dense dense(round_up(n, kColumnMultiple), round_up(k, kColumnMultiple));
  const float* weight = weights(name + ".weight");
  for (int i = 0; i < n; ++i)
    std::copy_n(weight + static_cast<std::size_t>(i) * k, k, dense.row(i));
  std::copy_n(weights(name + ".bias"), n, dense.bias.begin());
  return pack_matrix(dense, format, products);
}

}  // namespace

EmbeddingTables find_tables(const Shape& shape, const WeightSource& weights) {
  EmbeddingTables tables;
  tables.words = weights("embeddings.word_embeddings.weight");
  tables.positions = weights("embeddings.position_embeddings.weight");
  if (shape.segments > 0) tables.segments = weights("embeddings.token_type_embeddings.weight");
  return tables;
}

std::shared_ptr<const PackedWeights> pack_weights(const Shape& shape, const Kernels& kernels,
                                                  const WeightSource& weights) {
  const PanelFormat& format = kernels.format;
  auto packed = std::make_shared<PackedWeights>();
  packed->embedding_norm = pack_norm("embeddings.LayerNorm", shape, weights);
  for (int i = 0; i < shape.layers; ++i) {
    const std::string name = "transformer.layer." + std::to_string(i);
    Layer layer;
    layer.qkv = pack_qkv(name + ".attention", shape, format, weights);
    layer.attention_out = pack_attention_out(name + ".attention.out_lin", shape, format, weights);
    layer.attention_norm = pack_norm(name + ".sa_layer_norm", shape, weights);
    layer.ffn_in = pack_linear(name + ".ffn.lin1", shape.intermediate, shape.hidden, format,
                               weights, {Rotation::kFull});
    layer.ffn_out = pack_linear(name + ".ffn.lin2", shape.hidden, shape.intermediate, format,
                                weights, {Rotation::kCoarse, kernels.ffn_piece});
    layer.output_norm = pack_norm(name + ".output_layer_norm", shape, weights);
    packed->layers.push_back(std::move(layer));
  }
  return packed;
}

}  // namespace fastdistil::cpu
