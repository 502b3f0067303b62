// A whole encoder in one launch, for so few tokens that reading the weights is the work.
//
// Every block computes its share of the outputs of each product, for all rows of its group (16 or
// 32 rows; few tokens are one group). Its warps share the columns that a product sums over, so that
// each weight is used by one warp of one block and read once; their sums meet in shared memory, in
// the order of the warps. What a step needs of others comes through published.h: there is no
// barrier in the whole forward but those within a block. LayerNorm is computed by each block for
// itself, in the lanes that need it as operands of the next product; so the states between layers
// never leave the block.
//
//     step      a block's share            reads from others           sums over
//     kMakeQkv  outputs of Q, K and V      what kNarrow made           hidden, by warps
//     kAttend   heads of sequences         Q, K and V                  keys, in a warp
//     kProject  outputs                    context                     hidden, by warps
//     kWiden    outputs, activation        what kProject made          hidden, by warps
//     kNarrow   outputs                    what kWiden made            4 hidden, by warps
//     the last  (the first block: states)  what kNarrow made
//     pooling   sequences                  last states               tokens
//
// A launch of a few of the steps does the same with what earlier launches left: the encoder as a
// chain of kernels.
#pragma once

#include "activation.h"
#include "latency_attention.h"
#include "latency_pooling.h"
#include "published.h"
#include "weight_stream.h"

namespace fastdistil::cuda {

// Shared memory of a block: the weights under way, the states between layers, LayerNorm's vectors
// and sums, and then what is used by turns: the warps' partial sums, a head's K and V, a pooled
// vector's parts.
template <bool kInt8, int kHidden, int kRowTiles>
struct LatencyShared {
  static constexpr int kWarps = latency_warps(kHidden);
  static constexpr int kPanelBytes = WeightStream<kInt8, kHidden>::kPanelBytes;
  static constexpr int kHiddenBytes = kRowTiles * kTileRows * kHidden * 2;
  static constexpr int kNormBytes = 2 * kHidden * 4;
  static constexpr int kStatisticsBytes = 2 * kWarps * kRowTiles * kTileRows * 4;
  static constexpr int kPartialBytes = kWarps * kRowTiles * kTilesAtOnce * kWarpSize * 16;
  static_assert(LatencyPooling<BFloat16, kHidden>::kSharedBytes <= kPartialBytes, "");

  FASTDISTIL_HOST_DEVICE static constexpr int bytes(int panels_ahead, int longest) {
    const int keys = shared_bytes_of_keys<latency_head_dim(kHidden)>(longest);
    return panels_ahead * kPanelBytes + kHiddenBytes + kNormBytes + kStatisticsBytes +
           (keys > kPartialBytes ? keys : kPartialBytes);
  }
};

template <class T, bool kInt8, int kHidden, int kRowTiles>
class LatencyBlock {
 public:
  using Shared = LatencyShared<kInt8, kHidden, kRowTiles>;
  using Stream = WeightStream<kInt8, kHidden>;
  static constexpr int kWarps = Shared::kWarps, kThreads = kWarps * kWarpSize;
  static constexpr int kUnits = Stream::kUnits;
  // Steps of 16 columns that a warp takes of `hidden` columns.
  static constexpr int kSteps = 2 * kUnits;

  FASTDISTIL_DEVICE explicit LatencyBlock(const LatencyParameters& parameters) : p_(parameters) {
    const int groups = rounded_up(p_.rows, kRowTiles * kTileRows) / (kRowTiles * kTileRows);
    const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
    const int members = blocks / groups, group = block / members;
    // Blocks that are left over have no outputs to compute; they attend and pool.
    idle_ = group >= groups;
    share_ = {idle_ ? 1 << 20 : block % members, members};
    first_tile_ = group * kRowTiles;
  }

  FASTDISTIL_DEVICE void run() {
    const int steps = latency_steps(p_.layers);
    stream_.start(p_.panels, share_, first_matrix(p_.first_step), first_matrix(p_.last_step));
    allow_the_next_launch();
    wait_for_the_launch_before();
    thread_ = thread_index();
    const unsigned epoch = p_.control->epoch;
    states_ = static_cast<T*>(p_.states) +
              (epoch & 1u) * (latency_state_bytes(p_.layers, kHidden) / sizeof(T));
    sequences_ = *p_.num_sequences;
    tokens_ = p_.cu_seqlens[sequences_];
    if (p_.first_step == 0) make_ready_for_the_next(epoch);
#pragma unroll 1
    for (int step = p_.first_step; step < p_.last_step; ++step) {
      // Asked for anew, so that what follows from it is not kept in registers from step to step.
      thread_ = thread_index();
      run_step(step / kStepsALayer, static_cast<Step>(step % kStepsALayer));
    }
    async_wait<0>();
    if (p_.last_step == steps) count_as_finished();
  }

