// Rows as integers times a scale of their own, and back from sums of integer products.
#pragma once

#include "common/cpu/tile_products.h"
#include "encoder/rows-inl.h"
#include "encoder/tiles_pack-inl.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

// Of each row: x = scale (integer + shift). kInt16 has no shift.
struct RowScales {
  float *scale, *shift;
};

// The least and the largest of a row's elements and 0; not finite if one of those is not: as
// integers NaN and infinity lie outside all others of their sign.
struct RowRange {
  float low, high;

  RowRange(const float* x, int64_t n) {
    __m512i least = _mm512_setzero_si512(), most = least;
    for (int64_t c = 0; c < n; c += Vec::kLanes) {
      const __m512i bits = _mm512_loadu_si512(x + c);
      most = _mm512_max_epi32(most, bits);
      least = _mm512_max_epu32(least, bits);
    }
    set(least, most);
  }
  RowRange(const BFloat16* x, int64_t n) {
    __m512i least = _mm512_setzero_si512(), most = least;
    for (int64_t c = 0; c < n; c += 2 * Vec::kLanes) {
      most = _mm512_max_epi16(most, bits_of(x + c));
      least = _mm512_max_epu16(least, bits_of(x + c));
    }
    const __m512i upper = _mm512_set1_epi32(-65536);
    set(_mm512_max_epu32(_mm512_slli_epi32(least, 16), _mm512_and_si512(least, upper)),
        _mm512_max_epi32(_mm512_slli_epi32(most, 16), _mm512_and_si512(most, upper)));
  }

 private:
  // Of bits as signed and as unsigned integers: the largest positive, the largest negative number.
  void set(__m512i least, __m512i most) {
    high = __builtin_bit_cast(float, _mm512_reduce_max_epi32(most));
    const uint32_t bits = _mm512_reduce_max_epu32(least);
    low = bits >> 31 ? __builtin_bit_cast(float, bits) : 0.0f;
  }
};

// 64 elements as integers of 16 bits, and the order of their dwords once they are bytes.
struct Integers {
  __m512i low, high, order;

  // x by + shift.
  Integers(const float* x, Vec by, Vec shift)
      : low(_mm512_packs_epi32(round(Vec::load(x), by, shift),
                               round(Vec::load(x + 16), by, shift))),
        high(_mm512_packs_epi32(round(Vec::load(x + 32), by, shift),
                                round(Vec::load(x + 48), by, shift))),
        order(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)) {}
  Integers(const BFloat16* x, Vec by, Vec shift)
      : low(words(bits_of(x), by, shift)),
        high(words(bits_of(x + 32), by, shift)),
        order(_mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15)) {}

  // To the line of a tile: saturated bytes.
  void store(const LeftRows<TileKind::kInt8>&, char* line) const {
    put(line, _mm512_packus_epi16(low, high));
  }
  // To those of two tiles: high bytes, low bytes.
  void store(const LeftRows<TileKind::kInt16>&, char* line) const {
    const __m512i byte = _mm512_set1_epi16(0xff);
    put(line, _mm512_packus_epi16(_mm512_srli_epi16(low, 8), _mm512_srli_epi16(high, 8)));
    put(line + kTileBytes,
        _mm512_packus_epi16(_mm512_and_si512(low, byte), _mm512_and_si512(high, byte)));
  }

 private:
  static __m512i round(Vec x, Vec by, Vec shift) { return _mm512_cvtps_epi32(fma(x, by, shift).v); }
  static __m512i words(__m512i bits, Vec by, Vec shift) {
    // Adding this leaves the integer in the last bits.
    const Vec from = shift + Vec::broadcast(12582912.0f);
    const __m512i upper = _mm512_set1_epi32(-65536);
    const Vec even = {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))};
    const Vec odd = {_mm512_castsi512_ps(_mm512_and_si512(bits, upper))};
    const __m512i above = _mm512_slli_epi32(_mm512_castps_si512(fma(odd, by, from).v), 16);
    return _mm512_mask_mov_epi16(above, 0x55555555, _mm512_castps_si512(fma(even, by, from).v));
  }
  void put(char* line, __m512i bytes) const {
    _mm512_store_si512(line, _mm512_permutexvar_epi32(order, bytes));
  }
};

// Row r of n elements, float or BFloat16, as left operands. What is not finite makes the scale so.
template <class T, TileKind kKind>
inline void quantize_row(const T* x, int64_t r, int64_t n, const LeftRows<kKind>& out,
                         RowScales scales) {
  constexpr bool kSigned = kKind == TileKind::kInt16;
  constexpr float kMost = kSigned ? 32767 : 255, kLeast = 1e-30f, kHuge = 1e38f;
  const RowRange range(x, n);
  const float size = kSigned ? __builtin_fmaxf(range.high, -range.low) : range.high - range.low;
  const bool usual = size > kLeast && size < kHuge;
  const float by = usual ? kMost / size : 0;
  const float shift = usual && !kSigned ? __builtin_rintf(range.low * by) : 0;
  // 0 times what is not finite is NaN.
  scales.scale[r] = size / kMost + 0 * (range.high - range.low);
  scales.shift[r] = shift;
  for (int64_t c = 0; c < n; c += 64) {
    const Integers whole(x + c, Vec::broadcast(by), Vec::broadcast(-shift));
    whole.store(out, out.line(r, c / 64));
  }
}

// From the sums of row r of integers to y = x W^T + bias.
struct ColumnScales {
  RowScales rows;
  const float* bias;
  int64_t columns;

  Vec apply(int64_t r, int64_t c, const float* sums) const {
    const int64_t padded = round_up(columns, EncoderLayout::kBlock);
    const Vec sum = fma(Vec::broadcast(rows.shift[r]), Vec::load(bias + 2 * padded + c),
                        Vec{_mm512_cvtepi32_ps(_mm512_loadu_si512(sums))});
    const Vec scale = Vec::broadcast(rows.scale[r]) * Vec::load(bias + padded + c);
    return fma(sum, scale, Vec::load(bias + c));
  }

  // The same from a row's sums of high and of low bytes.
  Vec apply_pair(int64_t r, int64_t c, const float* high, const float* low) const {
    const int64_t padded = round_up(columns, EncoderLayout::kBlock);
    const Vec scale = Vec::broadcast(rows.scale[r]) * Vec::load(bias + padded + c);
    const Vec sum = fma(Vec{_mm512_cvtepi32_ps(_mm512_loadu_si512(high))}, Vec::broadcast(256.0f),
                        Vec{_mm512_cvtepi32_ps(_mm512_loadu_si512(low))});
    return fma(sum, scale, Vec::load(bias + c));
  }
};

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
