// Worker threads that outlive calls. A caller always works itself and is joined by as many idle
// workers as it asked for and there are; it never waits for a worker that somebody else has, so any
// number of threads may call at once. A forked child starts with an empty pool.
#pragma once

#include <functional>

namespace fastdistil::cpu {

// Runs work(rank, size) on up to `threads` threads at the same time, on the calling one with rank
// 0, and returns when all that began are done. A thread that has not begun when the caller is done
// is not waited for: the caller's work(0, size) must leave nothing to the others that it does not
// see done. `size` is how many may take part. If any throws, the first exception is rethrown here.
void run_together(int threads, const std::function<void(int rank, int size)>& work);

}  // namespace fastdistil::cpu
