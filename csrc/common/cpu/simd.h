// The vector verbs of the instruction set this translation unit is compiled for.
//
// A kernel is written once against these names and compiled once per instruction set, inside
// `namespace bigkernels::BIGKERNELS_ISA_NAMESPACE { namespace {`. The inner anonymous namespace
// keeps every template and inline function local to its object file: nothing compiled for AVX-512
// can be picked by the linker for an older CPU. For the same reason std templates are not used.
//
//   Vec    float32 lanes     load/store float, BFloat16, Float16 (rounded to nearest even)
//   VecD   float64 lanes     load and store double, float
//   VecU   uint32 lanes, as many as Vec
//
// V is Vec or VecD: V::kLanes, V::Scalar, V::Mask, V::zero(), V::broadcast(s), V::load(p),
// V::load(p, count) (lanes past count are 0 and not read), store(p, v), store(p, v, count),
// + - * /, fma(a, b, c) = a b + c, fnma(a, b, c) = c - a b, min, max (the second argument where
// either is NaN), abs, sqrt, round, copysign, less, less_equal, equal, is_nan, select(mask, yes,
// no), reduce_add, reduce_max (fixed order: halves), exp, exp2, log, add_log, erf, tanh, transpose.
// 0 <= count <= kLanes everywhere. Mask::first(count), & | ~, any, all, load_mask(const uint8_t*,
// count).
#pragma once

#include "common/dtype.h"
#include "common/math.h"
#include "common/philox.h"

#if defined(__AVX512F__)
#include "common/cpu/simd_avx512.h"
#elif defined(__AVX2__)
#include "common/cpu/simd_avx2.h"
#else
#include "common/cpu/simd_scalar.h"
#endif

#include "common/cpu/simd_math.h"
#include "common/cpu/simd_philox.h"
#include "common/cpu/simd_transpose.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

// The vector a storage type computes in.
template <class T>
struct VecOf {
  using type = Vec;
};
template <>
struct VecOf<double> {
  using type = VecD;
};

template <class T>
struct TypeTag {
  using type = T;
};

// Calls f(TypeTag<T>{}) for the storage type behind dtype.
template <class F>
inline void visit_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(TypeTag<float>{});
    case DType::kBFloat16:
      return f(TypeTag<BFloat16>{});
    case DType::kFloat16:
      return f(TypeTag<Float16>{});
    case DType::kFloat64:
      return f(TypeTag<double>{});
  }
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
