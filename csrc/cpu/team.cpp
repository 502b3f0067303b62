// What is not a template stays out of the header: the kernels of every instruction set include it,
// and the linker keeps one of several equal functions, whatever CPU it was compiled for.
#include "team.h"

namespace fastdistil::cpu {

int Steps::take(int owner, int step, bool from_the_end) {
  std::atomic<std::uint64_t>& word = shares_[owner].left;
  std::uint64_t seen = word.load(std::memory_order_acquire);
  for (;;) {
    Left left = unpack(seen);
    if (left.step > static_cast<std::uint32_t>(step)) return -1;
    if (left.step < static_cast<std::uint32_t>(step))
      left = {static_cast<std::uint32_t>(step), 0, kPieces};
    if (left.begin == left.end) return -1;
    const int piece = from_the_end ? --left.end : left.begin++;
    if (word.compare_exchange_weak(seen, pack(left), std::memory_order_acq_rel)) return piece;
  }
}

void Steps::finish(int step, int finished, int count) {
  if (done_.fetch_add(finished, std::memory_order_acq_rel) + finished < count) return;
  done_.store(0, std::memory_order_relaxed);
  open_.store(step + 1);
  waiting_.wake_all();
}

void Steps::wait(int step) {
  waiting_.wait([&] { return open_.load() > step; });
}

}  // namespace fastdistil::cpu
