// A few threads working on one chunk, step by step. Each has a share of every step's work and takes
// it in pieces; who is done takes pieces of the others', and goes on when all are done. So a thread
// that has no core, or lost it to somebody else, holds up the others by one piece at most: a team
// on a busy machine is as fast as the threads of it that run.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

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

// Waits until `done()`: a few microseconds on the spot, in which a thread that has a core arrives,
// then asleep. A thread that slept gives its core to the one it waits for, which may have lost its
// own to somebody else; a thread that span or yielded on would hold it from that one for a time
// slice.
class Sleepers {
 public:
  template <class Done>
  void wait(const Done& done) {
    constexpr int kSpins = 2000;
    for (int i = 0; i < kSpins; ++i) {
      if (done()) return;
      spin_pause();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    count_.fetch_add(1);
    wake_.wait(lock, done);
    count_.fetch_sub(1);
  }
  // To be called after what makes `done()` true. Both that and the count are sequentially
  // consistent: either the sleeper is seen here, or it sees that there is nothing to wait for.
  void wake_all() {
    if (count_.load() == 0) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }

 private:
  std::atomic<int> count_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

struct Range {
  int begin;
  int end;

  int size() const { return end - begin; }
};

// Part `index` of `count` contiguous, nearly equal parts.
inline Range part_of(Range whole, int index, int count) {
  const long long size = whole.size();
  return {whole.begin + static_cast<int>(size * index / count),
          whole.begin + static_cast<int>(size * (index + 1) / count)};
}

// The steps of one chunk, and which pieces of the current one nobody has taken yet.
class Steps {
 public:
  explicit Steps(int size) : shares_(size), size_(size) {}

  // Does what is left of step `step`, whose work is [0, count); returns when all of it is done, by
  // whomever. Every thread calls it for every step in order, with the same count. Rank -1 has no
  // share of its own. visit(piece, end): `end` is where the share ends that the piece is of.
  template <class Visit>
  void run(int step, int rank, int count, const Visit& visit) {
    if (count == 0) return;
    // Steps without work are not opened: whoever comes here has seen all those before that have
    // some done.
    for (int i = 0; i < size_ && open_.load(std::memory_order_acquire) <= step; ++i) {
      const int owner = ((rank < 0 ? 0 : rank) + i) % size_;
      const Range share = part_of({0, count}, owner, size_);
      int finished = 0;
      for (int piece; (piece = take(owner, step, owner != rank)) >= 0;) {
        const Range range = part_of(share, piece, kPieces);
        if (range.size() > 0) visit(range, share.end);
        finished += range.size();
      }
      if (finished > 0) finish(step, finished, count);
    }
    wait(step);
  }

 private:
  // Pieces of a share: enough to help with, few enough for each to be worth the taking.
  static constexpr int kPieces = 4;

  // A share's pieces [begin, end) that are still to be taken in step `step`. Who comes first to a
  // share in a step finds the last one's, and begins anew.
  struct Left {
    std::uint32_t step;
    std::uint16_t begin;
    std::uint16_t end;
  };
  struct alignas(64) Share {
    std::atomic<std::uint64_t> left{pack({0, 0, kPieces})};
  };

  static std::uint64_t pack(Left left) {
    return (static_cast<std::uint64_t>(left.step) << 32) |
           (static_cast<std::uint64_t>(left.begin) << 16) | left.end;
  }
  static Left unpack(std::uint64_t word) {
    return {static_cast<std::uint32_t>(word >> 32), static_cast<std::uint16_t>(word >> 16),
            static_cast<std::uint16_t>(word)};
  }

  // The next piece of that share, or the last one for who is not its owner, so that the two meet
  // late; -1 when there is none, or the step is over.
  int take(int owner, int step, bool from_the_end);
  void finish(int step, int finished, int count);
  // Returns when that step is over.
  void wait(int step);

  std::vector<Share> shares_;
  const int size_;
  alignas(64) std::atomic<int> done_{0};
  alignas(64) std::atomic<int> open_{0};  // the step that is being worked on
  Sleepers waiting_;
};

// One thread's place in a team.
class Team {
 public:
  // Alone.
  Team() = default;
  // `rank`: of the share that is this thread's own, or -1; `scratch`: which of the workspace's
  // scratch buffers is.
  Team(Steps& steps, int rank, int scratch) : steps_(&steps), rank_(rank), scratch_(scratch) {}

  int scratch() const { return scratch_; }

  // The next step: the team calls visit(piece, end) for all of [0, count), cut into pieces, and
  // each returns when all is done.
  template <class Visit>
  void run(int count, const Visit& visit) {
    if (steps_ != nullptr) {
      steps_->run(step_++, rank_, count, visit);
    } else if (count > 0) {
      visit(Range{0, count}, count);
    }
  }

 private:
  Steps* steps_ = nullptr;
  int rank_ = 0;
  int scratch_ = 0;
  int step_ = 0;
};

}  // namespace fastdistil::cpu
