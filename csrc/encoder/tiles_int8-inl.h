// Rows as integers times a scale of their own, and back from sums of integer products.
#pragma once

#include "common/cpu/tile_products.h"
#include "encoder/rows-inl.h"
#include "encoder/tiles_pack-inl.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

// Of each row: x = scale (integer - zero). kInt16 has no zero.
struct RowScales {
  float* scale;
  int32_t* zero;
};

// Row r of n elements, float or BFloat16, as left operands: unsigned bytes. What is not finite
// makes the scale so.
template <class T>
inline void quantize_row(const T* x, int64_t r, int64_t n, const LeftRows<TileKind::kInt8>& out,
                         RowScales scales) {
  Vec least = Vec::zero(), most = Vec::zero(), stray = Vec::zero();
  for (int64_t c = 0; c < n; c += Vec::kLanes) {
    const Vec v = Vec::load(x + c);
    least = min(v, least);
    most = max(v, most);
    stray = stray + (v - v);
  }
  const float low = -reduce_max(Vec::zero() - least), range = reduce_max(most) - low;
  const Vec by = Vec::broadcast(range > 0 ? 255.0f / range : 0.0f);
  const int32_t zero = static_cast<int32_t>(range > 0 ? __builtin_rintf(-low * 255.0f / range) : 0);
  scales.scale[r] = range / 255.0f + reduce_add(stray);
  scales.zero[r] = zero;
  const __m512i shift = _mm512_set1_epi32(zero), none = _mm512_setzero_si512();
  for (int64_t c = 0; c < n; c += Vec::kLanes) {
    const __m512i whole = _mm512_cvtps_epi32((Vec::load(x + c) * by).v);
    const __m512i q = _mm512_max_epi32(_mm512_add_epi32(whole, shift), none);
    char* at = out.line(r, c / 64) + c % 64;
    _mm_store_si128(reinterpret_cast<__m128i*>(at), _mm512_cvtusepi32_epi8(q));
  }
}

// The same in 16 bits: of either sign, none further from zero than 32767.
template <class T>
inline void quantize_row(const T* x, int64_t r, int64_t n, const LeftRows<TileKind::kInt16>& out,
                         RowScales scales) {
  Vec most = Vec::zero(), stray = Vec::zero();
  for (int64_t c = 0; c < n; c += Vec::kLanes) {
    const Vec v = Vec::load(x + c);
    most = max(abs(v), most);
    stray = stray + (v - v);
  }
  const float top = reduce_max(most);
  const Vec by = Vec::broadcast(top > 0 ? 32767.0f / top : 0.0f);
  scales.scale[r] = top / 32767.0f + reduce_add(stray);
  for (int64_t c = 0; c < n; c += Vec::kLanes) {
    const __m512i whole = _mm512_cvtps_epi32((Vec::load(x + c) * by).v);
    char* at = out.line(r, c / 64) + c % 64;
    _mm_store_si128(reinterpret_cast<__m128i*>(at),
                    _mm512_cvtepi32_epi8(_mm512_srai_epi32(whole, 8)));
    _mm_store_si128(reinterpret_cast<__m128i*>(at + kTileBytes), _mm512_cvtepi32_epi8(whole));
  }
}

// From the sums of row r of integers to y = x W^T + bias.
struct ColumnScales {
  RowScales rows;
  const float* bias;
  int64_t columns;

  Vec apply(int64_t r, int64_t c, const float* sums) const {
    const int64_t padded = round_up(columns, EncoderLayout::kBlock);
    const __m512i integers = _mm512_loadu_si512(bias + 2 * padded + c);
    const __m512i shift = _mm512_mullo_epi32(_mm512_set1_epi32(rows.zero[r]), integers);
    const __m512i sum = _mm512_sub_epi32(_mm512_loadu_si512(sums), shift);
    const Vec scale = Vec::broadcast(rows.scale[r]) * Vec::load(bias + padded + c);
    return fma(Vec{_mm512_cvtepi32_ps(sum)}, scale, Vec::load(bias + c));
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
