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

// Tiles 0 to 3 += 16 kRows rows times 32 columns over `steps` tiles of K. between(slot) is called
// between products, which must not follow each other at once. Tiles of operands are zeroed as soon
// as they are dead: both free what a core's two threads share.
template <int kRows, class F>
inline void multiply_block(const char* a, const char* b, int64_t steps, const F& between) {
  constexpr int64_t kSecond = kTileBytes;
  for (int64_t step = 0; step < steps; ++step, a += kRows * kTileBytes, b += 2 * kTileBytes) {
    _tile_stream_loadd(4, a, 64);
    _tile_stream_loadd(6, b, 64);
    _tile_dpbf16ps(0, 4, 6);
    between(0);
    _tile_stream_loadd(7, b + kSecond, 64);
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
template <int kRows, class F>
inline void multiply_int8_block(const char* a, const char* b, int64_t steps, const F& between) {
  constexpr int64_t kSecond = kTileBytes;
  for (int64_t step = 0; step < steps; ++step, a += kRows * kTileBytes, b += 2 * kTileBytes) {
    _tile_stream_loadd(4, a, 64);
    _tile_stream_loadd(6, b, 64);
    _tile_dpbusd(0, 4, 6);
    between(0);
    _tile_stream_loadd(7, b + kSecond, 64);
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
template <int kRows, class F>
inline void multiply_split_block(const char* a, const char* b, int64_t steps, const F& between) {
  constexpr int64_t kLow = kTileBytes, kSecond = 2 * kTileBytes;
  for (int64_t step = 0; step < steps; ++step, a += kRows * kSecond, b += 2 * kSecond) {
    _tile_stream_loadd(4, a, 64);
    _tile_stream_loadd(6, b, 64);
    _tile_dpbf16ps(0, 4, 6);
    between(0);
    _tile_stream_loadd(7, b + kSecond, 64);
    if constexpr (kRows == 2) _tile_stream_loadd(5, a + kSecond, 64);
    _tile_dpbf16ps(1, 4, 7);
    between(1);
    if constexpr (kRows == 2) {
      _tile_dpbf16ps(2, 5, 6);
      between(2);
      _tile_dpbf16ps(3, 5, 7);
      between(3);
    }
    _tile_stream_loadd(6, b + kLow, 64);
    _tile_dpbf16ps(0, 4, 6);
    between(0);
    if constexpr (kRows == 2) _tile_dpbf16ps(2, 5, 6);
    between(1);
    _tile_stream_loadd(6, b + kSecond + kLow, 64);
    _tile_dpbf16ps(1, 4, 6);
    _tile_zero(4);
    between(2);
    if constexpr (kRows == 2) {
      _tile_dpbf16ps(3, 5, 6);
      _tile_zero(5);
    }
    between(3);
    _tile_stream_loadd(4, a + kLow, 64);
    _tile_stream_loadd(6, b, 64);
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

// sums (16 kRows, 32), adjacent.
template <TileKind kKind, int kRows, class F>
inline void sum_block(const char* a, const char* b, int64_t steps, float* sums, const F& between) {
  constexpr int64_t kRowBytes = kPairSide * sizeof(float);
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kRows == 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
  if constexpr (kKind == TileKind::kSplit) {
    multiply_split_block<kRows>(a, b, steps, between);
  } else if constexpr (kKind == TileKind::kInt8) {
    multiply_int8_block<kRows>(a, b, steps, between);
  } else {
    multiply_block<kRows>(a, b, steps, between);
  }
  _tile_stored(0, sums, kRowBytes);
  _tile_stored(1, sums + kTileSide, kRowBytes);
  if constexpr (kRows == 2) {
    float* low = sums + kTileSide * kPairSide;
    _tile_stored(2, low, kRowBytes);
    _tile_stored(3, low + kTileSide, kRowBytes);
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

// The units of work of a product: (block of pairs of tiles of rows, 32 columns), columns innermost.
struct TileWork {
  int64_t rows, groups, block, panels;

  TileWork(int64_t rows, int64_t columns, int64_t steps, int64_t operand)
      : rows(rows), groups(ceil_div(rows, kPairSide)), panels(columns / kPairSide) {
    const int64_t most = max_int(1, kCachedBytes / (2 * operand * steps));
    block = max_int(1, ceil_div(groups, max_int(1, ceil_div(groups, most))));
  }
  int64_t count() const { return ceil_div(groups, block) * panels; }
};

// One thread's share of y = x W^T. epilogue(row, column, sums) gets 32 sums of a row, also of rows
// past the last that fill its tile; done(group) follows 32 columns of 32 rows.
template <TileKind kKind, class E, class D>
inline void multiply_tile_panels(TeamMember member, const TileWork& work,
                                 const LeftRows<kKind>& left, const char* weight, const E& epilogue,
                                 const D& done) {
  alignas(64) float sums[2][kBlockSums];
  const int64_t panel_bytes = 2 * operand_bytes<kKind>() * left.steps;
  FinishedBlock last = {nullptr, 0, 0, 0, 0, 0};
  const auto finish_row = [&] {
    epilogue(last.row + last.done, last.column, last.sums + last.done * kPairSide);
    ++last.done;
  };
  const auto finish = [&] {
    while (last.done < last.rows) finish_row();
    if (last.rows > 0) done(last.group);
  };
  const TileScope tiles;
  int turn = 0;
  for (int64_t unit = member.claim(), next; unit >= 0; unit = next) {
    next = member.claim();
    const int64_t panel = unit % work.panels, first = unit / work.panels * work.block;
    const int64_t end = min_int(work.groups, first + work.block);
    const char* b = weight + panel * panel_bytes;
    PanelAhead ahead = {nullptr, nullptr, 0};
    const bool once = end - first == 1;  // then the panel itself comes from memory
    if (once) {
      constexpr int64_t kAhead = 4096;
      ahead = {b + kAhead, b + panel_bytes, panel_bytes / 64 / left.steps / 2};
    } else if (next >= 0) {
      ahead.next = weight + next % work.panels * panel_bytes;
      ahead.end = ahead.next + panel_bytes;
      ahead.lines = ceil_div(panel_bytes / 64 / left.steps, end - first);
    }
    const auto between = [&](int slot) {
      if (once ? slot < 2 : slot == 2) ahead.fetch();
      if ((slot & 1) && last.done < last.rows) finish_row();
      tile_pause();
    };
    for (int64_t group = first; group < end; ++group, turn ^= 1) {
      const char* a = left.data + group * 2 * operand_bytes<kKind>() * left.steps;
      const bool two = 2 * group + 1 < left.tiles;
      finish_stores();
      if (two) {
        sum_block<kKind, 2>(a, b, left.steps, sums[turn], between);
      } else {
        sum_block<kKind, 1>(a, b, left.steps, sums[turn], between);
      }
      finish();
      last = {sums[turn],        group, group * kPairSide, two ? kPairSide : kTileSide,
              panel * kPairSide, 0};
    }
  }
  finish();
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
