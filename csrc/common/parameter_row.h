// Parameters of operations on rows, and the blocks of rows over which their gradients are summed.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/math.h"

namespace bigkernels {

// A vector of N parameters in its own dtype; data may be null.
struct ParameterRow {
  const void* data;
  DType dtype;  // that of the kernel or its statistics dtype
};

// Bytes for a parameter row that has to be converted to the statistics dtype.
static inline int64_t converted_bytes(const ParameterRow& row, int64_t columns, DType dtype) {
  const DType statistics = statistics_dtype(dtype);
  if (row.data == nullptr || row.dtype == statistics) return 0;
  return columns * element_size(statistics);
}

// Column sums are taken over blocks of rows, then over the blocks in order. The blocks depend on M
// only, so the result does not depend on the number of threads.
static inline int64_t column_sum_block_rows(int64_t row_count) {
  return min_int(64, max_int(8, round_up(ceil_div(row_count, 16), 8)));
}

static inline int64_t column_sum_block_count(int64_t row_count) {
  return ceil_div(row_count, column_sum_block_rows(row_count));
}

}  // namespace bigkernels
