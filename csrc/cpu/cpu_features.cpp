#include "cpu_features.h"

#include <algorithm>
#include <cstdint>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#define FASTDISTIL_X86 1
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastdistil::cpu {
namespace {

#if defined(FASTDISTIL_X86)

struct CpuidLeaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

CpuidLeaf cpuid(unsigned leaf, unsigned subleaf) {
  CpuidLeaf r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

bool bit(std::uint64_t word, int index) { return (word >> index) & 1u; }

// Which register states the operating system saves (XCR0): SDM volume 1, chapter 13.
std::uint64_t saved_states() {
  if (!bit(cpuid(1, 0).ecx, 27)) return 0;  // OSXSAVE
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
}

// Linux hands out the tile registers to a process that asks (arch_prctl, ARCH_REQ_XCOMP_PERM).
bool tiles_granted() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr int kRequestPermission = 0x1023;
  constexpr int kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

std::vector<std::string> detect() {
  std::vector<std::string> found;
  auto add = [&](bool there, const char* name) {
    if (there) found.emplace_back(name);
  };
  const CpuidLeaf basic = cpuid(1, 0), extended = cpuid(7, 0), extended1 = cpuid(7, 1);
  const std::uint64_t states = saved_states();
  const bool ymm = bit(states, 1) && bit(states, 2);
  const bool zmm = ymm && bit(states, 5) && bit(states, 6) && bit(states, 7);
  const bool tiles = zmm && bit(states, 17) && bit(states, 18);
  add(ymm && bit(extended.ebx, 5), "avx2");
  add(ymm && bit(basic.ecx, 12), "fma");
  add(ymm && bit(extended1.eax, 4), "avx_vnni");
  add(zmm && bit(extended.ebx, 16), "avx512f");
  add(zmm && bit(extended.ebx, 17), "avx512dq");
  add(zmm && bit(extended.ebx, 30), "avx512bw");
  add(zmm && bit(extended.ebx, 31), "avx512vl");
  add(zmm && bit(extended.ecx, 11), "avx512_vnni");
  add(zmm && bit(extended1.eax, 5), "avx512_bf16");
  const bool amx_tile = tiles && bit(extended.edx, 24) && bit(extended.edx, 22);
  add(amx_tile && tiles_granted(), "amx_bf16");
  add(amx_tile && bit(extended.edx, 25) && tiles_granted(), "amx_int8");
  return found;
}

#else

std::vector<std::string> detect() { return {}; }

#endif

struct Entry {
  const Kernels* kernels;
  std::vector<const char*> needs;
};

// Fastest first; what the compiler could not build is left out by CMake's definitions.
std::vector<Entry> entries() {
  std::vector<Entry> all;
#if FASTDISTIL_HAVE_AMX_INT8
  all.push_back(
      {&kAmxInt8,
       {"amx_int8", "amx_bf16", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16"}});
#endif
#if FASTDISTIL_HAVE_AMX_BF16
  all.push_back(
      {&kAmxBf16, {"amx_bf16", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16"}});
#endif
#if FASTDISTIL_HAVE_AVX512_INT8_BF16
  all.push_back({&kAvx512Int8Bf16,
                 {"avx512_vnni", "avx512_bf16", "avx512f", "avx512bw", "avx512vl", "avx512dq"}});
#endif
#if FASTDISTIL_HAVE_AVX512_INT8
  all.push_back({&kAvx512Int8, {"avx512_vnni", "avx512f", "avx512bw", "avx512vl", "avx512dq"}});
#endif
#if FASTDISTIL_HAVE_AVX512_BF16
  all.push_back({&kAvx512Bf16, {"avx512_bf16", "avx512f", "avx512bw", "avx512vl", "avx512dq"}});
#endif
#if FASTDISTIL_HAVE_AVX512_FP32
  all.push_back({&kAvx512Fp32, {"avx512f", "avx512bw", "avx512vl", "avx512dq"}});
#endif
#if FASTDISTIL_HAVE_AVX2_INT8
  all.push_back({&kAvx2Int8, {"avx_vnni", "avx2", "fma"}});
#endif
#if FASTDISTIL_HAVE_AVX2_FP32
  all.push_back({&kAvx2Fp32, {"avx2", "fma"}});
#endif
  all.push_back({&kPortableFp32, {}});
  return all;
}

// The first feature that is needed and not there, or null.
const char* missing(const Entry& entry, const std::vector<std::string>& features) {
  for (const char* need : entry.needs) {
    if (std::find(features.begin(), features.end(), need) == features.end()) return need;
  }
  return nullptr;
}

int rung(const std::string& isa) {
  const char* ladder[] = {"portable", "avx2", "avx512", "amx"};
  const auto at = std::find(std::begin(ladder), std::end(ladder), isa);
  return at == std::end(ladder) ? -1 : static_cast<int>(at - std::begin(ladder));
}

}  // namespace

std::vector<std::string> cpu_features() {
  static const std::vector<std::string> found = detect();
  return found;
}

std::vector<const Kernels*> usable_kernels() {
  std::vector<const Kernels*> usable;
  for (const Entry& entry : entries()) {
    if (missing(entry, cpu_features()) == nullptr) usable.push_back(entry.kernels);
  }
  return usable;
}

std::vector<std::string> unusable_reasons() {
  std::vector<std::string> reasons;
  for (const Entry& entry : entries()) {
    if (const char* need = missing(entry, cpu_features())) {
      reasons.push_back(std::string(entry.kernels->isa) + " " + entry.kernels->precision +
                        ": this machine has no " + need);
    }
  }
  return reasons;
}

const Kernels* find_kernels(const std::string& isa, const std::string& precision) {
  for (const Kernels* kernels : usable_kernels()) {
    if (rung(kernels->isa) <= rung(isa) && kernels->precision == precision) return kernels;
  }
  return nullptr;
}

}  // namespace fastdistil::cpu
