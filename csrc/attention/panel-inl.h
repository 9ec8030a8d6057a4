// What the passes over panels of queries share: the width of a panel, scratch, the base of the
// exponentials.
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

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
