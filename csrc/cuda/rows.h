// Rows of a matrix in the registers of the threads that share them: read once, 16 bytes at a time,
// and written once.
//
//     row [width] of T -> thread r of a group of G: vectors r, r + G, r + 2 G, ... of 16 bytes
//
// A group is a warp, which needs nothing but shuffles, or a block where a row is too long for one.
// Where numbers lie and in which order they are summed depends on the width and T alone: so a row's
// result does not depend on what is computed beside it. Rows whose width is no multiple of 16 bytes
// are read number by number into the same places: slower, with the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <type_traits>

#include "operations.h"

namespace fastdistil::cuda {

template <class T>
constexpr int kNumbersPerVector = 16 / static_cast<int>(sizeof(T));

// --- vectors of 16 bytes -------------------------------------------------------------------------

template <class T>
FASTDISTIL_DEVICE void unpack_vector(uint4 packed, float (&numbers)[kNumbersPerVector<T>]) {
  const unsigned words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      numbers[i] = __uint_as_float(words[i]);
    } else {
      const float2 pair = unpack_pair<T>(words[i]);
      numbers[2 * i] = pair.x;
      numbers[2 * i + 1] = pair.y;
    }
  }
}

template <class T>
FASTDISTIL_DEVICE uint4 pack_vector(const float (&numbers)[kNumbersPerVector<T>]) {
  unsigned words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      words[i] = __float_as_uint(numbers[i]);
    } else {
      words[i] = pack_pair<T>(numbers[2 * i], numbers[2 * i + 1]);
    }
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// The vector at `from`, of which `count` numbers exist (any integer: none if negative); zeros for
// the others. kAligned: all or none of them do, and `from` is a multiple of 16 bytes.
template <class T, bool kAligned>
FASTDISTIL_DEVICE uint4 load_vector(const T* from, int count) {
  if constexpr (kAligned) {
    return count > 0 ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
  } else {
    using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint16_t>;
    constexpr int kPerWord = 4 / static_cast<int>(sizeof(T));
    unsigned words[4] = {};
#pragma unroll
    for (int i = 0; i < kNumbersPerVector<T>; ++i) {
      if (i < count) {
        const unsigned bits = reinterpret_cast<const Bits*>(from)[i];
        words[i / kPerWord] |= bits << (i % kPerWord * 16);
      }
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }
}

// The way back.
template <class T, bool kAligned>
FASTDISTIL_DEVICE void store_vector(T* to, const float (&numbers)[kNumbersPerVector<T>],
                                    int count) {
  if constexpr (kAligned) {
    if (count > 0) *reinterpret_cast<uint4*>(to) = pack_vector<T>(numbers);
  } else {
#pragma unroll
    for (int i = 0; i < kNumbersPerVector<T>; ++i) {
      if (i < count) to[i] = from_float<T>(numbers[i]);
    }
  }
}

// --- groups of threads ---------------------------------------------------------------------------

// The sum over a block of at most 32 warps, the same bits in every thread. `partial` is shared
// memory for a float of each warp, that nobody else writes until the next barrier.
FASTDISTIL_DEVICE float block_sum(float x, float* partial) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warps = static_cast<int>(blockDim.x) / kWarpSize;
  x = warp_sum(x);
  if (lane == 0) partial[threadIdx.x / kWarpSize] = x;
  __syncthreads();
  return warp_sum(lane < warps ? partial[lane] : 0.0f);
}

// Rows of up to 1024 numbers, each a warp's. A multiprocessor has registers for so many blocks that
// their number times the vectors that a thread has of a row is kVectorsInAll.
struct WarpGroup {
  static constexpr int kRowsPerBlock = 4, kMostThreads = kRowsPerBlock * kWarpSize;
  static constexpr int kSharedBytes = 0, kVectorsInAll = 16;

  FASTDISTIL_DEVICE static std::int64_t row() {
    return std::int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / kWarpSize;
  }
  FASTDISTIL_DEVICE static int rank() { return static_cast<int>(threadIdx.x) % kWarpSize; }
  FASTDISTIL_DEVICE static int size() { return kWarpSize; }
  template <int kNth>
  FASTDISTIL_DEVICE static float sum(float x) {
    return warp_sum(x);
  }
};

// Longer rows, each a block's.
struct BlockGroup {
  static constexpr int kRowsPerBlock = 1, kMostThreads = 512, kSums = 2;
  static constexpr int kSharedBytes = kSums * kWarpSize * static_cast<int>(sizeof(float));
  static constexpr int kVectorsInAll = 4;

