// Products of packed rows with weights packed beforehand, y = x W^T, on AMX tiles.
//
//   weights  (N, K)  [N / 32][K / 32][2][16 pairs of K][16 columns][2]: right operands of tiles.h
//   rows     (M, K)  [M / 32][K / 32][2][16 rows][32 of K]: left operands; a lone last tile of rows
//                    lies without its pair
// kSplit: every tile is followed by the tile of what bfloat16 left over, and three products make
// one: x W = xh Wh + xh Wl + xl Wh. kInt8: tiles hold 64 of K, rows unsigned, weights signed; sums
// are int32.
#pragma once

#include "common/cpu/panels.h"
#include "common/cpu/tiles.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

enum class TileKind { kPlain, kSplit, kInt8 };

constexpr int64_t kTileBytes = 1024;
constexpr int64_t kBlockSums = kPairSide * kPairSide;

template <TileKind kKind>
constexpr int64_t operand_bytes() {
  return kKind == TileKind::kSplit ? 2 * kTileBytes : kTileBytes;
}

template <TileKind kKind>
constexpr int64_t operand_depth() {
  return kKind == TileKind::kInt8 ? 2 * kTileDepth : kTileDepth;
}

// Left operands of `rows` rows in memory.
template <TileKind kKind>
struct LeftRows {
  char* data;
  int64_t tiles, steps;  // tiles of rows; of K

  static int64_t bytes(int64_t rows, int64_t depth) {
    return round_up(rows, kTileSide) / kTileSide * (depth / operand_depth<kKind>()) *
           operand_bytes<kKind>();
  }
  LeftRows(void* data, int64_t rows, int64_t depth)
      : data(static_cast<char*>(data)),
        tiles(ceil_div(rows, kTileSide)),
        steps(depth / operand_depth<kKind>()) {}

