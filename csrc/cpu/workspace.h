// The scratch memory of one chunk in flight, laid out once for the largest chunk of a call.
#pragma once

#include <vector>

#include "../common/aligned_buffer.h"
#include "../common/tiles.h"
#include "model.h"

namespace fastdistil::cpu {

// What one thread needs for the attention of one head of one sequence.
struct AttentionScratch {
  char* query = nullptr;     // one block of 16 rows, tiled
  char* keys = nullptr;      // packed as weights are: [panel][k tile]...
  char* values = nullptr;    // the same, with keys as k
  float* scores = nullptr;   // [16, longest padded]
  char* weights = nullptr;   // softmax of the scores: one block of 16 rows, tiled
  float* context = nullptr;  // [16, head padded]
};

class Workspace {
 public:
  // Grows to fit chunks of `rows` rows and sequences of `longest` tokens; never shrinks.
  void reserve(const Shape& shape, int element_bytes, int rows, int longest, int ffn_piece,
               int team);

  Tiles hidden;         // [rows, hidden_padded]: the residual stream, a GEMM operand
  Tiles context;        // [rows, inner]
  Tiles intermediate;   // [rows, intermediate columns held at once]
  char* qkv = nullptr;  // row-major [rows, 3 * inner], rows qkv_stride bytes apart
  std::size_t qkv_stride = 0;
  float* sums = nullptr;         // [rows, hidden_padded]: input of a LayerNorm, summed in fp32
  float* final = nullptr;        // [rows, hidden_padded]: the last LayerNorm's output, for pooling
  int intermediate_columns = 0;  // capacity of `intermediate`
  std::vector<AttentionScratch> attention;  // one per thread of the team

 private:
  AlignedBuffer memory_;
  std::size_t capacity_ = 0;
};

}  // namespace fastdistil::cpu
