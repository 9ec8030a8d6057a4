// parts.h, once per instruction set.
#include "common/cpu/parts.h"
#include "common/cpu/rows.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

template <class V>
V apply(Function function, V x) {
  switch (function) {
    case Function::kExp:
      return exp(x);
    case Function::kErf:
      return erf(x);
    case Function::kTanh:
      return tanh(x);
    case Function::kSqrt:
      return sqrt(x);
    case Function::kRound:
      return round(x);
    case Function::kAbs:
      return abs(x);
  }
  return x;
}

template <class V>
void part_map(Function function, const typename V::Scalar* in, typename V::Scalar* out, int64_t n) {
  traverse<V>(0, n, [&](int64_t i, auto extent) {
    store(out + i, apply(function, load<V>(in + i, extent)), extent);
  });
}

template <class From, class To>
void convert_from_to(const void* in, void* out, int64_t n) {
  traverse<Vec>(0, n, [&](int64_t i, auto extent) {
    store(static_cast<To*>(out) + i, load<Vec>(static_cast<const From*>(in) + i, extent), extent);
  });
}

template <class From>
void convert_from(const void* in, DType to, void* out, int64_t n) {
  if (to == DType::kBFloat16) return convert_from_to<From, BFloat16>(in, out, n);
  if (to == DType::kFloat16) return convert_from_to<From, Float16>(in, out, n);
  convert_from_to<From, float>(in, out, n);
}

void part_convert(DType from, const void* in, DType to, void* out, int64_t n) {
  if (from == DType::kBFloat16) return convert_from<BFloat16>(in, to, out, n);
  if (from == DType::kFloat16) return convert_from<Float16>(in, to, out, n);
  convert_from<float>(in, to, out, n);
}

float part_sum(const float* in, int64_t n) {
  Vec chains[kChains] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
  traverse_chains<Vec>(0, n, [&](int64_t i, auto extent, int chain) {
    chains[chain] = chains[chain] + load<Vec>(in + i, extent);
  });
  return reduce_chains(chains);
}

float part_maximum(const float* in, int64_t n) {
  const Vec lowest = Vec::broadcast(-__builtin_inff());
  Vec largest = lowest;
  int64_t i = 0;
  for (; i + Vec::kLanes <= n; i += Vec::kLanes) largest = max(largest, Vec::load(in + i));
  const Vec tail = select(Vec::Mask::first(n - i), Vec::load(in + i, n - i), lowest);
  return reduce_max(max(largest, tail));
}

void part_multiply_wide(const uint32_t* a, const uint32_t* b, uint32_t* high, uint32_t* low) {
  VecU high_lanes, low_lanes;
  multiply_wide(VecU::load(a), VecU::load(b), &high_lanes, &low_lanes);
  store(high, high_lanes);
  store(low, low_lanes);
}

void part_philox(const uint32_t* counters, uint64_t seed, uint32_t* words) {
  store(words, philox(VecU::load(counters), make_philox_key(seed)));
}

void part_dropout(double p, int64_t seed, int64_t offset, uint32_t i, uint32_t b, uint8_t* keep,
                  int64_t n) {
  const Dropout dropout = make_dropout(p, seed, offset);
  const VecU row = dropout_row(dropout, i, b);
  for (int64_t column = 0; column < n; column += Vec::kLanes) {
    float kept[Vec::kLanes];
    const Vec::Mask mask = dropout_keep(dropout, row, column);
    store(kept, select(mask, Vec::broadcast(1.0f), Vec::zero()));
    for (int64_t l = 0; l < min_int(Vec::kLanes, n - column); ++l) keep[column + l] = kept[l] != 0;
  }
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
