// The emulation's own tests: what tiny kernels compute on it, and that it finds what is wrong with
// others.
#include <array>
#include <set>

#if defined(__unix__)
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "../../cuda/published.h"
#include "../../cuda/rows.h"
#include "arrays.h"

#if defined(__SANITIZE_ADDRESS__)
#define FASTDISTIL_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FASTDISTIL_ASAN 1
#endif
#endif

namespace fastdistil::tests {
namespace {

using emulation::Dim3;

constexpr int kSeeds = 3;

template <class Kernel>
void run(const Dim3& blocks, const Dim3& threads, std::size_t shared_bytes, Kernel&& kernel) {
  emulation::launch({blocks, threads, shared_bytes, false}, kernel);
}

template <class Kernel>
void run_cooperative(const Dim3& blocks, const Dim3& threads, Kernel&& kernel) {
  emulation::launch({blocks, threads, 0, true}, kernel);
}

template <class Function>
void for_every_seed(Function&& function) {
  for (unsigned seed = 0; seed < kSeeds; ++seed) {
    emulation::set_seed(seed);
    function();
  }
  emulation::set_seed(0);
}

template <class T>
T* shared() {
  return reinterpret_cast<T*>(cuda::shared_memory());
}

unsigned x() { return threadIdx.x; }
unsigned lane() { return threadIdx.x % 32; }

// What the emulation says of it, under every seed; "" if it says nothing.
template <class Function>
std::vector<std::string> errors_of(Function&& function) {
  std::vector<std::string> errors;
  for_every_seed([&] {
    try {
      function();
      errors.emplace_back();
    } catch (const emulation::Error& error) {
      errors.emplace_back(error.what());
    }
  });
  return errors;
}

template <class Function>
void check_error(Function&& function, const std::vector<std::string>& parts) {
  for (const std::string& error : errors_of(function)) {
    for (const std::string& part : parts) {
      CHECK(error.find(part) != std::string::npos, "'" + part + "' in '" + error + "'");
    }
  }
}

// How many different results run() has under the first seeds.
template <class Run>
std::size_t different_results(Run&& run) {
  std::set<std::string> results;
  for_every_seed([&] {
    const auto result = run();
    results.emplace(reinterpret_cast<const char*>(result.data()), result.bytes());
  });
  return results.size();
}

// --- threads and blocks --------------------------------------------------------------------------

TEST(emulation_runs_every_thread_of_every_block_once) {
  const Dim3 blocks(3, 2, 2), threads(5, 4, 3);
  std::vector<int> visits(12 * 60);
  run(blocks, threads, 0, [&] {
    CHECK(gridDim.x == 3 && gridDim.y == 2 && gridDim.z == 2);
    CHECK(blockDim.x == 5 && blockDim.y == 4 && blockDim.z == 3);
    const unsigned block = (blockIdx.z * 2 + blockIdx.y) * 3 + blockIdx.x;
    const unsigned thread = (threadIdx.z * 4 + threadIdx.y) * 5 + threadIdx.x;
    CHECK(emulation::position().lane == static_cast<int>(thread % 32));
    CHECK(cuda::thread_index() == static_cast<int>(threadIdx.x));
    ++visits.at(block * 60 + thread);
  });
  for (const int count : visits) CHECK(count == 1);
}

TEST(emulation_hands_on_what_a_kernel_throws_and_goes_on_afterwards) {
  std::string what;
  try {
    run(2, 64, 0, [] {
      if (x() == 40) throw std::out_of_range("from inside");
      __syncthreads();
    });
  } catch (const std::out_of_range& error) {
    what = error.what();
  }
  CHECK(what == "from inside", what);
  int threads = 0;
  run(2, 64, 0, [&] { ++threads; });
  CHECK(threads == 128);
}

TEST(emulation_refuses_what_no_gpu_launches) {
  check_error([] { run(1, 1025, 0, [] {}); }, {"1 to 1024 threads, not 1025"});
  check_error([] { run(1, 0, 0, [] {}); }, {"1 to 1024 threads, not 0"});
  check_error([] { run(1, 1, 0, [] { run(1, 1, 0, [] {}); }); }, {"cannot launch another"});
  check_error([] { __syncthreads(); }, {"outside of a kernel"});
}

// --- barriers ------------------------------------------------------------------------------------

Array<float> reversed_in_shared_memory(unsigned threads, bool barrier) {
  Array<float> out(threads);
  run(1, threads, threads * sizeof(float), [&] {
    shared<float>()[x()] = static_cast<float>(x());
    if (barrier) __syncthreads();
    out[x()] = shared<float>()[threads - 1 - x()];
  });
  return out;
}

TEST(emulation_keeps_barriers_of_a_block) {
  for (const unsigned threads : {32u, 50u, 256u}) {
    for_every_seed([&] {
      const Array<float> out = reversed_in_shared_memory(threads, true);
      for (unsigned i = 0; i < threads; ++i) CHECK(out[i] == static_cast<float>(threads - 1 - i));
    });
  }
}

TEST(emulation_finds_a_missing_barrier) {
  for (const unsigned threads : {32u, 64u, 256u}) {
    CHECK(different_results([&] { return reversed_in_shared_memory(threads, true); }) == 1);
    CHECK(different_results([&] { return reversed_in_shared_memory(threads, false); }) > 1,
          std::to_string(threads));
  }
}

// Sums over a block, one after the other, by way of the same shared memory.
Array<float> block_sums_in_one_buffer(unsigned warps, int sums, bool barrier) {
  const unsigned threads = 32 * warps;
  Array<float> out(static_cast<std::size_t>(sums) * threads);
  run(1, threads, warps * sizeof(float), [&] {
    for (int i = 0; i < sums; ++i) {
      if (barrier && i > 0) __syncthreads();
      const auto mine = static_cast<float>(x() + static_cast<unsigned>(i) * 1000);
      out[static_cast<unsigned>(i) * threads + x()] = cuda::block_sum(mine, shared<float>());
    }
  });
  return out;
}

TEST(emulation_finds_a_buffer_reused_without_a_barrier) {
  for (const unsigned warps : {2u, 3u, 8u, 32u}) {
    for (const int sums : {2, 5}) {
      const std::string name = std::to_string(warps) + " warps, " + std::to_string(sums) + " sums";
      const auto good = [&] { return block_sums_in_one_buffer(warps, sums, true); };
      const auto bad = [&] { return block_sums_in_one_buffer(warps, sums, false); };
      CHECK(different_results(good) == 1, name);
      CHECK(different_results(bad) > 1, name);
    }
  }
}

Array<float> swapped_with_neighbours(bool barrier) {
  Array<float> out(64);
  run(1, 64, 64 * sizeof(float), [&] {
    shared<float>()[x()] = static_cast<float>(x());
    if (barrier) __syncwarp();
    out[x()] = shared<float>()[x() ^ 1];
  });
  return out;
}

TEST(emulation_finds_a_missing_barrier_of_a_warp) {
  CHECK(different_results([] { return swapped_with_neighbours(true); }) == 1);
  CHECK(different_results([] { return swapped_with_neighbours(false); }) > 1);
  for (unsigned i = 0; i < 64; ++i) {
    CHECK(swapped_with_neighbours(true)[i] == static_cast<float>(i ^ 1));
  }
}

TEST(emulation_syncs_the_last_part_of_a_warp) {
  Array<float> out(40);
  run(1, 40, 0, [&] {
    __syncwarp();
    out[x()] = 1;
  });
  for (std::size_t i = 0; i < 40; ++i) CHECK(out[i] == 1);
}

// --- warps ---------------------------------------------------------------------------------------

TEST(emulation_shuffles_and_votes) {
  for_every_seed([] {
    run(2, 96, 0, [] {
      const unsigned base = x() - lane();
      CHECK(__shfl_xor_sync(cuda::kFullWarp, x(), 5) == (x() ^ 5));
      CHECK(__shfl_sync(cuda::kFullWarp, x(), 9) == base + 9);
      // Every lane may ask another one; sources count modulo 32.
      CHECK(__shfl_sync(cuda::kFullWarp, x(), static_cast<int>(lane() * 7 + 3)) ==
            base + (lane() * 7 + 3) % 32);
      CHECK(__shfl_up_sync(cuda::kFullWarp, x(), 4) == (lane() < 4 ? x() : x() - 4));
      CHECK(__shfl_xor_sync(cuda::kFullWarp, 0.5 * x(), 16) == 0.5 * (x() ^ 16));
      CHECK(__ballot_sync(cuda::kFullWarp, lane() % 3 == 0) == 0x49249249u);
      CHECK(__ballot_sync(cuda::kFullWarp, x() >= 64) == (x() >= 64 ? 0xffffffffu : 0u));
      CHECK(cuda::warp_sum(static_cast<float>(lane())) == 496.0f);
    });
  });
}

TEST(emulation_refuses_collectives_of_part_of_a_warp) {
  check_error([] { run(1, 32, 0, [] { __shfl_sync(0xffffu, 1, 0); }); },
              {"a shuffle of part of a warp"});
  check_error([] { run(1, 32, 0, [] { __ballot_sync(1u, true); }); }, {"a vote of part of a warp"});
  check_error(
      [] {
        run(1, 33, 0, [] {
          if (x() == 32) __ballot_sync(cuda::kFullWarp, true);
        });
      },
      {"__ballot_sync in part of a warp"});
}

TEST(emulation_adds_atomically) {
  for_every_seed([] {
    unsigned sum = 0, bits = 0;
    float numbers = 0;
    std::set<unsigned> before;
    run(3, 64, 0, [&] {
      before.insert(atomicAdd(&sum, 2u));
      atomicAdd(&numbers, 0.5f);
      atomicOr(&bits, 1u << lane());
    });
    CHECK(sum == 384 && numbers == 96.0f && bits == 0xffffffffu);
    CHECK(before.size() == 192 && *before.begin() == 0 && *before.rbegin() == 382);
  });
}

// --- memory --------------------------------------------------------------------------------------

TEST(emulation_fills_shared_memory_with_poison) {
  run(3, 32, 128, [] {
    CHECK(reinterpret_cast<std::uintptr_t>(cuda::shared_memory()) % 16 == 0);
    CHECK(shared<unsigned>()[x()] == 0xffffffffu);
    __syncthreads();
    shared<unsigned>()[x()] = 0;
  });
}

TEST(emulation_lands_copies_at_the_wait) {
  Array<unsigned> source(4 * 128);
  for (unsigned i = 0; i < source.size(); ++i) source[i] = i;
  for_every_seed([&] {
    run(1, 32, source.bytes(), [&] {
      unsigned* to = shared<unsigned>() + 4 * x();
      const unsigned* from = source.data() + 4 * x();
      const auto landed = [&](int group) { return to[128 * group] == 4 * x() + 128u * group; };
      const auto poison = [&](int group) { return to[128 * group] == 0xffffffffu; };
      for (int i = 0; i < 4; ++i) to[128 * i] = 0;
      // Two copies of a group, then a group of 8 bytes, an empty group, one more.
      cuda::async_copy_16(to, from);
      cuda::async_copy_16(to + 128, from + 128);
      CHECK(poison(0) && poison(1));
      cuda::async_commit();
      CHECK(poison(0) && poison(1));
      cuda::async_copy_8(to + 256, from + 256);
      cuda::async_commit();
      cuda::async_commit();
      cuda::async_copy_16(to + 384, from + 384);
      // Not committed: no wait is for it.
      cuda::async_wait<3>();
      CHECK(poison(0) && poison(1) && poison(2) && poison(3));
      cuda::async_commit();
      cuda::async_wait<3>();
      CHECK(landed(0) && landed(1) && poison(2) && poison(3));
      cuda::async_wait<1>();
      CHECK(landed(2) && to[257] == from[257] && to[258] == 0xffffffffu && poison(3));
      cuda::async_wait<0>();
      CHECK(landed(3) && to[387] == from[387]);
    });
  });
}

// A thread's copies are there for others after its wait and a barrier behind that.
TEST(emulation_finds_a_copy_read_before_a_barrier) {
  const Array<float> source = random_array<float>(256, 1);
  const auto copied = [&](bool barrier) {
    Array<float> out(256);
    run(1, 64, source.bytes(), [&] {
      cuda::async_copy_16(shared<float>() + 4 * x(), source.data() + 4 * x());
      cuda::async_commit();
      cuda::async_wait<0>();
      if (barrier) __syncthreads();
      for (unsigned i = 0; i < 4; ++i) out[x() + 64 * i] = shared<float>()[x() + 64 * i];
    });
    return out;
  };
  CHECK(same_bits(copied(true), source));
  CHECK(different_results([&] { return copied(true); }) == 1);
  CHECK(different_results([&] { return copied(false); }) > 1);
}

TEST(emulation_finds_copies_that_nobody_waits_for) {
  const Array<float> source(128);
  const std::vector<std::string> said = {"thread (7, 0, 0) of block (1, 0, 0)",
                                         "ended without waiting for its copies"};
  for (const bool commit : {false, true}) {
    const auto kernel = [&] {
      if (blockIdx.x != 1 || x() != 7) return;
      cuda::async_copy_16(shared<float>(), source.data());
      if (commit) cuda::async_commit();
    };
    check_error([&] { run(2, 32, 16, kernel); }, said);
  }
  // A group of nothing is nothing to wait for.
  run(1, 32, 16, [] { cuda::async_commit(); });
}

// --- blocks that run at once ---------------------------------------------------------------------

TEST(emulation_keeps_barriers_of_a_cooperative_grid) {
  constexpr unsigned kBlocks = 5, kThreads = 40;
  for_every_seed([] {
    Array<unsigned> sums(kBlocks);
    std::vector<unsigned> numbers(kBlocks * kThreads);
    run_cooperative(kBlocks, kThreads, [&] {
      unsigned* mine = &numbers[blockIdx.x * kThreads + x()];
      *mine = 1;
      for (int round = 0; round < 3; ++round) {
        emulation::sync_grid();
        unsigned sum = 0;
        for (const unsigned number : numbers) sum += number;
        emulation::sync_grid();
        *mine = sum;
      }
      if (x() == 0) sums[blockIdx.x] = *mine;
    });
    for (unsigned i = 0; i < kBlocks; ++i) CHECK(sums[i] == 200u * 200 * 200);
  });
}

TEST(emulation_refuses_a_grid_barrier_in_other_launches) {
  check_error([] { run(2, 32, 0, [] { emulation::sync_grid(); }); },
              {"a grid-wide barrier in a launch that is not cooperative"});
}

// Block b waits for what block b - 1 publishes: whatever the order, everybody's turn comes.
TEST(emulation_lets_blocks_wait_for_one_another) {
  constexpr unsigned kBlocks = 6, kSteps = 20;
  for (unsigned seed = 0; seed < 12; ++seed) {
    emulation::set_seed(seed);
    Array<unsigned> words(kBlocks * kSteps * 64);
    run_cooperative(kBlocks, 64, [&] {
      for (unsigned i = 0; i < kBlocks * kSteps; ++i) {
        if (i % kBlocks != blockIdx.x) continue;
        unsigned* word = words.data() + 64 * i + x();
        unsigned value = 0;
        if (i > 0) value = cuda::wait_for(cuda::load_published(word - 64), word - 64);
        // Some by way of others of the block.
        if (i % 4 == 0) __syncthreads();
        if (i % 4 == 1) value = __shfl_sync(cuda::kFullWarp, value, 0) + lane();
        cuda::publish(word, value + 1);
      }
    });
    for (unsigned i = 0; i < 64; ++i) {
      CHECK(words[words.size() - 64 + i] >= kBlocks * kSteps, std::to_string(seed));
    }
  }
  emulation::set_seed(0);
}

// A word that is written twice: whether its reader sees the first value is a matter of luck.
TEST(emulation_finds_a_word_that_is_published_twice) {
  const auto received = [](bool twice) {
    Array<unsigned> out(32), words(32);
    run_cooperative(2, 32, [&] {
      unsigned* word = words.data() + x();
      if (blockIdx.x == 0) {
        cuda::publish(word, 1u);
        for (int i = 0; i < 10; ++i) __syncwarp();
        if (twice) cuda::publish(word, 2u);
      } else {
        out[x()] = cuda::wait_for(cuda::load_published(word), word);
      }
    });
    return out;
  };
  CHECK(different_results([&] { return received(false); }) == 1);
  CHECK(different_results([&] { return received(true); }) > 1);
}

// A block that goes on to overwrite what a slower one still has to read.
TEST(emulation_finds_a_block_that_is_a_step_ahead) {
  const auto received = [](bool barrier) {
    Array<float> out(4 * 64);
    std::vector<float> buffer(64);
    run_cooperative(4, 64, [&] {
      if (blockIdx.x == 0) buffer[x()] = 1;
      emulation::sync_grid();
      for (int i = 0; i < 3; ++i) __syncthreads();
      out[blockIdx.x * 64 + x()] = buffer[x()];
      if (barrier) emulation::sync_grid();
      if (blockIdx.x == 0) buffer[x()] = 2;
    });
    return out;
  };
  CHECK(different_results([&] { return received(true); }) == 1);
  CHECK(different_results([&] { return received(false); }) > 1);
}

// --- what never ends or never meets --------------------------------------------------------------

TEST(emulation_finds_lanes_that_meet_in_different_places) {
  check_error(
      [] {
        run(Dim3(1, 3), 64, 0, [] {
          if (blockIdx.y == 2 && x() >= 48) {
            __ballot_sync(cuda::kFullWarp, true);
          } else {
            __shfl_sync(cuda::kFullWarp, 1, 0);
          }
        });
      },
      {"emulation: thread (", " of block (0, 2, 0) came to ", "__ballot_sync", "__shfl_sync"});
}

TEST(emulation_finds_a_thread_that_leaves_before_a_barrier) {
  check_error(
      [] {
        run(Dim3(2), Dim3(8, 8), 0, [] {
          if (blockIdx.x == 1 && threadIdx.x == 5 && threadIdx.y == 2) return;
          __syncthreads();
        });
      },
      {"threads wait for others that never come; thread (0, 0, 0) of block (1, 0, 0) and 62 more "
       "wait at __syncthreads; ended: 1"});
  check_error(
      [] {
        run_cooperative(3, 32, [] {
          if (blockIdx.x != 1) emulation::sync_grid();
        });
      },
      {"thread (0, 0, 0) of block (0, 0, 0) and 63 more wait at a grid-wide barrier; ended: 32"});
}

TEST(emulation_finds_threads_that_wait_for_one_another) {
  check_error(
      [] {
        run(1, 32, 0, [] {
          if (x() == 3) {
            __syncthreads();
          } else {
            __shfl_sync(cuda::kFullWarp, 1, 0);
          }
        });
      },
      {"thread (0, 0, 0) of block (0, 0, 0) and 30 more wait at __shfl_sync; "
       "thread (3, 0, 0) of block (0, 0, 0) waits at __syncthreads"});
}

TEST(emulation_finds_an_endless_wait_for_memory) {
  const Array<unsigned> never(1);
  check_error(
      [&] {
        run_cooperative(2, 32, [&] {
          if (blockIdx.x == 0) {
            __syncthreads();
          } else if (x() == 9) {
            cuda::wait_for(cuda::load_published(never.data()), never.data());
          } else {
            __syncwarp();
          }
        });
      },
      {"what is waited for never comes; thread (0, 0, 0) of block (1, 0, 0) and 30 more wait at "
       "__syncwarp; thread (9, 0, 0) of block (1, 0, 0) waits for memory; ended: 32"});
}

// Lanes that look and then vote on what they saw do something in every turn.
TEST(emulation_finds_an_endless_vote_on_memory) {
  const Array<unsigned> never(1);
  std::string what;
  try {
    run(1, 32, 0, [&] {
      while (__ballot_sync(cuda::kFullWarp, never[0] == cuda::kUnwritten) != 0) cuda::pause();
    });
  } catch (const emulation::Error& error) {
    what = error.what();
  }
  CHECK(what.find("what is waited for never comes; thread (") != std::string::npos, what);
}

// --- tensor cores --------------------------------------------------------------------------------

template <class T>
unsigned pair_of(const T& low, const T& high) {
  return low.bits | unsigned{high.bits} << 16;
}

template <class Function>
void for_both_types(Function&& function) {
  function(BFloat16{});
  function(Float16{});
}

// Sums of 16 products in double, rounded once.
double product_rounding(double exact, double magnitude) {
  return kFloatRoundoff * std::abs(exact) + 32 * 0x1p-53 * magnitude + 0x1p-150;
}

// Register i of a lane as the PTX manual numbers them: two numbers of A or B in each, one of C.
int row_of_a(int lane, int i) { return lane / 4 + (i / 2 % 2 == 0 ? 0 : 8); }
int column_of_a(int lane, int i) { return lane % 4 * 2 + i % 2 + (i >= 4 ? 8 : 0); }
int row_of_b(int lane, int i) { return lane % 4 * 2 + i % 2 + (i >= 2 ? 8 : 0); }
int column_of_b(int lane) { return lane / 4; }
int row_of_c(int lane, int i) { return lane / 4 + (i < 2 ? 0 : 8); }
int column_of_c(int lane, int i) { return lane % 4 * 2 + i % 2; }

template <class T>
struct Product {
  Array<T> a = random_array<T>(16 * 16, 1), b = random_array<T>(16 * 8, 2);
  Array<float> c = random_array<float>(16 * 8, 3, 0, 100), d = Array<float>(16 * 8);

