// AMX tiles: a product of bfloat16 matrices, summed in float32 by the tile unit.
//
// Operands are packed so that a tile (16 rows of 64 bytes) is 1 KiB of adjacent bytes:
//   left   (rows, K)     [rows / 32][K / 32][2][16 rows][32 of K]; a lone last tile of rows without
//                        the pair
//   right  (K, columns)  [columns / 32][K / 32][2][16 pairs of K][16 columns][2]
#pragma once

#include "common/cpu/simd.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

constexpr int64_t kTileSide = 16;                      // rows of a tile, columns of a sum
constexpr int64_t kTileDepth = 32;                     // steps of K a tile holds
constexpr int64_t kTileSize = kTileSide * kTileDepth;  // elements of an operand's tile
constexpr int64_t kPairSide = 2 * kTileSide;           // rows and columns of one block of sums

// The intrinsics do not tell the compiler what memory they read: whatever was stored before this
// line is in memory after it.
inline void finish_stores() { __asm__ volatile("" : : : "memory"); }

// While it lives this thread's tiles are configured: eight full ones. Tiles left alive would hold
// registers that the core's other thread could use.
class TileScope {
 public:
  TileScope() {
    struct alignas(64) {
      uint8_t palette, start_row, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    } config = {1, 0, {}, {}, {}};
    for (int tile = 0; tile < 8; ++tile) {
      config.row_bytes[tile] = 64;
      config.rows[tile] = kTileSide;
    }
    finish_stores();
    _tile_loadconfig(&config);
  }
  ~TileScope() { _tile_release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

// Something else between two products: back to back they clog a core that runs two threads.
inline void tile_pause() { __asm__ volatile("nop;nop;nop;nop;nop;nop;nop;nop"); }

// A left operand: where its first tile lies; elements from that to the tile of the next 16 rows and
// of the next 32 of K; bytes from row to row. Rows of memory may be one as they are.
struct LeftTiles {
  const BFloat16* data;
  int64_t below, next, row_bytes;

  static LeftTiles packed(const BFloat16* data, int64_t tiles) {
    return {data, kTileSize, tiles * kTileSize, 64};
  }
};

// c (16 * kRows, 32) = [c +] a b over `steps` tiles of K; c_row floats from row to row. Tiles are
// zeroed as soon as they are dead: that frees what they hold.
template <int kRows>
inline void multiply_tiles(LeftTiles left, const BFloat16* b, int64_t steps, float* c,
                           int64_t c_row, bool add) {
  const BFloat16* a = left.data;
  const int64_t bytes = c_row * static_cast<int64_t>(sizeof(float));
  float* low = c + kTileSide * c_row;
  finish_stores();
  if (add) {
    _tile_loadd(0, c, bytes);
    _tile_loadd(1, c + kTileSide, bytes);
    if constexpr (kRows == 2) {
      _tile_loadd(2, low, bytes);
      _tile_loadd(3, low + kTileSide, bytes);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kRows == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  for (int64_t step = 0; step < steps; ++step, a += left.next, b += 2 * kTileSize) {
    _tile_loadd(4, a, left.row_bytes);
    _tile_loadd(6, b, 64);
    _tile_dpbf16ps(0, 4, 6);
    tile_pause();
    _tile_loadd(7, b + kTileSize, 64);
    if constexpr (kRows == 2) _tile_loadd(5, a + left.below, left.row_bytes);
    _tile_dpbf16ps(1, 4, 7);
    _tile_zero(4);
    tile_pause();
    if constexpr (kRows == 2) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_zero(6);
      tile_pause();
      _tile_dpbf16ps(3, 5, 7);
      _tile_zero(5);
      _tile_zero(7);
      tile_pause();
    }
  }
  _tile_stored(0, c, bytes);
  _tile_stored(1, c + kTileSide, bytes);
  if constexpr (kRows == 2) {
    _tile_stored(2, low, bytes);
    _tile_stored(3, low + kTileSide, bytes);
    _tile_zero(2);
    _tile_zero(3);
  }
  _tile_zero(0);
  _tile_zero(1);
}
template <int kRows>
inline void multiply_tiles(const BFloat16* a, const BFloat16* b, int64_t steps, float* c,
                           int64_t c_row, bool add) {
  multiply_tiles<kRows>(LeftTiles::packed(a, kRows), b, steps, c, c_row, add);
}

inline __m512i bits_of(const BFloat16* p) { return _mm512_loadu_si512(p); }
inline void store_bits(BFloat16* p, __m512i bits) { _mm512_store_si512(p, bits); }

// 32 floats as adjacent bfloat16, rounded to nearest even.
inline __m512i narrow_pair(Vec low, Vec high) {
  return (__m512i)_mm512_cvtne2ps_pbh(high.v, low.v);
}

// The left operand of 32 rows of memory or, with `tiles` 1, of 16; those outside [begin, end) are
// 0. dim: a multiple of 32.
inline void pack_left(const BFloat16* rows, int64_t row_stride, int64_t begin, int64_t end,
                      int64_t dim, int64_t tiles, BFloat16* out) {
  for (int64_t i = 0; i < tiles * kTileSide; ++i) {
    const int64_t place = i / kTileSide * kTileSize + i % kTileSide * kTileDepth;
    for (int64_t d = 0; d < dim; d += kTileDepth) {
      const bool there = i >= begin && i < end;
      const __m512i row = there ? bits_of(rows + i * row_stride + d) : _mm512_setzero_si512();
      store_bits(out + d / kTileDepth * tiles * kTileSize + place, row);
    }
  }
}

// The right operand whose columns are rows of memory: 32 of them, those outside [begin, end) 0.
inline void pack_right_columns(const BFloat16* rows, int64_t row_stride, int64_t begin, int64_t end,
                               int64_t dim, BFloat16* out) {
  for (int64_t d = 0; d < dim; d += kTileDepth) {
    for (int64_t tile = 0; tile < 2; ++tile, out += kTileSize) {
      Vec square[Vec::kLanes];
      for (int64_t i = 0; i < kTileSide; ++i) {
        const int64_t row = tile * kTileSide + i;
        const bool there = row >= begin && row < end;
        square[i].v = _mm512_castsi512_ps(there ? bits_of(rows + row * row_stride + d)
                                                : _mm512_setzero_si512());
      }
      transpose(square);
      for (int64_t i = 0; i < kTileSide; ++i) {
        store_bits(out + i * kTileDepth, _mm512_castps_si512(square[i].v));
      }
    }
  }
}

// Takes 32 rows of memory, those outside [begin, end) as 0, pair by pair: of every 32 of their dim
// elements f(block of 32, pair, low, high) gets the first 16 interleaved, and the others.
template <class F>
inline void interleave_rows(const BFloat16* rows, int64_t row_stride, int64_t begin, int64_t end,
                            int64_t dim, const F& f) {
  alignas(64) uint16_t order[2][32];
  for (int i = 0; i < 32; ++i) {
    order[0][i] = static_cast<uint16_t>(i / 2 + i % 2 * 32);
    order[1][i] = static_cast<uint16_t>(16 + i / 2 + i % 2 * 32);
  }
  const __m512i left = _mm512_load_si512(order[0]), right = _mm512_load_si512(order[1]);
  const __m512i zero = _mm512_setzero_si512();
  for (int64_t d = 0; d < dim; d += kPairSide) {
    for (int64_t i = 0; i < kTileDepth; i += 2) {
      const BFloat16* row = rows + i * row_stride + d;
      const __m512i even = i >= begin && i < end ? bits_of(row) : zero;
      const __m512i odd = i + 1 >= begin && i + 1 < end ? bits_of(row + row_stride) : zero;
      f(d / kPairSide, i / 2, _mm512_permutex2var_epi16(even, left, odd),
        _mm512_permutex2var_epi16(even, right, odd));
    }
  }
}

// The right operand whose rows are rows of memory: 32 steps of K, those outside [begin, end) 0. The
// blocks of 32 columns are `block` elements apart.
inline void pack_right_rows(const BFloat16* rows, int64_t row_stride, int64_t begin, int64_t end,
                            int64_t dim, int64_t block, BFloat16* out) {
  interleave_rows(rows, row_stride, begin, end, dim,
                  [&](int64_t side, int64_t pair, __m512i low, __m512i high) {
                    BFloat16* place = out + side * block + pair * kTileDepth;
                    store_bits(place, low);
                    store_bits(place + kTileSize, high);
                  });
}

// The left operand whose rows are columns of memory: dim rows, the 32 steps of K rows of memory,
// those outside [begin, end) 0. The blocks of 32 rows are `block` elements apart.
inline void pack_left_columns(const BFloat16* rows, int64_t row_stride, int64_t begin, int64_t end,
                              int64_t dim, int64_t block, BFloat16* out) {
  Vec low[kTileSide], high[kTileSide];
  const auto put = [](Vec(&square)[kTileSide], BFloat16* place) {
    transpose(square);
    for (int64_t i = 0; i < kTileSide; ++i) {
      store_bits(place + i * kTileDepth, _mm512_castps_si512(square[i].v));
    }
  };
  interleave_rows(rows, row_stride, begin, end, dim,
                  [&](int64_t side, int64_t pair, __m512i left, __m512i right) {
                    low[pair].v = _mm512_castsi512_ps(left);
                    high[pair].v = _mm512_castsi512_ps(right);
                    if (pair + 1 < kTileSide) return;
                    put(low, out + side * block);
                    put(high, out + side * block + kTileSize);
                  });
}

// Lane r of the result: f over the lanes of rows[r], in the same tree for every r.
template <class F>
inline Vec reduce_rows(const Vec (&rows)[16], const F& f) {
  Vec a[8], b[4], c[2];
  for (int i = 0; i < 8; ++i) {
    a[i] = f(Vec{_mm512_shuffle_f32x4(rows[i].v, rows[i + 8].v, 0x44)},
             Vec{_mm512_shuffle_f32x4(rows[i].v, rows[i + 8].v, 0xee)});
  }
  for (int i = 0; i < 4; ++i) {
    b[i] = f(Vec{_mm512_shuffle_f32x4(a[i].v, a[i + 4].v, 0x88)},
             Vec{_mm512_shuffle_f32x4(a[i].v, a[i + 4].v, 0xdd)});
  }
  for (int i = 0; i < 2; ++i) {
    c[i] = f(Vec{_mm512_shuffle_ps(b[i].v, b[i + 2].v, 0x44)},
             Vec{_mm512_shuffle_ps(b[i].v, b[i + 2].v, 0xee)});
  }
  const Vec mixed =
      f(Vec{_mm512_shuffle_ps(c[0].v, c[1].v, 0x88)}, Vec{_mm512_shuffle_ps(c[0].v, c[1].v, 0xdd)});
  const __m512i order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
  return {_mm512_permutexvar_ps(order, mixed.v)};
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
