// LayerNorm over rows on the GPU: what layer_norm.h says of the CPU kernels, for float32, float16
// and bfloat16, with every pointer on the device.
#pragma once

#include "common/cuda/abi.h"
#include "common/cuda/dropout.h"
#include "layer_norm/layer_norm.h"

namespace bigkernels::cuda {

struct LayerNormForwardParams {
  const void* x;         // (M, N), rows x_stride elements apart
  const void* residual;  // (M, N), or null: layer_norm, without x_bias, dropout and sum
  ParameterRow x_bias, weight, bias;
  void* out;    // (M, N) contiguous
  void* sum;    // (M, N) contiguous, or null
  float* mean;  // (M,)
  float* rstd;  // (M,)
  int64_t row_count;
  int32_t columns;
  int64_t x_stride, residual_stride;
  double eps;
  RowDropout dropout;
  DType dtype;
};

struct LayerNormBackwardParams {
  const void* dout;   // (M, N)
  const void* dsum;   // (M, N) or null: gradient that reaches the sum from elsewhere
  const void* x;      // (M, N): x of layer_norm, sum of add_layer_norm
  const float* mean;  // (M,)
  const float* rstd;  // (M,)
  ParameterRow weight;
  void* dx;          // (M, N) contiguous, or null: gradient of x (of the sum: that of residual)
  void* dx_dropped;  // (M, N) contiguous, or null: dx through the dropout
  float* dweight;    // (N,) or null
  float* dbias;      // (N,) or null
  float* dx_bias;    // (N,) or null: column sums of dx through the dropout
  float* partials;   // (3, partial_rows(), N): sums of the rows of one thread row of one block
  int64_t row_count;
  int32_t columns;
  int64_t dout_stride, dsum_stride, x_stride;
  RowDropout dropout;
  DType dtype;
  int32_t multiprocessors;  // of the device
};

// The widest row that a block holds in registers.
constexpr int32_t kMaxColumns = 8192;

// Backward: blocks of rows_per_block rows, threads_per_row threads each, walk over all rows with
// the stride of the grid. There are as many as run at once, 512 threads a multiprocessor, because
// each of their thread rows makes partial sums of dweight, dbias and dx_bias.
struct BackwardGrid {
  static constexpr int kThreads = 512;
  // Wider rows: 16 elements a thread, in two launches, and only where 16-byte accesses fit.
  static constexpr int kNarrow = 4096;
  int32_t threads_per_row, rows_per_block;
  int64_t blocks;

  explicit BackwardGrid(const LayerNormBackwardParams& p) {
    const int elements = p.columns <= kNarrow ? 8 : 16;
    threads_per_row = static_cast<int32_t>(round_up(ceil_div(p.columns, elements), 32));
    rows_per_block = static_cast<int32_t>(max_int(1, kThreads / 2 / threads_per_row));
    const int64_t at_once = max_int(1, kThreads / (threads_per_row * rows_per_block));
    blocks = min_int(ceil_div(p.row_count, rows_per_block), at_once * p.multiprocessors);
  }
  int64_t partial_rows() const { return blocks * rows_per_block; }
};

}  // namespace bigkernels::cuda

BIGKERNELS_CUDA_LAUNCHER int bigkernels_layer_norm_forward(
    const bigkernels::cuda::LayerNormForwardParams* params, void* stream);
BIGKERNELS_CUDA_LAUNCHER int bigkernels_layer_norm_backward(
    const bigkernels::cuda::LayerNormBackwardParams* params, void* stream);
