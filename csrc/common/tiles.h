// How activations lie in memory while a forward runs.
//
// A [rows, columns] matrix is stored as 16-row blocks; a block is a run of tiles of 16 rows x 64
// bytes (1 KB): 64 int8, 32 bf16 or 16 fp32 columns a tile. One tile is exactly what an AMX tile
// register holds, a tile row is exactly one cache line and one 512-bit register, and a kernel that
// walks k reads memory it has never to skip over. Every instruction set shares this layout.
#pragma once

#include <cstddef>

#if defined(__GNUC__)
#define FASTDISTIL_INLINE inline __attribute__((always_inline))
#else
#error "fastdistil's C++ engine needs GCC or Clang (vector extensions, always_inline)"
#endif

namespace fastdistil {

constexpr int kTileRows = 16;
constexpr int kTileRowBytes = 64;
constexpr int kTileBytes = kTileRows * kTileRowBytes;

// Column counts are padded to this with zero weights, so that no kernel has a column tail. It is a
// multiple of the tile width and of the panel width of every instruction set.
constexpr int kColumnMultiple = 32;

constexpr int round_up(int value, int multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

struct Tiles {
  char* data = nullptr;
  std::size_t block_stride = 0;  // bytes from one 16-row block to the next

  FASTDISTIL_INLINE char* block(int row) const {
    return data + static_cast<std::size_t>(row / kTileRows) * block_stride;
  }

  // `column` must not be inside a vector that straddles two tiles; widths that divide a tile never
  // do.
  template <class Elem>
  FASTDISTIL_INLINE Elem* at(int row, int column) const {
    constexpr int kTileColumns = kTileRowBytes / static_cast<int>(sizeof(Elem));
    char* tile = block(row) + static_cast<std::size_t>(column / kTileColumns) * kTileBytes;
    return reinterpret_cast<Elem*>(tile + (row % kTileRows) * kTileRowBytes) +
           column % kTileColumns;
  }
};

// Row-major, where a whole row or a head's columns are read in one go.
struct Rows {
  char* data = nullptr;
  std::size_t stride = 0;  // bytes from row to row

  template <class Elem>
  FASTDISTIL_INLINE Elem* at(int row, int column) const {
    return reinterpret_cast<Elem*>(data + static_cast<std::size_t>(row) * stride) + column;
  }
};

}  // namespace fastdistil
