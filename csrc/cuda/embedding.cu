// Embeddings in one pass: y = LayerNorm(words[id] + segments[segment] + positions[position]).
//
//     input_ids [T], positions [T], segment_ids [T] or none,
//     words [V, D], position table [P, D], segment table [S, D] or none -> y [T, D]
//
// Three gathers, their sum in float32, and the LayerNorm of the sum while it is in registers
// (Devlin et al., arXiv:1810.04805, section 3; DistilBERT has no segments).
//
// An id outside its table is read as the nearest row there is, never past the table's end, and
// noted: the kernel sets a bit in `errors`, which somebody has to look at.
#include "rows.h"

namespace fastdistil::cuda {

namespace {

// The row of a table of `size` rows to read for an id, whatever that is; wrong ones add `bit`.
FASTDISTIL_DEVICE int look_up(std::int32_t id, int size, int bit, int& wrong) {
  if (id < 0 || id >= size) wrong |= bit;
  return min(max(id, 0), size - 1);
}

template <class Shape>
__global__ void __launch_bounds__(Shape::Group::kMostThreads, Shape::kBlocks)
    embed_layernorm_kernel(EmbeddingArguments arguments) {
  const std::int64_t token = Shape::Group::row();
  if (token >= arguments.tokens) return;
  const int width = arguments.width;
  const bool has_segments = arguments.segment != nullptr;
  // Before the rows, which wait for their ids.
  const PackedRow<Shape> weight = load_row<Shape>(arguments.weight, 0, width);
  const PackedRow<Shape> bias = load_row<Shape>(arguments.bias, 0, width);
  int wrong = 0, segment_id = 0;
  const int word_id = look_up(arguments.input_ids[token], arguments.words, kWrongWord, wrong);
  const int position_id =
      look_up(arguments.positions[token], arguments.position_rows, kWrongPosition, wrong);
  if (has_segments && arguments.segment_ids != nullptr) {
    segment_id = look_up(arguments.segment_ids[token], arguments.segments, kWrongSegment, wrong);
  }
  const PackedRow<Shape> word = load_row<Shape>(arguments.word, word_id, width);
  const PackedRow<Shape> position = load_row<Shape>(arguments.position, position_id, width);
  PackedRow<Shape> segment = {};
  if (has_segments) segment = load_row<Shape>(arguments.segment, segment_id, width);
  if (wrong != 0 && Shape::Group::rank() == 0) atomicOr(arguments.errors, wrong);
  // In the order of the definition: word, segment, position.
  Row<Shape> values = to_numbers(word);
  if (has_segments) add_row(values, segment);
  add_row(values, position);
  normalize_row(values, weight, bias, width, arguments.eps);
  store_row(arguments.out, token, width, values);
}

template <class T>
void launch_embed_layernorm(const EmbeddingArguments& arguments, Stream stream) {
  const bool aligned = is_aligned(arguments.width * sizeof(T),
                                  {arguments.word, arguments.position, arguments.segment,
                                   arguments.weight, arguments.bias, arguments.out});
  with_row_shape<T>(arguments.width, aligned, [&](auto shape) {
    using Shape = decltype(shape);
    launch("embed_layernorm", embed_layernorm_kernel<Shape>,
           blocks_for_rows<Shape>(arguments.tokens, arguments.width), stream, arguments);
  });
}

}  // namespace

void embed_layernorm(DataType type, const EmbeddingArguments& arguments, Stream stream) {
  if (arguments.tokens == 0) return;
  with_type(type, [&](auto t) { launch_embed_layernorm<decltype(t)>(arguments, stream); });
}

}  // namespace fastdistil::cuda
