// Memory through which the blocks of one launch hand numbers to one another, without barriers.
//
// Every 32-bit word is written at most once in a launch, by whoever computes it. Before the launch
// all words hold kUnwritten, two NaNs that no conversion to 16 bits gives (theirs is 0x7fff): so a
// reader looks at the very numbers that it wants until they are there. That is one trip to the L2
// cache and back where a barrier takes three (write and fence, count, look at the count), and
// nobody waits for more than what he reads. NCCL's low-latency protocol hands over data and flags
// in the same way (Hu et al., "Demystifying NCCL", arXiv 2507.04786); a value that stands for "not
// yet" is Lamport's.
//
// Words are single accesses, relaxed and at the scope of the GPU (PTX ISA, "Memory Consistency
// Model"): nothing is concluded from one word about another, so no fences are needed.
#pragma once

#include "device.h"

namespace fastdistil::cuda {

constexpr unsigned kUnwritten = 0xffffffffu;

FASTDISTIL_DEVICE unsigned load_published(const unsigned* from) {
#if defined(__CUDACC__)
  unsigned word;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(from));
  return word;
#else
  return *from;
#endif
}

FASTDISTIL_DEVICE uint4 load_published(const uint4* from) {
#if defined(__CUDACC__)
  uint4 words;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(from));
  return words;
#else
  return *from;
#endif
}

FASTDISTIL_DEVICE void publish(unsigned* to, unsigned word) {
#if defined(__CUDACC__)
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(word) : "memory");
#else
  *to = word;
#endif
}

FASTDISTIL_DEVICE void publish(uint2* to, uint2 words) {
#if defined(__CUDACC__)
  asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(words.x), "r"(words.y)
               : "memory");
#else
  *to = words;
#endif
}

// One turn of a loop that waits for somebody else to write.
FASTDISTIL_DEVICE void pause() {
#if !defined(__CUDACC__)
  emulation::spin();
#endif
}

// A word, once it is there.
FASTDISTIL_DEVICE unsigned wait_for(unsigned word, const unsigned* from) {
  while (word == kUnwritten) {
    pause();
    word = load_published(from);
  }
  return word;
}

// Four words, of which x and z are awaited if `first`, y and w if `second`: zeros for the others.
FASTDISTIL_DEVICE uint4 wait_for(uint4 words, const uint4* from, bool first = true,
                                 bool second = true) {
  while ((first && (words.x == kUnwritten || words.z == kUnwritten)) ||
         (second && (words.y == kUnwritten || words.w == kUnwritten))) {
    pause();
    words = load_published(from);
  }
  if (!first) words.x = words.z = 0;
  if (!second) words.y = words.w = 0;
  return words;
}

}  // namespace fastdistil::cuda
