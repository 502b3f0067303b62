// For the files that are compiled with an instruction set's flags. They must call nothing of the
// standard library: the linker could choose their copy of it for everybody.
#pragma once

#include <cstring>

#include "../cpu/forward.h"
#include "int8_parts.h"

namespace fastdistil::tests {
namespace {

template <class Isa>
struct MakeInt8Parts {
  using V = typename Isa::Vec;

  static cpu::RowScale quantise(const float* x, int columns, cpu::Rotation rotation, float* rotated,
                                const Tiles& codes, int row) {
    switch (rotation) {
      case cpu::Rotation::kFull:
        return cpu::quantise_row<V, cpu::Rotation::kFull>(x, columns, rotated, codes, row);
      case cpu::Rotation::kCoarse:
        return cpu::quantise_row<V, cpu::Rotation::kCoarse>(x, columns, rotated, codes, row);
      default:
        return cpu::quantise_row<V, cpu::Rotation::kNone>(x, columns, rotated, codes, row);
    }
  }

  using ToValues = cpu::Add<Isa, true>;
  // Whatever else gemm asks of an epilogue, Add has.
  struct ToIntegers : ToValues {
    FASTDISTIL_INLINE void row(const float* sums, int row, int column) const {
      std::memcpy(this->out.template at<float>(row, column), sums,
                  Isa::kPanelColumns * sizeof(float));
    }
  };

  template <class Epilogue>
  static void multiply(const Tiles& codes, const cpu::RowScale* scales, int rows,
                       const cpu::PackedMatrix& weights, cpu::KRange k, const Rows& out) {
    [[maybe_unused]] const typename Isa::Session session{};
    const ToValues add{{weights, k.weight_begin, scales}, weights.bias.as<float>(), out};
    cpu::gemm<Isa>(codes, rows, weights, cpu::Range{0, weights.panels}, weights.panels, k,
                   Epilogue{add});
  }

  static void pool(const float* rows, int stride, int length, int columns, float* out) {
    cpu::pool_sequence<V>(rows, stride, length, columns, cpu::Pooling::kMax, false, out);
  }
};

template <class Isa>
constexpr Int8Parts make_int8_parts(const cpu::Kernels& kernels) {
  using Make = MakeInt8Parts<Isa>;
  return {&kernels, Make::quantise, Make::template multiply<typename Make::ToIntegers>,
          Make::template multiply<typename Make::ToValues>, Make::pool};
}

}  // namespace
}  // namespace fastdistil::tests
