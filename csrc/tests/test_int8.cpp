// int8 by its parts: rotations that cancel, rows rounded to the nearest of 256 steps, products that
// are exact in integers, and what the rotation is for.
#include <limits>
#include <random>

#include "../cpu/pack.h"
#include "check.h"
#include "compare.h"
#include "int8_parts.h"

namespace fastdistil::tests {

#if FASTDISTIL_HAVE_AVX2_INT8
extern const Int8Parts kAvx2Int8Parts;
#endif
#if FASTDISTIL_HAVE_AVX512_INT8
extern const Int8Parts kAvx512Int8Parts;
#endif
#if FASTDISTIL_HAVE_AVX512_BF16
extern const Int8Parts kAmxInt8EmulatedParts;
#endif

std::vector<const Int8Parts*> int8_parts_under_test() {
  std::vector<const Int8Parts*> all;
#if FASTDISTIL_HAVE_AVX2_INT8
  all.push_back(&kAvx2Int8Parts);
#endif
#if FASTDISTIL_HAVE_AVX512_INT8
  all.push_back(&kAvx512Int8Parts);
#endif
#if FASTDISTIL_HAVE_AVX512_BF16
  all.push_back(&kAmxInt8EmulatedParts);
#endif
  const std::vector<const cpu::Kernels*> usable = kernels_under_test();
  const auto cannot_run = [&](const Int8Parts* parts) {
    return std::find(usable.begin(), usable.end(), parts->kernels) == usable.end();
  };
  all.erase(std::remove_if(all.begin(), all.end(), cannot_run), all.end());
  return all;
}

namespace {

using cpu::Activation;
using cpu::PackedMatrix;
using cpu::Rotation;
using cpu::RowScale;
using cpu::Shape;

constexpr Rotation kRotations[] = {Rotation::kNone, Rotation::kFull, Rotation::kCoarse};
constexpr int kTileColumns = kTileRowBytes;

// Codes of some rows, in tiles, with what they were made of.
struct Quantised {
  Quantised(int row_count, int columns)
      : rows(row_count),
        k(columns),
        rotated(static_cast<std::size_t>(row_count) * columns),
        scales(row_count),
        memory(static_cast<std::size_t>(round_up(row_count, 2 * kTileRows)) *
               round_up(columns, kTileColumns)) {
    codes.data = memory.data();
    codes.block_stride = static_cast<std::size_t>(round_up(k, kTileColumns)) * kTileRows;
  }
  int code(int row, int column) const { return *codes.at<std::uint8_t>(row, column); }
  double value(int row, int column) const {
    return static_cast<double>(scales[row].scale) * code(row, column) + scales[row].minimum;
  }
  const float* rotated_row(int row) const { return rotated.data() + row * k; }

