// How the low-latency encoder's weights and states lie in memory: what its kernel, whoever launches
// it and whoever packs for it must agree on.
#pragma once

#include "operations.h"

namespace fastdistil::cuda {

// --- sizes ---------------------------------------------------------------------------------------

// Hidden sizes there are kernels for.
constexpr int kLatencyHidden[] = {128, 384, 768, 1024};
// And the head size of each.
FASTDISTIL_HOST_DEVICE constexpr int latency_head_dim(int hidden) {
  return hidden == 384 ? 32 : 64;
}
// Rows that a forward may have.
constexpr int kLatencyRows = 256;
// The feed-forward block is so many times as wide as the states.
constexpr int kWidening = 4;

// A warp takes the columns [w, w + 1) * hidden / warps of every product's inner dimension, 32 at a
// time: as many warps as make that come out even.
FASTDISTIL_HOST_DEVICE constexpr int latency_warps(int hidden) { return hidden >= 768 ? 8 : 4; }
FASTDISTIL_HOST_DEVICE constexpr int latency_units(int hidden) {
  return hidden / (32 * latency_warps(hidden));
}

// --- weights -------------------------------------------------------------------------------------

// A layer's four matrices in the order in which they are used. A panel is what meets `hidden`
// columns of activations and makes eight columns of a result: [8, hidden] numbers, which the warps
// and lanes find in the order of their B operands, every lane 16 bytes (8 as int8) for each 32
// columns:
//
//     [layer][matrix][tile of 8 outputs][hidden columns][warp][unit of 32][lane][16-bit number or
//     int8]
//
// Lane 4 g + t holds, of output g, the columns 2t, 2t + 1, 2t + 8, 2t + 9, and 16 further on again.
enum Matrix { kQkv, kOut, kInner, kOuter, kMatrices };

// Tiles of eight outputs that a matrix has.
FASTDISTIL_HOST_DEVICE constexpr int tiles_of(Matrix matrix, int hidden) {
  const int width = hidden / 8;
  return matrix == kQkv ? 3 * width : matrix == kInner ? kWidening * width : width;
}
// Panels that a tile takes.
FASTDISTIL_HOST_DEVICE constexpr int panels_of(Matrix matrix) {
  return matrix == kOuter ? kWidening : 1;
}
// Where a matrix begins in its layer, in panels; kMatrices: how many a layer has.
FASTDISTIL_HOST_DEVICE constexpr int first_panel(int matrix, int hidden) {
  int first = 0;
  for (int before = 0; before < matrix; ++before) {
    const Matrix m = static_cast<Matrix>(before);
    first += tiles_of(m, hidden) * panels_of(m);
  }
  return first;
}
// Where its biases (and int8 scales) begin in their layer: one float32 for each output.
FASTDISTIL_HOST_DEVICE constexpr int first_bias(int matrix, int hidden) {
  int first = 0;
  for (int before = 0; before < matrix; ++before) {
    first += 8 * tiles_of(static_cast<Matrix>(before), hidden);
  }
  return first;
}

// --- states --------------------------------------------------------------------------------------

// What the steps hand over: regions of [rows, columns] 16-bit numbers, for each layer one after the
// other, then the last states. Q, K, V and the last states are row-major. The others are A
// operands:
//
//     [tile of 16 rows][16 columns][lane][4 words of two numbers]
//
// word r of lane 4 g + t: row g + 8 (r % 2), columns 2t + 8 (r / 2) and the next.
enum Region { kQkvStates, kContext, kAttended, kInnerStates, kUpdate, kRegions };

FASTDISTIL_HOST_DEVICE constexpr int columns_of(Region region, int hidden) {
  return region == kQkvStates ? 3 * hidden : region == kInnerStates ? kWidening * hidden : hidden;
}
// In numbers; layer == layers and kQkvStates: the last states.
FASTDISTIL_HOST_DEVICE constexpr std::size_t region_start(int layer, int region, int hidden) {
  std::size_t columns = 0;
  for (int before = 0; before < kRegions; ++before) {
    columns += static_cast<std::size_t>(columns_of(static_cast<Region>(before), hidden)) *
               static_cast<std::size_t>(layer + (before < region ? 1 : 0));
  }
  return columns * kLatencyRows;
}
// Bytes of one of the two sets.
FASTDISTIL_HOST_DEVICE constexpr std::size_t latency_state_bytes(int layers, int hidden) {
  return 2 * (region_start(layers, 0, hidden) + static_cast<std::size_t>(hidden) * kLatencyRows);
}

// A launch writes to one set of states and makes the other one ready for the next launch. Which is
// which is kept beside them, so that it holds for a launch that a graph replays, too.
struct LatencyControl {
  unsigned epoch;            // launches so far; the set is its lowest bit
  unsigned finished_blocks;  // of the launch that is running
  unsigned rows[2];          // that were written to a set
};

// --- steps ---------------------------------------------------------------------------------------

// Five a layer, then the last states and the pooling in the places of the first two.
enum Step { kMakeQkv, kAttend, kProject, kWiden, kNarrow, kStepsALayer };
FASTDISTIL_HOST_DEVICE constexpr int latency_steps(int layers) { return kStepsALayer * layers + 2; }

struct LatencyParameters {
  int layers, vocabulary, position_rows, segments;
  float eps;
  Activation activation;

  const void* word;      // [vocabulary, hidden]
  const void* position;  // [position_rows, hidden]
  const void* segment;   // [segments, hidden] or null
  const float* norms;    // [1 + 2 layers][weight, bias][hidden]: embeddings; attention, output
  const void* panels;    // as above
  const float* scales;   // [layers][outputs]; int8 only
  const float* biases;   // [layers][outputs]

  const std::int32_t* input_ids;
  const std::int32_t* positions;
  const std::int32_t* segment_ids;  // or null for row 0
  const std::int32_t* cu_seqlens;
  const std::int32_t* num_sequences;  // [1]
  std::int32_t* errors;               // [1], bits as in EmbeddingArguments

  void* states;             // two sets of latency_state_bytes; all 0xff before the first launch
  void* saved;              // [2][kLatencyRows, hidden]: for launches of a few steps
  LatencyControl* control;  // zeros before the first launch

  void* hidden_out;  // [tokens, hidden], or null
  float* pooled;     // [sequences, hidden], or null
  Pooling pooling;
  bool normalize;

  int rows;     // at least as many as there are tokens, at most kLatencyRows
  int longest;  // no sequence is longer
  int first_step, last_step;
};

}  // namespace fastdistil::cuda
