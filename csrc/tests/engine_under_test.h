// Every kernel table that this machine can run, those with emulated instructions among them, and a
// short way to run an encoder on it.
#pragma once

#include <algorithm>
#include <vector>

#include "../cpu/cpu_features.h"
#include "../cpu/encoder.h"
#include "oracle.h"

namespace fastdistil::cpu {
#if FASTDISTIL_HAVE_AVX2_FP32
extern const Kernels kAvx2Int8Emulated;
#endif
#if FASTDISTIL_HAVE_AVX512_BF16
extern const Kernels kAmxBf16Emulated;
extern const Kernels kAmxInt8Emulated;
#endif
}  // namespace fastdistil::cpu

namespace fastdistil::tests {

inline std::vector<const cpu::Kernels*> kernels_under_test() {
  std::vector<const cpu::Kernels*> all = cpu::usable_kernels();
#if FASTDISTIL_HAVE_AVX2_FP32
  if (std::find(all.begin(), all.end(), &cpu::kAvx2Fp32) != all.end())
    all.push_back(&cpu::kAvx2Int8Emulated);
#endif
#if FASTDISTIL_HAVE_AVX512_BF16
  const std::vector<std::string> features = cpu::cpu_features();
  if (std::find(features.begin(), features.end(), "avx512_bf16") != features.end()) {
    all.push_back(&cpu::kAmxBf16Emulated);
    all.push_back(&cpu::kAmxInt8Emulated);
  }
#endif
  return all;
}

// The description: two tables may be of one instruction set and one precision.
inline std::string name_of(const cpu::Kernels& kernels) { return kernels.description; }

inline cpu::Encoder make_encoder(const cpu::Kernels& kernels, const cpu::Shape& shape,
                                 const Weights& weights) {
  return cpu::Encoder(kernels, shape,
                      [&](const std::string& name) { return weights.at(name).data(); });
}

inline cpu::Batch batch_of(const cpu::Shape& shape, const Sequences& s) {
  cpu::Batch batch;
  batch.input_ids = s.input_ids.data();
  batch.positions = s.positions.data();
  batch.segment_ids = shape.segments > 0 ? s.segment_ids.data() : nullptr;
  batch.cu_seqlens = s.cu_seqlens.data();
  batch.sequences = s.count();
  batch.tokens = s.tokens();
  return batch;
}

// Into memory exactly as large as promised: a write past the end is the sanitizer's to find.
inline std::vector<float> run(const cpu::Encoder& encoder, const cpu::Shape& shape,
                              cpu::Batch batch, int rows, int threads) {
  std::vector<float> out(static_cast<std::size_t>(rows) * shape.hidden, -1e30f);
  batch.out = out.data();
  encoder.run(batch, threads);
  return out;
}

inline std::vector<float> run(const cpu::Encoder& encoder, const cpu::Shape& shape,
                              const Sequences& s, int threads,
                              cpu::Pooling pooling = cpu::Pooling::kNone, bool normalize = false) {
  cpu::Batch batch = batch_of(shape, s);
  batch.pooling = pooling;
  batch.normalize = normalize;
  return run(encoder, shape, batch, pooling == cpu::Pooling::kNone ? s.tokens() : s.count(),
             threads);
}

// The states of those tokens alone.
inline std::vector<float> run_rows(const cpu::Encoder& encoder, const cpu::Shape& shape,
                                   const Sequences& s, const std::vector<std::int32_t>& rows,
                                   int threads) {
  cpu::Batch batch = batch_of(shape, s);
  batch.rows = rows.data();
  batch.row_count = static_cast<int>(rows.size());
  return run(encoder, shape, batch, batch.row_count, threads);
}

inline cpu::Shape make_shape(int hidden, int heads, int intermediate, int layers, int segments,
                             cpu::Activation activation) {
  cpu::Shape shape;
  shape.hidden = hidden;
  shape.heads = heads;
  shape.intermediate = intermediate;
  shape.layers = layers;
  shape.vocabulary = 97;
  shape.positions = 600;
  shape.segments = segments;
  shape.activation = activation;
  return shape;
}

}  // namespace fastdistil::tests
