// The one interface between the engine and the instruction sets: each isa_*.cpp, compiled with its
// own flags, fills in one of these tables. Nothing else of those files is visible.
#pragma once

#include "model.h"
#include "team.h"
#include "workspace.h"

namespace fastdistil::cpu {

// How packed weights are laid out for an instruction set (see PackedMatrix).
struct PanelFormat {
  int element_bytes;  // 4: fp32, 2: bf16
  int lanes;          // output columns in a column group
  int columns;        // output columns in a panel: a multiple of lanes
};

struct Kernels {
  const char* isa;          // "amx", "avx512", "avx2", "portable"
  const char* precision;    // "fp32", "bf16"
  const char* description;  // for people
  PanelFormat format;
  // Rows that one thread takes through all layers at a time: enough to pay for streaming the
  // weights, few enough for the activations to stay in the cache.
  int chunk_rows;
  // Below this many rows a thread on its own wastes its time streaming weights: threads share a
  // chunk.
  int min_rows_per_thread;
  // Columns of the intermediate layer that are computed, activated and consumed before the next are
  // begun. It fixes the order of a sum, so it depends on nothing but the instruction set.
  int ffn_piece;
  void (*forward)(const Model&, const Batch&, const Chunk&, Workspace&, const Team&);
};

extern const Kernels kPortableFp32;
extern const Kernels kAvx2Fp32;
extern const Kernels kAvx512Fp32;
extern const Kernels kAvx512Bf16;
extern const Kernels kAmxBf16;

}  // namespace fastdistil::cpu
