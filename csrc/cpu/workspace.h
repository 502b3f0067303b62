// The scratch memory of one chunk in flight, laid out once for the largest chunk of a call.
#pragma once

#include <vector>

#include "../common/aligned_buffer.h"
#include "../common/tiles.h"
#include "model.h"
#include "quantise.h"

namespace fastdistil::cpu {

// The left operand of a product.
struct Operand {
  Tiles tiles;
  RowScale* scales = nullptr;  // int8 only: [pieces of k, rows]
};

// What one thread needs for the attention of one head of one sequence, and to quantise a row.
struct ThreadScratch {
  char* query = nullptr;     // one block of 16 rows, tiled
  char* keys = nullptr;      // packed as weights are: [panel][k tile]...
  char* values = nullptr;    // the same, with keys as k
  float* scores = nullptr;   // [16, longest padded]
  char* weights = nullptr;   // softmax of the scores: one block of 16 rows, tiled
  float* context = nullptr;  // [16, head padded]
  float* row = nullptr;      // int8 only: [the widest row that is quantised]
};

struct Kernels;

class Workspace {
 public:
  // Grows to fit chunks of `rows` rows and sequences of `longest` tokens; never shrinks.
  void reserve(const Shape& shape, const Kernels& kernels, int rows, int longest, int team);

  Operand hidden;     // [rows, hidden_padded]: the output of a LayerNorm
  Operand context;    // [rows, inner]
  Operand activated;  // [rows, intermediate columns held at once]
  Rows qkv;           // [rows, 3 * inner]; with int8 the context takes the place of Q
  Rows unquantised;   // int8 only: [rows, intermediate columns held at once]
  Rows sums;   // fp32 [rows, hidden_padded]: the residual stream, into and out of a LayerNorm
  Rows final;  // fp32 [rows, hidden_padded]: the last LayerNorm's output, for pooling
  int scale_rows = 0;                  // rows of one piece in `activated.scales`
  int intermediate_columns = 0;        // capacity of `activated`
  std::vector<ThreadScratch> scratch;  // one per thread of the team

 private:
  AlignedBuffer memory_;
  std::size_t capacity_ = 0;
};

}  // namespace fastdistil::cpu
