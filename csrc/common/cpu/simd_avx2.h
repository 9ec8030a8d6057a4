// The verbs of simd.h for AVX2 with FMA and F16C.
#pragma once

#include <immintrin.h>

#include "common/dtype.h"

#define BIGKERNELS_ISA_NAMESPACE avx2

namespace bigkernels::avx2 {
namespace {

inline __m256i iota_epi32() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }

// On lanes are all ones.
struct Mask {
  __m256 v;
  static Mask first(int64_t count) {
    const __m256i limit = _mm256_set1_epi32(static_cast<int>(count));
    return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(limit, iota_epi32()))};
  }
  __m256i bits() const { return _mm256_castps_si256(v); }
};
inline Mask operator&(Mask a, Mask b) { return {_mm256_and_ps(a.v, b.v)}; }
inline Mask operator|(Mask a, Mask b) { return {_mm256_or_ps(a.v, b.v)}; }
inline Mask operator~(Mask a) {
  return {_mm256_xor_ps(a.v, _mm256_castsi256_ps(_mm256_set1_epi32(-1)))};
}
inline bool any(Mask a) { return _mm256_movemask_ps(a.v) != 0; }
inline bool all(Mask a) { return _mm256_movemask_ps(a.v) == 0xff; }

struct MaskD {
  __m256d v;
  static MaskD first(int64_t count) {
    const __m256i limit = _mm256_set1_epi64x(count);
    return {_mm256_castsi256_pd(_mm256_cmpgt_epi64(limit, _mm256_setr_epi64x(0, 1, 2, 3)))};
  }
  __m256i bits() const { return _mm256_castpd_si256(v); }
};
inline MaskD operator&(MaskD a, MaskD b) { return {_mm256_and_pd(a.v, b.v)}; }
inline MaskD operator|(MaskD a, MaskD b) { return {_mm256_or_pd(a.v, b.v)}; }
inline MaskD operator~(MaskD a) {
  return {_mm256_xor_pd(a.v, _mm256_castsi256_pd(_mm256_set1_epi32(-1)))};
}
inline bool any(MaskD a) { return _mm256_movemask_pd(a.v) != 0; }
inline bool all(MaskD a) { return _mm256_movemask_pd(a.v) == 0xf; }

// AVX2 has no masked loads or stores below 32 bits: tails of narrow types go through this.
template <class T>
struct Tail {
  T lanes[8] = {};
};

// Lane l is on where byte l is not 0.
inline Mask load_mask(const uint8_t* p, int64_t count) {
  Tail<uint8_t> tail;
  for (int64_t i = 0; i < count; ++i) tail.lanes[i] = p[i];
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(tail.lanes));
  const __m256i words = _mm256_cvtepu8_epi32(bytes);
  return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(words, _mm256_setzero_si256()))};
}

inline __m256 widen(__m128i halves, const BFloat16*) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
inline __m256 widen(__m128i halves, const Float16*) { return _mm256_cvtph_ps(halves); }

inline __m128i narrow(__m256 v, const BFloat16*) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i high = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  const __m256i words = _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), quiet, is_nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
inline __m128i narrow(__m256 v, const Float16*) {
  return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

struct Vec {
  using Scalar = float;
  using Mask = avx2::Mask;
  static constexpr int kLanes = 8;
  __m256 v;

  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec broadcast(float value) { return {_mm256_set1_ps(value)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const float* p, int64_t count) {
    return {_mm256_maskload_ps(p, Mask::first(count).bits())};
  }
  static Vec load(const int8_t* p) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))};
  }
  template <class T>
  static Vec load(const T* p) {
    return {widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), p)};
  }
  template <class T>
  static Vec load(const T* p, int64_t count) {
    Tail<T> tail;
    for (int64_t i = 0; i < count; ++i) tail.lanes[i] = p[i];
    return load(tail.lanes);
  }
};

inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
inline void store(float* p, Vec a, int64_t count) {
  _mm256_maskstore_ps(p, Mask::first(count).bits(), a.v);
}
template <class T>
inline void store(T* p, Vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(a.v, p));
}
template <class T>
inline void store(T* p, Vec a, int64_t count) {
  Tail<T> tail;
  store(tail.lanes, a);
  for (int64_t i = 0; i < count; ++i) p[i] = tail.lanes[i];
}

inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec fnma(Vec a, Vec b, Vec c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline Vec sqrt(Vec a) { return {_mm256_sqrt_ps(a.v)}; }
inline Vec round(Vec a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Vec copysign(Vec magnitude, Vec sign) {
  const __m256 bit = _mm256_set1_ps(-0.0f);
  return {_mm256_or_ps(_mm256_andnot_ps(bit, magnitude.v), _mm256_and_ps(bit, sign.v))};
}
// y * 2^n for whole |n| <= 252, through the subnormals: two factors, as 2^n alone may not exist.
inline Vec scale_by_power(Vec y, Vec n) {
  const __m256i whole = _mm256_cvtps_epi32(n.v);
  const __m256i half = _mm256_srai_epi32(whole, 1);
  const __m256i rest = _mm256_sub_epi32(whole, half);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256 a = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  const __m256 b = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
  return {_mm256_mul_ps(_mm256_mul_ps(y.v, a), b)};
}

inline Mask less(Vec a, Vec b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask less_equal(Vec a, Vec b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)}; }
inline Mask equal(Vec a, Vec b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)}; }
inline Mask is_nan(Vec a) { return {_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)}; }
inline Vec select(Mask mask, Vec yes, Vec no) { return {_mm256_blendv_ps(no.v, yes.v, mask.v)}; }

inline float reduce_add(Vec a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float reduce_max(Vec a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

struct VecD {
  using Scalar = double;
  using Mask = MaskD;
  static constexpr int kLanes = 4;
  __m256d v;

  static VecD zero() { return {_mm256_setzero_pd()}; }
  static VecD broadcast(double value) { return {_mm256_set1_pd(value)}; }
  static VecD load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static VecD load(const double* p, int64_t count) {
    return {_mm256_maskload_pd(p, MaskD::first(count).bits())};
  }
  static VecD load(const float* p) { return {_mm256_cvtps_pd(_mm_loadu_ps(p))}; }
  static VecD load(const float* p, int64_t count) {
    const __m128i on = _mm256_castsi256_si128(avx2::Mask::first(count).bits());
    return {_mm256_cvtps_pd(_mm_maskload_ps(p, on))};
  }
};

inline void store(double* p, VecD a) { _mm256_storeu_pd(p, a.v); }
inline void store(double* p, VecD a, int64_t count) {
  _mm256_maskstore_pd(p, MaskD::first(count).bits(), a.v);
}

inline void store(float* p, VecD a) { _mm_storeu_ps(p, _mm256_cvtpd_ps(a.v)); }
inline void store(float* p, VecD a, int64_t count) {
  const __m128i on = _mm256_castsi256_si128(Mask::first(count).bits());
  _mm_maskstore_ps(p, on, _mm256_cvtpd_ps(a.v));
}

inline VecD operator+(VecD a, VecD b) { return {_mm256_add_pd(a.v, b.v)}; }
inline VecD operator-(VecD a, VecD b) { return {_mm256_sub_pd(a.v, b.v)}; }
inline VecD operator*(VecD a, VecD b) { return {_mm256_mul_pd(a.v, b.v)}; }
inline VecD operator/(VecD a, VecD b) { return {_mm256_div_pd(a.v, b.v)}; }
inline VecD fma(VecD a, VecD b, VecD c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
inline VecD fnma(VecD a, VecD b, VecD c) { return {_mm256_fnmadd_pd(a.v, b.v, c.v)}; }
inline VecD min(VecD a, VecD b) { return {_mm256_min_pd(a.v, b.v)}; }
inline VecD max(VecD a, VecD b) { return {_mm256_max_pd(a.v, b.v)}; }
inline VecD abs(VecD a) { return {_mm256_andnot_pd(_mm256_set1_pd(-0.0), a.v)}; }
inline VecD sqrt(VecD a) { return {_mm256_sqrt_pd(a.v)}; }
inline VecD round(VecD a) {
  return {_mm256_round_pd(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline VecD copysign(VecD magnitude, VecD sign) {
  const __m256d bit = _mm256_set1_pd(-0.0);
  return {_mm256_or_pd(_mm256_andnot_pd(bit, magnitude.v), _mm256_and_pd(bit, sign.v))};
}
inline MaskD less(VecD a, VecD b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_LT_OQ)}; }
inline MaskD less_equal(VecD a, VecD b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_LE_OQ)}; }
inline MaskD equal(VecD a, VecD b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_EQ_OQ)}; }
inline MaskD is_nan(VecD a) { return {_mm256_cmp_pd(a.v, a.v, _CMP_UNORD_Q)}; }
inline VecD select(MaskD mask, VecD yes, VecD no) {
  return {_mm256_blendv_pd(no.v, yes.v, mask.v)};
}
inline double reduce_add(VecD a) {
  const __m128d x = _mm_add_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(x, _mm_unpackhi_pd(x, x)));
}
inline double reduce_max(VecD a) {
  const __m128d x = _mm_max_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
  return _mm_cvtsd_f64(_mm_max_sd(x, _mm_unpackhi_pd(x, x)));
}

