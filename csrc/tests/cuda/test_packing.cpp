// Where the kept tokens of a padded batch are, against a loop over it.
#include "arrays.h"

namespace fastdistil::tests {
namespace {

template <class Entry>
struct Mask {
  int rows, width;
  std::int64_t stride;
  bool is_float = false;
  Array<Entry> entries;

  Mask(int rows_, int width_, int gap = 0)
      : rows(rows_), width(width_), stride(width_ + gap), entries(needed()) {}

  std::size_t needed() const {
    if (rows == 0 || width == 0) return 0;
    return static_cast<std::size_t>((rows - 1) * stride + width);
  }
  std::size_t cells() const {
    return static_cast<std::size_t>(rows) * static_cast<std::size_t>(width);
  }
  Entry& at(int row, int column) {
    return entries[static_cast<std::size_t>(row * stride + column)];
  }
  // Keeps about `share` of the cells; gaps between rows are all ones.
  void fill(double share, Entry keeping, Entry dropping = 0) {
    std::mt19937 generator(5);
    std::bernoulli_distribution keep(share);
    for (int row = 0; row < rows; ++row) {
      for (int column = 0; column < width; ++column) {
        at(row, column) = keep(generator) ? keeping : dropping;
      }
    }
  }
};

struct Packed {
  Array<std::int32_t> cu_seqlens, positions;
  Array<std::int64_t> indices;
};

bool same_bits(const Packed& a, const Packed& b) {
  return same_bits(a.cu_seqlens, b.cu_seqlens) && same_bits(a.positions, b.positions) &&
         same_bits(a.indices, b.indices);
}

template <class Entry>
Packed run(const Mask<Entry>& mask, std::size_t places) {
  Packed packed{Array<std::int32_t>(static_cast<std::size_t>(mask.rows) + 1),
                Array<std::int32_t>(places), Array<std::int64_t>(places)};
  cuda::pack({mask.entries.data(), mask.stride, sizeof(Entry), mask.is_float,
              packed.cu_seqlens.data(), packed.positions.data(), packed.indices.data(), mask.rows,
              mask.width, static_cast<int>(places)},
             0);
  return packed;
}

// `keeps` says whether an entry keeps its token.
template <class Entry, class Keeps>
Packed expected(Mask<Entry> mask, std::size_t places, Keeps&& keeps) {
  Packed packed{Array<std::int32_t>(static_cast<std::size_t>(mask.rows) + 1),
                Array<std::int32_t>(places), Array<std::int64_t>(places)};
  for (std::size_t i = 0; i < places; ++i) packed.positions[i] = 0;
  for (std::size_t i = 0; i < places; ++i) packed.indices[i] = 0;
  packed.cu_seqlens[0] = 0;
  std::size_t kept = 0;
  for (int row = 0; row < mask.rows; ++row) {
    for (int column = 0; column < mask.width; ++column) {
      if (!keeps(mask.at(row, column))) continue;
      if (kept < places) {
        packed.positions[kept] = column;
        packed.indices[kept] = std::int64_t{row} * mask.width + column;
      }
      ++kept;
    }
    packed.cu_seqlens[static_cast<std::size_t>(row) + 1] = static_cast<std::int32_t>(kept);
  }
  return packed;
}

template <class Entry>
void check(const Mask<Entry>& mask, std::size_t places, int orders = 1) {
  const std::string name = std::to_string(sizeof(Entry)) + " bytes, [" + std::to_string(mask.rows) +
                           ", " + std::to_string(mask.width) + "], places " +
                           std::to_string(places);
  const Packed packed = same_in_every_order([&] { return run(mask, places); }, name, orders);
  CHECK(same_bits(packed, expected(mask, places, [](Entry entry) { return entry != 0; })), name);
}

TEST(pack_finds_the_kept_tokens) {
  for (const int rows : {1, 4, 5, 37}) {
    for (const int width : {1, 31, 32, 33, 128, 129, 300}) {
      Mask<std::int64_t> mask(rows, width);
      for (const double share : {0.0, 0.3, 1.0}) {
        mask.fill(share, 1);
        check(mask, mask.cells());
      }
    }
  }
}

TEST(pack_has_the_same_bits_in_every_order) {
  Mask<std::int32_t> mask(37, 129);
  mask.fill(0.6, -5);
  check(mask, mask.cells(), 5);
}

TEST(pack_fills_just_the_places_there_are) {
  Mask<std::uint8_t> mask(9, 70);
  mask.fill(0.5, 1);
  const auto kept = static_cast<std::size_t>(run(mask, 0).cu_seqlens[9]);
  for (const std::size_t places : {std::size_t{0}, std::size_t{1}, kept - 1, kept, kept + 1}) {
    check(mask, places);
  }
}

TEST(pack_reads_entries_of_every_size_and_skips_gaps) {
  const auto check_size = [](auto entry) {
    using Entry = decltype(entry);
    Mask<Entry> mask(5, 50, 3);
    mask.fill(0.5, static_cast<Entry>(Entry{1} << (8 * sizeof(Entry) - 1)));  // the highest bit
    check(mask, mask.cells());
  };
  check_size(std::uint8_t{});
  check_size(std::uint16_t{});
  check_size(std::uint32_t{});
  check_size(std::uint64_t{});
}

TEST(pack_takes_minus_zero_for_zero) {
  const auto check_float = [](auto entry) {
    using Entry = decltype(entry);
    const auto minus_zero = static_cast<Entry>(Entry{1} << (8 * sizeof(Entry) - 1));
    Mask<Entry> mask(5, 50);
    mask.is_float = true;
    mask.fill(0.5, static_cast<Entry>(minus_zero | 1), minus_zero);
    const Packed wanted = expected(mask, mask.cells(), [&](Entry e) { return e != minus_zero; });
    CHECK(same_bits(run(mask, mask.cells()), wanted), std::to_string(sizeof(Entry)));
  };
  check_float(std::uint16_t{});
  check_float(std::uint32_t{});
  check_float(std::uint64_t{});
}

TEST(pack_of_nothing) {
  for (const int rows : {0, 1, 40}) check(Mask<std::int64_t>(rows, 0), 0);
  check(Mask<std::int64_t>(0, 7), 0);
}

TEST(pack_scans_more_rows_than_a_block_has_threads) {
  Mask<std::uint8_t> mask(2100, 3);
  mask.fill(0.5, 1);
  check(mask, mask.cells());
}

}  // namespace
}  // namespace fastdistil::tests
