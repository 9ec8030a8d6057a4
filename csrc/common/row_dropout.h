// Dropout of operations on rows, as their parameters carry it.
#pragma once

#include <cstdint>

namespace bigkernels {

// Equal seed, offset and position drop equal elements. Row r stands at sample b, position i:
// rows[r] = b << 32 | i, or b = r / period, i = r % period where rows is null.
struct RowDropout {
  double p;  // 0: no dropout
  int64_t seed;
  int64_t offset;
  const int64_t* rows;  // (M,) or null
  int64_t period;
};

constexpr RowDropout kNoDropout = {0.0, 0, 0, nullptr, 1};

}  // namespace bigkernels
