// The one interface between the engine and the instruction sets: each isa_*.cpp, compiled with its
// own flags, fills in one of these tables. Nothing else of those files is visible.
#pragma once

#include "model.h"
#include "part_clock.h"
#include "team.h"
#include "workspace.h"

namespace fastdistil::cpu {

// How packed weights are laid out for an instruction set (see PackedMatrix).
struct PanelFormat {
  int element_bytes;  // 4: fp32, 2: bf16, 1: int8
  int lanes;          // output columns in a column group
  int columns;        // output columns in a panel: a multiple of lanes
};

struct Kernels {
  const char* isa;          // "amx", "avx512", "avx2", "portable"
  const char* precision;    // "fp32", "bf16", "int8"
  const char* description;  // for people
  PanelFormat format;
  // What Q, K and V are held in, and with int8 all that waits to be quantised: 4: fp32, 2: bf16.
  int attention_bytes;
  // Rows that one thread takes through all layers at a time: enough to pay for streaming the
  // weights, few enough for the activations to stay in the cache.
  int chunk_rows;
  // Below this many rows a thread on its own wastes its time streaming weights: threads share a
  // chunk.
  int min_rows_per_thread;
  // Columns of the intermediate layer that are computed, activated and consumed before the next are
  // begun. It fixes the order of a sum, so it depends on nothing but the instruction set.
  int ffn_piece;
  // The clock is null, or the calling thread's.
  void (*forward)(const Model&, const Batch&, const Chunk&, Workspace&, Team&, PartClock*);
  // Does nothing but `steps` rounds of the instruction set's product; returns how many
  // multiply-adds those were.
  double (*peak)(long steps);
};

extern const Kernels kPortableFp32;
extern const Kernels kAvx2Fp32;
extern const Kernels kAvx2Int8;
extern const Kernels kAvx512Fp32;
extern const Kernels kAvx512Bf16;
extern const Kernels kAvx512Int8;
extern const Kernels kAvx512Int8Bf16;
extern const Kernels kAmxBf16;
extern const Kernels kAmxInt8;

}  // namespace fastdistil::cpu
