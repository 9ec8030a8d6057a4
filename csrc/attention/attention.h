// Attention on the CPU: what one call is, and the entry points. Semantics and maths: README.md of
// bigkernels/ops/attention.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace bigkernels {

// A tensor of rows of adjacent elements, addressed by (batch, head, position); strides in elements.
// Packed sequences: batch is 0 and the position counts from the start of the whole pack.
struct AttentionRows {
  void* data;
  int64_t batch, head, row;
};

// Integers of either width, as torch hands them over.
struct IndexArray {
  const void* data;
  bool wide;  // int64, else int32

  int64_t operator[](int64_t i) const {
    return wide ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
};

enum class MaskType : int32_t { kNone, kBool, kSameAsQuery, kFloat32 };

// Bool (true = attend) or added to the scores; strides in elements, 0 along broadcast dimensions.
struct AttentionMask {
  const void* data;
  MaskType type;
  int64_t batch, head, query, key;
};

// Values of AttentionCall::causal.
constexpr int kCausalTopLeft = 1;          // j <= i
constexpr int kCausalBottomRight = 2;      // j <= i + Lk - Lq
constexpr int kOpenWindowBottomRight = 3;  // all keys, but a window is centred as for bottom-right

struct AttentionCall {
  DType dtype;         // of q, k, v, out and the gradients; lse, dlse: statistics_dtype(dtype)
  AttentionRows q;     // (B, H, Lq, D) or packed (T, H, D)
  AttentionRows k, v;  // (B, Hkv, Lk, D), (B, Hkv, Lk, Dv)
  AttentionRows out;   // (B, H, Lq, Dv)
  void* lse;  // natural log; (B, H, Lq) or packed (H, T), contiguous; -inf where no key is on
  int64_t batch, heads, heads_kv, dim, dim_v;
  int64_t length_q, length_k;  // dense: Lq, Lk; packed: T, Tk
  bool packed;
  IndexArray starts_q, starts_k;  // packed: (B + 1,) first tokens of the sequences
  IndexArray key_lengths;         // dense: (B,) or null
  AttentionMask mask;
  double scale;
  int causal;
  int64_t window_left, window_right;  // -1: open
  double dropout_p;
  int64_t seed, offset;
  const int64_t* rows;  // b << 32 | i of each query, (B * Lq,) or (T,); null: its own place
  int num_threads;
  void* scratch;  // as many bytes as the scratch function of the direction asked for
};

struct AttentionGradients {
  AttentionRows dout;  // (B, H, Lq, Dv)
  const void* dlse;    // like lse; null: zero
  AttentionRows dq, dk, dv;
  void* dmask;  // contiguous, of the mask's own sizes and dtype; null: not wanted
  int64_t mask_sizes[4];
  const void* weight_scale;  // for the kernels' own use; null
};

struct AttentionKernels {
  int64_t (*forward_scratch)(const AttentionCall& call);
  void (*forward)(const AttentionCall& call);
  int64_t (*backward_scratch)(const AttentionCall& call, const AttentionGradients& gradients);
  void (*backward)(const AttentionCall& call, const AttentionGradients& gradients);
};

}  // namespace bigkernels
