// The low-latency encoder with int8 weights.
#include "latency_launch.h"

namespace fastdistil::cuda {

template void launch_latency<BFloat16, true>(int, const LatencyParameters&, const LatencyLaunch&,
                                             Stream);

}  // namespace fastdistil::cuda
