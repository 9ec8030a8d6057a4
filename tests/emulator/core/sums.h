// Sums of products for the matrix instructions, on registers as they hold them: a register of sums
// has, in lane l, row l / 4 and column l % 4 * 2 of a tile (8, 8), the next one the column behind.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <span>

#include "numbers.h"
#include "types.h"

namespace emulator {

inline float widen(uint32_t bits, Type::Kind kind) {
  if (kind == Type::kTf32) return tf32_to_float(bits);
  const auto half = static_cast<uint16_t>(bits);
  return kind == Type::kBFloat ? bfloat_to_float(half) : half_to_float(half);
}

// The elements in 16 bytes: eight of 16 bits, or four of tf32 and nothing.
inline __m256 widen_chunk(const uint8_t* data, Type::Kind kind) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(data));
  if (kind == Type::kTf32) {
    const __m128i kept = _mm_and_si128(bits, _mm_set1_epi32(static_cast<int>(0xffffe000)));
    return _mm256_castsi256_ps(_mm256_zextsi128_si256(kept));
  }
  if (kind == Type::kFloat) return _mm256_cvtph_ps(bits);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

// Element h, of two where they have 16 bits, of each of eight registers.
template <Type::Kind kKind>
__m256 widen_part(__m256i bits, int h) {
  if constexpr (kKind == Type::kTf32) {
    return _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(~0x1fff)));
  } else if constexpr (kKind == Type::kBFloat) {
    const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000));
    return _mm256_castsi256_ps(h == 0 ? _mm256_slli_epi32(bits, 16) : _mm256_and_si256(bits, high));
  } else {
    const __m256i low = _mm256_set1_epi32(0xffff);
    const __m256i part = h == 0 ? _mm256_and_si256(bits, low) : _mm256_srli_epi32(bits, 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(part, part), 0x08);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
  }
}

struct Left {  // (16, depth), a value for each lane
  alignas(32) float of[16][2][kLanes];
  void set(int row, int k, float value) {
    _mm_store_ps(&of[k][row / 8][row % 8 * 4], _mm_set1_ps(value));
  }
  void negate(int depth) {
    for (int k = 0; k < depth; ++k) {
      for (float& value : std::span(of[k][0], 2 * kLanes)) value = -value;
    }
  }
};

template <int kColumns>
struct Right {  // (depth, columns): of each eight the even ones first
  alignas(32) float of[16][kColumns];
  // Elements (k ..., column ...) of eight columns, each of which holds `count` of them.
  void set_columns(int k, int column, int count, const __m256 (&columns)[8]) {
    // The even ones first, then a transposition.
    const __m256 c[] = {columns[0], columns[2], columns[4], columns[6],
                        columns[1], columns[3], columns[5], columns[7]};
    __m256 pairs[8], fours[8];
    for (int i = 0; i < 8; i += 2) {
      pairs[i] = _mm256_unpacklo_ps(c[i], c[i + 1]);
      pairs[i + 1] = _mm256_unpackhi_ps(c[i], c[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      fours[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
      fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
      fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
      fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      _mm256_store_ps(&of[k + i][column], _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20));
      if (count == 8) {
        const __m256 high = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
        _mm256_store_ps(&of[k + 4 + i][column], high);
      }
    }
  }
  void set_eight(int k, int column, __m256 values) {
    const __m256i even_first = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    _mm256_store_ps(&of[k][column], _mm256_permutevar8x32_ps(values, even_first));
  }
};

// to[0] and to[1] = from[0] and from[1], or 0 for null, + the products of rows 8 half ... and of
// columns 8 block .... Products of 16-bit numbers and of tf32 are exact in float32; the sum is
// rounded to it after each, in the order of the depth. The device adds more digits at once.
template <int kColumns>
void add_products(const Left& a, const Right<kColumns>& b, int half, int block, int depth,
                  const uint32_t* const (&from)[2], uint32_t* const (&to)[2]) {
  __m256 sums[2][4];
  for (int r = 0; r < 2; ++r) {
    for (int v = 0; v < 4; ++v) {
      sums[r][v] = from[r] == nullptr
                       ? _mm256_setzero_ps()
                       : _mm256_loadu_ps(reinterpret_cast<const float*>(from[r]) + 8 * v);
    }
  }
  for (int k = 0; k < depth; ++k) {
    for (int r = 0; r < 2; ++r) {
      const auto* columns = reinterpret_cast<const __m128*>(&b.of[k][block * 8 + 4 * r]);
      const __m256 right = _mm256_broadcast_ps(columns);
      for (int v = 0; v < 4; ++v) {
        sums[r][v] = _mm256_fmadd_ps(_mm256_load_ps(&a.of[k][half][8 * v]), right, sums[r][v]);
      }
    }
  }
  for (int r = 0; r < 2; ++r) {
    for (int v = 0; v < 4; ++v) {
      _mm256_storeu_ps(reinterpret_cast<float*>(to[r]) + 8 * v, sums[r][v]);
    }
  }
}

}  // namespace emulator
