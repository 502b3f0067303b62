// CUDA's execution model on one host thread: a grid of blocks, their threads as fibers, and all
// that threads do together. docs/emulation.md says what it shows and what it cannot.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastdistil::emulation {

constexpr int kWarpSize = 32;

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
  Dim3() = default;
  Dim3(unsigned x_, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  unsigned count() const { return x * y * z; }
};

// A kernel did what CUDA leaves undefined, or would never have ended.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Grid {
  Dim3 blocks, threads;
  std::size_t shared_bytes = 0;
  // All blocks at once, as in a cooperative launch; otherwise one after the other.
  bool cooperative = false;
};

// Runs `kernel` once for every thread.
//
// Raises Error: the threads of a warp met in different places, a thread left while others wait for
// it, everybody waits. What the kernel itself throws comes out too.
void launch(const Grid& grid, const std::function<void()>& kernel);

// The order in which threads, and blocks that come one after the other, get their turns from now
// on. A kernel without races computes the same bits for every seed. Under any three seeds in a row
// a block runs once with all threads side by side, once with warps that run ahead as far as they
// can, once with some held back.
void set_seed(unsigned seed);

// --- for code inside a kernel --------------------------------------------------------------------

struct Position {
  Dim3 thread, block, block_size, grid_size;
  int lane;
};
const Position& position();

// The block's dynamic shared memory: as many bytes as it was launched with, all 0xff (a NaN) at
// first.
char* shared_memory();

void sync_threads();
void sync_warp();
// All blocks of a cooperative launch.
void sync_grid();
// One turn of a loop that waits for another thread to write something.
void spin();

// cp.async: until the thread waits for the group it belongs to, a copy's destination is all 0xff.
void async_copy(void* shared, const void* global, std::size_t bytes);
void async_commit();
// Until at most `pending` of the thread's committed groups are under way.
void async_wait(int pending);

// What a warp does together: every lane brings a value and takes one back. `compute` runs once,
// when all 32 lanes have come. A lane that calls under another name is an Error.
using Compute = std::function<void(const std::array<const void*, kWarpSize>& given,
                                   const std::array<void*, kWarpSize>& results)>;
void warp_together(const char* name, const void* given, void* result, const Compute& compute);

template <class Given, class Result, class Function>
Result warp(const char* name, const Given& given, Function&& function) {
  Result result{};
  warp_together(
      name, &given, &result,
      [&](const std::array<const void*, kWarpSize>& in, const std::array<void*, kWarpSize>& out) {
        std::array<const Given*, kWarpSize> values;
        std::array<Result*, kWarpSize> results;
        for (int lane = 0; lane < kWarpSize; ++lane) {
          values[lane] = static_cast<const Given*>(in[lane]);
          results[lane] = static_cast<Result*>(out[lane]);
        }
        function(values, results);
      });
  return result;
}

}  // namespace fastdistil::emulation
