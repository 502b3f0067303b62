// The pool: everyone gets a rank, nobody waits for someone else's workers, exceptions come home.
// The steps of a team: each is done once, whole and in order, whoever comes, and however late.
#include <atomic>
#include <chrono>
#include <functional>
#include <random>
#include <stdexcept>
#include <thread>

#include "../cpu/team.h"
#include "../cpu/thread_pool.h"
#include "check.h"

namespace fastdistil::tests {
namespace {

TEST(each_rank_runs_at_most_once_and_the_caller_always) {
  for (int round = 0; round < 200; ++round) {
    std::atomic<int> ranks{0};
    cpu::run_together(4, [&](int rank, int size) {
      CHECK(rank < size && size <= 4);
      ranks.fetch_add(1 << (4 * rank));
    });
    const int seen = ranks.load();
    CHECK((seen & 0xf) == 1 && (seen & ~0x1111) == 0, std::to_string(seen));
  }
}

// Units of work per step: none, fewer than threads, and more than there are pieces.
constexpr int kCounts[] = {7, 0, 1, 100, 3, 0, 0, 64, 2, 1000, 5};

// One thread's way through all steps. Counts what it does, and what it finds undone when a step is
// over.
void walk(cpu::Team team, std::vector<std::vector<std::atomic<int>>>& done, std::atomic<int>& bad,
          const std::function<void(int)>& before_step) {
  for (std::size_t step = 0; step < done.size(); ++step) {
    before_step(static_cast<int>(step));
    team.run(static_cast<int>(done[step].size()), [&](cpu::Range piece, int end) {
      bad += piece.end > end;
      for (int i = piece.begin; i < piece.end; ++i) done[step][i].fetch_add(1);
    });
    for (const std::atomic<int>& count : done[step]) bad += count.load() != 1;
  }
}

std::vector<std::vector<std::atomic<int>>> undone() {
  std::vector<std::vector<std::atomic<int>>> done;
  for (const int count : kCounts) done.emplace_back(count);
  return done;
}

TEST(a_team_does_every_step_once_whoever_comes) {
  std::mt19937 seeds(1);
  for (int round = 0; round < 60; ++round) {
    const int size = 1 + static_cast<int>(seeds() % 5);
    cpu::Steps steps(size);
    auto done = undone();
    std::atomic<int> bad{0};
    std::vector<std::thread> threads;
    for (int rank = -2; rank < size; ++rank) {
      // Some never come, some fall asleep on the way; two have no share of their own.
      const unsigned seed = seeds();
      if (rank != 0 && seed % 3 == 0) continue;
      threads.emplace_back([&, rank, seed] {
        std::mt19937 mine(seed);
        walk(cpu::Team(steps, rank < 0 ? -1 : rank, 0), done, bad, [&](int) {
          if (mine() % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(mine() % 300));
        });
      });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(bad.load() == 0, std::to_string(bad.load()));
  }
}

TEST(one_thread_alone_does_it_all) {
  auto done = undone();
  std::atomic<int> bad{0};
  walk(cpu::Team(), done, bad, [](int) {});
  CHECK(bad.load() == 0);
}

TEST(a_share_is_taken_from_the_front_by_its_owner) {
  cpu::Steps steps(3);
  std::vector<int> order;
  cpu::Team(steps, 1, 0).run(120, [&](cpu::Range piece, int) { order.push_back(piece.begin); });
  // First its own share, [40, 80), in order, so that what is prefetched is what comes next.
  CHECK(order.size() == 12 && order[0] == 40 && order[1] == 50 && order[2] == 60 && order[3] == 70);
}

TEST(callers_do_not_wait_for_each_other) {
  std::atomic<int> done{0};
  std::vector<std::thread> callers;
  for (int t = 0; t < 8; ++t) {
    callers.emplace_back([&] {
      for (int i = 0; i < 100; ++i) cpu::run_together(3, [&](int, int) { done.fetch_add(1); });
    });
  }
  for (std::thread& caller : callers) caller.join();
  // Each caller's own part at least; the others' where a worker began in time.
  CHECK(done.load() >= 800 && done.load() <= 2400, std::to_string(done.load()));
}

TEST(an_exception_reaches_the_caller) {
  int caught = 0;
  for (const int thrower : {0, 1}) {
    std::atomic<bool> worker_began{false};
    try {
      cpu::run_together(2, [&](int rank, int size) {
        if (rank == 1) worker_began = true;
        // The caller is not done before the worker has begun, so that it is waited for.
        while (size == 2 && !worker_began) std::this_thread::yield();
        if (rank == thrower || size == 1) throw std::runtime_error("from within");
      });
    } catch (const std::runtime_error& error) {
      caught += std::string(error.what()) == "from within";
    }
  }
  CHECK(caught == 2);
  std::atomic<int> count{0};
  cpu::run_together(3, [&](int, int) { count.fetch_add(1); });
  CHECK(count.load() >= 1, "the pool still works");
}

TEST(a_worker_that_cannot_begin_is_not_waited_for) {
  // Two callers, and workers that are busy elsewhere: the jobs given to them are taken back.
  for (int round = 0; round < 300; ++round) {
    std::atomic<int> callers{0};
    cpu::run_together(6, [&](int rank, int) { callers += rank == 0; });
    CHECK(callers.load() == 1);
  }
}

}  // namespace
}  // namespace fastdistil::tests
