// Which instance of the low-latency kernel a forward takes: by hidden size and number of rows.
#pragma once

#include "latency.h"
#include "latency_kernel.h"

namespace fastdistil::cuda {

// How many panels the current device's code keeps under way (weight_stream.h).
int panels_ahead_here();
// Shared memory that a block can have on the current device.
int most_shared_bytes();

template <class T, bool kInt8, int kHidden, int kRowTiles>
void launch_latency_sized(const LatencyParameters& parameters, const LatencyLaunch& how,
                          Stream stream) {
  using Shared = LatencyShared<kInt8, kHidden, kRowTiles>;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(how.blocks));
  shape.block = dim3(LatencyBlock<T, kInt8, kHidden, kRowTiles>::kThreads);
  shape.shared_bytes =
      static_cast<std::size_t>(Shared::bytes(panels_ahead_here(), parameters.longest));
  shape.cooperative = how.cooperative;
  shape.dependent = how.dependent;
  launch("low-latency encoder", &latency_kernel<T, kInt8, kHidden, kRowTiles>, shape, stream,
         parameters);
}

template <class T, bool kInt8, int kHidden>
void launch_latency_wide(const LatencyParameters& parameters, const LatencyLaunch& how,
                         Stream stream) {
  // Two row tiles use each weight twice that a block reads, where there is room for their sums.
  const int bytes =
      LatencyShared<kInt8, kHidden, 2>::bytes(panels_ahead_here(), parameters.longest);
  if (parameters.rows > kTileRows && bytes <= most_shared_bytes()) {
    launch_latency_sized<T, kInt8, kHidden, 2>(parameters, how, stream);
  } else {
    launch_latency_sized<T, kInt8, kHidden, 1>(parameters, how, stream);
  }
}

template <class T, bool kInt8>
void launch_latency(int hidden, const LatencyParameters& parameters, const LatencyLaunch& how,
                    Stream stream) {
  switch (hidden) {
    case 128:
      return launch_latency_wide<T, kInt8, 128>(parameters, how, stream);
    case 384:
      return launch_latency_wide<T, kInt8, 384>(parameters, how, stream);
    case 768:
      return launch_latency_wide<T, kInt8, 768>(parameters, how, stream);
    default:
      return launch_latency_wide<T, kInt8, 1024>(parameters, how, stream);
  }
}

// One file each, so that they compile side by side.
extern template void launch_latency<BFloat16, false>(int, const LatencyParameters&,
                                                     const LatencyLaunch&, Stream);
extern template void launch_latency<Float16, false>(int, const LatencyParameters&,
                                                    const LatencyLaunch&, Stream);
extern template void launch_latency<BFloat16, true>(int, const LatencyParameters&,
                                                    const LatencyLaunch&, Stream);

}  // namespace fastdistil::cuda
