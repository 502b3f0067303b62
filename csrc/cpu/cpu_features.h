// Which instruction sets this machine can run, and why not the others.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace fastdistil::cpu {

// Names of the CPU features that matter here, as Linux spells them, where CPU and operating system
// both have them. "amx_bf16" is listed only once the kernel has granted the tile registers.
std::vector<std::string> cpu_features();

// Every kernel table compiled in that this machine can run, fastest first.
std::vector<const Kernels*> usable_kernels();

// The tables compiled in but not usable here, with the reason: "amx: this CPU has no amx_bf16".
std::vector<std::string> unusable_reasons();

// The fastest usable table of that instruction set and precision, or null. An instruction set
// stands for itself and what it includes: "amx" fp32 is AVX-512's, since AMX has no fp32 tiles.
const Kernels* find_kernels(const std::string& isa, const std::string& precision);

}  // namespace fastdistil::cpu
