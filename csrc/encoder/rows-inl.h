// What the encoder does to rows of the residual stream: LayerNorm, the parameters it is read from.
#pragma once

#include "common/cpu/rows.h"
#include "common/cpu/team.h"
#include "encoder/encoder.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

// The packed weights of one layer.
struct LayerWeights {
  const char* base;
  const EncoderShape* shape;
  const EncoderLayout* layout;

  const void* weight(int product) const { return base + layout->weight[product]; }
  const float* bias(int product) const {
    return reinterpret_cast<const float*>(base + layout->bias[product]);
  }
  const float* norm(int which) const {
    return reinterpret_cast<const float*>(base + layout->norm[which]);
  }
};

inline LayerWeights layer_of(const EncoderForwardParams& p, const EncoderLayout& layout,
                             int64_t layer) {
  return {static_cast<const char*>(p.packed) + layer * layout.bytes, &p.shape, &layout};
}

// The LayerNorm of a row; norm: the weight, then, from the next multiple of EncoderLayout::kBlock
// on, the bias.
struct RowNorm {
  Vec mean, rstd;
  const float *weight, *bias;

  template <class Extent>
  Vec apply(Vec x, int64_t c, Extent extent) const {
    return fma((x - mean) * rstd, load<Vec>(weight + c, extent), load<Vec>(bias + c, extent));
  }
};

inline RowNorm norm_of(const float* x, int64_t n, const float* norm, double eps) {
  Vec sums[kChains] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
  traverse_chains<Vec>(0, n, [&](int64_t c, auto extent, int chain) {
    sums[chain] = sums[chain] + load<Vec>(x + c, extent);
  });
  const float share = 1.0f / static_cast<float>(n);
  const Vec mean = Vec::broadcast(reduce_chains(sums) * share);
  for (Vec& sum : sums) sum = Vec::zero();
  traverse_chains<Vec>(0, n, [&](int64_t c, auto extent, int chain) {
    const Vec d = inside(load<Vec>(x + c, extent) - mean, extent);
    sums[chain] = fma(d, d, sums[chain]);
  });
  const Vec variance = Vec::broadcast(reduce_chains(sums) * share + static_cast<float>(eps));
  const Vec rstd = Vec::broadcast(1.0f) / sqrt(variance);
  return {mean, rstd, norm, norm + round_up(n, EncoderLayout::kBlock)};
}

// row[c] of the call's input or output, whatever its dtype.
inline Vec load_input(const EncoderForwardParams& p, int64_t row, int64_t c, auto extent) {
  const int64_t at = row * p.shape.width + c;
  if (p.dtype == DType::kFloat32) return load<Vec>(static_cast<const float*>(p.x) + at, extent);
  return load<Vec>(static_cast<const BFloat16*>(p.x) + at, extent);
}

inline void store_output(const EncoderForwardParams& p, int64_t row, int64_t c, Vec v,
                         auto extent) {
  const int64_t at = row * p.shape.width + c;
  if (p.dtype == DType::kFloat32) return store(static_cast<float*>(p.out) + at, v, extent);
  store(static_cast<BFloat16*>(p.out) + at, v, extent);
}

// What becomes of a row once its sum with the residual is complete: which norm it goes through, and
// whether the result is the new residual, the output, or both input of the next product.
struct RowEnd {
  const float* norm;  // null: none
  bool residual;      // the normalized row replaces the residual
  bool last;          // it is the call's output
};

// After the first (attention) and the second half of a layer.
inline RowEnd row_end(const EncoderForwardParams& p, const EncoderLayout& layout, int64_t layer,
                      int half) {
  const bool last = half == 1 && layer + 1 == p.shape.layers;
  if (!p.norm_first) return {layer_of(p, layout, layer).norm(half), true, last};
  if (last) return {nullptr, false, true};
  return {layer_of(p, layout, layer + half).norm(half == 0 ? kNorm2 : kNorm1), false, false};
}

// Before the first layer.
inline RowEnd row_start(const EncoderForwardParams& p, const EncoderLayout& layout) {
  return {p.norm_first ? layer_of(p, layout, 0).norm(kNorm1) : nullptr, false, false};
}

// One thread's share of f(row) for every row, a few at a time.
template <class F>
inline void each_row(TeamMember member, int64_t rows, const F& f) {
  constexpr int64_t kTogether = 4;
  member.begin(ceil_div(rows, kTogether));
  for (int64_t item = member.claim(); item >= 0; item = member.claim()) {
    const int64_t end = min_int(rows, (item + 1) * kTogether);
    for (int64_t r = item * kTogether; r < end; ++r) f(r);
  }
}

// The attention of the packed sequences of one call, in the given rows.
inline AttentionCall attention_of(const EncoderForwardParams& p, DType dtype, int64_t dim) {
  AttentionCall call = {};
  call.dtype = dtype;
  call.batch = p.batch;
  call.heads = call.heads_kv = p.shape.heads;
  call.dim = call.dim_v = dim;
  call.length_q = call.length_k = p.tokens;
  call.packed = true;
  call.starts_q = call.starts_k = p.starts;
  call.scale = 1.0 / __builtin_sqrt(static_cast<double>(dim));
  call.causal = p.causal ? kCausalTopLeft : 0;
  call.window_left = call.window_right = -1;
  call.num_threads = 1;
  return call;
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
