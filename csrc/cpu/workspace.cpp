#include "workspace.h"

#include <algorithm>
#include <cstdint>

#include "kernels.h"

namespace fastdistil::cpu {
namespace {

// First pass with a null base: counts. Second pass: hands out.
class Layout {
 public:
  explicit Layout(char* base) : base_(reinterpret_cast<std::uintptr_t>(base)) {}

  template <class T = char>
  T* take(std::size_t bytes) {
    T* here = reinterpret_cast<T*>(base_ + used_);
    // One line more than asked for, so that buffers of round sizes do not all start in the same
    // cache set.
    used_ += (bytes + 63) / 64 * 64 + 64;
    return here;
  }
  std::size_t used() const { return used_; }

 private:
  std::uintptr_t base_;
  std::size_t used_ = 0;
};

}  // namespace

void Workspace::reserve(const Shape& shape, const Kernels& kernels, int rows, int longest,
                        int team) {
  const std::size_t padded_rows = round_up(rows, 2 * kTileRows);
  const int operand_bytes = kernels.format.element_bytes;
  const int wide_bytes = kernels.attention_bytes;
  const bool quantised = operand_bytes == 1;
  const int head = shape.head_padded();
  const std::size_t keys = round_up(std::max(longest, 1), kColumnMultiple);
  // A small chunk keeps the whole intermediate layer: fewer meetings of the team.
  const int all = shape.intermediate_padded();
  intermediate_columns = padded_rows <= 64 ? all : std::min(kernels.ffn_piece, all);
  scale_rows = static_cast<int>(padded_rows);
  scratch.resize(team);

  auto lay_out = [&](Layout layout) {
    auto operand = [&](int columns, int pieces) {
      Operand result;
      const std::size_t row_bytes = round_up(columns * operand_bytes, kTileRowBytes);
      result.tiles.block_stride = row_bytes * kTileRows;
      result.tiles.data = layout.take(row_bytes * padded_rows);
      if (quantised) result.scales = layout.take<RowScale>(pieces * padded_rows * sizeof(RowScale));
      return result;
    };
    auto row_major = [&](int columns, int element_bytes) {
      Rows result;
      // The odd cache line keeps rows of a power-of-two width out of each other's cache sets.
      result.stride = static_cast<std::size_t>(columns) * element_bytes + 64;
      result.data = layout.take(result.stride * padded_rows);
      return result;
    };
    const int pieces = (intermediate_columns + kernels.ffn_piece - 1) / kernels.ffn_piece;
    hidden = operand(shape.hidden_padded(), 1);
    context = operand(shape.inner(), 1);
    activated = operand(intermediate_columns, pieces);
    qkv = row_major(3 * shape.inner(), wide_bytes);
    if (quantised) unquantised = row_major(intermediate_columns, wide_bytes);
    sums = row_major(shape.hidden_padded(), sizeof(float));
    final = row_major(shape.hidden_padded(), sizeof(float));
    for (ThreadScratch& mine : scratch) {
      mine.query = layout.take(static_cast<std::size_t>(kTileRows) * head * wide_bytes);
      mine.keys = layout.take(keys * head * wide_bytes);
      mine.values = layout.take(keys * head * wide_bytes);
      mine.scores = layout.take<float>(kTileRows * keys * sizeof(float));
      mine.weights = layout.take(kTileRows * keys * wide_bytes);
      mine.context = layout.take<float>(kTileRows * static_cast<std::size_t>(head) * sizeof(float));
      const int widest = std::max({shape.hidden_padded(), shape.inner(), kernels.ffn_piece});
      if (quantised) mine.row = layout.take<float>(widest * sizeof(float));
    }
    return layout.used();
  };

  const std::size_t needed = lay_out(Layout(nullptr));
  if (needed > capacity_) {
    memory_ = AlignedBuffer(needed);
    capacity_ = needed;
  }
  lay_out(Layout(memory_.data()));
}

}  // namespace fastdistil::cpu