  FASTDISTIL_DEVICE static std::int64_t row() { return blockIdx.x; }
  FASTDISTIL_DEVICE static int rank() { return static_cast<int>(threadIdx.x); }
  FASTDISTIL_DEVICE static int size() { return static_cast<int>(blockDim.x); }
  // A kernel's first sum is sum<0>, its second sum<1>: they need memory of their own, for a warp
  // may be a sum ahead of another.
  template <int kNth>
  FASTDISTIL_DEVICE static float sum(float x) {
    static_assert(kNth < kSums);
    return block_sum(x, reinterpret_cast<float*>(shared_memory()) + kNth * kWarpSize);
  }
};

// --- rows ----------------------------------------------------------------------------------------

// How rows are held: kVectors of 16 bytes by each thread of a Group.
template <class T_, class Group_, int kVectors_, bool kAligned_>
struct RowShape {
  using T = T_;
  using Group = Group_;
  static constexpr int kVectors = kVectors_;
  static constexpr bool kAligned = kAligned_;
  // Blocks for a kernel's __launch_bounds__: without, how many registers a thread gets is for the
  // compiler to guess, which has spilled some and wasted others.
  static constexpr int kBlocks =
      Group::kVectorsInAll / kVectors < 8 ? Group::kVectorsInAll / kVectors : 8;
};

// What a thread has of a row, as it is in memory.
template <class Shape>
struct PackedRow {
  uint4 vectors[Shape::kVectors];
};

// And as numbers.
template <class Shape>
struct Row {
  float numbers[Shape::kVectors][kNumbersPerVector<typename Shape::T>];
};

// The column at which the thread's vector i begins; may be past the row's end.
template <class Shape>
FASTDISTIL_DEVICE int column_of(int i) {
  using Group = typename Shape::Group;
  return (Group::rank() + i * Group::size()) * kNumbersPerVector<typename Shape::T>;
}

template <class Shape>
FASTDISTIL_DEVICE PackedRow<Shape> load_row(const void* matrix, std::int64_t row, int width) {
  using T = typename Shape::T;
  const T* start = static_cast<const T*>(matrix) + row * width;
  PackedRow<Shape> packed;
#pragma unroll
  for (int i = 0; i < Shape::kVectors; ++i) {
    const int column = column_of<Shape>(i);
    packed.vectors[i] = load_vector<T, Shape::kAligned>(start + column, width - column);
  }
  return packed;
}

template <class Shape>
FASTDISTIL_DEVICE void store_row(void* matrix, std::int64_t row, int width,
                                 const Row<Shape>& values) {
  using T = typename Shape::T;
  T* start = static_cast<T*>(matrix) + row * width;
#pragma unroll
  for (int i = 0; i < Shape::kVectors; ++i) {
    const int column = column_of<Shape>(i);
    store_vector<T, Shape::kAligned>(start + column, values.numbers[i], width - column);
  }
}

template <class Shape>
FASTDISTIL_DEVICE Row<Shape> to_numbers(const PackedRow<Shape>& packed) {
  Row<Shape> values;
#pragma unroll
  for (int i = 0; i < Shape::kVectors; ++i) {
    unpack_vector<typename Shape::T>(packed.vectors[i], values.numbers[i]);
  }
  return values;
}

template <class Shape>
FASTDISTIL_DEVICE void add_row(Row<Shape>& values, const PackedRow<Shape>& more) {
#pragma unroll
  for (int i = 0; i < Shape::kVectors; ++i) {
    float others[kNumbersPerVector<typename Shape::T>];
    unpack_vector<typename Shape::T>(more.vectors[i], others);
#pragma unroll
    for (int j = 0; j < kNumbersPerVector<typename Shape::T>; ++j) {
      values.numbers[i][j] += others[j];
    }
  }
}