 private:
  static constexpr int kHiddenStart = kPanelsAheadHere * Shared::kPanelBytes;
  static constexpr int kNormStart = kHiddenStart + Shared::kHiddenBytes;
  static constexpr int kStatisticsStart = kNormStart + Shared::kNormBytes;
  static constexpr int kScratchStart = kStatisticsStart + Shared::kStatisticsBytes;

  using Fragments = unsigned[kRowTiles][kSteps][4];
  using Sums = float[kRowTiles][kTilesAtOnce][4];

  // The first matrix that is used in `step` or behind it; attention uses none.
  FASTDISTIL_DEVICE int first_matrix(int step) const {
    const int in_layer = step % kStepsALayer;
    const int matrix = in_layer <= kAttend ? in_layer : in_layer - 1;
    return min(step / kStepsALayer * kMatrices + matrix, p_.layers * kMatrices);
  }

  FASTDISTIL_DEVICE T* region(int layer, int which) const {
    return states_ + region_start(layer, which, kHidden);
  }
  FASTDISTIL_DEVICE int warp() const { return thread_ / kWarpSize; }
  FASTDISTIL_DEVICE int lane() const { return thread_ % kWarpSize; }
  FASTDISTIL_DEVICE int g() const { return lane() / 4; }
  FASTDISTIL_DEVICE int t() const { return lane() % 4; }
  // Parts of shared memory, at places known in advance: they take no registers.
  FASTDISTIL_DEVICE static float* norm() {
    return reinterpret_cast<float*>(shared_memory() + kNormStart);
  }
  FASTDISTIL_DEVICE static float* statistics() {
    return reinterpret_cast<float*>(shared_memory() + kStatisticsStart);
  }
  FASTDISTIL_DEVICE static char* scratch() { return shared_memory() + kScratchStart; }
  // Row g + 8 `half` of a tile of this group.
  FASTDISTIL_DEVICE int row(int tile, int half) const {
    return (first_tile_ + tile) * kTileRows + g() + 8 * half;
  }

  // --- the other set, and the end of a launch ----------------------------------------------------

  FASTDISTIL_DEVICE void make_ready_for_the_next(unsigned epoch) {
    const unsigned other = (epoch & 1u) ^ 1u;
    const std::size_t set = latency_state_bytes(p_.layers, kHidden) / sizeof(T);
    T* states = static_cast<T*>(p_.states) + other * set;
    const int rows = static_cast<int>(p_.control->rows[other]);
#pragma unroll 1
    for (int layer = 0; layer < p_.layers; ++layer) {
      for (int which = 0; which < kRegions; ++which) {
        const int columns = columns_of(static_cast<Region>(which), kHidden);
        clear(states + region_start(layer, which, kHidden), rows * columns);
      }
    }
    clear(states + region_start(p_.layers, 0, kHidden), rows * kHidden);
    if (blockIdx.x == 0 && thread_ == 0) {
      p_.control->rows[epoch & 1u] =
          static_cast<unsigned>(rounded_up(p_.rows, kRowTiles * kTileRows));
    }
  }

  FASTDISTIL_DEVICE void clear(T* numbers, int count) {
    constexpr int kNumbers = 16 / sizeof(T);
    uint4* words = reinterpret_cast<uint4*>(numbers);
    const int threads = static_cast<int>(gridDim.x) * kThreads;
    for (int i = static_cast<int>(blockIdx.x) * kThreads + thread_; i < count / kNumbers;
         i += threads) {
      words[i] = make_uint4(kUnwritten, kUnwritten, kUnwritten, kUnwritten);
    }
  }

  // The last block to end turns to the other set. All have read the epoch by then.
  FASTDISTIL_DEVICE void count_as_finished() {
    __syncthreads();
    if (thread_ != 0) return;
    if (atomicAdd(&p_.control->finished_blocks, 1u) != gridDim.x - 1) return;
    p_.control->finished_blocks = 0;
    p_.control->epoch += 1;
  }

