// How a batch is cut into chunks and who works on them.
#pragma once

#include <cstdint>
#include <vector>

#include "model.h"

namespace fastdistil::cpu {

struct Plan {
  std::vector<Chunk> chunks;
  int teams = 1;    // chunks in flight at once
  int threads = 1;  // over all teams
};

// Whole sequences into chunks of about `chunk_rows` rows at most, of equal size as far as their
// lengths allow. Every thread takes chunks by itself where there is work enough for all; a
// batch too small for that, or one that would leave threads waiting, is shared by teams.
Plan make_plan(const std::int32_t* cu_seqlens, int sequences, int chunk_rows,
               int min_rows_per_thread, int threads);

}  // namespace fastdistil::cpu
