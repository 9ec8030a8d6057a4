// The products of a feed-forward network, and what lies between the two, element by element:
//   hidden = dropout(act(pre)), or dropout(act(gate) * pre) with a gate
// and its gradients. Everything is (M, F), contiguous and of `dtype`; M rows, F hidden columns.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/math.h"
#include "common/row_dropout.h"

namespace bigkernels {

enum class FfnActivation : int32_t { kGelu = 0, kGeluTanh = 1, kRelu = 2, kSilu = 3 };

// A product still without its bias, or with it: then bias is null. Biases of 16-bit dtypes belong
// into the product, before it is rounded.
struct FfnProduct {
  void* data;        // (M, F), or null: no gate
  const void* bias;  // (F,) or null
};

struct FfnForwardParams {
  FfnProduct pre, gate;
  bool keep_products;  // data + bias is written back to data
  void* hidden;        // (M, F); may be pre.data if the products are not kept
  int64_t row_count, columns;
  RowDropout dropout;
  FfnActivation activation;
  DType dtype;
  int num_threads;
};

struct FfnBackwardParams {
  FfnProduct pre, gate;
  const void* dhidden;
  void* dpre;        // (M, F), or null; may be dhidden
  void* dgate;       // (M, F), or null; may be gate.data
  void* hidden;      // (M, F), or null: hidden computed again; may be pre.data
  void* dbias1;      // (F,) or null: column sums of dpre
  void* dbias_gate;  // (F,) or null: column sums of dgate
  int64_t row_count, columns;
  RowDropout dropout;
  FfnActivation activation;
  DType dtype;
  int num_threads;
  void* scratch;  // ffn_backward_scratch() bytes
};

// out[n] = sum over the rows of data[row, n].
struct ColumnSumsParams {
  const void* data;  // (M, N), rows row_stride elements apart
  void* out;         // (N,)
  int64_t row_count, columns, row_stride;
  DType dtype;
  int num_threads;
  void* scratch;  // column_sums_scratch() bytes
};

// Column sums are taken over blocks of so many rows, then over the blocks in order: the result does
// not depend on the number of threads.
constexpr int64_t kFfnBlockRows = 32;

static inline int64_t column_sums_bytes(int64_t row_count, int64_t columns, DType dtype) {
  const int64_t blocks = ceil_div(row_count, kFfnBlockRows);
  return blocks * columns * element_size(statistics_dtype(dtype));
}

static inline int64_t column_sums_scratch(const ColumnSumsParams& params) {
  return column_sums_bytes(params.row_count, params.columns, params.dtype);
}

static inline int64_t ffn_backward_scratch(const FfnBackwardParams& params) {
  const int kinds = (params.dbias1 != nullptr) + (params.dbias_gate != nullptr);
  return kinds * column_sums_bytes(params.row_count, params.columns, params.dtype);
}

// A matrix by strides in elements.
struct FfnOperand {
  const void* data;
  int64_t row, column;
};

// out = a b, or bias + a b, or out + a b: (M, N) of (M, K) and (K, N).
struct FfnMultiplyParams {
  FfnOperand a, b;
  void* out;         // rows out_row elements apart
  const void* bias;  // (N,) or null
  bool add;          // out holds what is added; then there is no bias
  int64_t rows, depth, columns, out_row;
  DType dtype;
  int num_threads;
  void* scratch;  // as many bytes as multiply_scratch says
};

struct FfnKernels {
  int64_t (*multiply_scratch)(const FfnMultiplyParams& params);  // -1: not served
  void (*multiply)(const FfnMultiplyParams& params);
  void (*forward)(const FfnForwardParams& params);
  void (*backward)(const FfnBackwardParams& params);
  void (*column_sums)(const ColumnSumsParams& params);
};

}  // namespace bigkernels
