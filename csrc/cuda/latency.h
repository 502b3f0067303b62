// The low-latency encoder for whoever binds or tests it; latency_kernel.h says how it works.
#pragma once

#include <string>

#include "latency_layout.h"

namespace fastdistil::cuda {

// How a product's weights are kept; activations are bf16 or fp16 in either case.
enum class LatencyWeights { kBFloat16, kFloat16, kInt8 };  // kInt8: activations in bf16

struct LatencyLaunch {
  // At least kLatencyMostGroups; of a cooperative launch all are on the GPU at once.
  int blocks;
  bool cooperative;
  // May start before the launch before it has ended.
  bool dependent;
};
// Groups of rows: every one needs a block at least.
constexpr int kLatencyMostGroups = kLatencyRows / 16;

// Why there is no kernel for an encoder of these sizes, for people; "" if there is one.
std::string latency_refusal(int hidden, int heads, int intermediate);

// The longest sequence for whose keys a block on the current device has room; 0 if for none.
int latency_longest(LatencyWeights weights, int hidden);

// Queues the steps [first_step, last_step). All of them are a forward; a cooperative launch of all,
// or launches of one each, in order. The caller has checked sizes, ids and cu_seqlens.
//
// Raises std::invalid_argument for what latency_refusal names, CudaError where the driver refuses.
void run_latency(LatencyWeights weights, int hidden, const LatencyParameters& parameters,
                 const LatencyLaunch& launch, Stream stream);

}  // namespace fastdistil::cuda
