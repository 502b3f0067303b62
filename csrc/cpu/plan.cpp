#include "plan.h"

#include <algorithm>
#include <numeric>
#include <queue>

namespace fastdistil::cpu {
namespace {

// Longest sequence first into the emptiest chunk (Graham's LPT rule).
std::vector<Chunk> fill_chunks(const std::int32_t* cu_seqlens, int sequences, int count) {
  std::vector<int> order(sequences);
  std::iota(order.begin(), order.end(), 0);
  const auto length = [&](int i) { return cu_seqlens[i + 1] - cu_seqlens[i]; };
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return length(a) > length(b); });

  std::vector<Chunk> chunks(count);
  using Load = std::pair<int, int>;  // rows, chunk
  std::priority_queue<Load, std::vector<Load>, std::greater<>> emptiest;
  for (int i = 0; i < count; ++i) emptiest.push({0, i});
  for (const int sequence : order) {
    const int index = emptiest.top().second;
    emptiest.pop();
    Chunk& chunk = chunks[index];
    chunk.spans.push_back({sequence, chunk.rows, length(sequence)});
    chunk.rows += length(sequence);
    chunk.longest = std::max(chunk.longest, length(sequence));
    emptiest.push({chunk.rows, index});
  }
  return chunks;
}

int ceil_divide(int a, int b) { return (a + b - 1) / b; }

// Rows that the busiest of `threads` threads works on when each takes the next chunk as it
// finishes.
long long longest_share(const std::vector<Chunk>& chunks, int threads) {
  std::priority_queue<long long, std::vector<long long>, std::greater<>> free_at;
  for (int i = 0; i < threads; ++i) free_at.push(0);
  long long last = 0;
  for (const Chunk& chunk : chunks) {
    const long long end = free_at.top() + chunk.rows;
    free_at.pop();
    free_at.push(end);
    last = std::max(last, end);
  }
  return last;
}

}  // namespace

Plan make_plan(const std::int32_t* cu_seqlens, int sequences, int chunk_rows,
               int min_rows_per_thread, int threads) {
  const int tokens = cu_seqlens[sequences];
  Plan plan;
  plan.threads = threads;
  plan.teams = std::clamp(tokens / min_rows_per_thread, 1, std::min(threads, sequences));
  const int rounds = std::max(1, ceil_divide(tokens, plan.teams * chunk_rows));
  plan.chunks = fill_chunks(cu_seqlens, sequences, std::min(sequences, plan.teams * rounds));
  // A few long sequences do not divide evenly; then all threads go through each chunk together.
  constexpr double kAcceptableImbalance = 1.25;
  if (plan.teams > 1 &&
      longest_share(plan.chunks, plan.teams) > kAcceptableImbalance * tokens / plan.teams) {
    plan.teams = 1;
    plan.chunks = fill_chunks(cu_seqlens, sequences,
                              std::min(sequences, std::max(1, ceil_divide(tokens, chunk_rows))));
  }
  return plan;
}

}  // namespace fastdistil::cpu
