#include "oracle.h"

#include <algorithm>
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
      return x < 0 ? 0 : x;  // a NaN stays
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
  }
  return 0;
}

// values[0 .. count) on `levels` steps from `low` to `high`.
void put_on_grid(double* values, int count, double low, double high, int levels) {
  const double step = (high - low) / levels;
  if (step == 0) return;
  for (int i = 0; i < count; ++i) values[i] = low + step * std::nearbyint((values[i] - low) / step);
}

// Every row of m [rows, k], in pieces of so many columns, to int8 and back.
void round_activations(Matrix& m, int k, int piece) {
  for (std::size_t row = 0; row < m.size(); row += k) {
    for (int begin = 0; begin < k; begin += piece) {
      const int count = std::min(piece, k - begin);
      double* values = m.data() + row + begin;
      const auto [low, high] = std::minmax_element(values, values + count);
      put_on_grid(values, count, *low, *high, 255);
    }
  }
}

void round_weights(Matrix& m, int k) {
  for (std::size_t row = 0; row < m.size(); row += k) {
    double largest = 0;
    for (int i = 0; i < k; ++i) largest = std::max(largest, std::abs(m[row + i]));
    put_on_grid(m.data() + row, k, -largest, largest, 254);
  }
}

Matrix transpose(const Matrix& m, int rows, int columns) {
  Matrix out(m.size());
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < columns; ++c) out[c * rows + r] = m[r * columns + c];
  }
  return out;
}

class Oracle {
 public:
  Oracle(const Shape& shape, const Weights& weights, Format format)
      : shape_(shape), weights_(weights), format_(format) {}

  Matrix forward(const Sequences& s) const {
    const int d = shape_.hidden;
    Matrix x(static_cast<std::size_t>(s.tokens()) * d);
    look_up(x, "word", s.input_ids);
    look_up(x, "position", s.positions);
    if (shape_.segments > 0) look_up(x, "token_type", s.segment_ids);
    norm(x, "embeddings.LayerNorm");
    for (int i = 0; i < shape_.layers; ++i) {
      const std::string layer = "transformer.layer." + std::to_string(i) + ".";
      const Matrix context = attention(x, layer + "attention.", s);
      add(x, linear(operand(context), layer + "attention.out_lin", d));
      norm(x, layer + "sa_layer_norm");
      Matrix h = linear(x, layer + "ffn.lin1", shape_.intermediate);
      for (double& v : h) v = activate(shape_.activation, v);
      add(x, linear(operand(h), layer + "ffn.lin2", d, kInt8Piece));
      norm(x, layer + "output_layer_norm");
    }
    return x;
  }

 private:
  const std::vector<float>& w(const std::string& name) const { return weights_.at(name); }
  double round(double x) const {
    return format_ == Format::kExact ? x : to_float(to_bfloat16(static_cast<float>(x)));
  }
  // As an engine of less than fp32 holds what it computes with.
  Matrix operand(Matrix m) const {
    for (double& v : m) v = round(v);
    return m;
  }
  static void add(Matrix& x, const Matrix& y) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  void look_up(Matrix& x, const std::string& table, const std::vector<std::int32_t>& rows) const {
    const std::vector<float>& values = w("embeddings." + table + "_embeddings.weight");
    const int d = shape_.hidden;
    for (std::size_t t = 0; t < rows.size(); ++t) {
      for (int j = 0; j < d; ++j) x[t * d + j] += values[rows[t] * d + j];
    }
  }

  // `piece`: into how long pieces int8 cuts a row of x; 0: into none.
  Matrix linear(Matrix x, const std::string& name, int n, int piece = 0) const {
    const std::vector<float>&stored = w(name + ".weight"), &bias = w(name + ".bias");
    const int k = static_cast<int>(stored.size()) / n, rows = static_cast<int>(x.size()) / k;
    Matrix weight(stored.begin(), stored.end());
    if (format_ == Format::kInt8) {
      round_activations(x, k, piece == 0 ? k : piece);
      round_weights(weight, k);
    } else {
      x = operand(x);
      weight = operand(weight);
    }
    const Matrix transposed = transpose(weight, n, k);
    Matrix y(static_cast<std::size_t>(rows) * n);
    for (int r = 0; r < rows; ++r) {
      double* sums = y.data() + r * n;
      std::copy_n(bias.begin(), n, sums);
      for (int i = 0; i < k; ++i) {
        const double value = x[r * k + i];
        const double* column = transposed.data() + i * n;
        for (int j = 0; j < n; ++j) sums[j] += value * column[j];
      }
    }
    return y;
  }

  void norm(Matrix& x, const std::string& name) const {
    const std::vector<float>&weight = w(name + ".weight"), &bias = w(name + ".bias");
    const int d = shape_.hidden, rows = static_cast<int>(x.size()) / d;
    for (int r = 0; r < rows; ++r) {
      double mean = 0, variance = 0;
      for (int j = 0; j < d; ++j) mean += x[r * d + j] / d;
      for (int j = 0; j < d; ++j) variance += (x[r * d + j] - mean) * (x[r * d + j] - mean) / d;
      const double scale = 1.0 / std::sqrt(variance + shape_.layer_norm_eps);
      for (int j = 0; j < d; ++j)
        x[r * d + j] = (x[r * d + j] - mean) * scale * weight[j] + bias[j];
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
  Format format_;
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
                                   const Sequences& sequences, Format format) {
  return Oracle(shape, weights, format).forward(sequences);
}

}  // namespace fastdistil::tests
