#include "oracle.h"

#include <cmath>
#include <random>

#include "../common/bfloat16.h"

namespace fastdistil::tests {
namespace {

using cpu::Activation;
using cpu::Shape;
using Matrix = std::vector<double>;  // row-major

double activate(Activation activation, double x) {
  switch (activation) {
    case Activation::kGelu:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case Activation::kGeluTanh:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kRelu:
      return x > 0 ? x : 0;
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
  }
  return 0;
}

class Oracle {
 public:
  Oracle(const Shape& shape, const Weights& weights, bool rounded)
      : shape_(shape), weights_(weights), rounded_(rounded) {}

  Matrix forward(const Sequences& s) const {
    const int d = shape_.hidden, tokens = s.tokens();
    Matrix x(static_cast<std::size_t>(tokens) * d);
    for (int t = 0; t < tokens; ++t) {
      for (int j = 0; j < d; ++j) {
        x[t * d + j] = w("embeddings.word_embeddings.weight")[s.input_ids[t] * d + j] +
                       w("embeddings.position_embeddings.weight")[s.positions[t] * d + j];
        if (shape_.segments > 0)
          x[t * d + j] += w("embeddings.token_type_embeddings.weight")[s.segment_ids[t] * d + j];
      }
    }
    norm(x, "embeddings.LayerNorm");
    for (int i = 0; i < shape_.layers; ++i) {
      const std::string layer = "transformer.layer." + std::to_string(i) + ".";
      // The residual stream enters the next product, so a bf16 engine holds it rounded.
      const Matrix in = operand(x);
      x = linear(operand(attention(in, layer + "attention.", s)), layer + "attention.out_lin", d);
      add(x, in);
      norm(x, layer + "sa_layer_norm");
      const Matrix mid = operand(x);
      Matrix h = linear(mid, layer + "ffn.lin1", shape_.intermediate);
      for (double& v : h) v = activate(shape_.activation, v);
      x = linear(operand(h), layer + "ffn.lin2", d);
      add(x, mid);
      norm(x, layer + "output_layer_norm");
    }
    return x;
  }

 private:
  const std::vector<float>& w(const std::string& name) const { return weights_.at(name); }
  double round(double x) const {
    return rounded_ ? to_float(to_bfloat16(static_cast<float>(x))) : x;
  }
  Matrix operand(Matrix m) const {
    for (double& v : m) v = round(v);
    return m;
  }
  static void add(Matrix& x, const Matrix& y) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  Matrix linear(const Matrix& x, const std::string& name, int n) const {
    const std::vector<float>&weight = w(name + ".weight"), &bias = w(name + ".bias");
    const int k = static_cast<int>(weight.size()) / n, rows = static_cast<int>(x.size()) / k;
    Matrix rounded(weight.size());
    for (std::size_t i = 0; i < weight.size(); ++i) rounded[i] = round(weight[i]);
    Matrix y(static_cast<std::size_t>(rows) * n);
    for (int r = 0; r < rows; ++r) {
      for (int j = 0; j < n; ++j) {
        double sum = bias[j];
        for (int i = 0; i < k; ++i) sum += x[r * k + i] * rounded[j * k + i];
        y[r * n + j] = sum;
      }
    }
    return y;
  }

  void norm(Matrix& x, const std::string& name) const {
    const int d = shape_.hidden, rows = static_cast<int>(x.size()) / d;
    for (int r = 0; r < rows; ++r) {
      double mean = 0, variance = 0;
      for (int j = 0; j < d; ++j) mean += x[r * d + j] / d;
      for (int j = 0; j < d; ++j) variance += (x[r * d + j] - mean) * (x[r * d + j] - mean) / d;
      const double scale = 1.0 / std::sqrt(variance + shape_.layer_norm_eps);
      for (int j = 0; j < d; ++j)
        x[r * d + j] =
            (x[r * d + j] - mean) * scale * w(name + ".weight")[j] + w(name + ".bias")[j];
    }
  }