  int rows, k;
  std::vector<float> rotated;
  std::vector<RowScale> scales;
  AlignedBuffer memory;
  Tiles codes;
};

Quantised quantise(const Int8Parts& parts, const std::vector<float>& x, int k, Rotation rotation) {
  Quantised q(static_cast<int>(x.size()) / k, k);
  for (int r = 0; r < q.rows; ++r)
    q.scales[r] =
        parts.quantise(x.data() + r * k, k, rotation, q.rotated.data() + r * k, q.codes, r);
  return q;
}

std::vector<float> random_values(int count, unsigned seed, float deviation = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

std::string at(const Int8Parts& parts, int columns, Rotation rotation) {
  return name_of(*parts.kernels) + ", " + std::to_string(columns) + " columns, rotation " +
         std::to_string(static_cast<int>(rotation));
}

// Calls visit(columns) for every width that a row may have.
template <class Visit>
void for_each_width(const Visit& visit) {
  for (int columns = kColumnMultiple; columns <= 1024; columns += kColumnMultiple) visit(columns);
}

TEST(rotations_of_row_and_weights_cancel) {
  for (const Int8Parts* parts : int8_parts_under_test()) {
    for_each_width([&](int columns) {
      const std::vector<float> x = random_values(columns, 1), w = random_values(columns, 2);
      double want = 0, length = 0;
      for (int j = 0; j < columns; ++j) want += static_cast<double>(x[j]) * w[j];
      for (int j = 0; j < columns; ++j) length += std::abs(static_cast<double>(x[j]) * w[j]);
      for (const Rotation rotation : kRotations) {
        const Quantised q = quantise(*parts, x, columns, rotation);
        std::vector<float> rotated_weights = w;
        cpu::rotate_weights(rotated_weights.data(), columns, rotation);
        double got = 0;
        for (int j = 0; j < columns; ++j)
          got += static_cast<double>(q.rotated[j]) * rotated_weights[j];
        CHECK(std::abs(got - want) < 1e-6 * length, at(*parts, columns, rotation));
      }
    });
  }
}

TEST(a_rotation_spreads_a_spike_evenly) {
  for (const Int8Parts* parts : int8_parts_under_test()) {
    for_each_width([&](int columns) {
      const int block = cpu::block_columns(columns), spike = columns / 2 + 5;
      std::vector<float> x(columns);
      x[spike] = 100.0f;
      const auto check = [&](Rotation rotation, int want) {
        const Quantised q = quantise(*parts, x, columns, rotation);
        int spread = 0;
        for (int j = 0; j < columns; ++j) {
          spread += std::abs(q.rotated[j]) == 100.0f;
          CHECK(q.rotated[j] == 0.0f || j / block == spike / block, at(*parts, columns, rotation));
        }
        CHECK(spread == want, at(*parts, columns, rotation) + ": " + std::to_string(spread));
      };
      check(Rotation::kNone, 1);
      check(Rotation::kFull, block);
      check(Rotation::kCoarse, block / 16);
    });
  }
}

// Every value within half a step of its code's.
void check_codes(const Int8Parts& parts, const std::vector<float>& x, int columns,
                 const std::string& row) {
  for (const Rotation rotation : kRotations) {
    const Quantised q = quantise(parts, x, columns, rotation);
    const auto [low, high] = std::minmax_element(q.rotated.begin(), q.rotated.end());
    const double magnitude = std::max(std::abs(*low), std::abs(*high));
    const double step = q.scales[0].scale;
    const std::string what = at(parts, columns, rotation) + ", " + row;
    CHECK(std::isfinite(step) && q.scales[0].minimum == *low, what);
    // Below this range all codes are zero: the inverse of the step would overflow.
    const double allowed = *high - *low > 1e-30f ? 0.5001 * step : *high - *low;
    double largest = 0;
    for (int j = 0; j < columns; ++j)
      largest = std::max(largest, std::abs(q.value(0, j) - q.rotated[j]));
    CHECK(largest <= allowed + 3e-7 * magnitude,
          what + ": " + std::to_string(largest / step) + " steps");
  }
}

TEST(codes_are_within_half_a_step) {
  for (const Int8Parts* parts : int8_parts_under_test()) {
    for_each_width([&](int columns) {
      const std::vector<float> x = random_values(columns, 3);
      std::vector<float> y = x;
      const auto scaled = [&](float factor, float offset) {
        for (int j = 0; j < columns; ++j) y[j] = factor * x[j] + offset;
        return y;
      };
      check_codes(*parts, x, columns, "normal");
      check_codes(*parts, scaled(0.0f, 0.0f), columns, "zero");
      check_codes(*parts, scaled(0.0f, 3.7f), columns, "constant");
      check_codes(*parts, scaled(0.0f, -3.7f), columns, "constant and negative");
      check_codes(*parts, scaled(1.0f, 1000.0f), columns, "far from zero");
      check_codes(*parts, scaled(1e30f, 0.0f), columns, "huge");
      check_codes(*parts, scaled(1e-28f, 0.0f), columns, "tiny");
      check_codes(*parts, scaled(1e-32f, 0.0f), columns, "below the floor");
      check_codes(*parts, scaled(1e-41f, 0.0f), columns, "denormal");
      y = x;
      y[columns - 1] = 1e6f;
      check_codes(*parts, y, columns, "with an outlier");
    });
  }
}

TEST(a_row_that_is_not_finite_has_a_scale_that_is_not) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const Int8Parts* parts : int8_parts_under_test()) {
    for_each_width([&](int columns) {
      for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity}) {
        for (const int place : {0, columns / 2 + 7, columns - 1}) {
          std::vector<float> x = random_values(columns, 4);
          x[place] = bad;
          for (const Rotation rotation : kRotations) {
            const Quantised q = quantise(*parts, x, columns, rotation);
            CHECK(std::isnan(q.scales[0].scale) && std::isnan(q.scales[0].minimum),
                  at(*parts, columns, rotation));
          }
        }
      }
    });
  }
}

// --- products
// -------------------------------------------------------------------------------------

// v of output `column` and input `k`, read as model.h says that it is stored.
int weight_code(const PackedMatrix& m, const cpu::PanelFormat& format, int column, int k) {
  const int groups = format.columns / format.lanes;
  const int panel = column / format.columns, group = column % format.columns / format.lanes;
  const int tile = k / kTileColumns, step = k % kTileColumns / 4;
  const std::size_t steps = ((static_cast<std::size_t>(tile) * groups + group) * 16 + step);
  const char* at = m.panel(panel) + (steps * format.lanes + column % format.lanes) * 4 + k % 4;
  return *reinterpret_cast<const std::int8_t*>(at);
}

