// LayerNorm over rows, alone or fused with what comes before it:
//   layer_norm:      out = LayerNorm(x)
//   add_layer_norm:  sum = residual + dropout(x + x_bias), out = LayerNorm(sum)
// Where there is no mean, RMSNorm takes LayerNorm's place: the mean counts as 0.
// x, residual, out and their gradients have `dtype`; statistics and gradients of parameters have
// its statistics dtype (float32, float64 for float64). The letters: M rows, N columns.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/math.h"
#include "common/parameter_row.h"
#include "common/row_dropout.h"

namespace bigkernels {

struct LayerNormForwardParams {
  const void* x;         // (M, N), rows x_stride elements apart
  const void* residual;  // (M, N), or null: layer_norm, without x_bias, dropout and sum
  ParameterRow x_bias, weight, bias;
  void* out;   // (M, N) contiguous
  void* sum;   // (M, N) contiguous, or null
  void* mean;  // (M,) statistics, or null: RMSNorm
  void* rstd;  // (M,) statistics
  int64_t row_count, columns;
  int64_t x_stride, residual_stride;
  double eps;
  RowDropout dropout;
  DType dtype;
  int num_threads;
  void* scratch;  // layer_norm_forward_scratch() bytes
};

struct LayerNormBackwardParams {
  const void* dout;  // (M, N)
  const void* dsum;  // (M, N) or null: gradient that reaches the sum from elsewhere
  const void* x;     // (M, N): x of layer_norm, sum of add_layer_norm
  const void* mean;  // (M,) statistics, or null: RMSNorm
  const void* rstd;  // (M,) statistics
  ParameterRow weight;
  void* dx;          // (M, N) contiguous, or null: gradient of x (of the sum: that of residual)
  void* dx_dropped;  // (M, N) contiguous, or null: dx through the dropout
  void* dweight;     // (N,) statistics, or null
  void* dbias;       // (N,) statistics, or null
  void* dx_bias;     // (N,) statistics, or null: column sums of dx through the dropout
  int64_t row_count, columns;
  int64_t dout_stride, dsum_stride, x_stride;
  RowDropout dropout;
  DType dtype;
  int num_threads;
  void* scratch;  // layer_norm_backward_scratch() bytes
};

// Elements from one thread's row of the sum to the next one's. Cores fetch lines in pairs: with one
// pair between them, they do not take each other's.
static inline int64_t sum_row_step(int64_t columns) { return columns + 32; }

// The converted parameters, then one row of the sum per thread.
static inline int64_t layer_norm_forward_scratch(const LayerNormForwardParams& params) {
  int64_t bytes = 0;
  bytes += converted_bytes(params.x_bias, params.columns, params.dtype);
  bytes += converted_bytes(params.weight, params.columns, params.dtype);
  bytes += converted_bytes(params.bias, params.columns, params.dtype);
  if (params.residual == nullptr) return bytes;
  const int64_t sums = params.num_threads * sum_row_step(params.columns);
  return bytes + sums * element_size(statistics_dtype(params.dtype));
}

// The converted weight, then the three column sums of each block, if any is needed.
static inline int64_t layer_norm_backward_scratch(const LayerNormBackwardParams& params) {
  const int64_t bytes = converted_bytes(params.weight, params.columns, params.dtype);
  if (!params.dweight && !params.dbias && !params.dx_bias) return bytes;
  const int64_t sums = 3 * column_sum_block_count(params.row_count) * params.columns;
  return bytes + sums * element_size(statistics_dtype(params.dtype));
}

struct LayerNormKernels {
  void (*forward)(const LayerNormForwardParams& params);
  void (*backward)(const LayerNormBackwardParams& params);
};

}  // namespace bigkernels
