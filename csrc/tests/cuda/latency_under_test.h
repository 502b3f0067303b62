// The low-latency encoder as a test runs it: weights packed as latency_layout.h says, memory of
// exactly the promised size, one launch or a chain of them.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "../../cuda/latency.h"
#include "../oracle.h"
#include "arrays.h"

namespace fastdistil::tests {

using cuda::LatencyWeights;

inline cpu::Shape latency_shape(int hidden, int layers, int segments = 0) {
  cpu::Shape shape;
  shape.hidden = hidden;
  shape.heads = hidden / cuda::latency_head_dim(hidden);
  shape.intermediate = cuda::kWidening * hidden;
  shape.layers = layers;
  shape.vocabulary = 50;
  shape.positions = cuda::kLatencyRows;
  shape.segments = segments;
  return shape;
}

// A matrix [outputs, inputs] and its bias.
struct Linear {
  std::vector<float> weight, bias;
};

// Q, K and V as one, log2(e) / sqrt(head_dim) in Q; or another of a layer's matrices.
inline Linear latency_linear(const cpu::Shape& shape, const Weights& weights, int layer,
                             cuda::Matrix matrix) {
  const std::string prefix = "transformer.layer." + std::to_string(layer) + ".";
  if (matrix != cuda::kQkv) {
    const char* names[] = {"", "attention.out_lin", "ffn.lin1", "ffn.lin2"};
    return {weights.at(prefix + names[matrix] + ".weight"),
            weights.at(prefix + names[matrix] + ".bias")};
  }
  Linear all;
  for (const char* name : {"q_lin", "k_lin", "v_lin"}) {
    const bool is_q = name[0] == 'q';
    const double scale = is_q ? 1.4426950408889634 / std::sqrt(shape.head_dim()) : 1.0;
    const auto append = [&](std::vector<float>& to, const std::string& part) {
      for (float x : weights.at(prefix + "attention." + name + part)) {
        to.push_back(static_cast<float>(x * scale));
      }
    };
    append(all.weight, ".weight");
    append(all.bias, ".bias");
  }
  return all;
}

// Every row on 255 levels around zero; gives the step of each.
inline std::vector<float> quantise_rows(std::vector<float>& weight, int columns) {
  std::vector<float> steps;
  for (std::size_t row = 0; row < weight.size(); row += static_cast<std::size_t>(columns)) {
    float largest = 0;
    for (int i = 0; i < columns; ++i) largest = std::max(largest, std::fabs(weight[row + i]));
    const float step = largest > 0 ? largest / 127 : 1;
    for (int i = 0; i < columns; ++i) weight[row + i] = std::nearbyint(weight[row + i] / step);
    steps.push_back(step);
  }
  return steps;
}

// The weights that an int8 engine multiplies by in truth.
inline Weights rounded_to_int8(const cpu::Shape& shape, Weights weights) {
  for (auto& [name, values] : weights) {
    const bool matrix =
        name.find("lin") != std::string::npos && name.find(".weight") != std::string::npos;
    if (!matrix) continue;
    const int columns = name.find("lin2") != std::string::npos ? shape.intermediate : shape.hidden;
    const std::vector<float> steps = quantise_rows(values, columns);
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] *= steps[i / static_cast<std::size_t>(columns)];
    }
  }
  return weights;
}

template <LatencyWeights kWeights>
class LatencyUnderTest {
 public:
  static constexpr bool kInt8 = kWeights == LatencyWeights::kInt8;
  using T = std::conditional_t<kWeights == LatencyWeights::kFloat16, Float16, BFloat16>;
  using Packed = std::conditional_t<kInt8, std::int8_t, T>;

  LatencyUnderTest(const cpu::Shape& shape, const Weights& weights)
      : shape_(shape),
        word_(table(weights, "word")),
        position_(table(weights, "position")),
        segment_(shape.segments > 0 ? table(weights, "token_type") : Array<T>(0)),
        norms_(of_floats(norms(weights))),
        states_(2 * cuda::latency_state_bytes(shape.layers, shape.hidden)),
        saved_(2 * cuda::kLatencyRows * static_cast<std::size_t>(shape.hidden)) {
    pack(weights);
  }

  // How to launch, and what to ask for.
  int blocks = 17;
  bool chain = false;
  int rows_to_spare = 0;  // as a caller has who rounds sizes up
  int longest = 0;        // 0: the longest there is
  bool pooled = false;
  cuda::Pooling pooling = cuda::Pooling::kMean;
  bool normalize = false;

  // [tokens, hidden] of T, or float32 [sequences, hidden].
  struct Result {
    Array<T> hidden;
    Array<float> vectors;
    int errors = 0;
  };

  Result run(const Sequences& s) {
    Result result{Array<T>(pooled ? 0 : size(s.tokens())),
                  Array<float>(pooled ? size(s.count()) : 0), 0};
    const Array<std::int32_t> ids = integers(s.input_ids), positions = integers(s.positions),
                              segments = integers(s.segment_ids),
                              cu_seqlens = integers(s.cu_seqlens);
    const Array<std::int32_t> count = integers({s.count()});
    Array<std::int32_t> errors(1);
    errors[0] = 0;
    cuda::LatencyParameters p{};
    p.layers = shape_.layers;
    p.vocabulary = shape_.vocabulary;
    p.position_rows = shape_.positions;
    p.segments = shape_.segments;
    p.eps = shape_.layer_norm_eps;
    p.activation = activation();
    p.word = word_.data();
    p.position = position_.data();
    p.segment = shape_.segments > 0 ? segment_.data() : nullptr;
    p.norms = norms_.data();
    p.panels = panels_.data();
    p.scales = kInt8 ? scales_.data() : nullptr;
    p.biases = biases_.data();
    p.input_ids = ids.data();
    p.positions = positions.data();
    p.segment_ids = shape_.segments > 0 ? segments.data() : nullptr;
    p.cu_seqlens = cu_seqlens.data();
    p.num_sequences = count.data();
    p.errors = errors.data();
    p.states = states_.data();
    p.saved = saved_.data();
    p.control = &control_;
    p.hidden_out = pooled ? nullptr : result.hidden.data();
    p.pooled = pooled ? result.vectors.data() : nullptr;
    p.pooling = pooling;
    p.normalize = normalize;
    p.rows = std::min(std::max(s.tokens(), 1) + rows_to_spare, cuda::kLatencyRows);
    p.longest = longest > 0 ? longest : longest_of(s);
    launch(p);
    result.errors = errors[0];
    return result;
  }

