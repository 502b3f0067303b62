// Worker threads that outlive calls. A caller always works itself and is joined by as many idle
// workers as it asked for and there are; it never waits for a worker that somebody else has, so any
// number of threads may call at once. A forked child starts with an empty pool.
#pragma once

#include <functional>

namespace fastdistil::cpu {

// Runs work(rank, size) on `threads` threads at most, the calling one with rank 0 among them, all
// at the same time, and returns when all are done. `size` is how many took part. If any throws, the
// first exception is rethrown here.
void run_together(int threads, const std::function<void(int rank, int size)>& work);

}  // namespace fastdistil::cpu