  // The line of row r of the tiles at `step`.
  char* line(int64_t r, int64_t step) const {
    const int64_t tile = r / kTileSide, even = tile & ~int64_t{1};
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

// Tiles 0 to 3 += 16 kRows rows times 32 columns over `steps` tiles of K. between(slot) is called
// between products, which must not follow each other at once. Tiles of operands are zeroed as soon
// as they are dead: both free what a core's two threads share.
template <int kRows, bool kKeep, class F>
inline void multiply_block(const char* a, const char* b, int64_t steps, const F& between) {
  constexpr int64_t kSecond = kTileBytes;
  for (int64_t step = 0; step < steps; ++step, a += kRows * kTileBytes, b += 2 * kTileBytes) {
    _tile_stream_loadd(4, a, 64);
    load_tile_6<kKeep>(b);
    _tile_dpbf16ps(0, 4, 6);
    between(0);
    load_tile_7<kKeep>(b + kSecond);
    if constexpr (kRows == 2) _tile_stream_loadd(5, a + kSecond, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_zero(4);
    between(1);
    if constexpr (kRows == 2) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_zero(6);
      between(2);
      _tile_dpbf16ps(3, 5, 7);
      _tile_zero(5);
      _tile_zero(7);
      between(3);
    }
  }
}

// The same for kInt8.
template <int kRows, bool kKeep, class F>
inline void multiply_int8_block(const char* a, const char* b, int64_t steps, const F& between) {
  constexpr int64_t kSecond = kTileBytes;
  for (int64_t step = 0; step < steps; ++step, a += kRows * kTileBytes, b += 2 * kTileBytes) {
    _tile_stream_loadd(4, a, 64);
    load_tile_6<kKeep>(b);
    _tile_dpbusd(0, 4, 6);
    between(0);
    load_tile_7<kKeep>(b + kSecond);
    if constexpr (kRows == 2) _tile_stream_loadd(5, a + kSecond, 64);
    _tile_dpbusd(1, 4, 7);
    _tile_zero(4);
    between(1);
    if constexpr (kRows == 2) {
      _tile_dpbusd(2, 5, 6);
      _tile_zero(6);
      between(2);
      _tile_dpbusd(3, 5, 7);
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
  } else if constexpr (kKind == TileKind::kInt8) {
    multiply_int8_block<kRows, kKeep>(a, b, steps, between);
  } else {
    multiply_block<kRows, kKeep>(a, b, steps, between);
  }
  _tile_stored(0, to, kRowBytes);
  _tile_stored(1, to + kTileSide, kRowBytes);
  if constexpr (kRows == 2) {
    _tile_stored(2, to + kLow, kRowBytes);
    _tile_stored(3, to + kLow + kTileSide, kRowBytes);
  }
}

// A finished block of sums on its way through the epilogue, row by row.
struct FinishedBlock {
  const float* sums;
  int64_t group, row, rows, column, done;
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
  int64_t rows, steps, groups, block, panels, span, depth;

  // operand: bytes of one operand's tiles at a step.
  TileWork(int64_t rows, int64_t columns, int64_t steps, int64_t operand, int threads)
      : rows(rows),
        steps(steps),
        groups(ceil_div(rows, kPairSide)),
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

// A piece of a unit: a panel, from a step of K on.
struct TilePiece {
  int64_t first, end, panel, last_panel, step;  // first to end: pairs of tiles of rows

  static TilePiece of(const TileWork& work, int64_t unit) {
    const int64_t first = unit / work.spans() * work.block;
    const int64_t panel = unit % work.spans() * work.span;
    return {first, min_int(work.groups, first + work.block), panel,
            min_int(work.panels, panel + work.span), 0};
  }
  // The unit's next piece; past its last one, the step is that of the end.
  TilePiece next(const TileWork& work, int64_t span_begin) const {
    TilePiece piece = *this;
    if (++piece.panel < last_panel) return piece;
    piece.panel = span_begin;
    piece.step += work.depth;
    return piece;
  }
};

// One thread's share of y = x W^T. epilogue(row, column, sums) gets 32 sums of a row, also of rows
// past the last that fill its tile; approach(row, column) comes while the sums are made, to fetch
// what the epilogue will touch; done(group) follows 32 columns of 32 rows. carried: as many floats
// of this thread's own as `work` says.
template <TileKind kKind, class A, class E, class D>
inline void multiply_tile_panels(TeamMember member, const TileWork& work,
                                 const LeftRows<kKind>& left, const char* weight, float* carried,
                                 const A& approach, const E& epilogue, const D& done) {
  alignas(64) float sums[2][kBlockSums];
  constexpr int64_t kStep = 2 * operand_bytes<kKind>();
  const int64_t panel_bytes = kStep * left.steps;
  FinishedBlock last = {nullptr, 0, 0, 0, 0, 0};
  const auto finish_row = [&] {
    epilogue(last.row + last.done, last.column, last.sums + last.done * kPairSide);
    ++last.done;
  };
  const auto finish = [&] {
    while (last.done < last.rows) finish_row();
    if (last.rows > 0) done(last.group);
    last.rows = 0;
  };
  const TileScope tiles;
  int turn = 0;
  for (int64_t unit = member.claim(), next_unit; unit >= 0; unit = next_unit) {
    next_unit = member.claim();
    TilePiece piece = TilePiece::of(work, unit), next;
    const int64_t span_begin = piece.panel;
    for (; piece.step < left.steps; piece = next) {
      next = piece.next(work, span_begin);
      const int64_t steps = min_int(work.depth, left.steps - piece.step);
      const bool ends = piece.step + steps == left.steps;
      const char* b = weight + piece.panel * panel_bytes + piece.step * kStep;
      PanelAhead ahead = {nullptr, nullptr, 0};
      const bool once = piece.end - piece.first == 1;  // then the panel itself comes from memory
      if (once) {
        constexpr int64_t kAhead = 4096;
        ahead = {b + kAhead, b + panel_bytes, kStep / 64 / 2};
      } else if (next.step < left.steps || next_unit >= 0) {
        const TilePiece then = next.step < left.steps ? next : TilePiece::of(work, next_unit);
        ahead.next = weight + then.panel * panel_bytes + then.step * kStep;
        ahead.end = ahead.next + min_int(work.depth, left.steps - then.step) * kStep;
        ahead.lines = ceil_div(kStep / 64, piece.end - piece.first);
      }
      int64_t near = 0, near_end = 0;
      const auto between = [&](int slot) {
        if (!(slot & 1) && near < near_end) approach(near++, piece.panel * kPairSide);
        if (once ? slot < 2 : slot == 2) ahead.fetch();
        if ((slot & 1) && last.done < last.rows) finish_row();
        tile_pause();
      };
      for (int64_t group = piece.first; group < piece.end; ++group) {
        const bool two = 2 * group + 1 < left.tiles;
        const char* a = left.data + group * panel_bytes + piece.step * (two ? kStep : kStep / 2);
        float* kept =
            carried + ((group - piece.first) * work.span + piece.panel - span_begin) * kBlockSums;
        const float* from = piece.step > 0 ? kept : nullptr;
        float* to = ends ? sums[turn] : kept;
        near = group * kPairSide;
        near_end = ends ? near + (two ? kPairSide : kTileSide) : 0;
        if (!two) {
          sum_block<kKind, 1, false>(a, b, steps, from, to, between);
        } else if (steps < left.steps) {
          sum_block<kKind, 2, true>(a, b, steps, from, to, between);
        } else {
          sum_block<kKind, 2, false>(a, b, steps, from, to, between);
        }
        if (!ends) continue;
        finish();
        last = {sums[turn],
                group,
                group * kPairSide,
                two ? kPairSide : kTileSide,
                piece.panel * kPairSide,
                0};
        turn ^= 1;
      }
    }
  }
  finish();
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