// Sums of one piece of k, against the same codes multiplied one by one.
void check_product(const Int8Parts& parts, const Quantised& q, const PackedMatrix& m,
                   int first_tile, const std::string& what) {
  const cpu::PanelFormat& format = parts.kernels->format;
  const cpu::KRange range{first_tile, round_up(q.k, kTileColumns) / kTileColumns};
  const std::size_t count = static_cast<std::size_t>(q.rows) * m.columns;
  std::vector<std::int32_t> sums(count);
  std::vector<float> values(count, 1.0f);
  const auto rows = [&](auto& out) {
    return Rows{reinterpret_cast<char*>(out.data()), m.columns * sizeof(float)};
  };
  parts.multiply(q.codes, q.scales.data(), q.rows, m, range, rows(sums));
  parts.multiply_add(q.codes, q.scales.data(), q.rows, m, range, rows(values));
  std::vector<int> v(q.k);
  int wrong = 0;
  double error = 0;
  for (int c = 0; c < m.columns; ++c) {
    for (int k = 0; k < q.k; ++k) v[k] = weight_code(m, format, c, first_tile * kTileColumns + k);
    const double column_scale = m.column_scale.as<float>()[c];
    for (int r = 0; r < q.rows; ++r) {
      int sum = 0;
      double value = 0, magnitude = 1;
      for (int k = 0; k < q.k; ++k) sum += q.code(r, k) * v[k];
      for (int k = 0; k < q.k; ++k) value += q.value(r, k) * column_scale * v[k];
      magnitude += std::abs(q.scales[r].scale * column_scale * sum) + std::abs(value);
      value += 1.0 + m.bias.as<float>()[c];
      wrong += sums[r * m.columns + c] != sum;
      error = std::max(error, std::abs(values[r * m.columns + c] - value) / magnitude);
    }
  }
  CHECK(wrong == 0, what + ": " + std::to_string(wrong) + " wrong sums");
  CHECK(error < 5e-7, what + ": " + std::to_string(error));
}

std::shared_ptr<const cpu::PackedWeights> pack(const Int8Parts& parts, const Shape& shape,
                                               const Weights& weights) {
  return cpu::pack_weights(shape, *parts.kernels,
                           [&](const std::string& name) { return weights.at(name).data(); });
}

TEST(int8_products_are_exact) {
  const Shape shapes[] = {
      make_shape(32, 1, 33, 1, 0, Activation::kGelu),
      make_shape(88, 2, 800, 1, 0, Activation::kGelu),    // a last piece of half a tile
      make_shape(256, 4, 1600, 1, 0, Activation::kGelu),  // and one of a tile
  };
  for (const Int8Parts* parts : int8_parts_under_test()) {
    for (const Shape& shape : shapes) {
      const auto packed = pack(*parts, shape, random_weights(shape, 1));
      const cpu::Layer& layer = packed->layers[0];
      for (const int rows : {1, 7, 16, 17, 45}) {
        const std::string what = name_of(*parts->kernels) + ", hidden " +
                                 std::to_string(shape.hidden) + ", " + std::to_string(rows) +
                                 " rows";
        const auto check = [&](const PackedMatrix& m, int columns, Rotation rotation, int piece) {
          for (int begin = 0; begin < columns; begin += piece) {
            const int k = std::min(piece, columns - begin);
            const std::vector<float> x = random_values(rows * k, 5 + begin);
            check_product(*parts, quantise(*parts, x, k, rotation), m, begin / kTileColumns, what);
          }
        };
        check(layer.qkv, shape.hidden_padded(), Rotation::kFull, 4096);
        check(layer.attention_out, shape.inner(), Rotation::kNone, 4096);
        check(layer.ffn_in, shape.hidden_padded(), Rotation::kFull, 4096);
        check(layer.ffn_out, shape.intermediate_padded(), Rotation::kCoarse,
              parts->kernels->ffn_piece);
      }
    }
  }
}