  // --- steps -------------------------------------------------------------------------------------

  // Each kind of work stands here once, whichever steps it belongs to: code that a block runs for
  // the first time has to be fetched, too.
  FASTDISTIL_DEVICE void run_step(int layer, Step step) {
    if (step == kAttend) return layer < p_.layers ? attend(layer) : pool();
    if (idle_) return;
    if (step == kMakeQkv || step == kWiden) renew_states(layer, step);
    if (layer < p_.layers) {
      multiply(layer, matrix_of(step));
    } else if (share_.member == 0) {
      publish_last();
    }
  }

  FASTDISTIL_DEVICE static Matrix matrix_of(Step step) {
    return static_cast<Matrix>(step == kMakeQkv ? kQkv : step - 1);
  }

  // The states that go into Q, K and V (or are the last), or into the feed-forward block.
  FASTDISTIL_DEVICE void renew_states(int layer, Step step) {
    const int made_by = step == kWiden ? 1 : 0;
    if (layer == 0 && step == kMakeQkv) {
      embed();
    } else {
      if (layer * kStepsALayer + step == p_.first_step) restore(1 - made_by);
      const T* update = step == kWiden ? region(layer, kAttended) : region(layer - 1, kUpdate);
      normalise_sum(update, 2 * layer + made_by);
    }
    save(made_by);
  }

  // Operands of a product that other blocks have made, or null where they are this block's states.
  FASTDISTIL_DEVICE const T* operands_of(int layer, Matrix matrix) const {
    return matrix == kOut     ? region(layer, kContext)
           : matrix == kOuter ? region(layer, kInnerStates)
                              : nullptr;
  }

  // Stores rows g and g + 8 of a row tile, columns 2t and 2t + 1 of eight outputs.
  FASTDISTIL_DEVICE void store(int layer, Matrix matrix, int tile, int outputs, int lane,
                               const float4& sums) const {
    switch (matrix) {
      case kQkv:
        return store_row_major(region(layer, kQkvStates), tile, outputs, lane, sums);
      case kOut:
        return store_operands(region(layer, kAttended), kHidden, tile, outputs, lane, sums);
      case kInner:
        return store_operands(region(layer, kInnerStates), kWidening * kHidden, tile, outputs, lane,
                              activated(sums));
      default:
        return store_operands(region(layer, kUpdate), kHidden, tile, outputs, lane, sums);
    }
  }

  FASTDISTIL_DEVICE void store_row_major(T* to, int tile, int outputs, int lane,
                                         const float4& sums) const {
    const int column = 8 * outputs + lane % 4 * 2;
    const int first = (first_tile_ + tile) * kTileRows + lane / 4;
    unsigned* place = reinterpret_cast<unsigned*>(to) + (first * 3 * kHidden + column) / 2;
    if (first < tokens_) publish(place, pack_pair<T>(sums.x, sums.y));
    if (first + 8 < tokens_) publish(place + 8 * 3 * kHidden / 2, pack_pair<T>(sums.z, sums.w));
  }

  // As operands of the next product.
  FASTDISTIL_DEVICE void store_operands(T* to, int columns, int tile, int outputs, int lane,
                                        const float4& sums) const {
    const int step = (first_tile_ + tile) * (columns / 16) + outputs / 2;
    uint2* words = reinterpret_cast<uint2*>(to) + (step * kWarpSize + lane) * 2 + outputs % 2;
    publish(words, make_uint2(pack_pair<T>(sums.x, sums.y), pack_pair<T>(sums.z, sums.w)));
  }

  FASTDISTIL_DEVICE float4 activated(const float4& x) const {
    return make_float4(activated(p_.activation, x.x), activated(p_.activation, x.y),
                       activated(p_.activation, x.z), activated(p_.activation, x.w));
  }

  FASTDISTIL_DEVICE static float activated(Activation activation, float x) {
    switch (activation) {
      case Activation::kGelu:
        return activate<Activation::kGelu>(x);
      case Activation::kGeluTanh:
        return activate<Activation::kGeluTanh>(x);
      case Activation::kRelu:
        return activate<Activation::kRelu>(x);
      case Activation::kSilu:
        return activate<Activation::kSilu>(x);
      default:
        return x;
    }
  }

  // What this warp has asked for of a region that others write: A operands of `hidden` columns.
  using Asked = uint4[kRowTiles][kSteps];

