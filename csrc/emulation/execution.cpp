#include "execution.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <utility>

#include "fiber.h"

namespace fastdistil::emulation {

namespace {

constexpr int kPoison = 0xff;
constexpr std::uint32_t kAllLanes = 0xffffffffu;

// splitmix64 (Steele et al., "Fast splittable pseudorandom number generators"): quick, for every
// turn draws a number, and the same numbers with every standard library.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t x = state_ += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
  }
  // 0 to n - 1.
  std::size_t below(std::size_t n) {
    return static_cast<std::size_t>((next() >> 32) * static_cast<std::uint64_t>(n) >> 32);
  }
  template <class T>
  void shuffle(std::vector<T>& items) {
    for (std::size_t n = items.size(); n > 1; --n) std::swap(items[n - 1], items[below(n)]);
  }

 private:
  std::uint64_t state_;
};

struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
};

// Threads that wait for one another, and how many have come.
struct Meeting {
  const char* name = "";
  std::size_t arrived = 0;
};

struct Block;
struct Thread;

// What came of turns: a thread did something; one only looked at memory in vain.
struct Pass {
  bool anyone_advanced = false, anyone_spun = false;
};

struct Warp {
  Meeting meeting;
  std::size_t size = kWarpSize;
  Thread* threads = nullptr;
  // A bit for each lane: it has not ended; it has not ended and waits at no meeting; it is held
  // back.
  std::uint32_t live = 0, ready = 0, held = 0;
  // Which of the lanes have the earlier turn of this round.
  std::uint32_t first_half = 0;
  // What came of this round; whether it lets it pass, and how many more.
  Pass passes;
  bool rests = false;
  int rest = 0;
  std::array<const void*, kWarpSize> given{};
  std::array<void*, kWarpSize> results{};
};

struct Thread {
  Position position;
  Block* block = nullptr;
  Warp* warp = nullptr;
  std::unique_ptr<Fiber> fiber;
  // The meeting it waits at; null while it may run.
  const char* waits_at = nullptr;
  bool spins = false;
  int spins_so_far = 0;
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> committed;

  std::uint32_t bit() const { return std::uint32_t{1} << position.lane; }
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Meeting barrier;
  std::unique_ptr<char[]> shared;
};

struct Run {
  const Grid* grid = nullptr;
  std::vector<Block>* blocks = nullptr;
  Meeting grid_barrier;
  Thread* current = nullptr;
  std::exception_ptr failure;
};

thread_local Run* running = nullptr;
thread_local Random dice{0};
// The seed, and then one more for every launch: three in a row give a block all three Orders.
thread_local unsigned next_order = 0;

Thread& self() {
  if (running == nullptr || running->current == nullptr) {
    throw Error("emulation: called outside of a kernel");
  }
  return *running->current;
}

std::string name_of(const Dim3& at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) +
         ")";
}

std::string name_of(const Thread& thread) {
  return "thread " + name_of(thread.position.thread) + " of block " +
         name_of(thread.position.block);
}

// True for the last of `size` to come, who has to do what there is to do and then to let the others
// go on.
bool arrive(Meeting& meeting, const char* name, std::size_t size) {
  if (meeting.arrived == 0) {
    meeting.name = name;
  } else if (std::strcmp(meeting.name, name) != 0) {
    throw Error("emulation: " + name_of(self()) + " came to " + name + ", others of its group to " +
                meeting.name);
  }
  if (++meeting.arrived < size) return false;
  meeting.arrived = 0;
  return true;
}

void wait(const Meeting& meeting) {
  Thread& thread = self();
  thread.waits_at = meeting.name;
  thread.warp->ready &= ~thread.bit();
  thread.fiber->give_way();
}

// All have come, so all of them wait for nothing else.
void let_go_on(Warp& warp) { warp.ready = warp.live; }
void let_go_on(Block& block) {
  for (Warp& warp : block.warps) let_go_on(warp);
}
void let_go_on(std::vector<Block>& blocks) {
  for (Block& block : blocks) let_go_on(block);
}

template <class Group>
void meet(Meeting& meeting, const char* name, std::size_t size, Group& group) {
  if (arrive(meeting, name, size)) {
    let_go_on(group);
  } else {
    wait(meeting);
  }
}

