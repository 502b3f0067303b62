// What happens to a row of a finished block of sums (one panel wide) before it leaves the
// first-level cache. Each names where it writes; every vector by column is padded with zeros to
// whole panels.
#pragma once

#include <type_traits>

#include "activation.h"
#include "model.h"
#include "quantise.h"

namespace fastdistil::cpu {

// How the 32-bit sums of a product become values. fp32 and bf16 products leave them finished.
template <class V>
struct FinishedSums {
  FinishedSums(const PackedMatrix&, int, const RowScale*) {}

  FASTDISTIL_INLINE V load(const float* sums, int, int) const { return V::load(sums); }
};

// int8 products leave integers: with x = scale q + minimum by row and w = column_scale v by column,
// sum x w = column_scale (scale sum q v + minimum sum v). The last sum is known beforehand.
template <class V>
struct IntegerSums {
  const float* column_scale;
  const float* column_sum;
  const RowScale* rows;

  IntegerSums(const PackedMatrix& weights, int first_k_tile, const RowScale* row_scales)
      : column_scale(weights.column_scale.as<float>()),
        column_sum(weights.column_sums(first_k_tile)),
        rows(row_scales) {}

  FASTDISTIL_INLINE V load(const float* sums, int row, int column) const {
    const V shift = V::set(rows[row].minimum) * V::load(column_sum + column);
    const V scale = V::set(rows[row].scale) * V::load(column_scale + column);
    return V::fma(V::load_integers(sums), scale, shift);
  }
};

// Of a product whose left operand is in elements of `Elem`.
template <class V, class Elem>
using SumsOf = std::conditional_t<sizeof(Elem) == 1, IntegerSums<V>, FinishedSums<V>>;

struct Identity {
  template <class V>
  static FASTDISTIL_INLINE V apply(V x) {
    return x;
  }
};

// The activation, as exact as the type that its result is rounded to can tell.
template <Activation kActivation, class Elem>
struct Activate {
  template <class V>
  static FASTDISTIL_INLINE V apply(V x) {
    return activate<kActivation, V, Elem>(x);
  }
};

// function(x + bias), rounded to `Elem`, into `Destination` (Rows or Tiles).
template <class Isa, class Function, class Elem, class Destination>
struct Store {
  using V = typename Isa::Vec;
  typename Isa::Sums products;
  const float* bias;
  Destination out;
  int first_column;  // the column of the product that is column 0 of `out`

  FASTDISTIL_INLINE void announce(int, int, int) const {}
  FASTDISTIL_INLINE void row(const float* sums, int row, int column) const {
    for (int j = 0; j < Isa::kPanelColumns; j += V::kLanes) {
      const V x = products.load(sums + j, row, column + j) + V::load(bias + column + j);
      Function::apply(x).store(out.template at<Elem>(row, column - first_column + j));
    }
  }
};

// Added to what is there, the residual or the sum of earlier pieces of k: what a LayerNorm reads.
template <class Isa, bool kWithBias>
struct Add {
  using V = typename Isa::Vec;
  typename Isa::Sums products;
  const float* bias;
  Rows out;

  FASTDISTIL_INLINE void announce(int first_row, int rows, int column) const {
    for (int row = first_row; row < first_row + rows; ++row) {
      const char* p = reinterpret_cast<const char*>(out.at<float>(row, column));
      for (int line = 0; line < Isa::kPanelColumns * 4; line += 64)
        __builtin_prefetch(p + line, 1, 3);
    }
  }
  FASTDISTIL_INLINE void row(const float* sums, int row, int column) const {
    for (int j = 0; j < Isa::kPanelColumns; j += V::kLanes) {
      V x = products.load(sums + j, row, column + j);
      if constexpr (kWithBias) x = x + V::load(bias + column + j);
      float* sum = out.at<float>(row, column + j);
      (V::load(sum) + x).store(sum);
    }
  }
};

}  // namespace fastdistil::cpu