  // Where lane's part of those lies, the panel-th `hidden` columns of a region of so many.
  FASTDISTIL_DEVICE const uint4* operands_at(const T* from, int columns, int panel,
                                             int tile) const {
    const int step =
        (first_tile_ + tile) * (columns / 16) + panel * (kHidden / 16) + warp() * kSteps;
    return reinterpret_cast<const uint4*>(from) + step * kWarpSize + lane();
  }

  FASTDISTIL_DEVICE void ask_for(Asked& words, const T* from, int columns, int panel) const {
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      const uint4* place = operands_at(from, columns, panel, tile);
#pragma unroll
      for (int k = 0; k < kSteps; ++k) words[tile][k] = load_published(place + k * kWarpSize);
    }
  }

  FASTDISTIL_DEVICE void await(Fragments& a, const Asked& words, const T* from, int columns,
                               int panel) const {
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      const uint4* place = operands_at(from, columns, panel, tile);
      // Nobody writes rows that are no tokens.
      const bool first = row(tile, 0) < tokens_, second = row(tile, 1) < tokens_;
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        const uint4 ready = wait_for(words[tile][k], place + k * kWarpSize, first, second);
        a[tile][k][0] = ready.x;
        a[tile][k][1] = ready.y;
        a[tile][k][2] = ready.z;
        a[tile][k][3] = ready.w;
      }
    }
    __syncwarp();
  }

  // --- products ----------------------------------------------------------------------------------

  // This block's outputs of one matrix.
  FASTDISTIL_DEVICE void multiply(int layer, Matrix matrix) {
    const T* operands = operands_of(layer, matrix);
    const int panels = panels_of(matrix);
    const int tiles = share_.tiles(matrix, kHidden);
#pragma unroll 1
    for (int first = 0; first < tiles; first += kTilesAtOnce) {
      const int count = min(kTilesAtOnce, tiles - first);
      Finish finish(*this, matrix, layer, first, count);
      Sums sums;
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < kTilesAtOnce; ++i) {
          for (int r = 0; r < 4; ++r) sums[tile][i][r] = 0.0f;
        }
      }
      if (operands == nullptr) {
        Fragments a;
        load_hidden(a);
        multiply_tiles(sums, count, a);
      } else {
        multiply_operands(sums, count, operands, panels);
      }
      finish(sums);
    }
  }

  // Panels of operands that are asked for before the first is waited for, as registers allow.
  static constexpr int kPanelsAtOnce = kRowTiles == 1 && kUnits <= 3 ? 2 : 1;

  FASTDISTIL_DEVICE void multiply_operands(Sums& sums, int count, const T* operands, int panels) {
    const int columns = panels * kHidden;
#pragma unroll 1
    for (int first = 0; first < panels; first += kPanelsAtOnce) {
      Asked words[kPanelsAtOnce];
#pragma unroll
      for (int n = 0; n < kPanelsAtOnce; ++n) {
        if (first + n < panels) ask_for(words[n], operands, columns, first + n);
      }
#pragma unroll
      for (int n = 0; n < kPanelsAtOnce; ++n) {
        if (first + n >= panels) break;
        Fragments a;
        await(a, words[n], operands, columns, first + n);
        multiply_tiles(sums, count, a);
      }
    }
  }

  FASTDISTIL_DEVICE void multiply_tiles(Sums& sums, int count, const Fragments& a) {
#pragma unroll
    for (int i = 0; i < kTilesAtOnce; ++i) {
      if (i < count) multiply_panel(sums, i, a);
    }
  }

  FASTDISTIL_DEVICE void multiply_panel(Sums& sums, int i, const Fragments& a) {
    const char* panel = stream_.next();
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      unsigned b[4];
      load_unit<T, kInt8>(b, panel + unit * Stream::unit_stride());
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
        multiply_add<T>(sums[tile][i], a[tile][2 * unit], b[0], b[1]);
        multiply_add<T>(sums[tile][i], a[tile][2 * unit + 1], b[2], b[3]);
      }
    }
    stream_.ask_for_next();
  }

  // The warps' sums added up, scaled and biased, each by one thread.
  class Finish {
   public:
    static constexpr int kPlaces = kRowTiles * kTilesAtOnce * kWarpSize;
    static constexpr int kPlacesAThread = (kPlaces + kThreads - 1) / kThreads;

    // Asks for the biases before the product begins: they come from far.
    FASTDISTIL_DEVICE Finish(const LatencyBlock& block, Matrix matrix, int layer, int first,
                             int count)
        : block_(block), matrix_(matrix), layer_(layer), first_(first), count_(count) {
      const std::size_t start = static_cast<std::size_t>(layer) * first_bias(kMatrices, kHidden) +
                                static_cast<std::size_t>(first_bias(matrix, kHidden));
#pragma unroll
      for (int n = 0; n < kPlacesAThread; ++n) {
        const int place = block_.thread_ + n * kThreads;
        if (!counts(place)) continue;
        const std::size_t column =
            start + static_cast<std::size_t>(8 * outputs(place) + place % 4 * 2);
        bias_[n] = *reinterpret_cast<const float2*>(block.p_.biases + column);
        if constexpr (kInt8) {
          scale_[n] = *reinterpret_cast<const float2*>(block.p_.scales + column);
        }
      }
    }

    FASTDISTIL_DEVICE void operator()(const Sums& sums) const {
      float4* partial = reinterpret_cast<float4*>(scratch());
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < kTilesAtOnce; ++i) {
          if (i >= count_) continue;
          const float (&s)[4] = sums[tile][i];
          partial[block_.warp() * kPlaces + (tile * kTilesAtOnce + i) * kWarpSize + block_.lane()] =
              make_float4(s[0], s[1], s[2], s[3]);
        }
      }
      __syncthreads();
