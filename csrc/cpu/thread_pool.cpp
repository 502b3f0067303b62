#include "thread_pool.h"

#include <pthread.h>

#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "team.h"

namespace fastdistil::cpu {
namespace {

struct Job {
  Job(const std::function<void(int, int)>& function, int threads)
      : work(&function), size(threads), running(threads - 1) {}

  const std::function<void(int, int)>* work;
  int size;
  std::atomic<int> running;  // helpers that are not done
  Sleepers caller;
  std::mutex mutex;
  std::exception_ptr error;

  void run(int rank) {
    try {
      (*work)(rank, size);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
    }
  }
  // The caller may be gone, and the job with it, as soon as the lock is open.
  void leave() {
    const std::lock_guard<std::mutex> lock(mutex);
    running.fetch_sub(1);
    caller.wake_all();
  }
  void wait_for_all() {
    caller.wait([&] { return running.load() == 0; });
    const std::lock_guard<std::mutex> last_one_is_out(mutex);
  }
};

struct Worker {
  Sleepers waiting;
  std::atomic<Job*> job{nullptr};
  int rank = 0;
};

class Pool {
 public:
  // Takes up to `wanted` idle workers, starting threads while fewer than `wanted` exist.
  std::vector<Worker*> claim(int wanted) {
    const std::lock_guard<std::mutex> lock(mutex_);
    while (static_cast<int>(workers_.size()) < wanted && start_worker()) {
    }
    std::vector<Worker*> claimed;
    while (static_cast<int>(claimed.size()) < wanted && !idle_.empty()) {
      claimed.push_back(idle_.back());
      idle_.pop_back();
    }
    return claimed;
  }

  // Takes a job back that its worker has not begun; false where it has, be it that the worker is
  // done with it by now and has been given somebody else's.
  bool revoke(Worker& worker, Job& job) {
    Job* given = &job;
    if (!worker.job.compare_exchange_strong(given, nullptr, std::memory_order_acq_rel))
      return false;
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(&worker);
    return true;
  }

  static void give(Worker& worker, Job& job, int rank) {
    worker.rank = rank;
    worker.job.store(&job);
    worker.waiting.wake_all();
  }

 private:
  // False where the system grants no more threads: callers then make do with fewer.
  bool start_worker() {
    workers_.push_back(std::make_unique<Worker>());
    Worker* worker = workers_.back().get();
    try {
      std::thread([this, worker] { serve(*worker); }).detach();
    } catch (const std::system_error&) {
      workers_.pop_back();
      return false;
    }
    idle_.push_back(worker);
    return true;
  }

  void serve(Worker& worker) {
    for (;;) {
      Job* job = wait(worker);
      job->run(worker.rank);
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        idle_.push_back(&worker);
      }
      job->leave();
    }
  }

  // The next job of a worker, whose giver can no longer take it back.
  static Job* wait(Worker& worker) {
    for (;;) {
      worker.waiting.wait([&] { return worker.job.load() != nullptr; });
      if (Job* job = worker.job.exchange(nullptr, std::memory_order_acq_rel)) return job;
    }
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::vector<Worker*> idle_;
};

// Never destroyed: detached workers use it until the process ends. A forked child has none of the
// parent's threads and perhaps a lock that no one will release, so it leaves the old pool alone.
Pool* current_pool = nullptr;

Pool& pool() {
  static const bool once = [] {
    current_pool = new Pool;
    pthread_atfork(nullptr, nullptr, [] { current_pool = new Pool; });
    return true;
  }();
  static_cast<void>(once);
  return *current_pool;
}

}  // namespace

void run_together(int threads, const std::function<void(int, int)>& work) {
  const std::vector<Worker*> helpers =
      threads > 1 ? pool().claim(threads - 1) : std::vector<Worker*>();
  const int size = static_cast<int>(helpers.size()) + 1;
  Job job(work, size);
  for (int i = 0; i < size - 1; ++i) Pool::give(*helpers[i], job, i + 1);
  job.run(0);
  // Workers that have not begun by now found no core to run on: they are not waited for.
  int revoked = 0;
  for (Worker* helper : helpers) revoked += pool().revoke(*helper, job) ? 1 : 0;
  job.running.fetch_sub(revoked);
  job.wait_for_all();
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace fastdistil::cpu
