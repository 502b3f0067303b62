// Attention within each sequence of a packed batch, for sequences of at most 128 tokens.
//
//     qkv [T, 3, H, Dh], cu_seqlens [B + 1] -> out [T, H * Dh]
//     out[t, h] = sum_s softmax_s(q[t, h] . k[s, h]) v[s, h]     over the rows s of t's own
//     sequence
//
// A piece of work is one head of one sequence. K and V are copied to shared memory once, in the
// background and past the registers; a warp then takes 16 queries at a time (attention_tile.h).
// Where all sequences are short a block has several pieces: as many as have warps for all their
// queries.
#include "attention_tile.h"
#include "launch.h"
#include "operations.h"

namespace fastdistil::cuda {

namespace {

constexpr int kMostWarps = 8;
constexpr int kThreads = kMostWarps * kWarpSize;

struct Piece {
  int start, length, head;
};

// `index` counts heads first, so that neighbours read neighbouring columns. None: no tokens.
FASTDISTIL_DEVICE Piece find_piece(const AttentionArguments& arguments, int index) {
  if (index >= arguments.sequences * arguments.heads) return {0, 0, 0};
  const int sequence = index / arguments.heads;
  const int start = arguments.cu_seqlens[sequence];
  return {start, arguments.cu_seqlens[sequence + 1] - start, index % arguments.heads};
}

// Copies K and V of a piece with `threads` threads, this one the `thread`-th.
template <class T, int kHeadDim>
FASTDISTIL_DEVICE void copy_keys(T* keys, T* values, const T* qkv, const Piece& piece, int heads,
                                 int thread, int threads) {
  constexpr int kVectors = kHeadDim / 8;
  const std::size_t width = static_cast<std::size_t>(heads) * kHeadDim;
  const T* first = qkv + piece.start * 3 * width + width + piece.head * kHeadDim;
  const int rows = rounded_up(piece.length, 16);
  for (int i = thread; i < rows * kVectors; i += threads) {
    const int row = i / kVectors, column = i % kVectors * 8;
    const int place = row * kSharedStride<kHeadDim> + column;
    if (row < piece.length) {
      const T* from = first + row * 3 * width + column;
      async_copy_16(keys + place, from);
      async_copy_16(values + place, from + width);
    } else {
      // A weight of zero times whatever was there could be NaN.
      *reinterpret_cast<uint4*>(keys + place) = make_uint4(0, 0, 0, 0);
      *reinterpret_cast<uint4*>(values + place) = make_uint4(0, 0, 0, 0);
    }
  }
}

template <class T, int kHeadDim>
FASTDISTIL_DEVICE void load_queries(AttentionTile<T, kHeadDim>& tile, const T* qkv,
                                    const Piece& piece, int heads, int first) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize, g = lane / 4, t = lane % 4;
  const std::size_t width = static_cast<std::size_t>(heads) * kHeadDim;
  const T* start = qkv + piece.start * 3 * width + piece.head * kHeadDim;
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int row = first + g + r % 2 * 8, column = 16 * k + 2 * t + r / 2 * 8;
      const T* address = start + row * 3 * width + column;
      tile.queries[k][r] = row < piece.length ? *reinterpret_cast<const unsigned*>(address) : 0u;
    }
  }
}

template <class T, int kHeadDim>
FASTDISTIL_DEVICE void store_context(const AttentionTile<T, kHeadDim>& tile, T* out,
                                     const Piece& piece, int heads, int first) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize, g = lane / 4, t = lane % 4;
  const std::size_t width = static_cast<std::size_t>(heads) * kHeadDim;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first + g + 8 * half;
    if (row >= piece.length) continue;
    T* start = out + (piece.start + row) * width + piece.head * kHeadDim + 2 * t;
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      *reinterpret_cast<unsigned*>(start + 8 * n) = tile.pair(n, half);
    }
  }
}

template <class T, int kHeadDim>
__global__ void __launch_bounds__(kThreads)
    short_attention_kernel(AttentionArguments arguments, int warps_a_piece) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int pieces = static_cast<int>(blockDim.x) / kWarpSize / warps_a_piece;
  const int slot = warp / warps_a_piece;
  const Piece piece = find_piece(arguments, static_cast<int>(blockIdx.x) * pieces + slot);
  const T* qkv = static_cast<const T*>(arguments.qkv);
  const int numbers = rounded_up(arguments.longest, 16) * kSharedStride<kHeadDim>;
  T* keys = reinterpret_cast<T*>(shared_memory()) + slot * 2 * numbers;
  T* values = keys + numbers;

  const int threads = warps_a_piece * kWarpSize;
  copy_keys<T, kHeadDim>(keys, values, qkv, piece, arguments.heads,
                         static_cast<int>(threadIdx.x) % threads, threads);
  async_commit();
  AttentionTile<T, kHeadDim> tile(static_cast<int>(threadIdx.x) % kWarpSize);
  const int first = warp % warps_a_piece * kQueryRows;
  load_queries(tile, qkv, piece, arguments.heads, first);
  async_wait<0>();
  __syncthreads();
  if (first >= piece.length) return;
  tile.attend(keys, values, piece.length, arguments.scale);
  store_context(tile, static_cast<T*>(arguments.out), piece, arguments.heads, first);
}

// Warps for all queries of the longest sequence, a power of two so that pieces fill a block.
int warps_for(int longest) {
  int warps = 1;
  while (warps * kQueryRows < longest) warps *= 2;
  return warps;
}

template <class T, int kHeadDim>
void launch_typed(const AttentionArguments& arguments, Stream stream) {
  const int warps_a_piece = warps_for(arguments.longest);
  // Four pieces of a warp each are enough to hide one's loads behind another's arithmetic.
  const int pieces = warps_a_piece >= 4 ? 1 : 4 / warps_a_piece;
  const long long work = static_cast<long long>(arguments.sequences) * arguments.heads;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>((work + pieces - 1) / pieces));
  shape.block = dim3(static_cast<unsigned>(warps_a_piece * pieces * kWarpSize));
  shape.shared_bytes =
      static_cast<std::size_t>(pieces) * shared_bytes_of_keys<kHeadDim>(arguments.longest);
  launch("short_attention", &short_attention_kernel<T, kHeadDim>, shape, stream, arguments,
         warps_a_piece);
}

template <class T>
void launch_with_head(const AttentionArguments& arguments, Stream stream) {
  switch (arguments.head_dim) {
    case 32:
      return launch_typed<T, 32>(arguments, stream);
    case 64:
      return launch_typed<T, 64>(arguments, stream);
    case 128:
      return launch_typed<T, 128>(arguments, stream);
    default:
      throw std::invalid_argument("head_dim is " + std::to_string(arguments.head_dim) +
                                  ": supported are 32, 64, 128");
  }
}

}  // namespace

void short_attention(DataType type, const AttentionArguments& arguments, Stream stream) {
  if (arguments.longest < 0 || arguments.longest > kLongestShort) {
    throw std::invalid_argument("longest is " + std::to_string(arguments.longest) + ": at most " +
                                std::to_string(kLongestShort) + " is supported");
  }
  if (arguments.longest == 0 || arguments.sequences == 0) return;
  switch (type) {
    case DataType::kBFloat16:
      return launch_with_head<BFloat16>(arguments, stream);
    case DataType::kFloat16:
      return launch_with_head<Float16>(arguments, stream);
    default:
      throw std::invalid_argument("type is fp32: supported are bf16, fp16");
  }
}

}  // namespace fastdistil::cuda