 private:
  std::size_t size(int rows) const {
    return static_cast<std::size_t>(rows) * static_cast<std::size_t>(shape_.hidden);
  }

  void launch(cuda::LatencyParameters p) const {
    const int steps = cuda::latency_steps(shape_.layers);
    for (int step = 0; step < steps; step += chain ? 1 : steps) {
      p.first_step = step;
      p.last_step = chain ? step + 1 : steps;
      cuda::run_latency(kWeights, shape_.hidden, p, {blocks, !chain, chain}, 0);
    }
  }

  static int longest_of(const Sequences& s) {
    int longest = 1;
    for (int i = 0; i < s.count(); ++i) {
      longest = std::max(longest, s.cu_seqlens[i + 1] - s.cu_seqlens[i]);
    }
    return longest;
  }

  cuda::Activation activation() const {
    switch (shape_.activation) {
      case cpu::Activation::kGeluTanh:
        return cuda::Activation::kGeluTanh;
      case cpu::Activation::kRelu:
        return cuda::Activation::kRelu;
      case cpu::Activation::kSilu:
        return cuda::Activation::kSilu;
      default:
        return cuda::Activation::kGelu;
    }
  }

  static Array<std::int32_t> integers(const std::vector<std::int32_t>& values) {
    Array<std::int32_t> array(values.size());
    std::copy(values.begin(), values.end(), array.data());
    return array;
  }
  static Array<float> of_floats(const std::vector<float>& values) {
    Array<float> array(values.size());
    std::copy(values.begin(), values.end(), array.data());
    return array;
  }
  static Array<T> table(const Weights& weights, const std::string& name) {
    const std::vector<float>& values = weights.at("embeddings." + name + "_embeddings.weight");
    return Array<T>::of({values.begin(), values.end()});
  }

  std::vector<float> norms(const Weights& weights) const {
    std::vector<float> all;
    const auto append = [&](const std::string& name) {
      for (const char* part : {".weight", ".bias"}) {
        const std::vector<float>& values = weights.at(name + part);
        all.insert(all.end(), values.begin(), values.end());
      }
    };
    append("embeddings.LayerNorm");
    for (int i = 0; i < shape_.layers; ++i) {
      const std::string layer = "transformer.layer." + std::to_string(i);
      append(layer + ".sa_layer_norm");
      append(layer + ".output_layer_norm");
    }
    return all;
  }

  void pack(const Weights& weights) {
    std::vector<float> biases, scales;
    std::vector<Packed> panels;
    for (int layer = 0; layer < shape_.layers; ++layer) {
      for (int m = 0; m < cuda::kMatrices; ++m) {
        const auto matrix = static_cast<cuda::Matrix>(m);
        Linear linear = latency_linear(shape_, weights, layer, matrix);
        const int columns = shape_.hidden * cuda::panels_of(matrix);
        if (kInt8) {
          const std::vector<float> steps = quantise_rows(linear.weight, columns);
          scales.insert(scales.end(), steps.begin(), steps.end());
        }
        pack_panels(panels, linear.weight, columns);
        biases.insert(biases.end(), linear.bias.begin(), linear.bias.end());
      }
    }
    panels_ = Array<Packed>(panels.size());
    std::copy(panels.begin(), panels.end(), panels_.data());
    biases_ = of_floats(biases);
    scales_ = of_floats(scales);
  }

  static Packed packed(float x) {
    if constexpr (kInt8) {
      return static_cast<std::int8_t>(x);
    } else {
      return cuda::from_float<T>(x);
    }
  }

  void pack_panels(std::vector<Packed>& to, const std::vector<float>& weight, int columns) const {
    const int hidden = shape_.hidden, warps = cuda::latency_warps(hidden);
    const int rows = static_cast<int>(weight.size()) / columns;
    for (int tile = 0; tile < rows / 8; ++tile) {
      for (int first = 0; first < columns; first += hidden) {
        for (int unit = 0; unit < warps * cuda::latency_units(hidden); ++unit) {
          for (int lane = 0; lane < 32; ++lane) {
            for (int i = 0; i < 8; ++i) {
              const int column =
                  first + 32 * unit + i / 4 * 16 + i / 2 % 2 * 8 + lane % 4 * 2 + i % 2;
              const int row = 8 * tile + lane / 4;
              to.push_back(packed(weight[static_cast<std::size_t>(row * columns + column)]));
            }
          }
        }
      }
    }
  }

  cpu::Shape shape_;
  Array<T> word_, position_, segment_;
  Array<float> norms_, biases_, scales_;
  Array<Packed> panels_;
  Array<std::uint8_t> states_;
  Array<T> saved_;
  mutable cuda::LatencyControl control_{};
};

}  // namespace fastdistil::tests