void check_copies(const Thread& thread) {
  const auto empty = [](const std::vector<Copy>& group) { return group.empty(); };
  if (empty(thread.open) && std::all_of(thread.committed.begin(), thread.committed.end(), empty)) {
    return;
  }
  throw Error("emulation: " + name_of(thread) + " ended without waiting for its copies");
}

void set_up(Block& block, const Grid& grid, const Dim3& index,
            const std::function<void()>& kernel) {
  const std::size_t size = grid.threads.count();
  // Exactly as large as asked for: what reads past the end is AddressSanitizer's to find.
  block.shared = std::make_unique<char[]>(grid.shared_bytes);
  std::memset(block.shared.get(), kPoison, grid.shared_bytes);
  block.warps = std::vector<Warp>((size + kWarpSize - 1) / kWarpSize);
  block.threads = std::vector<Thread>(size);
  for (std::size_t i = 0; i < block.warps.size(); ++i) {
    Warp& warp = block.warps[i];
    warp.size = std::min(size - i * kWarpSize, std::size_t{kWarpSize});
    warp.threads = &block.threads[i * kWarpSize];
    warp.live = warp.ready = kAllLanes >> (kWarpSize - warp.size);
  }
  for (std::size_t i = 0; i < size; ++i) {
    Thread& thread = block.threads[i];
    const auto n = static_cast<unsigned>(i);
    const Dim3& shape = grid.threads;
    thread.position = {{n % shape.x, n / shape.x % shape.y, n / shape.x / shape.y},
                       index,
                       grid.threads,
                       grid.blocks,
                       static_cast<int>(i % kWarpSize)};
    thread.block = &block;
    thread.warp = &block.warps[i / kWarpSize];
    thread.fiber = std::make_unique<Fiber>([&kernel] {
      try {
        kernel();
        check_copies(self());
      } catch (...) {
        if (!running->failure) running->failure = std::current_exception();
      }
    });
  }
}

// One thread of each place where some wait, and how many more do.
[[noreturn]] void report_stuck(const std::vector<Block>& blocks, const char* what) {
  struct Place {
    std::string name;
    const Thread* first;
    int more;
  };
  std::vector<Place> places;
  int ended = 0;
  for (const Block& block : blocks) {
    for (const Thread& thread : block.threads) {
      if (thread.fiber->finished()) {
        ++ended;
        continue;
      }
      const std::string name =
          thread.waits_at != nullptr ? std::string("at ") + thread.waits_at : "for memory";
      const auto place = std::find_if(places.begin(), places.end(),
                                      [&](const Place& known) { return known.name == name; });
      if (place == places.end()) {
        places.push_back({name, &thread, 0});
      } else {
        ++place->more;
      }
    }
  }
  std::string message = std::string("emulation: ") + what;
  for (const Place& place : places) {
    message += "; " + name_of(*place.first);
    message += place.more == 0 ? " waits " : " and " + std::to_string(place.more) + " more wait ";
    message += place.name;
  }
  if (ended > 0) message += "; ended: " + std::to_string(ended);
  throw Error(message);
}

// How the threads of blocks that run at once take turns. A thread's turn goes on until it has to
// wait.
enum class Order {
  kInterleaved,  // one turn each, in a new order every round
  kRunAhead,     // a warp goes on until all of it waits, for others or for memory
  kHeldBack,     // a warp goes on for a while; some blocks, warps, threads sleep meanwhile
};
constexpr unsigned kOrders = 3;

class Scheduler {
 public:
  Scheduler(std::vector<Block>& blocks, Order how) : blocks_(blocks), how_(how) {
    for (Block& block : blocks) {
      for (Warp& warp : block.warps) warps_.push_back(&warp);
    }
  }

  // Until all have ended.
  void run() {
    int idle = 0;
    while (true) {
      if (how_ == Order::kHeldBack && round_ >= next_choice_) hold_back();
      const Round round = run_round();
      if (!round.any_ready) break;
      ++round_;
      if (round.anyone_advanced) {
        idle = 0;
      } else {
        if (++idle > kMostIdleRounds) report_endless();
        // Perhaps the others wait for those.
        if (anyone_held_) release();
      }
    }
    if (!warps_.empty()) report_stuck(blocks_, "threads wait for others that never come");
  }

