// The matrix product of the forward: activations in tiles times a packed matrix, with an epilogue
// that consumes each finished block of 32-bit sums while it is in the first-level cache.
//
// Order of the loops: a group of panels; for each, all rows in blocks; for each, the panels of the
// group. Without matrix tiles a group is one panel: arithmetic is slow enough for the rows to come
// from the second-level cache each time. Tiles are not that patient: there a group is what the
// second-level cache holds, a block of rows stays in the first while it meets all of them, and
// neighbouring panels walk k in opposite directions, so that what is still there is read again
// first. Direction and order depend on the panel alone, never on the row: a row's sums are the same
// bits wherever in a batch it lies.
#pragma once

#include "model.h"
#include "prefetch.h"
#include "team.h"

namespace fastdistil::cpu {

// A finished block whose epilogue still has to run, row by row, in the gaps of the next product.
template <class Isa, class Epilogue>
struct Pending {
  const Epilogue& epilogue;
  const float* block = nullptr;
  int row = 0;
  int column = 0;
  int next = 0;
  int count = 0;

  FASTDISTIL_INLINE void step() {
    if (next < count) {
      epilogue.row(block + next * Isa::kPanelColumns, row + next, column);
      ++next;
    }
  }
  FASTDISTIL_INLINE void finish() {
    while (next < count) step();
  }
  FASTDISTIL_INLINE void start(const float* finished, int at_row, int rows, int at_column) {
    block = finished;
    row = at_row;
    column = at_column;
    next = 0;
    count = rows;
  }
};

struct NoBackground {
  FASTDISTIL_INLINE void step() {}
};

// The part of k that is multiplied: the first `count` tiles of A with those from `weight_begin` of
// the matrix.
struct KRange {
  int weight_begin;
  int count;
};

constexpr int passes(int rows_per_pass, int rows) {
  return (rows + rows_per_pass - 1) / rows_per_pass;
}

// Part `index` of `count` of the `bytes` at `data`, to be fetched in `steps` steps.
FASTDISTIL_INLINE Prefetch prefetch_part(const char* data, std::size_t bytes, int index, int count,
                                         int steps) {
  const std::size_t lines = bytes / 64;
  const std::size_t begin = lines * index / count;
  const std::size_t end = lines * (index + 1) / count;
  return {data + begin * 64, data + end * 64, static_cast<int>((end - begin + steps - 1) / steps)};
}

// Panels [panels.begin, panels.end); those up to `prefetch_end` are likely to be asked for next.
template <class Isa, class Epilogue>
void gemm(const Tiles& a, int rows, const PackedMatrix& weights, Range panels, int prefetch_end,
          KRange k, const Epilogue& epilogue) {
  alignas(64) float blocks[2][Isa::kBlockRows * Isa::kPanelColumns];
  const std::size_t panel_tile_bytes = weights.panel_bytes / weights.k_tiles;
  const std::size_t offset = k.weight_begin * panel_tile_bytes;
  const std::size_t bytes = k.count * panel_tile_bytes;
  const int row_blocks = (rows + Isa::kBlockRows - 1) / Isa::kBlockRows;
  // One block of rows reads every panel once: there is no group to keep, and the next panel is
  // fetched while this one is multiplied.
  const int fitting = row_blocks > 1 ? static_cast<int>(Isa::kPanelGroupBytes / bytes) : 1;
  const int group = fitting < 1 ? 1 : fitting;

  Pending<Isa, Epilogue> pending{epilogue};
  int parity = 0;
  for (int begin = panels.begin; begin < panels.end; begin += group) {
    const int end = begin + group < panels.end ? begin + group : panels.end;
    for (int block = 0; block < row_blocks; ++block) {
      const int row = block * Isa::kBlockRows;
      const int block_rows = rows - row < Isa::kBlockRows ? rows - row : Isa::kBlockRows;
      for (int p = begin; p < end; ++p) {
        // This panel's successor in the next group, an equal part of it with every row block.
        Prefetch prefetch;
        if (p + group < prefetch_end)
          prefetch = prefetch_part(weights.panel(p + group) + offset, bytes, block, row_blocks,
                                   passes(Isa::kPassRows, block_rows) * k.count);
        epilogue.announce(row, block_rows, p * Isa::kPanelColumns);
        Isa::multiply(a.block(row), a.block_stride, block_rows, weights.panel(p) + offset, k.count,
                      p & 1, blocks[parity], Isa::kPanelColumns, prefetch, pending);
        pending.finish();
        pending.start(blocks[parity], row, block_rows, p * Isa::kPanelColumns);
        if constexpr (!Isa::kOverlapEpilogue) pending.finish();
        parity ^= 1;
      }
    }
  }
  pending.finish();
}

}  // namespace fastdistil::cpu
