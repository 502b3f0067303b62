// The parts of an int8 forward by themselves, as one instruction set compiles them.
#pragma once

#include <vector>

#include "../cpu/gemm.h"
#include "../cpu/kernels.h"
#include "../cpu/quantise.h"

namespace fastdistil::tests {

struct Int8Parts {
  const cpu::Kernels* kernels;  // the table that is made of them: runs where they run
  // quantise_row; `rotated` receives what the codes are of.
  cpu::RowScale (*quantise)(const float* x, int columns, cpu::Rotation rotation, float* rotated,
                            const Tiles& codes, int row);
  // gemm over all panels, into `out` as the product leaves it: integers of 32 bits.
  void (*multiply)(const Tiles& codes, const cpu::RowScale* scales, int rows,
                   const cpu::PackedMatrix& weights, cpu::KRange k, const Rows& out);
  // The same with the epilogue Add: the product's values, and the bias, added to `out`.
  void (*multiply_add)(const Tiles& codes, const cpu::RowScale* scales, int rows,
                       const cpu::PackedMatrix& weights, cpu::KRange k, const Rows& out);
  // pool_sequence: the maximum.
  void (*pool)(const float* rows, int stride, int length, int columns, float* out);
};

// Those that this machine can run.
std::vector<const Int8Parts*> int8_parts_under_test();

}  // namespace fastdistil::tests
