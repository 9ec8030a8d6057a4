// Dropout of row operations on the device: the same words, and thus the same mask, as everywhere.
#pragma once

#include <cstdint>

#include "common/philox.h"

namespace bigkernels::cuda {

// As RowDropout of the CPU kernels, but seed and offset stay on the device: reading them on the
// host would wait for the stream, and a captured graph would replay one mask for ever.
struct RowDropout {
  uint64_t threshold;     // words below it drop; 0: no dropout
  float scale;            // of what stays
  const int64_t* seed;    // () or null for 0
  const int64_t* offset;  // () or null for 0
  const int64_t* rows;    // (M,) sample << 32 | position, or null: r / period, r % period
  int64_t period;
};

static inline float dropout_scale(double p) {
  return p < 1.0 ? static_cast<float>(1.0 / (1.0 - p)) : 0.0f;
}

#ifdef __CUDACC__

// The stream of words of one row.
struct RowWords {
  uint32_t key0, key1, position, sample, offset;
  uint64_t threshold;
  float scale;

  __device__ RowWords(const RowDropout& dropout, int64_t row) {
    const int64_t seed = dropout.seed != nullptr ? *dropout.seed : 0;
    const int64_t where = dropout.rows != nullptr
                              ? dropout.rows[row]
                              : (row / dropout.period) << 32 | (row % dropout.period);
    key0 = static_cast<uint32_t>(seed);
    key1 = static_cast<uint32_t>(seed >> 32);
    position = static_cast<uint32_t>(where);
    sample = static_cast<uint32_t>(where >> 32);
    offset = dropout.offset != nullptr ? static_cast<uint32_t>(*dropout.offset) : 0;
    threshold = dropout.threshold;
    scale = dropout.scale;
  }

  // Columns [column, column + kCount) of the row; kCount is 1 or column a multiple of 4.
  template <int kCount>
  __device__ __forceinline__ void drop(float (&values)[kCount], int column) const {
#pragma unroll
    for (int block = 0; block < (kCount + 3) / 4; ++block) {
      const PhiloxWords words = philox(
          {{static_cast<uint32_t>(column / 4 + block), position, sample, offset}}, key0, key1);
      constexpr int kInBlock = kCount < 4 ? kCount : 4;
#pragma unroll
      for (int i = 0; i < kInBlock; ++i) {
        const uint32_t word = kCount == 1 ? select_word(words, column % 4) : words.word[i];
        float& value = values[block * 4 + i];
        value = word >= threshold ? value * scale : 0.0f;
      }
    }
  }

  // Without an index known at compile time the four words would go through local memory.
  static __device__ __forceinline__ uint32_t select_word(const PhiloxWords& words, int index) {
    const uint32_t low = index == 0 ? words.word[0] : words.word[1];
    const uint32_t high = index == 2 ? words.word[2] : words.word[3];
    return index < 2 ? low : high;
  }
};

#endif  // __CUDACC__

}  // namespace bigkernels::cuda
