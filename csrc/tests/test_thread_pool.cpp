// The pool: everyone gets a rank, nobody waits for someone else's workers, exceptions come home.
#include <atomic>
#include <stdexcept>
#include <thread>

#include "../cpu/team.h"
#include "../cpu/thread_pool.h"
#include "check.h"

namespace fastdistil::tests {
namespace {

TEST(each_rank_runs_once_and_all_meet) {
  for (int round = 0; round < 200; ++round) {
    std::atomic<int> ranks{0}, before{0};
    std::atomic<bool> met{true};
    cpu::Barrier barrier;
    cpu::run_together(4, [&](int rank, int size) {
      ranks.fetch_add(1 << rank);
      for (int i = 1; i <= 20; ++i) {
        before.fetch_add(1);
        barrier.wait(size);
        if (before.load() < i * size) met = false;
        barrier.wait(size);
      }
    });
    const int seen = ranks.load();
    CHECK(seen == 1 || seen == 3 || seen == 7 || seen == 15, std::to_string(seen));
    CHECK(met.load());
  }
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
  CHECK(done.load() >= 800 && done.load() <= 2400, std::to_string(done.load()));
}

TEST(an_exception_reaches_the_caller) {
  bool caught = false;
  try {
    cpu::run_together(3, [](int rank, int size) {
      if (rank == size - 1) throw std::runtime_error("from a worker");
    });
  } catch (const std::runtime_error& error) {
    caught = std::string(error.what()) == "from a worker";
  }
  CHECK(caught);
  std::atomic<int> count{0};
  cpu::run_together(3, [&](int, int) { count.fetch_add(1); });
  CHECK(count.load() >= 1, "the pool still works");
}

}  // namespace
}  // namespace fastdistil::tests
