// What the passes over panels of queries share: the width of a panel, scratch, exponentials.
#pragma once

#include "attention/attention.h"
#include "attention/product-inl.h"
#include "common/cpu/simd.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

constexpr int kPanelVectors = kTileVectors;
constexpr double kLog2EExact = 1.4426950408889634;

// The widest panel of a call, in lanes.
template <class V>
inline int64_t panel_width(const AttentionCall& call) {
  return min_int(round_up(call.length_q, V::kLanes), kPanelVectors * V::kLanes);
}

// Hands out aligned parts of one thread's scratch; from address 0 it only adds up.
struct Arena {
  uintptr_t base;
  int64_t used;

  template <class S>
  S* take(int64_t count) {
    const uintptr_t start = base + static_cast<uintptr_t>(used);
    used += round_up(count * static_cast<int64_t>(sizeof(S)), 64);
    return reinterpret_cast<S*>(start);
  }
};

// Scores become e^(score - top) = 2^((score - top) log2(e)). The difference comes first: a mask may
// hold the least finite number, which has no multiple. Returns the sum of each lane, four sums by
// the key's place in its block: blocks begin at multiples of 4.
template <class V>
inline V exponentials(typename V::Scalar* scores, int64_t count, int64_t width, V top) {
  const V log2e = V::broadcast(static_cast<typename V::Scalar>(kLog2EExact));
  V sums[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  const auto turn = [&](int64_t j, V* sum) {
    const V weight = exp2((V::load(scores + j * width) - top) * log2e);
    store(scores + j * width, weight);
    *sum = *sum + weight;
  };
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    for (int c = 0; c < 4; ++c) turn(j + c, &sums[c]);
  }
  for (int c = 0; j + c < count; ++c) turn(j + c, &sums[c]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
