// Products of packed rows with weights packed beforehand, y = x W^T, on AMX tiles.
//
//   weights  (N, K)  [N / 32][K / 32][2][16 pairs of K][16 columns][2]: right operands of tiles.h
//   rows     (M, K)  [M / 32][K / 32][2][16 rows][32 of K]: left operands; a lone last tile of rows
//                    lies without its pair
// kSplit: every tile is followed by the tile of what bfloat16 left over, and three products make
// one: x W = xh Wh + xh Wl + xl Wh. kInt8: tiles hold 64 of K, rows unsigned, weights signed; sums
// are int32. kInt16: the same, rows 16 bits wide: a tile of high bytes, signed, has that of the low
// ones, unsigned, in the place of the next 16 rows. Both sums reach the epilogue.
#pragma once

#include "common/cpu/panels.h"
#include "common/cpu/tiles.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

enum class TileKind { kPlain, kSplit, kInt8, kInt16 };

constexpr int64_t kTileBytes = 1024;
constexpr int64_t kBlockSums = kPairSide * kPairSide;

template <TileKind kKind>
constexpr int64_t operand_bytes() {
  return kKind == TileKind::kSplit ? 2 * kTileBytes : kTileBytes;
}

template <TileKind kKind>
constexpr int64_t operand_depth() {
  return kKind == TileKind::kInt8 || kKind == TileKind::kInt16 ? 2 * kTileDepth : kTileDepth;
}

// Tiles that hold 16 rows, beside those of kSplit.
template <TileKind kKind>
constexpr int64_t tiles_per_side() {
  return kKind == TileKind::kInt16 ? 2 : 1;
}

// Left operands of `rows` rows in memory.
template <TileKind kKind>
struct LeftRows {
  char* data;
  int64_t tiles, steps;  // tiles of rows; of K

  static int64_t bytes(int64_t rows, int64_t depth) {
    return tiles_of(rows) * (depth / operand_depth<kKind>()) * operand_bytes<kKind>();
  }
  LeftRows(void* data, int64_t rows, int64_t depth)
      : data(static_cast<char*>(data)),
        tiles(tiles_of(rows)),
        steps(depth / operand_depth<kKind>()) {}

  static int64_t tiles_of(int64_t rows) {
    return ceil_div(rows, kTileSide) * tiles_per_side<kKind>();
  }
  // The line of row r of the tiles at `step`.
  char* line(int64_t r, int64_t step) const {
    const int64_t tile = r / kTileSide * tiles_per_side<kKind>(), even = tile & ~int64_t{1};
    const bool lone = tile == tiles - 1 && tile == even;
    const int64_t place = even * steps + (lone ? step : 2 * step + tile - even);
    return data + place * operand_bytes<kKind>() + r % kTileSide * 64;
  }
  void store(int64_t r, int64_t step, Vec low, Vec high) const {
    char* at = line(r, step);
    const __m512i bits = narrow_pair(low, high);
    _mm512_store_si512(at, bits);
    if constexpr (kKind == TileKind::kSplit) {
      const Vec low_rest = low - widened(_mm512_castsi512_si256(bits));
      const Vec high_rest = high - widened(_mm512_extracti64x4_epi64(bits, 1));
      _mm512_store_si512(at + kTileBytes, narrow_pair(low_rest, high_rest));
    }
  }

 private:
  static Vec widened(__m256i bits) { return {widen(bits, static_cast<BFloat16*>(nullptr))}; }
};

// Tiles 6 and 7 from weights, which stay in the L1 cache only where kKeep says so.
template <bool kKeep>
inline void load_tile_6(const char* b) {
  if constexpr (kKeep) {
    _tile_loadd(6, b, 64);
  } else {
    _tile_stream_loadd(6, b, 64);
  }
}
template <bool kKeep>
inline void load_tile_7(const char* b) {
  if constexpr (kKeep) {
    _tile_loadd(7, b, 64);
  } else {
    _tile_stream_loadd(7, b, 64);
  }
}

