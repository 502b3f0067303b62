#include "encoder.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <stdexcept>
#include <string>

#include "plan.h"
#include "rows_read.h"
#include "team.h"
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

void check_rows(const Batch& batch) {
  if (batch.row_count == kAllRows) return;
  if (batch.pooling != Pooling::kNone) refuse("rows given, but what is pooled has no rows");
  for (int i = 0; i < batch.row_count; ++i) {
    const int row = batch.rows[i];
    if (row < 0 || row >= batch.tokens) {
      refuse("rows has " + std::to_string(row) + " at index " + std::to_string(i) +
             ", outside the " + std::to_string(batch.tokens) + " tokens");
    }
    if (i > 0 && row <= batch.rows[i - 1]) {
      refuse("rows has " + std::to_string(row) + " after " + std::to_string(batch.rows[i - 1]) +
             ": they must ascend, each above the one before");
    }
  }
}

// Chunks of what has to be computed.
Plan plan_of(const Batch& batch, const Kernels& kernels, int threads) {
  std::vector<std::int32_t> read;
  if (batch.row_count != kAllRows) read = cu_seqlens_read(batch);
  Plan plan = make_plan(read.empty() ? batch.cu_seqlens : read.data(), batch.sequences,
                        kernels.chunk_rows, kernels.min_rows_per_thread, threads);
  if (batch.reads_some()) {
    for (Chunk& chunk : plan.chunks) find_reads(batch, chunk);
  }
  return plan;
}

using Workspaces = std::vector<std::unique_ptr<Workspace>>;

// Each thread takes whole chunks, the next as it finishes one.
template <class Forward>
void run_alone(const Plan& plan, const Workspaces& workspaces, const Forward& forward) {
  const int count = static_cast<int>(plan.chunks.size());
  std::atomic<int> next{0};
  run_together(plan.threads, [&](int rank, int) {
    for (int chunk; (chunk = next.fetch_add(1, std::memory_order_relaxed)) < count;)
      forward(chunk, *workspaces[rank], Team(), rank);
  });
}

// Teams of threads share chunks: team t those at t, t + teams, ... in its workspace. Who is done
// with the own team's helps the others, so it does not matter which threads come, and how many.
template <class Forward>
void run_in_teams(const Plan& plan, const Workspaces& workspaces, const Forward& forward) {
  const int count = static_cast<int>(plan.chunks.size());
  const Range threads{0, plan.threads};
  std::deque<Steps> steps;
  for (int chunk = 0; chunk < count; ++chunk)
    steps.emplace_back(part_of(threads, chunk % plan.teams, plan.teams).size());
  run_together(plan.threads, [&](int rank, int) {
    const auto belongs = [&](int team) {
      const Range members = part_of(threads, team, plan.teams);
      return rank >= members.begin && rank < members.end;
    };
    int home = 0;
    while (!belongs(home)) ++home;
    for (int i = 0; i < plan.teams; ++i) {
      const int team = (home + i) % plan.teams;
      const int member = i == 0 ? rank - part_of(threads, team, plan.teams).begin : -1;
      for (int chunk = team; chunk < count; chunk += plan.teams)
        forward(chunk, *workspaces[team], Team(steps[chunk], member, rank), rank);
    }
  });
}

}  // namespace

Encoder::Encoder(const Kernels& kernels, const Shape& shape, const WeightSource& weights)
    : kernels_(kernels),
      model_{shape, find_tables(shape, weights), pack_weights(shape, kernels, weights)} {}

Encoder::Encoder(const Encoder& twin, const WeightSource& tables)
    : kernels_(twin.kernels_),
      model_{twin.model_.shape, find_tables(twin.model_.shape, tables), twin.model_.packed} {}

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
  check_rows(batch);
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

void Encoder::run(const Batch& batch, int threads, PartSeconds* parts) const {
  validate(batch);
  if (batch.sequences == 0 || batch.row_count == 0) return;
  const Plan plan = plan_of(batch, kernels_, threads);
  int rows = 0;
  int longest = 0;
  for (const Chunk& chunk : plan.chunks) {
    rows = std::max(rows, chunk.rows);
    longest = std::max(longest, chunk.longest);
  }

  // All memory is taken here, on the calling thread: nothing that others wait for may throw.
  const bool alone = plan.teams == plan.threads;
  std::vector<std::unique_ptr<Workspace>> workspaces(plan.teams);
  for (std::unique_ptr<Workspace>& workspace : workspaces) {
    workspace = borrow();
    workspace->reserve(model_.shape, kernels_, rows, longest, alone ? 1 : plan.threads);
  }
  std::vector<PartClock> clocks(parts != nullptr ? plan.threads : 0);
  const auto forward = [&](int chunk, Workspace& workspace, Team team, int thread) {
    PartClock* clock = parts != nullptr ? &clocks[thread] : nullptr;
    kernels_.forward(model_, batch, plan.chunks[chunk], workspace, team, clock);
  };
  if (alone) {
    run_alone(plan, workspaces, forward);
  } else {
    run_in_teams(plan, workspaces, forward);
  }
  for (const PartClock& clock : clocks) {
    for (std::size_t i = 0; i < parts->size(); ++i) (*parts)[i] += clock.seconds()[i];
  }
  for (std::unique_ptr<Workspace>& workspace : workspaces) give_back(std::move(workspace));
}

}  // namespace fastdistil::cpu
