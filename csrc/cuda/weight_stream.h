// A thread's share of the weights, brought to shared memory ahead of its use.
//
// Which panels a block multiplies by, and in which order, is known before the first number is
// computed. So every lane asks for its own 16 bytes (8 as int8) of the panels to come, several
// panels ahead of the arithmetic, across steps and layers: while a block waits for other blocks'
// results, its weights go on arriving. What a lane asks for only that lane reads, so no barrier is
// needed.
#pragma once

#include "latency_layout.h"

namespace fastdistil::cuda {

// Tiles whose sums a warp holds at once: they share the activations that it reads.
constexpr int kTilesAtOnce = 4;

// Panels under way: 12 KB each for 768 columns of 16-bit numbers. To keep an H100's memory busy
// takes its bandwidth times its latency, 3 TB/s x 0.8 us = 2.4 MB, or 18 KB on each multiprocessor;
// more of them bridge the waits between steps. Ampere's and Ada's memories want less, and their
// blocks have less room: 163 KB of shared memory, or 99.
constexpr int kPanelsAhead = 6, kPanelsAheadSmall = 3;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kPanelsAheadHere = kPanelsAheadSmall;
#else
constexpr int kPanelsAheadHere = kPanelsAhead;
#endif

// Which tiles of every matrix a block computes: the member-th of `members` takes every members-th.
struct Share {
  int member, members;

  FASTDISTIL_DEVICE int tiles(Matrix matrix, int hidden) const {
    const int all = tiles_of(matrix, hidden);
    return member < all ? (all - member + members - 1) / members : 0;
  }
  FASTDISTIL_DEVICE int tile(int index) const { return member + index * members; }
};

template <bool kInt8, int kHidden>
class WeightStream {
 public:
  static constexpr int kUnits = latency_units(kHidden), kWarps = latency_warps(kHidden);
  static constexpr int kLaneBytes = kInt8 ? 8 : 16;
  static constexpr int kPanelBytes = kUnits * kWarps * kWarpSize * kLaneBytes;

  // Asks for the first panels of the matrices [first, last), counted over all layers.
  FASTDISTIL_DEVICE void start(const void* panels, Share share, int first, int last) {
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    // A lane's units of a panel lie a warp's width apart, and the warps' parts one after the other.
    panels_ = static_cast<const char*>(panels) + (warp * kUnits * kWarpSize + lane) * kLaneBytes;
    share_ = share;
    matrix_ = first;
    end_ = last;
    tile_ = panel_ = first_ = slot_ = 0;
    skip_empty();
    for (int i = 0; i < kPanelsAheadHere; ++i) ask_for_next();
  }

  // This lane's part of the next panel: B operands of two steps of 16 columns for each unit, still
  // as they are packed. Stays valid until ask_for_next().
  FASTDISTIL_DEVICE const char* next() const {
    async_wait<kPanelsAheadHere - 1>();
    return slot();
  }
  FASTDISTIL_DEVICE static constexpr int unit_stride() { return kWarps * kWarpSize * kLaneBytes; }

  // The panel that next() gave is used up: another one takes its place.
  FASTDISTIL_DEVICE void ask_for_next() {
    if (matrix_ < end_) {
      const Matrix matrix = static_cast<Matrix>(matrix_ % kMatrices);
      const int in_layer =
          first_panel(matrix, kHidden) + share_.tile(first_ + tile_) * panels_of(matrix) + panel_;
      const int layer = matrix_ / kMatrices;
      const std::size_t index = static_cast<std::size_t>(layer) * first_panel(kMatrices, kHidden) +
                                static_cast<std::size_t>(in_layer);
      const char* from = panels_ + index * kPanelBytes;
      char* to = slot();
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) {
        const char* part = from + unit * kWarpSize * kLaneBytes;
        if constexpr (kInt8) {
          async_copy_8(to + unit * unit_stride(), part);
        } else {
          async_copy_16(to + unit * unit_stride(), part);
        }
      }
      advance();
    }
    async_commit();
    slot_ = slot_ + 1 == kPanelsAheadHere ? 0 : slot_ + 1;
  }

 private:
  FASTDISTIL_DEVICE char* slot() const {
    return shared_memory() + slot_ * kPanelBytes + static_cast<int>(threadIdx.x) * kLaneBytes;
  }

  // In the order in which LatencyBlock multiplies: up to kTilesAtOnce tiles, panel by panel.
  FASTDISTIL_DEVICE void advance() {
    const Matrix matrix = static_cast<Matrix>(matrix_ % kMatrices);
    const int tiles = share_.tiles(matrix, kHidden);
    if (++tile_ < min(kTilesAtOnce, tiles - first_)) return;
    tile_ = 0;
    if (++panel_ < panels_of(matrix)) return;
    panel_ = 0;
    first_ += kTilesAtOnce;
    if (first_ < tiles) return;
    first_ = 0;
    ++matrix_;
    skip_empty();
  }

  FASTDISTIL_DEVICE void skip_empty() {
    while (matrix_ < end_ && share_.tiles(static_cast<Matrix>(matrix_ % kMatrices), kHidden) == 0) {
      ++matrix_;
    }
  }

  const char* panels_;
  Share share_;
  int matrix_, end_, first_, panel_, tile_, slot_;
};

// B operands of two steps of 16 columns from what a lane has of a unit. int8 becomes the same
// number in T, exactly; its scale is for the sums.
template <class T, bool kInt8>
FASTDISTIL_DEVICE void load_unit(unsigned (&b)[4], const char* shared) {
  if constexpr (kInt8) {
    const uint2 packed = *reinterpret_cast<const uint2*>(shared);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // With the sign bit turned over a byte is n + 128; set below the exponent of 2^23 it is the
      // float 2^23 + n + 128.
      const unsigned bytes = (half == 0 ? packed.x : packed.y) ^ 0x80808080u;
      float numbers[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const unsigned bits = __byte_perm(bytes, 0x4b000000u, 0x7540u + static_cast<unsigned>(i));
        numbers[i] = __uint_as_float(bits) - 8388736.0f;
      }
      b[2 * half] = pack_pair<T>(numbers[0], numbers[1]);
      b[2 * half + 1] = pack_pair<T>(numbers[2], numbers[3]);
    }
  } else {
    const uint4 words = *reinterpret_cast<const uint4*>(shared);
    b[0] = words.x;
    b[1] = words.y;
    b[2] = words.z;
    b[3] = words.w;
  }
}

}  // namespace fastdistil::cuda
