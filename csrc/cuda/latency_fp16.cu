// The low-latency encoder with fp16 weights.
#include "latency_launch.h"

namespace fastdistil::cuda {

template void launch_latency<Float16, false>(int, const LatencyParameters&, const LatencyLaunch&,
                                             Stream);

}  // namespace fastdistil::cuda