// Tile kSum += tile (4 + kSum / 2) times tile (6 + kSum % 2).
template <TileKind kKind, int kSum>
inline void multiply_pair() {
  if constexpr (kKind == TileKind::kInt16 && kSum < 2) {
    if constexpr (kSum == 0) _tile_dpbssd(0, 4, 6);
    if constexpr (kSum == 1) _tile_dpbssd(1, 4, 7);
  } else if constexpr (kKind == TileKind::kInt8 || kKind == TileKind::kInt16) {
    if constexpr (kSum == 0) _tile_dpbusd(0, 4, 6);
    if constexpr (kSum == 1) _tile_dpbusd(1, 4, 7);
    if constexpr (kSum == 2) _tile_dpbusd(2, 5, 6);
    if constexpr (kSum == 3) _tile_dpbusd(3, 5, 7);
  } else {
    if constexpr (kSum == 0) _tile_dpbf16ps(0, 4, 6);
    if constexpr (kSum == 1) _tile_dpbf16ps(1, 4, 7);
    if constexpr (kSum == 2) _tile_dpbf16ps(2, 5, 6);
    if constexpr (kSum == 3) _tile_dpbf16ps(3, 5, 7);
  }
}

// Tiles 0 to 3 += 16 kRows rows times 32 columns over `steps` tiles of K. between(slot) is called
// between products, which must not follow each other at once. Tiles of operands are zeroed as soon
// as they are dead: both free what a core's two threads share.
template <TileKind kKind, int kRows, bool kKeep, class F>
inline void multiply_block(const char* a, const char* b, int64_t steps, const F& between) {
  constexpr int64_t kSecond = kTileBytes;
  for (int64_t step = 0; step < steps; ++step, a += kRows * kTileBytes, b += 2 * kTileBytes) {
    _tile_stream_loadd(4, a, 64);
    load_tile_6<kKeep>(b);
    multiply_pair<kKind, 0>();
    between(0);
    load_tile_7<kKeep>(b + kSecond);
    if constexpr (kRows == 2) _tile_stream_loadd(5, a + kSecond, 64);
    multiply_pair<kKind, 1>();
    _tile_zero(4);
    between(1);
    if constexpr (kRows == 2) {
      multiply_pair<kKind, 2>();
      _tile_zero(6);
      between(2);
      multiply_pair<kKind, 3>();
      _tile_zero(5);
      _tile_zero(7);
      between(3);
    }
  }
}

// The same for kSplit: 9 loads for 12 products. Every element sums high high, high low, low high.
template <int kRows, bool kKeep, class F>
inline void multiply_split_block(const char* a, const char* b, int64_t steps, const F& between) {
  constexpr int64_t kLow = kTileBytes, kSecond = 2 * kTileBytes;
  for (int64_t step = 0; step < steps; ++step, a += kRows * kSecond, b += 2 * kSecond) {
    _tile_stream_loadd(4, a, 64);
    load_tile_6<kKeep>(b);
    _tile_dpbf16ps(0, 4, 6);
    between(0);
    load_tile_7<kKeep>(b + kSecond);
    if constexpr (kRows == 2) _tile_stream_loadd(5, a + kSecond, 64);
    _tile_dpbf16ps(1, 4, 7);
    between(1);
    if constexpr (kRows == 2) {
      _tile_dpbf16ps(2, 5, 6);
      between(2);
      _tile_dpbf16ps(3, 5, 7);
      between(3);
    }
    load_tile_6<kKeep>(b + kLow);
    _tile_dpbf16ps(0, 4, 6);
    between(0);
    if constexpr (kRows == 2) _tile_dpbf16ps(2, 5, 6);
    between(1);
    load_tile_6<kKeep>(b + kSecond + kLow);
    _tile_dpbf16ps(1, 4, 6);
    _tile_zero(4);
    between(2);
    if constexpr (kRows == 2) {
      _tile_dpbf16ps(3, 5, 6);
      _tile_zero(5);
    }
    between(3);
    _tile_stream_loadd(4, a + kLow, 64);
    load_tile_6<kKeep>(b);
    _tile_dpbf16ps(0, 4, 6);
    between(0);
    _tile_dpbf16ps(1, 4, 7);
    _tile_zero(4);
    between(1);
    if constexpr (kRows == 2) {
      _tile_stream_loadd(5, a + kSecond + kLow, 64);
      _tile_dpbf16ps(2, 5, 6);
      between(2);
      _tile_dpbf16ps(3, 5, 7);
      _tile_zero(5);
      between(3);
    }
    _tile_zero(6);
    _tile_zero(7);
  }
}