#pragma unroll
      for (int n = 0; n < kPlacesAThread; ++n) {
        const int place = block_.thread_ + n * kThreads;
        if (!counts(place)) continue;
        float4 sum = partial[place];
        for (int warp = 1; warp < kWarps; ++warp) {
          const float4 more = partial[warp * kPlaces + place];
          sum = make_float4(sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w);
        }
        if constexpr (kInt8) {
          sum = make_float4(sum.x * scale_[n].x, sum.y * scale_[n].y, sum.z * scale_[n].x,
                            sum.w * scale_[n].y);
        }
        sum = make_float4(sum.x + bias_[n].x, sum.y + bias_[n].y, sum.z + bias_[n].x,
                          sum.w + bias_[n].y);
        block_.store(layer_, matrix_, place / kWarpSize / kTilesAtOnce, outputs(place),
                     place % kWarpSize, sum);
      }
      __syncthreads();
    }

   private:
    FASTDISTIL_DEVICE bool counts(int place) const {
      return place < kPlaces && place / kWarpSize % kTilesAtOnce < count_;
    }
    FASTDISTIL_DEVICE int outputs(int place) const {
      return block_.share_.tile(first_ + place / kWarpSize % kTilesAtOnce);
    }

    const LatencyBlock& block_;
    Matrix matrix_;
    int layer_, first_, count_;
    float2 bias_[kPlacesAThread], scale_[kPlacesAThread];
  };

  // --- the states between layers -----------------------------------------------------------------

  // What only this lane reads and writes: four words of an A operand.
  FASTDISTIL_DEVICE uint4* hidden(int tile, int k) const {
    uint4* first = reinterpret_cast<uint4*>(shared_memory() + kHiddenStart);
    return first + (tile * kSteps + k) * kThreads + thread_;
  }

  FASTDISTIL_DEVICE void load_hidden(Fragments& a) const {
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        const uint4 words = *hidden(tile, k);
        a[tile][k][0] = words.x;
        a[tile][k][1] = words.y;
        a[tile][k][2] = words.z;
        a[tile][k][3] = words.w;
      }
    }
  }

  // --- LayerNorm and what leads to it ------------------------------------------------------------

  // A row tile's numbers as this lane has them: [k][2 r + i] is column 16 k + 2t + 8 (r / 2) + i of
  // row g + 8 (r % 2), k counted from the warp's first.
  using Numbers = float[kSteps][8];

  FASTDISTIL_DEVICE int column(int k, int r) const {
    return 16 * (warp() * kSteps + k) + 2 * t() + r / 2 * 8;
  }

  // Weight and bias of the index-th LayerNorm, to shared memory; a barrier must follow.
  FASTDISTIL_DEVICE void fetch_norm(int index) {
    const float* from = p_.norms + static_cast<std::size_t>(index) * 2 * kHidden;
    for (int i = thread_; i < 2 * kHidden / 4; i += kThreads) {
      reinterpret_cast<float4*>(norm())[i] = reinterpret_cast<const float4*>(from)[i];
    }
  }

  FASTDISTIL_DEVICE void embed() {
    fetch_norm(0);
#pragma unroll 1
    for (int tile = 0; tile < kRowTiles; ++tile) {
      Numbers x;
#pragma unroll
      for (int half = 0; half < 2; ++half) embed_row(x, half, row(tile, half));
      normalise(tile, x);
    }
  }

  FASTDISTIL_DEVICE void embed_row(Numbers& x, int half, int token) const {
    const T* rows[3] = {};
    if (token < tokens_) {
      rows[0] = table_row(p_.word, p_.input_ids, token, p_.vocabulary, kWrongWord);
      rows[1] = table_row(p_.segment, p_.segment_ids, token, p_.segments, kWrongSegment);
      rows[2] = table_row(p_.position, p_.positions, token, p_.position_rows, kWrongPosition);
    }
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int r = half; r < 4; r += 2) {
        float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
        for (int table = 0; table < 3; ++table) {
          if (rows[table] == nullptr) continue;
          const T* place = rows[table] + column(k, r);
          const float2 pair = unpack_pair<T>(*reinterpret_cast<const unsigned*>(place));
          sum = make_float2(sum.x + pair.x, sum.y + pair.y);
        }
        x[k][2 * r] = sum.x;
        x[k][2 * r + 1] = sum.y;
      }
    }
  }

  // A token's row of a table, or null where there is no table. An id outside of it is noted, and
  // read as the nearest row.
  FASTDISTIL_DEVICE const T* table_row(const void* table, const std::int32_t* ids, int token,
                                       int rows, int error) const {
    if (table == nullptr) return nullptr;
    const int id = ids == nullptr ? 0 : ids[token];
    const int inside = min(max(id, 0), rows - 1);
    if (id != inside && share_.member == 0 && warp() == 0) atomicOr(p_.errors, error);
    return static_cast<const T*>(table) + static_cast<std::size_t>(inside) * kHidden;
  }

  // hidden = LayerNorm(update + hidden).
  FASTDISTIL_DEVICE void normalise_sum(const T* update, int norm) {
    fetch_norm(norm);
    Asked asked;
    Fragments words;
    ask_for(asked, update, kHidden, 0);
    await(words, asked, update, kHidden, 0);
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      Numbers x;
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        const uint4 states = *hidden(tile, k);
        const unsigned pairs[4] = {states.x, states.y, states.z, states.w};
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const float2 more = unpack_pair<T>(words[tile][k][r]);
          const float2 before = unpack_pair<T>(pairs[r]);
          x[k][2 * r] = more.x + before.x;
          x[k][2 * r + 1] = more.y + before.y;
        }
      }
      normalise(tile, x);
    }
  }

  // A tile's hidden = LayerNorm(x) by the vectors in shared memory; statistics in two passes over
  // the registers.
  FASTDISTIL_DEVICE void normalise(int tile, Numbers& x) {
    float mean[2], scale[2];
    float* partial = statistics() + tile * 2 * kWarps * kTileRows;
    sum_rows(mean, x, partial, [](float number) { return number; });
#pragma unroll
    for (int half = 0; half < 2; ++half) mean[half] *= 1.0f / kHidden;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int i = 0; i < 8; ++i) x[k][i] -= mean[i / 2 % 2];
    }
    sum_rows(scale, x, partial + kWarps * kTileRows, [](float number) { return number * number; });
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      scale[half] = 1.0f / exact_sqrt(scale[half] * (1.0f / kHidden) + p_.eps);
    }
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      unsigned pairs[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const float2 weight = *reinterpret_cast<const float2*>(norm() + column(k, r));
        const float2 bias = *reinterpret_cast<const float2*>(norm() + kHidden + column(k, r));
        const float s = scale[r % 2];
        pairs[r] = pack_pair<T>(fmaf(x[k][2 * r] * s, weight.x, bias.x),
                                fmaf(x[k][2 * r + 1] * s, weight.y, bias.y));
      }
      *hidden(tile, k) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
  }

  // Sums over whole rows of what `of` makes of each number: over the lane's own, the four lanes of
  // a row, the warps, in that order. `partial`: a float for each warp and row.
  template <class Of>
  FASTDISTIL_DEVICE void sum_rows(float (&sums)[2], const Numbers& x, float* partial,
                                  Of&& of) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = 0.0f;
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
#pragma unroll
        for (int r = half; r < 4; r += 2) {
          sum += of(x[k][2 * r]);
          sum += of(x[k][2 * r + 1]);
        }
      }
      sum += __shfl_xor_sync(kFullWarp, sum, 1);
      sum += __shfl_xor_sync(kFullWarp, sum, 2);
      if (t() == 0) partial[warp() * kTileRows + g() + 8 * half] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* of_row = partial + g() + 8 * half;
      float sum = of_row[0];
