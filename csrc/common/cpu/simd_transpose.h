// transpose(V (&rows)[V::kLanes]): the square of kLanes x kLanes lanes, in place, in registers.
#pragma once

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

#if defined(__AVX512F__)

// Within every 128-bit quarter: lane l of the result i is lane i of row l.
inline void transpose_quads(__m512 (&r)[4]) {
  const __m512 low01 = _mm512_unpacklo_ps(r[0], r[1]);
  const __m512 low23 = _mm512_unpacklo_ps(r[2], r[3]);
  const __m512 high01 = _mm512_unpackhi_ps(r[0], r[1]);
  const __m512 high23 = _mm512_unpackhi_ps(r[2], r[3]);
  r[0] = _mm512_shuffle_ps(low01, low23, 0x44);
  r[1] = _mm512_shuffle_ps(low01, low23, 0xee);
  r[2] = _mm512_shuffle_ps(high01, high23, 0x44);
  r[3] = _mm512_shuffle_ps(high01, high23, 0xee);
}

inline void transpose(Vec (&rows)[16]) {
  __m512 quads[4][4];  // [group of four rows][column within each quarter]
  for (int g = 0; g < 4; ++g) {
    for (int r = 0; r < 4; ++r) quads[g][r] = rows[4 * g + r].v;
    transpose_quads(quads[g]);
  }
  for (int r = 0; r < 4; ++r) {
    const __m512 even01 = _mm512_shuffle_f32x4(quads[0][r], quads[1][r], 0x88);
    const __m512 odd01 = _mm512_shuffle_f32x4(quads[0][r], quads[1][r], 0xdd);
    const __m512 even23 = _mm512_shuffle_f32x4(quads[2][r], quads[3][r], 0x88);
    const __m512 odd23 = _mm512_shuffle_f32x4(quads[2][r], quads[3][r], 0xdd);
    rows[r].v = _mm512_shuffle_f32x4(even01, even23, 0x88);
    rows[4 + r].v = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
    rows[8 + r].v = _mm512_shuffle_f32x4(even01, even23, 0xdd);
    rows[12 + r].v = _mm512_shuffle_f32x4(odd01, odd23, 0xdd);
  }
}

inline void transpose(VecD (&rows)[8]) {
  __m512d low[4], high[4];  // even and odd columns of each pair of rows
  for (int i = 0; i < 4; ++i) {
    low[i] = _mm512_unpacklo_pd(rows[2 * i].v, rows[2 * i + 1].v);
    high[i] = _mm512_unpackhi_pd(rows[2 * i].v, rows[2 * i + 1].v);
  }
  for (int parity = 0; parity < 2; ++parity) {
    const __m512d(&x)[4] = parity == 0 ? low : high;
    const __m512d a = _mm512_shuffle_f64x2(x[0], x[1], 0x88);
    const __m512d b = _mm512_shuffle_f64x2(x[0], x[1], 0xdd);
    const __m512d c = _mm512_shuffle_f64x2(x[2], x[3], 0x88);
    const __m512d d = _mm512_shuffle_f64x2(x[2], x[3], 0xdd);
    rows[parity].v = _mm512_shuffle_f64x2(a, c, 0x88);
    rows[2 + parity].v = _mm512_shuffle_f64x2(b, d, 0x88);
    rows[4 + parity].v = _mm512_shuffle_f64x2(a, c, 0xdd);
    rows[6 + parity].v = _mm512_shuffle_f64x2(b, d, 0xdd);
  }
}

#elif defined(__AVX2__)

inline void transpose(Vec (&rows)[8]) {
  __m256 quads[2][4];  // [rows 0-3, 4-7][column within each half]
  for (int g = 0; g < 2; ++g) {
    const Vec* r = rows + 4 * g;
    const __m256 low01 = _mm256_unpacklo_ps(r[0].v, r[1].v);
    const __m256 low23 = _mm256_unpacklo_ps(r[2].v, r[3].v);
    const __m256 high01 = _mm256_unpackhi_ps(r[0].v, r[1].v);
    const __m256 high23 = _mm256_unpackhi_ps(r[2].v, r[3].v);
    quads[g][0] = _mm256_shuffle_ps(low01, low23, 0x44);
    quads[g][1] = _mm256_shuffle_ps(low01, low23, 0xee);
    quads[g][2] = _mm256_shuffle_ps(high01, high23, 0x44);
    quads[g][3] = _mm256_shuffle_ps(high01, high23, 0xee);
  }
  for (int r = 0; r < 4; ++r) {
    rows[r].v = _mm256_permute2f128_ps(quads[0][r], quads[1][r], 0x20);
    rows[4 + r].v = _mm256_permute2f128_ps(quads[0][r], quads[1][r], 0x31);
  }
}

inline void transpose(VecD (&rows)[4]) {
  const __m256d low01 = _mm256_unpacklo_pd(rows[0].v, rows[1].v);
  const __m256d high01 = _mm256_unpackhi_pd(rows[0].v, rows[1].v);
  const __m256d low23 = _mm256_unpacklo_pd(rows[2].v, rows[3].v);
  const __m256d high23 = _mm256_unpackhi_pd(rows[2].v, rows[3].v);
  rows[0].v = _mm256_permute2f128_pd(low01, low23, 0x20);
  rows[1].v = _mm256_permute2f128_pd(high01, high23, 0x20);
  rows[2].v = _mm256_permute2f128_pd(low01, low23, 0x31);
  rows[3].v = _mm256_permute2f128_pd(high01, high23, 0x31);
}

#else

template <class V>
inline void transpose(V* rows) {
  for (int r = 0; r < V::kLanes; ++r) {
    for (int l = r + 1; l < V::kLanes; ++l) {
      const typename V::Scalar above = rows[r].v[l];
      rows[r].v[l] = rows[l].v[r];
      rows[l].v[r] = above;
    }
  }
}

#endif

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
