// Which rows of a batch somebody reads, so that nothing else is computed in the last layer.
#pragma once

#include <cstdint>
#include <vector>

#include "model.h"

namespace fastdistil::cpu {

// cu_seqlens of a batch with `rows`, in which the sequences that none of them is of are empty: they
// need not be computed at all.
std::vector<std::int32_t> cu_seqlens_read(const Batch& batch);

// Fills in the chunk's reads: those of its spans that are among `rows`, or with cls each first
// token.
void find_reads(const Batch& batch, Chunk& chunk);

}  // namespace fastdistil::cpu