#pragma unroll
      for (int warp = 1; warp < kWarps; ++warp) sum += of_row[warp * kTileRows];
      sums[half] = sum;
    }
  }

  // --- states from one launch to the next, in a chain of them ------------------------------------

  // Two places, used by turns: while one block writes, others may still read what was there before.
  FASTDISTIL_DEVICE uint4* saved(int place, int tile, int k) const {
    T* start = static_cast<T*>(p_.saved) + static_cast<std::size_t>(place) * kLatencyRows * kHidden;
    const int step = (first_tile_ + tile) * (kHidden / 16) + warp() * kSteps + k;
    return reinterpret_cast<uint4*>(start) + step * kWarpSize + lane();
  }

  FASTDISTIL_DEVICE void save(int place) const {
    const bool in_one_launch = p_.first_step == 0 && p_.last_step == latency_steps(p_.layers);
    if (in_one_launch || share_.member != 0) return;
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
      for (int k = 0; k < kSteps; ++k) *saved(place, tile, k) = *hidden(tile, k);
    }
  }

  FASTDISTIL_DEVICE void restore(int place) const {
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
      for (int k = 0; k < kSteps; ++k) *hidden(tile, k) = *saved(place, tile, k);
    }
  }

  // --- attention ---------------------------------------------------------------------------------

  FASTDISTIL_DEVICE void attend(int layer) {
    using Head = LatencyHead<T, kHidden>;
#pragma unroll 1
    for (int piece = static_cast<int>(blockIdx.x); piece < sequences_ * Head::kHeads;
         piece += static_cast<int>(gridDim.x)) {
      const int sequence = piece / Head::kHeads, start = p_.cu_seqlens[sequence];
      const int length = min(p_.cu_seqlens[sequence + 1] - start, p_.longest);
      const Head head(region(layer, kQkvStates), start, length, piece % Head::kHeads,
                      thread_index());
      head.attend(reinterpret_cast<T*>(scratch()), region(layer, kContext));
    }
  }

  // --- results -----------------------------------------------------------------------------------

  FASTDISTIL_DEVICE void publish_last() const {
    T* last = region(p_.layers, 0);
    T* out = static_cast<T*>(p_.hidden_out);
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        const uint4 words = *hidden(tile, k);
        const unsigned pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          if (row(tile, r % 2) >= tokens_) continue;
          const std::size_t place = static_cast<std::size_t>(row(tile, r % 2)) * kHidden +
                                    static_cast<std::size_t>(column(k, r));
          if (out != nullptr) *reinterpret_cast<unsigned*>(out + place) = pairs[r];
          if (p_.pooled != nullptr) publish(reinterpret_cast<unsigned*>(last + place), pairs[r]);
        }
      }
    }
  }

  FASTDISTIL_DEVICE void pool() const {
    if (p_.pooled == nullptr) return;
    const T* last = region(p_.layers, 0);
#pragma unroll 1
    for (int sequence = static_cast<int>(blockIdx.x); sequence < sequences_;
         sequence += static_cast<int>(gridDim.x)) {
      const int start = p_.cu_seqlens[sequence];
      const int length = p_.cu_seqlens[sequence + 1] - start;
      const LatencyPooling<T, kHidden> pooling(p_.pooling, last, start, length, thread_index());
      pooling.run(reinterpret_cast<float*>(scratch()), p_.pooled + sequence * kHidden,
                  p_.normalize);
    }
  }

  const LatencyParameters& p_;
  bool idle_;
  Share share_;
  int first_tile_, thread_;
  int sequences_, tokens_;
  T* states_;
  Stream stream_;
};

template <class T, bool kInt8, int kHidden, int kRowTiles>
__global__ void __launch_bounds__(LatencyBlock<T, kInt8, kHidden, kRowTiles>::kThreads, 1)
    latency_kernel(const LatencyParameters parameters) {
  LatencyBlock<T, kInt8, kHidden, kRowTiles>(parameters).run();
}

}  // namespace fastdistil::cuda
