// What the tensor cores' instructions compute, lane by lane as the PTX manual lays the fragments
// out ("Warp-level matrix instructions", PTX ISA 8.x, sections on mma.m16n8k16 and ldmatrix).
#pragma once

#include <cstring>

#include "execution.h"

namespace fastdistil::emulation {

// Four registers of A: with g = lane / 4 and t = lane % 4, rows g, g + 8, g, g + 8 and columns 2t
// and 2t + 1, in the last two registers 8 further on. Two of B, rows (of k) and column g likewise.
// Four float sums: row g columns 2t and 2t + 1, then row g + 8.
struct MmaOperands {
  std::uint32_t a[4];
  std::uint32_t b[2];
  float c[4];
};

struct MmaSums {
  float d[4];
};

// D = A B + C, 16 x 16 by 16 x 8, with exact products, summed in double and rounded once. Hardware
// rounds a little otherwise (it truncates when it lines up the terms), so bits are not the GPU's.
// `to_float` is how 16 bits are read.
template <class ToFloat>
MmaSums mma_m16n8k16(const MmaOperands& operands, ToFloat&& to_float) {
  return warp<MmaOperands, MmaSums>("mma.sync", operands, [&](auto& given, auto& results) {
    double a[16][16], b[16][8];
    const auto half = [&](std::uint32_t pair, int index) {
      return static_cast<double>(to_float(static_cast<std::uint16_t>(pair >> (16 * index))));
    };
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 2; ++i) {
        for (int r = 0; r < 4; ++r) {
          a[g + 8 * (r % 2)][2 * t + i + 8 * (r / 2)] = half(given[lane]->a[r], i);
        }
        for (int r = 0; r < 2; ++r) b[2 * t + i + 8 * r][g] = half(given[lane]->b[r], i);
      }
    }
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int r = 0; r < 4; ++r) {
        const int row = g + 8 * (r / 2), column = 2 * t + r % 2;
        double sum = given[lane]->c[r];
        for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
        results[lane]->d[r] = static_cast<float>(sum);
      }
    }
  });
}

struct Matrices {
  std::uint32_t r[4];
};

// ldmatrix.x4: lane 8 m + r points at row r (16 bytes) of matrix m; register m of a lane is then
// elements 2t and 2t + 1 of row g of matrix m; transposed: of column g.
inline Matrices ldmatrix_x4(const void* row, bool transposed) {
  return warp<const void*, Matrices>(
      transposed ? "ldmatrix.trans" : "ldmatrix", row, [&](auto& given, auto& results) {
        for (int m = 0; m < 4; ++m) {
          std::uint16_t matrix[8][8];
          for (int r = 0; r < 8; ++r) {
            const void* address = *given[8 * m + r];
            if (reinterpret_cast<std::uintptr_t>(address) % 16 != 0) {
              throw Error("emulation: ldmatrix of an address that is no multiple of 16");
            }
            std::memcpy(matrix[r], address, 16);
          }
          for (int lane = 0; lane < kWarpSize; ++lane) {
            const int g = lane / 4, t = lane % 4;
            const std::uint32_t low = transposed ? matrix[2 * t][g] : matrix[g][2 * t];
            const std::uint32_t high = transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
            results[lane]->r[m] = low | high << 16;
          }
        }
      });
}

}  // namespace fastdistil::emulation