// LayerNorm in place (Ba et al., arXiv:1607.06450). Numbers past the end of the row are zeros and
// are not counted. The variance is that of the differences, in a second pass over registers.
template <class Shape>
FASTDISTIL_DEVICE void normalize_row(Row<Shape>& values, const PackedRow<Shape>& weight,
                                     const PackedRow<Shape>& bias, int width, float eps) {
  using Group = typename Shape::Group;
  constexpr int kNumbers = kNumbersPerVector<typename Shape::T>;
  // A vector's sum does not wait for that of the one before.
  float sum = 0;
#pragma unroll
  for (int i = 0; i < Shape::kVectors; ++i) {
    float of_vector = 0;
#pragma unroll
    for (int j = 0; j < kNumbers; ++j) of_vector += values.numbers[i][j];
    sum += of_vector;
  }
  const float mean = Group::template sum<0>(sum) / static_cast<float>(width);
  float squares = 0;
#pragma unroll
  for (int i = 0; i < Shape::kVectors; ++i) {
    const int column = column_of<Shape>(i);
    float of_vector = 0;
#pragma unroll
    for (int j = 0; j < kNumbers; ++j) {
      const bool exists = column + (Shape::kAligned ? 0 : j) < width;
      const float difference = exists ? values.numbers[i][j] - mean : 0.0f;
      values.numbers[i][j] = difference;
      of_vector = fmaf(difference, difference, of_vector);
    }
    squares += of_vector;
  }
  squares = Group::template sum<1>(squares);
  const float scale = 1.0f / exact_sqrt(squares / static_cast<float>(width) + eps);
  const Row<Shape> weights = to_numbers(weight), biases = to_numbers(bias);
#pragma unroll
  for (int i = 0; i < Shape::kVectors; ++i) {
#pragma unroll
    for (int j = 0; j < kNumbers; ++j) {
      values.numbers[i][j] =
          fmaf(values.numbers[i][j] * scale, weights.numbers[i][j], biases.numbers[i][j]);
    }
  }
}

// --- launches ------------------------------------------------------------------------------------

constexpr int kWidestRow = 8192;
constexpr int kWidestOfWarp = 1024;
// Numbers of a row in a thread's registers: at most of a warp's, and of a block's.
constexpr int kNumbersOfWarp = kWidestOfWarp / kWarpSize;
constexpr int kNumbersOfBlock = kWidestRow / BlockGroup::kMostThreads;

// Whether all rows of so many bytes begin at a multiple of 16 bytes.
inline bool is_aligned(std::size_t row_bytes, std::initializer_list<const void*> arrays) {
  std::uintptr_t all = row_bytes;
  for (const void* array : arrays) all |= reinterpret_cast<std::uintptr_t>(array);
  return all % 16 == 0;
}

template <class Function>
void with_type(DataType type, Function&& function) {
  switch (type) {
    case DataType::kBFloat16:
      return function(BFloat16{});
    case DataType::kFloat16:
      return function(Float16{});
    case DataType::kFloat32:
      return function(float{});
  }
}

// Blocks of threads for `rows` rows of `width` numbers.
template <class Shape>
LaunchShape blocks_for_rows(int rows, int width) {
  using Group = typename Shape::Group;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>((rows - 1) / Group::kRowsPerBlock + 1));
  unsigned threads = Group::kMostThreads;
  if constexpr (std::is_same_v<Group, BlockGroup>) {
    constexpr int kNumbersOfWarps = kNumbersOfBlock * kWarpSize;
    threads = static_cast<unsigned>((width - 1) / kNumbersOfWarps + 1) * kWarpSize;
  }
  shape.block = dim3(threads);
  shape.shared_bytes = Group::kSharedBytes;
  return shape;
}

// Calls function(Shape{}) with the RowShape for rows of `width`.
template <class T, class Function>
void with_row_shape(int width, bool aligned, Function&& function) {
  constexpr int kNumbers = kNumbersPerVector<T>;
  if (width < 1 || width > kWidestRow) throw std::invalid_argument("rows of that width do not fit");
  if (width > kWidestOfWarp) {
    constexpr int kVectors = kNumbersOfBlock / kNumbers;
    if (aligned) return function(RowShape<T, BlockGroup, kVectors, true>{});
    return function(RowShape<T, BlockGroup, kVectors, false>{});
  }
  // Registers that hold nothing cost time only where there is little else to do.
  constexpr int kMost = kNumbersOfWarp / kNumbers;
  if (!aligned) return function(RowShape<T, WarpGroup, kMost, false>{});
  if (width <= kWidestOfWarp / 4) return function(RowShape<T, WarpGroup, kMost / 4, true>{});
  if (width <= kWidestOfWarp / 2) return function(RowShape<T, WarpGroup, kMost / 2, true>{});
  if (width <= kWidestOfWarp / 4 * 3) {
    return function(RowShape<T, WarpGroup, kMost / 4 * 3, true>{});
  }
  return function(RowShape<T, WarpGroup, kMost, true>{});
}

}  // namespace fastdistil::cuda
