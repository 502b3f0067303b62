// The low-latency encoder's front door: what fits, and which kernel runs.
#include "latency.h"

#include <algorithm>

#include "latency_launch.h"

namespace fastdistil::cuda {

namespace {

template <bool kInt8>
int block_bytes(int hidden, int longest) {
  const int ahead = panels_ahead_here();
  switch (hidden) {
    case 128:
      return LatencyShared<kInt8, 128, 1>::bytes(ahead, longest);
    case 384:
      return LatencyShared<kInt8, 384, 1>::bytes(ahead, longest);
    case 768:
      return LatencyShared<kInt8, 768, 1>::bytes(ahead, longest);
    default:
      return LatencyShared<kInt8, 1024, 1>::bytes(ahead, longest);
  }
}

#if defined(__CUDACC__)
int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}
#endif

}  // namespace

int most_shared_bytes() {
#if defined(__CUDACC__)
  return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
#else
  return 232448;  // an H100's
#endif
}

int panels_ahead_here() {
#if defined(__CUDACC__)
  // No code for 9.0 or newer runs on less, and none for less is taken where there is newer.
  const bool small = device_attribute(cudaDevAttrComputeCapabilityMajor) < 9;
  return small ? kPanelsAheadSmall : kPanelsAhead;
#else
  return kPanelsAheadHere;
#endif
}

std::string latency_refusal(int hidden, int heads, int intermediate) {
  const auto* end = std::end(kLatencyHidden);
  if (std::find(std::begin(kLatencyHidden), end, hidden) == end) {
    std::string sizes;
    for (int known : kLatencyHidden) sizes += (sizes.empty() ? "" : ", ") + std::to_string(known);
    return "its kernels are for hidden sizes of " + sizes + ", not " + std::to_string(hidden);
  }
  if (intermediate != kWidening * hidden) {
    return "its kernels are for feed-forward blocks of " + std::to_string(kWidening * hidden) +
           " (four times the hidden size), not " + std::to_string(intermediate);
  }
  if (heads * latency_head_dim(hidden) != hidden) {
    return "its kernels are for " + std::to_string(hidden / latency_head_dim(hidden)) +
           " heads in " + std::to_string(hidden) + ", not " + std::to_string(heads);
  }
  return "";
}

int latency_longest(LatencyWeights weights, int hidden) {
  const int most = most_shared_bytes();
  const auto bytes = [&](int longest) {
    return weights == LatencyWeights::kInt8 ? block_bytes<true>(hidden, longest)
                                            : block_bytes<false>(hidden, longest);
  };
  int longest = kLatencyRows;
  while (longest > 0 && bytes(longest) > most) longest -= kTileRows;
  return longest;
}

void run_latency(LatencyWeights weights, int hidden, const LatencyParameters& parameters,
                 const LatencyLaunch& how, Stream stream) {
  if (how.blocks < kLatencyMostGroups) {
    throw std::invalid_argument("blocks is " + std::to_string(how.blocks) + ": at least " +
                                std::to_string(kLatencyMostGroups) + " are needed");
  }
  if (parameters.rows < 1 || parameters.rows > kLatencyRows) {
    throw std::invalid_argument("rows is " + std::to_string(parameters.rows) + ": 1 to " +
                                std::to_string(kLatencyRows) + " are supported");
  }
  switch (weights) {
    case LatencyWeights::kBFloat16:
      return launch_latency<BFloat16, false>(hidden, parameters, how, stream);
    case LatencyWeights::kFloat16:
      return launch_latency<Float16, false>(hidden, parameters, how, stream);
    case LatencyWeights::kInt8:
      return launch_latency<BFloat16, true>(hidden, parameters, how, stream);
  }
}

}  // namespace fastdistil::cuda
