// The ceiling of an instruction set on this machine, to set beside what a forward reaches.
#pragma once

#include "kernels.h"

namespace fastdistil::cpu {

// Multiply-adds a second of `threads` threads that do nothing else for about that long.
double measure_peak(const Kernels& kernels, int threads, double seconds);

}  // namespace fastdistil::cpu
