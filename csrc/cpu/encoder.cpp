#include "encoder.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>

#include "plan.h"
#include "thread_pool.h"

namespace fastdistil::cpu {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

void check_table(const char* name, const std::int32_t* values, int count, int size,
                 const char* table) {
  for (int i = 0; i < count; ++i) {
    if (values[i] < 0 || values[i] >= size) {
      refuse(std::string(name) + " has " + std::to_string(values[i]) + " at token " +
             std::to_string(i) + ", outside the " + table + " of " + std::to_string(size) +
             " rows: allowed are 0 to " + std::to_string(size - 1));
    }
  }
}

// One team's place to agree on the chunk it works on.
struct TeamRoom {
  Barrier barrier;
  std::unique_ptr<Workspace> workspace;
  int chunk = 0;
};

}  // namespace

Encoder::Encoder(const Kernels& kernels, const Shape& shape, const WeightSource& weights)
    : kernels_(kernels), model_(pack_model(shape, kernels.format, weights)) {}

void Encoder::validate(const Batch& batch) const {
  const Shape& shape = model_.shape;
  if (batch.cu_seqlens[0] != 0) {
    refuse("cu_seqlens starts with " + std::to_string(batch.cu_seqlens[0]) +
           ": it must start with 0");
  }
  for (int i = 0; i < batch.sequences; ++i) {
    if (batch.cu_seqlens[i + 1] < batch.cu_seqlens[i]) {
      refuse("cu_seqlens falls from " + std::to_string(batch.cu_seqlens[i]) + " to " +
             std::to_string(batch.cu_seqlens[i + 1]) + " at sequence " + std::to_string(i) +
             ": it must never fall");
    }
  }
  if (batch.cu_seqlens[batch.sequences] != batch.tokens) {
    refuse("cu_seqlens ends with " + std::to_string(batch.cu_seqlens[batch.sequences]) +
           " but there are " + std::to_string(batch.tokens) +
           " input_ids: it must end with their count");
  }
  check_table("input_ids", batch.input_ids, batch.tokens, shape.vocabulary, "vocabulary");
  check_table("positions", batch.positions, batch.tokens, shape.positions, "position table");
  if (batch.segment_ids != nullptr) {
    if (shape.segments == 0)
      refuse("segment_ids given, but the checkpoint has no segment embeddings");
    check_table("segment_ids", batch.segment_ids, batch.tokens, shape.segments, "segment table");
  }
}

// A child forked while another thread held the lock could wait for ever; try_lock and a fresh
// workspace cost nothing and cannot.
std::unique_ptr<Workspace> Encoder::borrow() const {
  const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  if (!lock.owns_lock() || idle_.empty()) return std::make_unique<Workspace>();
  std::unique_ptr<Workspace> workspace = std::move(idle_.back());
  idle_.pop_back();
  return workspace;
}

void Encoder::give_back(std::unique_ptr<Workspace> workspace) const {
  const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  if (lock.owns_lock()) idle_.push_back(std::move(workspace));
}

void Encoder::run(const Batch& batch, int threads) const {
  validate(batch);
  if (batch.sequences == 0) return;
  const Plan plan = make_plan(batch.cu_seqlens, batch.sequences, kernels_.chunk_rows,
                              kernels_.min_rows_per_thread, threads);
  int rows = 0;
  int longest = 0;
  for (const Chunk& chunk : plan.chunks) {
    rows = std::max(rows, chunk.rows);
    longest = std::max(longest, chunk.longest);
  }

  // All memory is taken here, on the calling thread: nothing that meets at a barrier may throw.
  std::vector<TeamRoom> rooms(plan.teams);
  for (TeamRoom& room : rooms) {
    room.workspace = borrow();
    room.workspace->reserve(model_.shape, kernels_.format.element_bytes, rows, longest,
                            kernels_.ffn_piece, (plan.threads + plan.teams - 1) / plan.teams);
  }
  std::atomic<int> next_chunk{0};
  const int count = static_cast<int>(plan.chunks.size());
  run_together(plan.threads, [&](int rank, int size) {
    // Fewer threads than asked for may have come: then there are fewer teams, never an empty one.
    const int teams = std::min(plan.teams, size);
    const int index = static_cast<int>(static_cast<long long>(rank) * teams / size);
    const int first = (index * size + teams - 1) / teams;
    const int after = ((index + 1) * size + teams - 1) / teams;
    TeamRoom& room = rooms[index];
    const Team team{rank - first, after - first, &room.barrier};
    for (;;) {
      if (team.rank == 0) room.chunk = next_chunk.fetch_add(1, std::memory_order_relaxed);
      team.sync();
      if (room.chunk >= count) break;
      kernels_.forward(model_, batch, plan.chunks[room.chunk], *room.workspace, team);
      team.sync();
    }
  });
  for (TeamRoom& room : rooms) give_back(std::move(room.workspace));
}

}  // namespace fastdistil::cpu