 private:
  // Rounds in which nobody does anything but look at memory, before that is called endless.
  static constexpr int kMostIdleRounds = 10000;
  // Turns of one thread that end so. Lanes that look and then vote on what they saw do something.
  static constexpr int kMostSpins = 200000;
  // A warp that could go on for ever lets others go on, too.
  static constexpr int kMostPasses = 4096;

  struct Round {
    bool any_ready = false, anyone_advanced = false;
  };

  Round run_round() {
    Round round;
    dice.shuffle(warps_);
    for (Warp* warp : warps_) {
      warp->passes = Pass();
      warp->rests = warp->rest > 0;
      if (warp->rests) --warp->rest;
      if (how_ != Order::kInterleaved || warp->rests) continue;
      // A part of every warp's lanes, then the others: so threads of two warps come by turns.
      warp->first_half = static_cast<std::uint32_t>(dice.next());
      run_pass(*warp, warp->first_half);
    }
    if (how_ == Order::kInterleaved) dice.shuffle(warps_);
    for (Warp* warp : warps_) {
      round.any_ready |= warp->ready != 0;
      if (warp->rests) continue;
      if (how_ == Order::kInterleaved) {
        run_pass(*warp, ~warp->first_half);
      } else {
        run_passes(*warp);
      }
      round.anyone_advanced |= warp->passes.anyone_advanced;
      if (warp->passes.anyone_spun && !warp->passes.anyone_advanced) {
        // Who looks seldom sees late; and it is quicker.
        warp->rest = static_cast<int>(dice.below(16));
        anyone_held_ |= warp->rest > 0;
      }
    }
    const auto ended = [](const Warp* warp) { return warp->live == 0; };
    warps_.erase(std::remove_if(warps_.begin(), warps_.end(), ended), warps_.end());
    return round;
  }

  void run_passes(Warp& warp) {
    int left = how_ == Order::kHeldBack ? 1 << dice.below(8) : kMostPasses;
    while (left-- > 0) {
      const Pass pass = run_pass(warp, ~warp.held);
      if (!pass.anyone_advanced || pass.anyone_spun) return;
    }
  }

  // A turn for each of `lanes` that may have one, in one of 512 orders: from any lane on, in odd
  // steps.
  Pass run_pass(Warp& warp, std::uint32_t lanes) {
    Pass pass;
    const std::uint64_t random = dice.next();
    const unsigned step = static_cast<unsigned>(random >> 32) | 1u;
    unsigned lane = static_cast<unsigned>(random);
    for (int i = 0; i < kWarpSize && (warp.ready & lanes) != 0; ++i, lane += step) {
      if (((warp.ready & lanes) >> (lane % kWarpSize) & 1u) == 0) continue;
      const bool spun = take_turn(warp.threads[lane % kWarpSize]);
      pass.anyone_advanced |= !spun;
      pass.anyone_spun |= spun;
    }
    warp.passes.anyone_advanced |= pass.anyone_advanced;
    warp.passes.anyone_spun |= pass.anyone_spun;
    return pass;
  }

  // True if it ended in a loop that waits for memory.
  bool take_turn(Thread& thread) {
    thread.waits_at = nullptr;
    thread.spins = false;
    running->current = &thread;
    thread.fiber->resume();
    running->current = nullptr;
    if (running->failure) std::rethrow_exception(running->failure);
    if (thread.fiber->finished()) {
      thread.warp->live &= ~thread.bit();
      thread.warp->ready &= ~thread.bit();
    }
    if (thread.spins && ++thread.spins_so_far > kMostSpins) report_endless();
    return thread.spins;
  }

  [[noreturn]] void report_endless() { report_stuck(blocks_, "what is waited for never comes"); }

  // Chooses anew who sleeps, and for how many rounds: mostly few, sometimes many.
  void hold_back() {
    for (Block& block : blocks_) {
      const bool whole_block = blocks_.size() > 1 && dice.below(4) == 0;
      for (Warp& warp : block.warps) {
        const bool whole_warp = dice.below(4) == 0, one_lane = dice.below(8) == 0;
        warp.held = whole_block || whole_warp ? kAllLanes
                    : one_lane                ? std::uint32_t{1} << dice.below(kWarpSize)
                                              : 0;
        anyone_held_ |= warp.held != 0;
      }
    }
    next_choice_ = round_ + 1 + dice.below(std::size_t{1} << dice.below(8));
  }