// to (16 kRows, 32), adjacent, = a b, or from + a b.
template <TileKind kKind, int kRows, bool kKeep, class F>
inline void sum_block(const char* a, const char* b, int64_t steps, const float* from, float* to,
                      const F& between) {
  constexpr int64_t kRowBytes = kPairSide * sizeof(float);
  constexpr int64_t kLow = kTileSide * kPairSide;
  finish_stores();
  if (from != nullptr) {
    _tile_loadd(0, from, kRowBytes);
    _tile_loadd(1, from + kTileSide, kRowBytes);
    if constexpr (kRows == 2) {
      _tile_loadd(2, from + kLow, kRowBytes);
      _tile_loadd(3, from + kLow + kTileSide, kRowBytes);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kRows == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  if constexpr (kKind == TileKind::kSplit) {
    multiply_split_block<kRows, kKeep>(a, b, steps, between);
  } else {
    multiply_block<kKind, kRows, kKeep>(a, b, steps, between);
  }
  _tile_stored(0, to, kRowBytes);
  _tile_stored(1, to + kTileSide, kRowBytes);
  if constexpr (kRows == 2) {
    _tile_stored(2, to + kLow, kRowBytes);
    _tile_stored(3, to + kLow + kTileSide, kRowBytes);
  }
}

// A finished block of sums on its way through the epilogue, row by row.
template <class E>
struct FinishedBlock {
  const E& epilogue;
  const float* sums = nullptr;
  int64_t row = 0, end = 0, column = 0;

  void start(const float* block, int64_t first, int64_t rows, int64_t first_column) {
    sums = block;
    row = first;
    end = first + rows;
    column = first_column;
  }
  void step() {
    if (row >= end) return;
    epilogue(row++, column, sums);
    sums += kPairSide;
  }
  void finish() {
    while (row < end) step();
  }
};

// Lines of the next weights to be fetched while these are used.
struct PanelAhead {
  const char *next, *end;
  int64_t lines;  // at a time

  void fetch() {
    if (next >= end) return;
    for (int64_t i = 0; i < lines; ++i) _mm_prefetch(next + 64 * i, _MM_HINT_T1);
    next += 64 * lines;
  }
};

// How a product is cut. A unit of work is `block` pairs of tiles of rows times `span` panels of 32
// columns, columns innermost. Where a panel is longer than the L1 cache, a unit goes through K in
// pieces of `depth` steps and carries its sums from one to the next: so the piece of a panel stays
// in L1 and the rows' in L2. The sums are the same ones in the same order.
struct TileWork {
  static constexpr int64_t kPanelBytes = 64 << 10, kPieceBytes = 32 << 10, kMostPairs = 8;
  int64_t steps, groups, block, panels, span, depth;

  // tiles: of rows. operand: bytes of one operand's tiles at a step.
  TileWork(int64_t tiles, int64_t columns, int64_t steps, int64_t operand, int threads)
      : steps(steps),
        groups(ceil_div(tiles, 2)),
        panels(columns / kPairSide),
        span(1),
        depth(steps) {
    int64_t most = max_int(1, kCachedBytes / (2 * operand * steps));
    if (groups >= kMostPairs / 2 && 2 * operand * steps > kPanelBytes) {
      depth = kPieceBytes / (2 * operand);
      most = kMostPairs;
    }
    block = max_int(1, ceil_div(groups, max_int(1, ceil_div(groups, most))));
    if (depth < steps) {
      const int64_t spans = ceil_div(4 * threads, ceil_div(groups, block));
      span = ceil_div(panels, max_int(2, min_int(panels, spans)));
    }
  }
  int64_t spans() const { return ceil_div(panels, span); }
  int64_t count() const { return ceil_div(groups, block) * spans(); }
  // Floats that each thread carries.
  int64_t carried() const { return depth < steps ? block * span * kBlockSums : 0; }
};

// A piece of a unit: pairs of tiles of rows times a panel, from a step of K on.
struct TilePiece {
  int64_t first, end, first_panel, last_panel, panel, step;

  static TilePiece of(const TileWork& work, int64_t unit) {
    const int64_t first = unit / work.spans() * work.block;
    const int64_t panel = unit % work.spans() * work.span;
    const int64_t last_panel = min_int(work.panels, panel + work.span);
    return {first, min_int(work.groups, first + work.block), panel, last_panel, panel, 0};
  }
  // The unit's next piece; past its last one, the step is that of the end.
  TilePiece next(const TileWork& work) const {
    TilePiece piece = *this;
    if (++piece.panel < last_panel) return piece;
    piece.panel = first_panel;
    piece.step += work.depth;
    return piece;
  }
  int64_t steps(const TileWork& work) const { return min_int(work.depth, work.steps - step); }
  // One pair of rows alone: its weights are read once, from memory.
  bool once() const { return end - first == 1; }
};

// What to fetch during a piece, if anything follows it; step_bytes: of a panel.
inline PanelAhead ahead_of(const TileWork& work, const TilePiece& piece, const char* weight,
                           int64_t step_bytes, int64_t next_unit) {
  const auto place = [&](const TilePiece& at) {
    return weight + (at.panel * work.steps + at.step) * step_bytes;
  };
  if (piece.once()) {
    constexpr int64_t kAhead = 4096;
    const char* begin = place(piece);
    return {begin + kAhead, begin + piece.steps(work) * step_bytes, step_bytes / 64 / 2};
  }
  TilePiece next = piece.next(work);
  if (next.step >= work.steps) {
    if (next_unit < 0) return {nullptr, nullptr, 0};
    next = TilePiece::of(work, next_unit);
  }
  const char* begin = place(next);
  return {begin, begin + next.steps(work) * step_bytes,
          ceil_div(step_bytes / 64, piece.end - piece.first)};
}

// One thread's share of y = x W^T. epilogue(row, column, sums) gets 32 sums of a row, also of rows
// past the last that fill its tile; approach(row, column) comes while the sums are made, to fetch
// what the epilogue will touch. carried: as many floats of this thread's own as `work` says.
template <TileKind kKind, class A, class E>
inline void multiply_tile_panels(TeamMember member, const TileWork& work,
                                 const LeftRows<kKind>& left, const char* weight, float* carried,
                                 const A& approach, const E& epilogue) {
  alignas(64) float sums[2][kBlockSums];
  constexpr int64_t kStep = 2 * operand_bytes<kKind>();
  constexpr int64_t kGroup = kPairSide / tiles_per_side<kKind>();
  FinishedBlock<E> last = {epilogue};
  const TileScope tiles;
  int turn = 0;
  for (int64_t unit = member.claim(), next_unit; unit >= 0; unit = next_unit) {
    next_unit = member.claim();
    for (TilePiece piece = TilePiece::of(work, unit); piece.step < work.steps;
         piece = piece.next(work)) {
      const int64_t steps = piece.steps(work), column = piece.panel * kPairSide;
      const bool ends = piece.step + steps == work.steps, once = piece.once();
      const char* b = weight + (piece.panel * work.steps + piece.step) * kStep;
      PanelAhead ahead = ahead_of(work, piece, weight, kStep, next_unit);
      int64_t near = 0, near_end = 0;
      const auto between = [&](int slot) {
        if (!(slot & 1) && near < near_end) approach(near++, column);
        if (once ? slot < 2 : slot == 2) ahead.fetch();
        if (slot & 1) last.step();
        tile_pause();
      };
      for (int64_t group = piece.first; group < piece.end; ++group) {
        const bool two = 2 * group + 1 < left.tiles;
        const int64_t rows = two ? kGroup : kTileSide;
        const char* a =
            left.data + group * work.steps * kStep + piece.step * (two ? kStep : kStep / 2);
        const int64_t place = (group - piece.first) * work.span + piece.panel - piece.first_panel;
        float* kept = carried + place * kBlockSums;
        const float* from = piece.step > 0 ? kept : nullptr;
        float* to = ends ? sums[turn] : kept;
        near = group * kGroup;
        near_end = ends ? near + rows : 0;
        if (!two) {
          sum_block<kKind, 1, false>(a, b, steps, from, to, between);
        } else if (steps < work.steps) {
          sum_block<kKind, 2, true>(a, b, steps, from, to, between);
        } else {
          sum_block<kKind, 2, false>(a, b, steps, from, to, between);
        }
        if (!ends) continue;
        last.finish();
        last.start(sums[turn], group * kGroup, rows, column);
        turn ^= 1;
      }
    }
  }
  last.finish();
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
