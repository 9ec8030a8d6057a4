// The CPU kernels of attention for the instruction set of the including translation unit.
#pragma once

#include "attention/backward-inl.h"
#include "attention/forward-inl.h"
#include "attention/mask_gradient-inl.h"
#include "attention/weight_scale-inl.h"
#if defined(__AMX_BF16__)
#include "attention/tiles_backward-inl.h"
#endif

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

// In front of the threads' own: the work list of a packed call.
inline int64_t shared_scratch(const AttentionCall& call) {
  Arena arena = {0, 0};
  arena.take<int64_t>(call.packed ? call.batch + 1 : 0);
  return arena.used;
}

int64_t attention_forward_scratch(const AttentionCall& call) {
  int64_t bytes = 0;
#if defined(__AMX_BF16__)
  if (tiles_serve(call)) {
    return shared_scratch(call) + forward_tile_scratch(call) * call.num_threads;
  }
#endif
  visit_dtype(call.dtype, [&](auto tag) {
    using V = typename VecOf<typename decltype(tag)::type>::type;
    bytes = forward_scratch_per_thread<V>(call);
  });
  return shared_scratch(call) + bytes * call.num_threads;
}

void attention_forward(const AttentionCall& call) {
#if defined(__AMX_BF16__)
  if (tiles_serve(call)) return forward_tiles(call);
#endif
  visit_dtype(call.dtype, [&](auto tag) { forward_typed<typename decltype(tag)::type>(call); });
}

// The scratch of the backward: weight_scale, what is shared, the threads' own.
template <class T>
struct BackwardScratch {
  using V = typename VecOf<T>::type;
  int64_t scale, per_thread;

  BackwardScratch(const AttentionCall& call, const AttentionGradients& gradients) {
    Arena arena = {0, 0};
    arena.take<typename V::Scalar>(statistic_count(call));
    scale = arena.used;
    per_thread = backward_scratch_per_thread<V>(call, plan_backward(call));
#if defined(__AMX_BF16__)
    if (tiles_serve(call)) per_thread = max_int(per_thread, backward_tile_scratch(call));
#endif
    if (gradients.dmask == nullptr) return;
    per_thread = max_int(per_thread, mask_gradient_scratch_per_thread<V>(call));
  }
};

int64_t attention_backward_scratch(const AttentionCall& call, const AttentionGradients& gradients) {
  int64_t bytes = 0;
  visit_dtype(call.dtype, [&](auto tag) {
    const BackwardScratch<typename decltype(tag)::type> scratch(call, gradients);
    bytes = scratch.scale + shared_scratch(call) + scratch.per_thread * call.num_threads;
  });
  return bytes;
}

void attention_backward(const AttentionCall& given, const AttentionGradients& wanted) {
  visit_dtype(given.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using S = typename VecOf<T>::type::Scalar;
    const BackwardScratch<T> scratch(given, wanted);
    AttentionCall call = given;
    AttentionGradients gradients = wanted;
    call.scratch = static_cast<char*>(given.scratch) + scratch.scale;
    S* scale = static_cast<S*>(given.scratch);
    if (find_weight_scale<T>(call, scratch.per_thread, scale)) gradients.weight_scale = scale;
#if defined(__AMX_BF16__)
    if (tiles_serve(call)) {
      backward_tiles(call, gradients);
    } else {
      backward_typed<T>(call, gradients);
    }
#else
    backward_typed<T>(call, gradients);
#endif
    if (gradients.dmask != nullptr) mask_gradient_typed<T>(call, gradients);
  });
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
