// A padded batch's kept tokens, found on the device.
//
//     mask [B, S] -> positions [N], indices [N], cu_seqlens [B + 1]
//
// Whoever asks a GPU for a number waits until it has caught up. So nothing is asked: one kernel
// counts what each row keeps, one sums the counts up in place, and in the third each token finds
// its own place from how many in its row come before it, which a vote of its warp says.
//
// All numbers are integers, so no order of adding them is better than another.
#include "rows.h"

namespace fastdistil::cuda {

namespace {

constexpr int kRowsPerBlock = 4;
// Columns that a lane has under way at once.
constexpr int kUnrolled = 4;
constexpr int kStep = kUnrolled * kWarpSize;
constexpr int kScanThreads = 1024;

// A row of the mask, which entries of one size make whatever their type.
template <class Bits>
struct MaskRow {
  const Bits* entries;
  int width;
  bool is_float;

  FASTDISTIL_DEVICE MaskRow(const PackingArguments& arguments, std::int64_t row)
      : entries(static_cast<const Bits*>(arguments.mask) + row * arguments.row_stride),
        width(arguments.width),
        is_float(arguments.mask_is_float) {}

  // Whether the lane keeps columns start + lane, start + 32 + lane, ...; those past the end it
  // does not.
  FASTDISTIL_DEVICE void look(std::int64_t start, bool (&keeps)[kUnrolled]) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    Bits bits[kUnrolled];
#pragma unroll
    for (int i = 0; i < kUnrolled; ++i) {
      const std::int64_t column = start + i * kWarpSize + lane;
      bits[i] = column < width ? entries[column] : Bits{0};
    }
#pragma unroll
    for (int i = 0; i < kUnrolled; ++i) {
      // -0.0 is zero: the sign of a float does not count.
      keeps[i] = (is_float ? static_cast<Bits>(bits[i] << 1) : bits[i]) != 0;
    }
  }
};

FASTDISTIL_DEVICE std::int64_t row_of_warp() {
  return std::int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / kWarpSize;
}

template <class Bits>
__global__ void __launch_bounds__(kRowsPerBlock* kWarpSize)
    count_kernel(PackingArguments arguments) {
  const std::int64_t row = row_of_warp();
  if (row >= arguments.rows) return;
  const MaskRow<Bits> mask(arguments, row);
  int kept = 0;
  for (std::int64_t start = 0; start < mask.width; start += kStep) {
    bool keeps[kUnrolled];
    mask.look(start, keeps);
#pragma unroll
    for (int i = 0; i < kUnrolled; ++i) kept += __popc(__ballot_sync(kFullWarp, keeps[i]));
  }
  if (threadIdx.x % kWarpSize == 0) arguments.cu_seqlens[row + 1] = kept;
}

// The sum of x over the warp's lanes up to this one.
FASTDISTIL_DEVICE int warp_scan(int x) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const int before = __shfl_up_sync(kFullWarp, x, distance);
    if (lane >= distance) x += before;
  }
  return x;
}

// values[i] becomes the sum of all up to it, by a single block.
__global__ void __launch_bounds__(kScanThreads) scan_kernel(std::int32_t* cu_seqlens, int rows) {
  int* warp_ends = reinterpret_cast<int*>(shared_memory());  // [warps]
  std::int32_t* values = cu_seqlens + 1;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize, warp = thread / kWarpSize;
  const int warps = static_cast<int>(blockDim.x) / kWarpSize;
  if (thread == 0) cu_seqlens[0] = 0;
  int before = 0;  // the sum of all earlier steps
  for (std::int64_t start = 0; start < rows; start += blockDim.x) {
    const std::int64_t i = start + thread;
    const int sum = warp_scan(i < rows ? values[i] : 0);
    if (lane == kWarpSize - 1) warp_ends[warp] = sum;
    __syncthreads();
    const int ends = warp_scan(lane < warps ? warp_ends[lane] : 0);
    const int earlier_warps = __shfl_sync(kFullWarp, ends, max(warp - 1, 0));
    if (i < rows) values[i] = before + (warp > 0 ? earlier_warps : 0) + sum;
    before += __shfl_sync(kFullWarp, ends, warps - 1);
    __syncthreads();  // warp_ends is read
  }
}

template <class Bits>
__global__ void __launch_bounds__(kRowsPerBlock* kWarpSize)
    place_kernel(PackingArguments arguments) {
  const std::int64_t row = row_of_warp();
  if (row >= arguments.rows) return;
  const MaskRow<Bits> mask(arguments, row);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const unsigned earlier_lanes = (1u << lane) - 1u;
  const std::int64_t cells = std::int64_t{arguments.rows} * mask.width;
  std::int64_t kept = arguments.cu_seqlens[row];
  for (std::int64_t start = 0; start < mask.width; start += kStep) {
    bool keeps[kUnrolled];
    mask.look(start, keeps);
#pragma unroll
    for (int i = 0; i < kUnrolled; ++i) {
      const unsigned votes = __ballot_sync(kFullWarp, keeps[i]);
      const std::int64_t column = start + i * kWarpSize + lane;
      const std::int64_t index = row * mask.width + column;
      const std::int64_t before = kept + __popc(votes & earlier_lanes);
      // What is dropped fills the end, from behind, so that every place is written.
      const std::int64_t place = keeps[i] ? before : cells - 1 - (index - before);
      if (column < mask.width && place < arguments.places) {
        arguments.positions[place] = keeps[i] ? static_cast<std::int32_t>(column) : 0;
        arguments.indices[place] = keeps[i] ? index : 0;
      }
      kept += __popc(votes);
    }
  }
}

template <class Bits>
void launch_pack(const PackingArguments& arguments, Stream stream) {
  LaunchShape by_rows;
  by_rows.grid = dim3(static_cast<unsigned>((arguments.rows - 1) / kRowsPerBlock + 1));
  by_rows.block = dim3(kRowsPerBlock * kWarpSize);
  LaunchShape one_block;
  const int warps = min((arguments.rows - 1) / kWarpSize + 1, kScanThreads / kWarpSize);
  one_block.block = dim3(static_cast<unsigned>(max(warps, 1) * kWarpSize));
  one_block.shared_bytes = kWarpSize * sizeof(int);

  if (arguments.rows > 0) {
    launch("pack: count", count_kernel<Bits>, by_rows, stream, arguments);
  }
  // Without rows there is still the 0 that cu_seqlens begins with.
  launch("pack: scan", scan_kernel, one_block, stream, arguments.cu_seqlens, arguments.rows);
  if (arguments.rows > 0 && arguments.width > 0 && arguments.places > 0) {
    launch("pack: place", place_kernel<Bits>, by_rows, stream, arguments);
  }
}

}  // namespace

void pack(const PackingArguments& arguments, Stream stream) {
  switch (arguments.mask_bytes) {
    case 1:
      return launch_pack<std::uint8_t>(arguments, stream);
    case 2:
      return launch_pack<std::uint16_t>(arguments, stream);
    case 4:
      return launch_pack<std::uint32_t>(arguments, stream);
    case 8:
      return launch_pack<std::uint64_t>(arguments, stream);
    default:
      throw std::invalid_argument("entries of a mask have 1, 2, 4 or 8 bytes");
  }
}

}  // namespace fastdistil::cuda
