// Fetching weights that are needed soon into the second-level cache, a few lines a step, so that
// the memory bus works while the arithmetic does.
#pragma once

#include "../common/tiles.h"

namespace fastdistil::cpu {

struct Prefetch {
  const char* next = nullptr;
  const char* end = nullptr;
  int lines_per_step = 0;

  FASTDISTIL_INLINE void step() {
    for (int i = 0; i < lines_per_step && next < end; ++i, next += 64)
      __builtin_prefetch(next, 0, 2);
  }
};

}  // namespace fastdistil::cpu
