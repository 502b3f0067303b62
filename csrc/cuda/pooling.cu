// One vector per sequence: the mean of its tokens, its first token, or the largest of each column.
//
//     hidden [T, D], cu_seqlens [B + 1] -> float32 [B, D]
//
//     mean: sum of the tokens / their number        (Reimers and Gurevych, arXiv:1908.10084)
//     cls:  the first token
//     max:  the largest value of each column
//     with normalize: v / max(|v|, 1e-12)           (torch.nn.functional.normalize)
//
// A sequence of no tokens gives zeros. Everything is in float32. A block takes one sequence. Its
// threads are G teams; team g takes tokens g, g + G, ..., and a thread the same 16 bytes of each.
// The teams' sums [G, D] meet in shared memory, where the length of the vector is known before it
// is written. The order of a sum depends on the sequence's length, the width and T alone.
#include "rows.h"

namespace fastdistil::cuda {

namespace {

constexpr int kMostThreads = 512;
// Tokens that a thread has under way at once.
constexpr int kUnrolled = 4;

// The larger of two, NaN where either is one, as torch.amax has it.
FASTDISTIL_DEVICE float larger(float a, float b) { return a > b || a != a ? a : b; }

template <Pooling kPooling>
FASTDISTIL_DEVICE float combine(float a, float b) {
  return kPooling == Pooling::kMax ? larger(a, b) : a + b;
}

// The numbers of one vector of columns over rows first, first + step, ... below `rows`.
template <class T, Pooling kPooling, bool kAligned>
FASTDISTIL_DEVICE void pool_column(float (&totals)[kNumbersPerVector<T>], const T* from, int count,
                                   int first, int rows, int step, int width) {
  constexpr int kNumbers = kNumbersPerVector<T>;
#pragma unroll
  for (int j = 0; j < kNumbers; ++j) totals[j] = kPooling == Pooling::kMax ? -infinity() : 0.0f;
  for (int start = first; start < rows; start += kUnrolled * step) {
    uint4 packed[kUnrolled];
#pragma unroll
    for (int i = 0; i < kUnrolled; ++i) {
      const std::int64_t row = std::int64_t{start} + std::int64_t{i} * step;
      packed[i] = load_vector<T, kAligned>(from + row * width, row < rows ? count : 0);
    }
#pragma unroll
    for (int i = 0; i < kUnrolled; ++i) {
      if (std::int64_t{start} + std::int64_t{i} * step >= rows) break;
      float numbers[kNumbers];
      unpack_vector<T>(packed[i], numbers);
#pragma unroll
      for (int j = 0; j < kNumbers; ++j) totals[j] = combine<kPooling>(totals[j], numbers[j]);
    }
  }
}

// What all teams have found: the sequence's vector in `row`, each column by the thread that goes on
// with it. Returns this thread's part of the sum of squares.
template <Pooling kPooling>
FASTDISTIL_DEVICE float combine_teams(float* row, int teams, int width, int length) {
  float squares = 0;
  for (int column = static_cast<int>(threadIdx.x); column < width;
       column += static_cast<int>(blockDim.x)) {
    float total = row[column];
    for (int team = 1; team < teams; ++team) {
      total = combine<kPooling>(total, row[team * width + column]);
    }
    if (length == 0) total = 0;
    if (kPooling == Pooling::kMean) total = total / static_cast<float>(max(length, 1));
    row[column] = total;
    squares = fmaf(total, total, squares);
  }
  return squares;
}

template <class T, Pooling kPooling, bool kAligned>
__global__ void __launch_bounds__(kMostThreads) pool_kernel(PoolingArguments arguments, int teams) {
  constexpr int kNumbers = kNumbersPerVector<T>;
  const int width = arguments.width;
  const int team_threads = static_cast<int>(blockDim.x) / teams;
  const int team = static_cast<int>(threadIdx.x) / team_threads;
  const int rank = static_cast<int>(threadIdx.x) % team_threads;
  const int begin = arguments.cu_seqlens[blockIdx.x];
  const int length = arguments.cu_seqlens[blockIdx.x + 1] - begin;
  const int rows = kPooling == Pooling::kCls ? min(length, 1) : length;
  const T* hidden = static_cast<const T*>(arguments.hidden) + std::int64_t{begin} * width;
  float* partial = reinterpret_cast<float*>(shared_memory());  // [warps]
  float* results = partial + kWarpSize;                        // [teams, width]

  for (int column = rank * kNumbers; column < width; column += team_threads * kNumbers) {
    float totals[kNumbers];
    pool_column<T, kPooling, kAligned>(totals, hidden + column, width - column, team, rows, teams,
                                       width);
#pragma unroll
    for (int j = 0; j < kNumbers; ++j) {
      if (column + j < width) results[team * width + column + j] = totals[j];
    }
  }
  __syncthreads();
  const float squares = combine_teams<kPooling>(results, teams, width, length);
  float norm = 1;
  if (arguments.normalize) {
    norm = exact_sqrt(block_sum(squares, partial));
    norm = norm < 1e-12f ? 1e-12f : norm;  // NaN stays NaN
  }
  float* out = arguments.out + std::int64_t{blockIdx.x} * width;
  for (int column = static_cast<int>(threadIdx.x); column < width;
       column += static_cast<int>(blockDim.x)) {
    out[column] = arguments.normalize ? results[column] / norm : results[column];
  }
}

template <class T, Pooling kPooling>
void launch_pool(const PoolingArguments& arguments, Stream stream) {
  const int width = arguments.width;
  if (width < 1 || width > kWidestRow) throw std::invalid_argument("rows of that width do not fit");
  const int vectors = (width - 1) / kNumbersPerVector<T> + 1;
  const int team_threads = min((vectors - 1) / kWarpSize + 1, kMostThreads / kWarpSize) * kWarpSize;
  const int teams = kPooling == Pooling::kCls ? 1 : kMostThreads / team_threads;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(arguments.sequences));
  shape.block = dim3(static_cast<unsigned>(teams * team_threads));
  shape.shared_bytes =
      (kWarpSize + static_cast<std::size_t>(teams) * static_cast<std::size_t>(width)) *
      sizeof(float);
  const bool aligned = is_aligned(width * sizeof(T), {arguments.hidden});
  launch("pool", aligned ? pool_kernel<T, kPooling, true> : pool_kernel<T, kPooling, false>, shape,
         stream, arguments, teams);
}

}  // namespace

void pool(DataType type, Pooling pooling, const PoolingArguments& arguments, Stream stream) {
  if (arguments.sequences == 0) return;
  with_type(type, [&](auto t) {
    using T = decltype(t);
    switch (pooling) {
      case Pooling::kMean:
        return launch_pool<T, Pooling::kMean>(arguments, stream);
      case Pooling::kCls:
        return launch_pool<T, Pooling::kCls>(arguments, stream);
      case Pooling::kMax:
        return launch_pool<T, Pooling::kMax>(arguments, stream);
    }
  });
}

}  // namespace fastdistil::cuda
