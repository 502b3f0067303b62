#include "rows_read.h"

#include <algorithm>

namespace fastdistil::cpu {
namespace {

// The first index in `rows` of a token from `token` on.
int index_of(const Batch& batch, int token) {
  return static_cast<int>(std::lower_bound(batch.rows, batch.rows + batch.row_count, token) -
                          batch.rows);
}

}  // namespace

std::vector<std::int32_t> cu_seqlens_read(const Batch& batch) {
  std::vector<std::int32_t> ends(batch.sequences + 1, 0);
  for (int i = 0; i < batch.sequences; ++i) {
    const int begin = batch.cu_seqlens[i];
    const int end = batch.cu_seqlens[i + 1];
    const bool is_read = index_of(batch, begin) < index_of(batch, end);
    ends[i + 1] = ends[i] + (is_read ? end - begin : 0);
  }
  return ends;
}

void find_reads(const Batch& batch, Chunk& chunk) {
  for (Span& span : chunk.spans) {
    span.read_begin = static_cast<int>(chunk.reads.size());
    if (batch.row_count == kAllRows) {
      if (span.length > 0) chunk.reads.push_back({span.row, 0});
    } else if (span.length > 0) {
      const int first = batch.cu_seqlens[span.sequence];
      const int last = index_of(batch, first + span.length);
      for (int i = index_of(batch, first); i < last; ++i)
        chunk.reads.push_back({span.row + batch.rows[i] - first, i});
    }
    span.read_end = static_cast<int>(chunk.reads.size());
  }
}

}  // namespace fastdistil::cpu