  Matrix attention(const Matrix& x, const std::string& name, const Sequences& s) const {
    const int d = shape_.hidden, head = shape_.head_dim();
    const Matrix q = operand(linear(x, name + "q_lin", d)),
                 k = operand(linear(x, name + "k_lin", d)),
                 v = operand(linear(x, name + "v_lin", d));
    Matrix context(x.size());
    for (int b = 0; b < s.count(); ++b) {
      const int begin = s.cu_seqlens[b], end = s.cu_seqlens[b + 1];
      for (int h = 0; h < shape_.heads; ++h) {
        for (int i = begin; i < end; ++i) {
          std::vector<double> p(end - begin);
          double largest = -1e300, sum = 0;
          for (int j = begin; j < end; ++j) {
            double dot = 0;
            for (int e = 0; e < head; ++e) dot += q[i * d + h * head + e] * k[j * d + h * head + e];
            p[j - begin] = dot / std::sqrt(static_cast<double>(head));
            largest = std::max(largest, p[j - begin]);
          }
          for (double& value : p) sum += value = std::exp(value - largest);
          for (int e = 0; e < head; ++e) {
            double total = 0;
            for (int j = begin; j < end; ++j)
              total += round(p[j - begin]) * v[j * d + h * head + e];
            context[i * d + h * head + e] = total / sum;
          }
        }
      }
    }
    return context;
  }

  const Shape& shape_;
  const Weights& weights_;
  bool rounded_;
};

}  // namespace

Weights random_weights(const Shape& shape, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  Weights weights;
  const auto fill = [&](const std::string& name, int count, float mean, float deviation) {
    std::vector<float>& values = weights[name];
    values.resize(count);
    for (float& value : values) value = mean + deviation * normal(generator);
  };
  const int d = shape.hidden;
  const auto norm = [&](const std::string& name) {
    fill(name + ".weight", d, 1.0f, 0.2f);
    fill(name + ".bias", d, 0.0f, 0.2f);
  };
  const auto linear = [&](const std::string& name, int n, int k) {
    fill(name + ".weight", n * k, 0.0f, 1.0f / std::sqrt(static_cast<float>(k)));
    fill(name + ".bias", n, 0.0f, 0.1f);
  };
  fill("embeddings.word_embeddings.weight", shape.vocabulary * d, 0.0f, 1.0f);
  fill("embeddings.position_embeddings.weight", shape.positions * d, 0.0f, 0.5f);
  if (shape.segments > 0)
    fill("embeddings.token_type_embeddings.weight", shape.segments * d, 0.0f, 0.5f);
  norm("embeddings.LayerNorm");
  for (int i = 0; i < shape.layers; ++i) {
    const std::string layer = "transformer.layer." + std::to_string(i) + ".";
    for (const char* part : {"q_lin", "k_lin", "v_lin", "out_lin"})
      linear(layer + "attention." + part, d, d);
    norm(layer + "sa_layer_norm");
    linear(layer + "ffn.lin1", shape.intermediate, d);
    linear(layer + "ffn.lin2", d, shape.intermediate);
    norm(layer + "output_layer_norm");
  }
  return weights;
}

Sequences random_sequences(const Shape& shape, const std::vector<int>& lengths, unsigned seed) {
  std::mt19937 generator(seed);
  Sequences s;
  s.cu_seqlens.push_back(0);
  for (const int length : lengths) {
    for (int i = 0; i < length; ++i) {
      s.input_ids.push_back(static_cast<std::int32_t>(generator() % shape.vocabulary));
      s.positions.push_back(i);
      s.segment_ids.push_back(
          shape.segments > 0 ? static_cast<std::int32_t>(generator() % shape.segments) : 0);
    }
    s.cu_seqlens.push_back(s.cu_seqlens.back() + length);
  }
  return s;
}

std::vector<double> oracle_forward(const Shape& shape, const Weights& weights,
                                   const Sequences& sequences, bool rounded) {
  return Oracle(shape, weights, rounded).forward(sequences);
}

}  // namespace fastdistil::tests
