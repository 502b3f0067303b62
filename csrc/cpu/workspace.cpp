#include "workspace.h"

#include <algorithm>
#include <cstdint>

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

void Workspace::reserve(const Shape& shape, int element_bytes, int rows, int longest, int ffn_piece,
                        int team) {
  const std::size_t padded_rows = round_up(rows, 2 * kTileRows);
  const std::size_t blocks = padded_rows / kTileRows;
  const int head = shape.head_padded();
  const std::size_t keys = round_up(std::max(longest, 1), kColumnMultiple);
  const int piece = std::min(ffn_piece, shape.intermediate_padded());
  // A small chunk keeps the whole intermediate layer: fewer meetings of the team.
  intermediate_columns = padded_rows <= 64 ? shape.intermediate_padded() : piece;
  attention.resize(team);

  auto lay_out = [&](Layout layout) {
    auto tiles = [&](int columns) {
      Tiles result;
      result.block_stride = static_cast<std::size_t>(columns) * element_bytes * kTileRows;
      result.data = layout.take(result.block_stride * blocks);
      return result;
    };
    hidden = tiles(shape.hidden_padded());
    context = tiles(shape.inner());
    intermediate = tiles(intermediate_columns);
    // The odd cache line keeps rows of a power-of-two width out of each other's cache sets.
    qkv_stride = static_cast<std::size_t>(3) * shape.inner() * element_bytes + 64;
    qkv = layout.take(qkv_stride * padded_rows);
    sums = layout.take<float>(padded_rows * shape.hidden_padded() * sizeof(float));
    final = layout.take<float>(padded_rows * shape.hidden_padded() * sizeof(float));
    for (AttentionScratch& scratch : attention) {
      scratch.query = layout.take(static_cast<std::size_t>(kTileRows) * head * element_bytes);
      scratch.keys = layout.take(keys * head * element_bytes);
      scratch.values = layout.take(keys * head * element_bytes);
      scratch.scores = layout.take<float>(kTileRows * keys * sizeof(float));
      scratch.weights = layout.take(kTileRows * keys * element_bytes);
      scratch.context =
          layout.take<float>(kTileRows * static_cast<std::size_t>(head) * sizeof(float));
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