struct VecU {
  static constexpr int kLanes = 8;
  __m256i v;

  static VecU broadcast(uint32_t value) { return {_mm256_set1_epi32(static_cast<int>(value))}; }
  static VecU load(const uint32_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
  }
  static VecU load(const uint32_t* p, int64_t count) {
    return {_mm256_maskload_epi32(reinterpret_cast<const int*>(p), Mask::first(count).bits())};
  }
  static VecU iota() { return {iota_epi32()}; }
};

inline void store(uint32_t* p, VecU a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v); }
inline void store(uint32_t* p, VecU a, int64_t count) {
  _mm256_maskstore_epi32(reinterpret_cast<int*>(p), Mask::first(count).bits(), a.v);
}
inline VecU operator+(VecU a, VecU b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline VecU operator-(VecU a, VecU b) { return {_mm256_sub_epi32(a.v, b.v)}; }
inline VecU operator^(VecU a, VecU b) { return {_mm256_xor_si256(a.v, b.v)}; }
inline VecU operator&(VecU a, VecU b) { return {_mm256_and_si256(a.v, b.v)}; }
inline VecU operator|(VecU a, VecU b) { return {_mm256_or_si256(a.v, b.v)}; }
template <int kBits>
inline VecU shift_left(VecU a) {
  return {_mm256_slli_epi32(a.v, kBits)};
}
template <int kBits>
inline VecU shift_right(VecU a) {
  return {_mm256_srli_epi32(a.v, kBits)};
}
inline VecU multiply_low(VecU a, VecU b) { return {_mm256_mullo_epi32(a.v, b.v)}; }
// The 64-bit products of the even lanes, low halves in the even and high halves in the odd lanes.
inline VecU multiply_even(VecU a, VecU b) { return {_mm256_mul_epu32(a.v, b.v)}; }
// Lane 2i gets lane 2i + 1, odd lanes 0.
inline VecU odd_to_even(VecU a) { return {_mm256_srli_epi64(a.v, 32)}; }
// Lanes 3, 2, 1, 0 of each group of four.
inline VecU reverse_quads(VecU a) { return {_mm256_shuffle_epi32(a.v, 0x1b)}; }
// Lane 2i gets lane 2i of even, lane 2i + 1 gets lane 2i of odd.
inline VecU interleave_even(VecU even, VecU odd) {
  return {_mm256_blend_epi32(even.v, _mm256_slli_epi64(odd.v, 32), 0xaa)};
}
// All lanes: a * b = high * 2^32 + low.
inline void multiply_wide(VecU a, VecU b, VecU* high, VecU* low) {
  const VecU even = multiply_even(a, b);
  const VecU odd = multiply_even(odd_to_even(a), odd_to_even(b));
  *high = {_mm256_blend_epi32(odd_to_even(even).v, odd.v, 0xaa)};
  *low = multiply_low(a, b);
}
inline Mask equal(VecU a, VecU b) { return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(a.v, b.v))}; }
// There is no unsigned comparison: a >= b where a is the larger of the two.
inline Mask greater_equal(VecU a, VecU b) { return equal({_mm256_max_epu32(a.v, b.v)}, a); }
inline Mask less(VecU a, VecU b) { return ~greater_equal(a, b); }
inline VecU select(Mask mask, VecU yes, VecU no) {
  return {_mm256_blendv_epi8(no.v, yes.v, mask.bits())};
}
inline VecU as_uint(Vec a) { return {_mm256_castps_si256(a.v)}; }
inline Vec as_float(VecU a) { return {_mm256_castsi256_ps(a.v)}; }
// Values, not bits; exact below 2^24.
inline Vec to_vec(VecU a) {
  const __m256 high = _mm256_cvtepi32_ps(_mm256_srli_epi32(a.v, 16));
  const __m256 low = _mm256_cvtepi32_ps(_mm256_and_si256(a.v, _mm256_set1_epi32(0xffff)));
  return {_mm256_fmadd_ps(high, _mm256_set1_ps(65536.0f), low)};
}

}  // namespace
}  // namespace bigkernels::avx2
