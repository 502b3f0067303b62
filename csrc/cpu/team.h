// A few threads working on one chunk in lockstep: who I am, how many we are, and where we meet.
#pragma once

#include <atomic>
#include <thread>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace fastdistil::cpu {

inline void spin_pause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Sense by counting generations: the last to arrive opens the next one.
class Barrier {
 public:
  void wait(int size) {
    const int generation = generation_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      arrived_.store(0, std::memory_order_relaxed);
      generation_.store(generation + 1, std::memory_order_release);
      return;
    }
    // A barrier is microseconds away when every thread has a core; when one has not, give way.
    for (int spins = 0; generation_.load(std::memory_order_acquire) == generation; ++spins) {
      if (spins < 4096) {
        spin_pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> generation_{0};
};

struct Range {
  int begin;
  int end;
};

struct Team {
  int rank = 0;
  int size = 1;
  Barrier* barrier = nullptr;

  void sync() const {
    if (size > 1) barrier->wait(size);
  }
  // This thread's contiguous share of `count` equal pieces of work.
  Range share(int count) const {
    return {static_cast<int>(static_cast<long long>(count) * rank / size),
            static_cast<int>(static_cast<long long>(count) * (rank + 1) / size)};
  }
};

}  // namespace fastdistil::cpu
