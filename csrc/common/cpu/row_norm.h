// Mean and deviation of one row, and the parameters a row is scaled by: what every LayerNorm
// shares.
#pragma once

#include "common/cpu/rows.h"
#include "common/parameter_row.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

// Float32 sums run over at most so many columns before they go on in float64.
constexpr int64_t kSumColumns = 4096;

// The sum over the columns of term(column, extent), a vector.
template <class V, class F>
inline double sum_columns(int64_t columns, const F& term) {
  double total = 0.0;
  for (int64_t begin = 0; begin < columns; begin += kSumColumns) {
    V chains[kChains] = {V::zero(), V::zero(), V::zero(), V::zero()};
    const int64_t end = min_int(begin + kSumColumns, columns);
    traverse_chains<V>(begin, end, [&](int64_t c, auto extent, int chain) {
      chains[chain] = chains[chain] + term(c, extent);
    });
    total += reduce_chains(chains);
  }
  return total;
}

template <class V>
struct RowStatistics {
  typename V::Scalar mean, rstd;
  V shift, scale, rest;

  V normed(V x) const { return fma(x - shift, scale, rest); }
};

// Of a row whose elements sum to `total`; of one that is not `centred` the mean counts as 0. The
// rounded mean `shift` is off by a little, and by much beside the deviations of a row far from 0:
// the second pass finds the rest, `delta`.
template <class V, class Source>
inline RowStatistics<V> row_statistics(const Source* row, int64_t n, double total, double eps,
                                       bool centred = true) {
  using S = typename V::Scalar;
  const S shift = centred ? static_cast<S>(total / n) : S(0);
  const V shift_v = V::broadcast(shift);
  double deviations = 0.0, squares = 0.0;
  for (int64_t begin = 0; begin < n; begin += kSumColumns) {
    V first[kChains] = {V::zero(), V::zero(), V::zero(), V::zero()};
    V second[kChains] = {V::zero(), V::zero(), V::zero(), V::zero()};
    const int64_t end = min_int(begin + kSumColumns, n);
    traverse_chains<V>(begin, end, [&](int64_t c, auto extent, int chain) {
      const V d = inside(load<V>(row + c, extent) - shift_v, extent);
      first[chain] = first[chain] + d;
      second[chain] = fma(d, d, second[chain]);
    });
    deviations += reduce_chains(first);
    squares += reduce_chains(second);
  }
  const double delta = centred ? deviations / n : 0.0;
  const double variance = squares / n - delta * delta;
  const double rstd = 1.0 / __builtin_sqrt((variance < 0.0 ? 0.0 : variance) + eps);
  return {static_cast<S>(shift + delta), static_cast<S>(rstd), shift_v,
          V::broadcast(static_cast<S>(rstd)), V::broadcast(static_cast<S>(-delta * rstd))};
}

// The parameters as float32 (as float64 for float64): where they lie, or converted into *scratch,
// which moves on.
inline const float* parameters(const ParameterRow& row, int64_t columns, float** scratch) {
  if (row.data == nullptr || row.dtype == DType::kFloat32)
    return static_cast<const float*>(row.data);
  float* out = *scratch;
  *scratch += columns;
  const auto convert = [&](const auto* data) {
    traverse<Vec>(0, columns, [&](int64_t c, auto extent) {
      store(out + c, load<Vec>(data + c, extent), extent);
    });
  };
  if (row.dtype == DType::kBFloat16) {
    convert(static_cast<const BFloat16*>(row.data));
  } else {
    convert(static_cast<const Float16*>(row.data));
  }
  return out;
}

inline const double* parameters(const ParameterRow& row, int64_t columns, double** scratch) {
  if (row.data == nullptr || row.dtype == DType::kFloat64)
    return static_cast<const double*>(row.data);
  double* out = *scratch;
  *scratch += columns;
  const float* data = static_cast<const float*>(row.data);
  for (int64_t c = 0; c < columns; ++c) out[c] = data[c];
  return out;
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
