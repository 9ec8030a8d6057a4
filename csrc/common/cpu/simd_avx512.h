// The verbs of simd.h for AVX-512 (F, BW, VL, DQ). The CPUs with AMX use them beside its tiles
// (tiles.h), in a namespace of their own.
#pragma once

// GCC 12 takes the deliberately undefined registers of its own intrinsics for a fault.
#pragma GCC diagnostic push
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "common/dtype.h"

#if defined(__AMX_TILE__)
#define BIGKERNELS_ISA_NAMESPACE amx
#else
#define BIGKERNELS_ISA_NAMESPACE avx512
#endif

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

struct Mask {
  __mmask16 v;
  static Mask first(int64_t count) { return {static_cast<__mmask16>((1u << count) - 1u)}; }
};
inline Mask operator&(Mask a, Mask b) { return {static_cast<__mmask16>(a.v & b.v)}; }
inline Mask operator|(Mask a, Mask b) { return {static_cast<__mmask16>(a.v | b.v)}; }
inline Mask operator~(Mask a) { return {static_cast<__mmask16>(~a.v)}; }
inline bool any(Mask a) { return a.v != 0; }
inline bool all(Mask a) { return a.v == 0xffff; }

struct MaskD {
  __mmask8 v;
  static MaskD first(int64_t count) { return {static_cast<__mmask8>((1u << count) - 1u)}; }
};
inline MaskD operator&(MaskD a, MaskD b) { return {static_cast<__mmask8>(a.v & b.v)}; }
inline MaskD operator|(MaskD a, MaskD b) { return {static_cast<__mmask8>(a.v | b.v)}; }
inline MaskD operator~(MaskD a) { return {static_cast<__mmask8>(~a.v)}; }
inline bool any(MaskD a) { return a.v != 0; }
inline bool all(MaskD a) { return a.v == 0xff; }

// Lane l is on where byte l is not 0.
inline Mask load_mask(const uint8_t* p, int64_t count) {
  const __m128i bytes = _mm_maskz_loadu_epi8(Mask::first(count).v, p);
  return {_mm_test_epi8_mask(bytes, bytes)};
}

inline __m512 widen(__m256i halves, const BFloat16*) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
inline __m512 widen(__m256i halves, const Float16*) { return _mm512_cvtph_ps(halves); }

inline __m256i narrow(__m512 v, const BFloat16*) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i high = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
  return _mm512_cvtepi32_epi16(
      _mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), is_nan, quiet));
}
inline __m256i narrow(__m512 v, const Float16*) {
  return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

struct Vec {
  using Scalar = float;
  using Mask = BIGKERNELS_ISA_NAMESPACE::Mask;
  static constexpr int kLanes = 16;
  __m512 v;

  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec broadcast(float value) { return {_mm512_set1_ps(value)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const float* p, int64_t count) {
    return {_mm512_maskz_loadu_ps(Mask::first(count).v, p)};
  }
  static Vec load(const int8_t* p) {
    return {_mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
  }
  template <class T>
  static Vec load(const T* p) {
    return {widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), p)};
  }
  template <class T>
  static Vec load(const T* p, int64_t count) {
    return {widen(_mm256_maskz_loadu_epi16(Mask::first(count).v, p), p)};
  }
};

inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
inline void store(float* p, Vec a, int64_t count) {
  _mm512_mask_storeu_ps(p, Mask::first(count).v, a.v);
}
template <class T>
inline void store(T* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a.v, p));
}
template <class T>
inline void store(T* p, Vec a, int64_t count) {
  _mm256_mask_storeu_epi16(p, Mask::first(count).v, narrow(a.v, p));
}

inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec fnma(Vec a, Vec b, Vec c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
inline Vec sqrt(Vec a) { return {_mm512_sqrt_ps(a.v)}; }
inline Vec round(Vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Vec copysign(Vec magnitude, Vec sign) {
  const __m512 bit = _mm512_set1_ps(-0.0f);
  return {_mm512_or_ps(_mm512_andnot_ps(bit, magnitude.v), _mm512_and_ps(bit, sign.v))};
}
// y * 2^n for whole n, through the subnormals.
inline Vec scale_by_power(Vec y, Vec n) { return {_mm512_scalef_ps(y.v, n.v)}; }

inline Mask less(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask less_equal(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
inline Mask equal(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
inline Mask is_nan(Vec a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
inline Vec select(Mask mask, Vec yes, Vec no) { return {_mm512_mask_mov_ps(no.v, mask.v, yes.v)}; }

inline float reduce_add(Vec a) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float reduce_max(Vec a) {
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

struct VecD {
  using Scalar = double;
  using Mask = MaskD;
  static constexpr int kLanes = 8;
  __m512d v;

  static VecD zero() { return {_mm512_setzero_pd()}; }
  static VecD broadcast(double value) { return {_mm512_set1_pd(value)}; }
  static VecD load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static VecD load(const double* p, int64_t count) {
    return {_mm512_maskz_loadu_pd(MaskD::first(count).v, p)};
  }
  static VecD load(const float* p) { return {_mm512_cvtps_pd(_mm256_loadu_ps(p))}; }
  static VecD load(const float* p, int64_t count) {
    return {_mm512_cvtps_pd(_mm256_maskz_loadu_ps(MaskD::first(count).v, p))};
  }
};

inline void store(double* p, VecD a) { _mm512_storeu_pd(p, a.v); }
inline void store(double* p, VecD a, int64_t count) {
  _mm512_mask_storeu_pd(p, MaskD::first(count).v, a.v);
}

inline void store(float* p, VecD a) { _mm256_storeu_ps(p, _mm512_cvtpd_ps(a.v)); }
inline void store(float* p, VecD a, int64_t count) {
  _mm256_mask_storeu_ps(p, MaskD::first(count).v, _mm512_cvtpd_ps(a.v));
}

inline VecD operator+(VecD a, VecD b) { return {_mm512_add_pd(a.v, b.v)}; }
inline VecD operator-(VecD a, VecD b) { return {_mm512_sub_pd(a.v, b.v)}; }
inline VecD operator*(VecD a, VecD b) { return {_mm512_mul_pd(a.v, b.v)}; }
inline VecD operator/(VecD a, VecD b) { return {_mm512_div_pd(a.v, b.v)}; }
inline VecD fma(VecD a, VecD b, VecD c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
inline VecD fnma(VecD a, VecD b, VecD c) { return {_mm512_fnmadd_pd(a.v, b.v, c.v)}; }
inline VecD min(VecD a, VecD b) { return {_mm512_min_pd(a.v, b.v)}; }
inline VecD max(VecD a, VecD b) { return {_mm512_max_pd(a.v, b.v)}; }
inline VecD abs(VecD a) { return {_mm512_abs_pd(a.v)}; }
inline VecD sqrt(VecD a) { return {_mm512_sqrt_pd(a.v)}; }
inline VecD round(VecD a) {
  return {_mm512_roundscale_pd(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline VecD copysign(VecD magnitude, VecD sign) {
  const __m512d bit = _mm512_set1_pd(-0.0);
  return {_mm512_or_pd(_mm512_andnot_pd(bit, magnitude.v), _mm512_and_pd(bit, sign.v))};
}
inline MaskD less(VecD a, VecD b) { return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline MaskD less_equal(VecD a, VecD b) { return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_LE_OQ)}; }
inline MaskD equal(VecD a, VecD b) { return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_EQ_OQ)}; }
inline MaskD is_nan(VecD a) { return {_mm512_cmp_pd_mask(a.v, a.v, _CMP_UNORD_Q)}; }
inline VecD select(MaskD mask, VecD yes, VecD no) {
  return {_mm512_mask_mov_pd(no.v, mask.v, yes.v)};
}
inline double reduce_add(VecD a) {
  const __m256d half = _mm256_add_pd(_mm512_castpd512_pd256(a.v), _mm512_extractf64x4_pd(a.v, 1));
  const __m128d x = _mm_add_pd(_mm256_castpd256_pd128(half), _mm256_extractf128_pd(half, 1));
  return _mm_cvtsd_f64(_mm_add_sd(x, _mm_unpackhi_pd(x, x)));
}
inline double reduce_max(VecD a) {
  const __m256d half = _mm256_max_pd(_mm512_castpd512_pd256(a.v), _mm512_extractf64x4_pd(a.v, 1));
  const __m128d x = _mm_max_pd(_mm256_castpd256_pd128(half), _mm256_extractf128_pd(half, 1));
  return _mm_cvtsd_f64(_mm_max_sd(x, _mm_unpackhi_pd(x, x)));
}

struct VecU {
  static constexpr int kLanes = 16;
  __m512i v;

  static VecU broadcast(uint32_t value) { return {_mm512_set1_epi32(static_cast<int>(value))}; }
  static VecU load(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
  static VecU load(const uint32_t* p, int64_t count) {
    return {_mm512_maskz_loadu_epi32(Mask::first(count).v, p)};
  }
  static VecU iota() {
    return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)};
  }
};

inline void store(uint32_t* p, VecU a) { _mm512_storeu_si512(p, a.v); }
inline void store(uint32_t* p, VecU a, int64_t count) {
  _mm512_mask_storeu_epi32(p, Mask::first(count).v, a.v);
}
inline VecU operator+(VecU a, VecU b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline VecU operator-(VecU a, VecU b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline VecU operator^(VecU a, VecU b) { return {_mm512_xor_si512(a.v, b.v)}; }
inline VecU operator&(VecU a, VecU b) { return {_mm512_and_si512(a.v, b.v)}; }
inline VecU operator|(VecU a, VecU b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int kBits>
inline VecU shift_left(VecU a) {
  return {_mm512_slli_epi32(a.v, kBits)};
}
template <int kBits>
inline VecU shift_right(VecU a) {
  return {_mm512_srli_epi32(a.v, kBits)};
}
inline VecU multiply_low(VecU a, VecU b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
// The 64-bit products of the even lanes, low halves in the even and high halves in the odd lanes.
inline VecU multiply_even(VecU a, VecU b) { return {_mm512_mul_epu32(a.v, b.v)}; }
// Lane 2i gets lane 2i + 1, odd lanes 0.
inline VecU odd_to_even(VecU a) { return {_mm512_srli_epi64(a.v, 32)}; }
// Lanes 3, 2, 1, 0 of each group of four.
inline VecU reverse_quads(VecU a) { return {_mm512_shuffle_epi32(a.v, _MM_PERM_ABCD)}; }
// Lane 2i gets lane 2i of even, lane 2i + 1 gets lane 2i of odd.
inline VecU interleave_even(VecU even, VecU odd) {
  return {_mm512_mask_shuffle_epi32(even.v, 0xaaaa, odd.v, _MM_PERM_CCAA)};
}
// All lanes: a * b = high * 2^32 + low.
inline void multiply_wide(VecU a, VecU b, VecU* high, VecU* low) {
  const VecU even = multiply_even(a, b);
  const VecU odd = multiply_even(odd_to_even(a), odd_to_even(b));
  *high = {_mm512_mask_mov_epi32(odd_to_even(even).v, 0xaaaa, odd.v)};
  *low = multiply_low(a, b);
}
inline Mask less(VecU a, VecU b) { return {_mm512_cmplt_epu32_mask(a.v, b.v)}; }
inline Mask greater_equal(VecU a, VecU b) { return {_mm512_cmpge_epu32_mask(a.v, b.v)}; }
inline Mask equal(VecU a, VecU b) { return {_mm512_cmpeq_epi32_mask(a.v, b.v)}; }
inline VecU select(Mask mask, VecU yes, VecU no) {
  return {_mm512_mask_mov_epi32(no.v, mask.v, yes.v)};
}
inline VecU as_uint(Vec a) { return {_mm512_castps_si512(a.v)}; }
inline Vec as_float(VecU a) { return {_mm512_castsi512_ps(a.v)}; }
// Values, not bits; exact below 2^24.
inline Vec to_vec(VecU a) { return {_mm512_cvtepu32_ps(a.v)}; }

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