  void release() {
    for (Warp* warp : warps_) {
      warp->held = 0;
      warp->rest = 0;
    }
    anyone_held_ = false;
    next_choice_ = round_ + 1 + dice.below(8);
  }

  std::vector<Block>& blocks_;
  const Order how_;
  // Those that have not ended.
  std::vector<Warp*> warps_;
  std::uint64_t round_ = 0, next_choice_ = 0;
  bool anyone_held_ = false;
};

void run_blocks(const Grid& grid, const std::vector<Dim3>& indices, unsigned how,
                const std::function<void()>& kernel) {
  std::vector<Block> blocks(indices.size());
  for (std::size_t i = 0; i < indices.size(); ++i) set_up(blocks[i], grid, indices[i], kernel);
  running->blocks = &blocks;
  Scheduler(blocks, static_cast<Order>(how % kOrders)).run();
}

void land(const std::vector<Copy>& copies) {
  for (const Copy& copy : copies) std::memcpy(copy.to, copy.from, copy.bytes);
}

}  // namespace

void set_seed(unsigned seed) {
  dice = Random(seed);
  next_order = seed % kOrders;
}

void launch(const Grid& grid, const std::function<void()>& kernel) {
  if (running != nullptr) throw Error("emulation: a kernel cannot launch another");
  if (grid.threads.count() == 0 || grid.threads.count() > 1024) {
    throw Error("emulation: a block has 1 to 1024 threads, not " +
                std::to_string(grid.threads.count()));
  }
  Run run;
  run.grid = &grid;
  std::vector<Dim3> indices;
  for (unsigned z = 0; z < grid.blocks.z; ++z)
    for (unsigned y = 0; y < grid.blocks.y; ++y)
      for (unsigned x = 0; x < grid.blocks.x; ++x) indices.emplace_back(x, y, z);
  dice.shuffle(indices);
  const unsigned how = next_order++;
  struct Stop {
    ~Stop() { running = nullptr; }
  } stop;
  running = &run;
  if (grid.cooperative) {
    run_blocks(grid, indices, how, kernel);
  } else {
    // By the block's place, not its turn, so that every block meets every Order.
    for (const Dim3& index : indices) {
      run_blocks(grid, {index}, how % kOrders + index.x + index.y + index.z, kernel);
    }
  }
}

const Position& position() { return self().position; }

char* shared_memory() { return self().block->shared.get(); }

void sync_threads() {
  Block& block = *self().block;
  meet(block.barrier, "__syncthreads", block.threads.size(), block);
}

void sync_warp() {
  Warp& warp = *self().warp;
  meet(warp.meeting, "__syncwarp", warp.size, warp);
}

void sync_grid() {
  if (!running->grid->cooperative) {
    throw Error("emulation: a grid-wide barrier in a launch that is not cooperative");
  }
  const Grid& grid = *running->grid;
  meet(running->grid_barrier, "a grid-wide barrier",
       std::size_t{grid.blocks.count()} * grid.threads.count(), *running->blocks);
}

void spin() {
  Thread& thread = self();
  thread.spins = true;
  thread.fiber->give_way();
}

void async_copy(void* shared, const void* global, std::size_t bytes) {
  std::memset(shared, kPoison, bytes);
  self().open.push_back({shared, global, bytes});
}

void async_commit() {
  Thread& thread = self();
  thread.committed.push_back(std::move(thread.open));
  thread.open.clear();
}

void async_wait(int pending) {
  Thread& thread = self();
  while (thread.committed.size() > static_cast<std::size_t>(pending)) {
    land(thread.committed.front());
    thread.committed.pop_front();
  }
}

void warp_together(const char* name, const void* given, void* result, const Compute& compute) {
  Thread& thread = self();
  Warp& warp = *thread.warp;
  if (warp.size != kWarpSize) throw Error(std::string("emulation: ") + name + " in part of a warp");
  warp.given[static_cast<std::size_t>(thread.position.lane)] = given;
  warp.results[static_cast<std::size_t>(thread.position.lane)] = result;
  if (arrive(warp.meeting, name, warp.size)) {
    compute(warp.given, warp.results);
    let_go_on(warp);
  } else {
    wait(warp.meeting);
  }
}

}  // namespace fastdistil::emulation
