// Where the time of a forward goes, part by part, when somebody asks.
#pragma once

#include <array>
#include <chrono>
#include <iterator>

namespace fastdistil::cpu {

enum class Part {
  kEmbed,
  kQkv,
  kAttention,
  kAttentionOut,
  kFfnIn,
  kFfnOut,
  kLayerNorm,
  kQuantise,
  kPool,
  kCount
};

// In the order of the parts.
constexpr const char* kPartNames[] = {"embed",         "qkv",      "attention",
                                      "attention_out", "ffn_in",   "ffn_out",
                                      "layer_norm",    "quantise", "pool"};
static_assert(std::size(kPartNames) == static_cast<std::size_t>(Part::kCount));

using PartSeconds = std::array<double, static_cast<std::size_t>(Part::kCount)>;

// One thread's stop-watch: lap() charges the time since the last lap to a part.
class PartClock {
 public:
  void start() { last_ = Clock::now(); }
  void lap(Part part) {
    const Clock::time_point now = Clock::now();
    seconds_[static_cast<std::size_t>(part)] += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }
  const PartSeconds& seconds() const { return seconds_; }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_{};
  PartSeconds seconds_{};
};

}  // namespace fastdistil::cpu
