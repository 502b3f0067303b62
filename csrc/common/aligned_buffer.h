// A zeroed, cache-line aligned block of memory with huge pages asked for where it is large.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastdistil {

class AlignedBuffer {
 public:
  AlignedBuffer() = default;

  explicit AlignedBuffer(std::size_t bytes) : size_(bytes) {
    if (bytes == 0) return;
    // 2 MB pages: a forward walks tens of megabytes of weights, more than the TLB covers with 4 KB.
    constexpr std::size_t kHugePage = std::size_t{2} << 20;
    const std::size_t alignment = bytes >= kHugePage ? kHugePage : 64;
    void* memory = nullptr;
    const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    if (posix_memalign(&memory, alignment, rounded) != 0) throw std::bad_alloc();
    data_.reset(static_cast<char*>(memory));
#if defined(__linux__)
    if (bytes >= kHugePage) madvise(memory, rounded, MADV_HUGEPAGE);
#endif
    std::memset(memory, 0, rounded);
  }

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }
  char* data() const { return data_.get(); }
  std::size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  std::unique_ptr<char, Free> data_;
  std::size_t size_ = 0;
};

}  // namespace fastdistil
