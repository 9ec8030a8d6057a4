// Rows of embedding tables added up, normalized and dropped from:
//   out = dropout(LayerNorm(word[id] + position[place] + type[kind]))
// Tables and out have `dtype`; statistics and gradients of weight and bias have its statistics
// dtype. The letters: M rows (tokens), N columns.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/math.h"
#include "common/parameter_row.h"
#include "common/row_dropout.h"

namespace bigkernels {

constexpr int kEmbeddingTables = 3;

struct EmbeddingTable {
  const void* data;    // (count, N) contiguous, or null: this table adds nothing
  const int64_t* ids;  // (M,) in [0, count); null: row 0 for every token
  int64_t count;
  void* gradient;       // (count, N) contiguous, or null
  int64_t padding_row;  // its gradient is 0; -1: none
};

struct EmbeddingForwardParams {
  EmbeddingTable tables[kEmbeddingTables];  // the first is there
  ParameterRow weight, bias;
  void* out;   // (M, N) contiguous
  void* mean;  // (M,) statistics
  void* rstd;  // (M,) statistics
  int64_t row_count, columns;
  double eps;
  RowDropout dropout;
  DType dtype;
  int num_threads;
  void* scratch;  // embedding_forward_scratch() bytes
};

struct EmbeddingBackwardParams {
  const void* dout;  // (M, N) contiguous
  const void* mean;  // (M,) statistics
  const void* rstd;  // (M,) statistics
  EmbeddingTable tables[kEmbeddingTables];
  ParameterRow weight;
  void* dweight;  // (N,) statistics, or null
  void* dbias;    // (N,) statistics, or null
  int64_t row_count, columns;
  RowDropout dropout;
  DType dtype;
  int num_threads;
  void* scratch;  // embedding_backward_scratch() bytes
};

// One row of the sum per thread, then the converted parameters.
static inline int64_t embedding_forward_scratch(const EmbeddingForwardParams& params) {
  const int64_t rows = params.num_threads * params.columns;
  return rows * element_size(statistics_dtype(params.dtype)) +
         converted_bytes(params.weight, params.columns, params.dtype) +
         converted_bytes(params.bias, params.columns, params.dtype);
}

static inline int64_t embedding_largest_table(const EmbeddingBackwardParams& params) {
  int64_t largest = 0;
  for (const EmbeddingTable& table : params.tables)
    if (table.gradient != nullptr) largest = max_int(largest, table.count);
  return largest;
}

// The tokens in the order of their ids and where each id begins (both int64), then the gradient of
// each row's sum, two column sums of each block of rows, two rows per thread and the converted
// weight.
static inline int64_t embedding_backward_scratch(const EmbeddingBackwardParams& params) {
  const int64_t order = params.row_count + embedding_largest_table(params) + 1;
  const int64_t blocks = column_sum_block_count(params.row_count);
  const int64_t rows = params.row_count + 2 * blocks + 2 * params.num_threads;
  return order * static_cast<int64_t>(sizeof(int64_t)) +
         rows * params.columns * element_size(statistics_dtype(params.dtype)) +
         converted_bytes(params.weight, params.columns, params.dtype);
}

struct EmbeddingKernels {
  void (*forward)(const EmbeddingForwardParams& params);
  void (*backward)(const EmbeddingBackwardParams& params);
};

}  // namespace bigkernels