  void check() const {
    for (std::size_t i = 0; i < 16; ++i) {
      for (std::size_t j = 0; j < 8; ++j) {
        double exact = c[i * 8 + j], magnitude = std::abs(exact);
        for (std::size_t k = 0; k < 16; ++k) {
          const double term = a.at(i * 16 + k) * b.at(k * 8 + j);
          exact += term;
          magnitude += std::abs(term);
        }
        CHECK(std::abs(d.at(i * 8 + j) - exact) <= product_rounding(exact, magnitude),
              type_name<T>());
      }
    }
  }
  void multiply(const unsigned (&registers_a)[4], unsigned b0, unsigned b1) {
    const int lane = emulation::position().lane;
    const auto at = [&](int i) {
      return static_cast<std::size_t>(row_of_c(lane, i) * 8 + column_of_c(lane, i));
    };
    float sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = c[at(i)];
    cuda::multiply_add<T>(sums, registers_a, b0, b1);
    for (int i = 0; i < 4; ++i) d[at(i)] = sums[i];
  }
};

TEST(emulation_multiplies_fragments) {
  for_both_types([](auto t) {
    using T = decltype(t);
    Product<T> product;
    run(1, 32, 0, [&] {
      const int lane = emulation::position().lane;
      const auto a = [&](int i) {
        return product.a[static_cast<std::size_t>(row_of_a(lane, i) * 16 + column_of_a(lane, i))];
      };
      const auto b = [&](int i) {
        return product.b[static_cast<std::size_t>(row_of_b(lane, i) * 8 + column_of_b(lane))];
      };
      const unsigned registers_a[4] = {pair_of(a(0), a(1)), pair_of(a(2), a(3)),
                                       pair_of(a(4), a(5)), pair_of(a(6), a(7))};
      product.multiply(registers_a, pair_of(b(0), b(1)), pair_of(b(2), b(3)));
    });
    product.check();
  });
}

// A from its rows; B from its rows by way of the transposition, and from its columns.
TEST(emulation_loads_the_fragments_that_it_multiplies) {
  for_both_types([](auto t) {
    using T = decltype(t);
    for (const bool by_columns : {false, true}) {
      Product<T> product;
      run(1, 32, (16 * 16 + 16 * 16) * sizeof(T), [&] {
        T* a = shared<T>();
        T* b = a + 16 * 16;
        for (unsigned i = x(); i < 16 * 16; i += 32) a[i] = product.a[i];
        for (unsigned i = x(); i < 16 * 8; i += 32) {
          const unsigned row = i / 8, column = i % 8;
          b[by_columns ? column * 16 + row : i] = product.b[i];
        }
        __syncwarp();
        // Lane 8 m + r points at row r of matrix m.
        const unsigned matrix = x() / 8, r = x() % 8;
        unsigned registers_a[4], registers_b[4];
        cuda::load_matrices<false>(registers_a, a + (r + matrix % 2 * 8) * 16 + matrix / 2 * 8);
        if (by_columns) {
          cuda::load_matrices<false>(registers_b, b + r * 16 + matrix % 2 * 8);
        } else {
          cuda::load_matrices<true>(registers_b, b + (r + matrix % 2 * 8) * 8);
        }
        product.multiply(registers_a, registers_b[0], registers_b[1]);
      });
      product.check();
    }
  });
}

TEST(emulation_loads_matrices_from_rows_anywhere) {
  // Rows of 16 bytes in an order of their own: matrix m's row r is number 5 (8 m + r) mod 32.
  run(1, 32, 512, [] {
    for (unsigned i = 0; i < 8; ++i) {
      shared<std::uint16_t>()[8 * x() + i] = static_cast<std::uint16_t>(8 * x() + i);
    }
    __syncwarp();
    const void* row = shared<std::uint16_t>() + 8 * (5 * x() % 32);
    const auto element = [](unsigned matrix, unsigned r, unsigned column) {
      return 8 * (5 * (8 * matrix + r) % 32) + column;
    };
    const unsigned g = lane() / 4, t = lane() % 4;
    unsigned plain[4], transposed[4];
    cuda::load_matrices<false>(plain, row);
    cuda::load_matrices<true>(transposed, row);
    for (unsigned m = 0; m < 4; ++m) {
      CHECK(plain[m] == (element(m, g, 2 * t) | element(m, g, 2 * t + 1) << 16));
      CHECK(transposed[m] == (element(m, 2 * t, g) | element(m, 2 * t + 1, g) << 16));
    }
  });
  check_error(
      [] {
        run(1, 32, 1024, [] {
          unsigned out[4];
          cuda::load_matrices<false>(out, shared<char>() + 16 * x() + (x() == 20 ? 8 : 0));
        });
      },
      {"ldmatrix of an address that is no multiple of 16"});
}

// --- numbers -------------------------------------------------------------------------------------

template <class T>
struct Format;
template <>
struct Format<BFloat16> {
  static constexpr int kFractionBits = 7, kExponentBits = 8;
};
template <>
struct Format<Float16> {
  static constexpr int kFractionBits = 10, kExponentBits = 5;
};

// The number that 16 bits stand for, by IEEE 754's definition.
template <class T>
double defined_value(unsigned bits) {
  constexpr int kFraction = Format<T>::kFractionBits, kExponent = Format<T>::kExponentBits;
  constexpr int kBias = (1 << (kExponent - 1)) - 1, kSpecial = (1 << kExponent) - 1;
  const auto fraction = static_cast<int>(bits & ((1u << kFraction) - 1));
  const auto exponent = static_cast<int>(bits >> kFraction & ((1u << kExponent) - 1));
  double value;
  if (exponent == kSpecial) {
    value = fraction == 0 ? kInfinity : kNan;
  } else if (exponent == 0) {
    value = std::ldexp(fraction, 1 - kBias - kFraction);
  } else {
    value = std::ldexp(fraction + (1 << kFraction), exponent - kBias - kFraction);
  }
  return (bits & 0x8000u) != 0 ? -value : value;
}

template <class T>
unsigned rounded(float value) {
  return cuda::from_float<T>(value).bits;
}

TEST(numbers_of_16_bits_are_read_and_written_as_defined) {
  for_both_types([](auto t) {
    using T = decltype(t);
    for (unsigned bits = 0; bits < 65536; ++bits) {
      const double value = defined_value<T>(bits);
      const float got = cuda::to_float(T{static_cast<std::uint16_t>(bits)});
      if (std::isnan(value)) {
        CHECK(std::isnan(got) && rounded<T>(got) == 0x7fff, std::to_string(bits));
      } else {
        // Zeros, too, keep their sign.
        CHECK(got == value && std::signbit(got) == std::signbit(value), std::to_string(bits));
        CHECK(rounded<T>(got) == bits, std::to_string(bits));
      }
    }
  });
}

TEST(numbers_are_rounded_to_nearest_and_ties_to_even) {
  for_both_types([](auto t) {
    using T = decltype(t);
    constexpr unsigned kInf = ((1u << Format<T>::kExponentBits) - 1) << Format<T>::kFractionBits;
    for (unsigned bits = 0; bits < kInf; ++bits) {
      const double low = defined_value<T>(bits);
      // Behind the largest number infinity takes the place of the next one.
      const double high =
          bits + 1 < kInf ? defined_value<T>(bits + 1) : 2 * low - defined_value<T>(bits - 1);
      const auto middle = static_cast<float>(low + (high - low) / 2);
      const unsigned even = bits % 2 == 0 ? bits : bits + 1;
      const float below = std::nextafter(middle, 0.0f), above = std::nextafter(middle, INFINITY);
      CHECK(rounded<T>(middle) == even && rounded<T>(-middle) == (even | 0x8000u),
            std::to_string(bits));
      CHECK(rounded<T>(below) == bits && rounded<T>(-below) == (bits | 0x8000u),
            std::to_string(bits));
      CHECK(rounded<T>(above) == bits + 1 && rounded<T>(-above) == ((bits + 1) | 0x8000u),
            std::to_string(bits));
    }
    for (const float value : {INFINITY, std::numeric_limits<float>::max()}) {
      CHECK(rounded<T>(value) == kInf && rounded<T>(-value) == (kInf | 0x8000u));
    }
    // The least float there is, and zeros.
    CHECK(rounded<T>(0x1p-149f) == 0 && rounded<T>(-0x1p-149f) == 0x8000u);
    CHECK(rounded<T>(0.0f) == 0 && rounded<T>(-0.0f) == 0x8000u);
    for (const unsigned nan : {0x7f800001u, 0x7fffffffu, 0xff800001u, 0xffffffffu, 0x7fc00000u}) {
      CHECK(rounded<T>(__uint_as_float(nan)) == 0x7fff);
    }
  });
}

TEST(pairs_have_the_lower_number_in_the_lower_bits) {
  for_both_types([](auto t) {
    using T = decltype(t);
    for (unsigned bits = 0; bits < 65536; ++bits) {
      const unsigned other = bits * 40503u & 0xffffu;
      const float low = cuda::to_float(T{static_cast<std::uint16_t>(bits)});
      const float high = cuda::to_float(T{static_cast<std::uint16_t>(other)});
      const unsigned pair = cuda::pack_pair<T>(low, high);
      CHECK((pair & 0xffffu) == rounded<T>(low) && pair >> 16 == rounded<T>(high));
      const float2 both = cuda::unpack_pair<T>(bits | other << 16);
      CHECK(__float_as_uint(both.x) == __float_as_uint(low) &&
            __float_as_uint(both.y) == __float_as_uint(high));
    }
  });
}

TEST(byte_perm_takes_the_bytes_that_are_named) {
  for (unsigned selector = 0; selector < 65536; ++selector) {
    unsigned expected = 0;
    for (unsigned i = 0; i < 4; ++i) expected |= (selector >> 4 * i & 7u) * 0x11u << 8 * i;
    CHECK(__byte_perm(0x33221100u, 0x77665544u, selector) == expected, std::to_string(selector));
  }
}

// --- steps past the end --------------------------------------------------------------------------

#if defined(FASTDISTIL_ASAN) && defined(__unix__)

// What a child that does this says before it dies; "" if it lives.
template <class Function>
std::string last_words(Function&& function) {
  int ends[2];
  if (!CHECK(pipe(ends) == 0)) return "";
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    function();
    _exit(0);
  }
  close(ends[1]);
  std::string words;
  char buffer[4096];
  for (ssize_t count; (count = read(ends[0], buffer, sizeof buffer)) > 0;) {
    words.append(buffer, static_cast<std::size_t>(count));
  }
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? "" : words;
}

TEST(sanitizer_sees_steps_past_the_end) {
  const auto shared_of = [](unsigned step) {
    return last_words([&] {
      Array<float> out(32);
      run(1, 32, 128, [&] {
        shared<float>()[x()] = 1;
        __syncthreads();
        out[x()] = shared<float>()[x() + step];
      });
    });
  };
  const auto global_of = [](unsigned step) {
    return last_words([&] {
      Array<float> out(32);
      const Array<float> in = random_array<float>(32, 1);
      run(1, 32, 0, [&] { out[x()] = in.data()[x() + step]; });
    });
  };
  for (const auto& words : {shared_of(0), global_of(0)}) CHECK(words.empty(), words);
  for (const auto& words : {shared_of(1), global_of(1)}) {
    CHECK(words.find("AddressSanitizer: heap-buffer-overflow") != std::string::npos, words);
  }
}

#else

TEST(sanitizer_sees_steps_past_the_end) {
  std::cout << "       (needs AddressSanitizer: it runs in make sanitize-address)\n";
}

#endif

}  // namespace
}  // namespace fastdistil::tests
