// The activations of results that are rounded to bfloat16, on AVX-512.
#pragma once

#include "ffn/activation-inl.h"
#include "ffn/gelu_table.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

template <FfnActivation kActivation>
struct NarrowActivation {
  Vec operator()(Vec x) const { return activate<kActivation>(x); }
};

class NarrowGelu {
 public:
  explicit NarrowGelu(FfnActivation activation) {
    const GeluTable& table = gelu_table(activation);
    for (int i = 0; i < GeluTable::kTerms; ++i) {
      low_[i] = _mm512_load_ps(table.terms[i]);
      high_[i] = _mm512_load_ps(table.terms[i] + Vec::kLanes);
    }
  }
  Vec operator()(Vec x) const {
    // Adding it leaves an integer in the low bits.
    const Vec whole = Vec::broadcast(12582912.0f), end = Vec::broadcast(GeluTable::kEnd * 0.9999f);
    const Vec t = min(abs(x), end) * Vec::broadcast(1.0f / GeluTable::kStep);
    const __m512i segment = _mm512_castps_si512((t + whole).v);
    const Vec rest = {_mm512_reduce_ps(t.v, _MM_FROUND_TO_NEAREST_INT)};
    Vec g = term(GeluTable::kTerms - 1, segment);
    for (int i = GeluTable::kTerms - 2; i >= 0; --i) g = fma(g, rest, term(i, segment));
    return max(Vec::zero(), x) - g;
  }

 private:
  Vec term(int i, __m512i segment) const {
    return {_mm512_permutex2var_ps(low_[i], segment, high_[i])};
  }
  __m512 low_[GeluTable::kTerms], high_[GeluTable::kTerms];
};

template <>
struct NarrowActivation<FfnActivation::kGelu> : NarrowGelu {
  NarrowActivation() : NarrowGelu(FfnActivation::kGelu) {}
};
template <>
struct NarrowActivation<FfnActivation::kGeluTanh> : NarrowGelu {
  NarrowActivation() : NarrowGelu(FfnActivation::kGeluTanh) {}
};

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
