// Chunks hold every sequence exactly once, side by side, and no more rows than they should.
#include <numeric>
#include <random>

#include "../cpu/plan.h"
#include "check.h"

namespace fastdistil::tests {
namespace {

using cpu::Chunk;
using cpu::Plan;
using cpu::Span;

std::vector<std::int32_t> offsets(const std::vector<int>& lengths) {
  std::vector<std::int32_t> cu_seqlens(lengths.size() + 1, 0);
  std::partial_sum(lengths.begin(), lengths.end(), cu_seqlens.begin() + 1);
  return cu_seqlens;
}

Plan plan_for(const std::vector<int>& lengths, int threads) {
  return cpu::make_plan(offsets(lengths).data(), static_cast<int>(lengths.size()), 256, 64,
                        threads);
}

TEST(plans_are_partitions) {
  std::mt19937 generator(1);
  for (int trial = 0; trial < 300; ++trial) {
    std::vector<int> lengths(1 + generator() % 200);
    for (int& length : lengths) length = static_cast<int>(generator() % 130);
    const int threads = 1 + static_cast<int>(generator() % 9);
    const Plan plan = plan_for(lengths, threads);
    std::vector<int> seen(lengths.size());
    for (const Chunk& chunk : plan.chunks) {
      int row = 0;
      for (const Span& span : chunk.spans) {
        ++seen[span.sequence];
        CHECK(span.row == row && span.length == lengths[span.sequence]);
        CHECK(span.length <= chunk.longest);
        row += span.length;
      }
      CHECK(chunk.rows == row);
      CHECK(row <= 2 * 256, std::to_string(row));  // LPT overshoots by less than one sequence
    }
    CHECK(seen == std::vector<int>(lengths.size(), 1));
    CHECK(plan.teams >= 1 && plan.teams <= threads && plan.threads == threads);
  }
}

TEST(plans_fit_the_batch) {
  CHECK(plan_for({16}, 8).teams == 1, "one short sequence: everybody together");
  CHECK(plan_for({512}, 2).teams == 1, "one long sequence: everybody together");
  CHECK(plan_for({512, 512, 512}, 2).teams == 1, "three do not divide by two");
  CHECK(plan_for(std::vector<int>(64, 128), 2).teams == 2, "plenty: everybody alone");
  CHECK(plan_for(std::vector<int>(64, 128), 2).chunks.size() == 32);
  CHECK(plan_for({0, 0}, 4).chunks.size() == 1, "no tokens still make a chunk, to write zeros");
}

}  // namespace
}  // namespace fastdistil::tests
