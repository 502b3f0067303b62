// The low-latency encoder with bf16 weights.
#include "latency_launch.h"

namespace fastdistil::cuda {

template void launch_latency<BFloat16, false>(int, const LatencyParameters&, const LatencyLaunch&,
                                              Stream);

}  // namespace fastdistil::cuda