// No partial sum may saturate, as those of older instructions do.
TEST(int8_products_hold_the_largest_sums) {
  const Shape shape = make_shape(1024, 1, 32, 1, 0, Activation::kGelu);
  for (const Int8Parts* parts : int8_parts_under_test()) {
    Weights weights = random_weights(shape, 1);
    std::vector<float>& w = weights["transformer.layer.0.attention.out_lin.weight"];
    for (std::size_t i = 0; i < w.size(); ++i) w[i] = i / shape.hidden % 2 == 0 ? 1.0f : -1.0f;
    const auto packed = pack(*parts, shape, weights);
    Quantised q(17, shape.hidden);
    std::memset(q.memory.data(), 255, q.memory.size());
    for (RowScale& scale : q.scales) scale = {1.0f / 255.0f, 0.0f};
    check_product(*parts, q, packed->layers[0].attention_out, 0, name_of(*parts->kernels));
    CHECK(weight_code(packed->layers[0].attention_out, parts->kernels->format, 3, 9) == -127);
  }
}

// Every weight, ordinary ones times `factor`, is within half a step of its code's value. A row
// below 127 times the least normal number may be all zeros.
void check_weight_codes(const Int8Parts& parts, const Shape& shape, float factor) {
  Weights weights = random_weights(shape, 1);
  std::vector<float>& w = weights.at("transformer.layer.0.ffn.lin2.weight");
  for (float& weight : w) weight *= factor;
  const auto packed = pack(parts, shape, weights);
  const PackedMatrix& m = packed->layers[0].ffn_out;
  const int k = shape.intermediate_padded(), piece = parts.kernels->ffn_piece;
  double excess = 0;
  for (int c = 0; c < shape.hidden; ++c) {
    std::vector<float> row(k);
    std::copy_n(w.begin() + c * shape.intermediate, shape.intermediate, row.begin());
    for (int j = 0; j < k; j += piece)
      cpu::rotate_weights(row.data() + j, std::min(piece, k - j), Rotation::kCoarse);
    const double scale = m.column_scale.as<float>()[c];
    const double allowed = scale == 0 ? 127 * 1.2e-38 : 0.5001 * scale;
    for (int j = 0; j < k; ++j) {
      const double got = scale * weight_code(m, parts.kernels->format, c, j);
      const double error = std::abs(got - row[j]) / allowed;
      if (!(error <= excess)) excess = error;  // so that a NaN stays
    }
  }
  CHECK(excess <= 1, name_of(*parts.kernels) + ", weights times 10^" +
                         std::to_string(std::lround(std::log10(factor))) + ": " +
                         std::to_string(excess));
}

TEST(weights_are_within_half_a_step) {
  const Shape shape = make_shape(72, 3, 800, 1, 0, Activation::kGelu);
  for (const Int8Parts* parts : int8_parts_under_test()) {
    for (const float factor : {1.0f, 1e30f, 1e-30f, 1e-35f, 1e-36f, 1e-38f, 1e-41f})
      check_weight_codes(*parts, shape, factor);
  }
}

// --- what the rotation is for
// ---------------------------------------------------------------------

// Both kinds of outliers that transformers have: how much of the error that plain int8 makes is
// left. One layer: behind more, a softmax that is all but a maximum makes any error a matter of
// luck.
TEST(rotations_serve_outliers) {
  const Shape shape = make_shape(256, 8, 512, 1, 0, Activation::kGelu);
  const Weights weights = random_weights(shape, 1);
  Weights channel = weights, column = weights;
  // An activation tens of times larger than the others, in every row. The weights' own rounding,
  // which is no worse than before, is most of the error that is left.
  channel["embeddings.LayerNorm.weight"][17] = 30.0f;
  channel["transformer.layer.0.sa_layer_norm.weight"][17] = 30.0f;
  // Weights tens of times larger, by which the scale of every output grows.
  std::vector<float>& lin2 = column["transformer.layer.0.ffn.lin2.weight"];
  for (int i = 0; i < shape.hidden; ++i) lin2[i * shape.intermediate + 21] *= 40.0f;

  const Sequences s = random_sequences(shape, {1, 5, 0, 16, 33, 60}, 2);
  const auto check = [&](const Weights& planted, double left, const std::string& where) {
    const std::vector<double> exact = oracle_forward(shape, planted, s, Format::kExact);
    const Error plain = error_of(oracle_forward(shape, planted, s, Format::kInt8), exact);
    for (const cpu::Kernels* kernels : kernels_under_test()) {
      if (kernels->precision != std::string("int8")) continue;
      const Error e = error_of(run(make_encoder(*kernels, shape, planted), shape, s, 2), exact);
      CHECK(e.root_mean < left * plain.root_mean,
            name_of(*kernels) + ", " + where + ": " + to_string(e) + "; plain " + to_string(plain));
    }
  };
  check(channel, 0.7, "LayerNorm");
  check(column, 0.5, "lin2");
}

}  // namespace
}  // namespace fastdistil::tests
