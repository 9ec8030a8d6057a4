// The one matrix product of the room: C = carry * C + A B, A read element by element (broadcast),
// B and C in whole vectors. Every element of C is summed in the same order, whatever the tile it
// falls into.
#pragma once

#include "common/cpu/simd.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

// Steps summed in one chain: longer sums are sums of such parts, which loses fewer bits. Without an
// FMA instruction every step rounds twice.
constexpr int64_t kChain = Vec::kLanes > 4 ? 32 : 8;

template <class V>
struct Product {
  using S = typename V::Scalar;
  const S* a;  // A[row, step] = a[row * a_row + step * a_step]
  int64_t a_row, a_step;
  const S* b;  // B[step, :] starts at b + step * b_step
  int64_t b_step;
  S* c;  // C[row, :] starts at c + row * c_row
  int64_t c_row;
  bool add;        // carry = 1
  const S* carry;  // by column; null: C is overwritten, not read, unless `add`
  int64_t rows, steps, vectors;
};

// The widest tile, in vectors. With the rows below, the accumulators, a row of B and one element of
// A fit the registers: 32 of AVX-512, else 16.
constexpr int kTileVectors = 3;

constexpr int tile_rows(int vectors) {
  if (Vec::kLanes == 16) return 8;
  return vectors == 1 ? 8 : vectors == 2 ? 6 : 4;
}

// Rows row .. row + kRows - 1; those past the last repeat it and are not stored.
template <class V, int kVectors>
inline void multiply_tile(const Product<V>& p, int64_t row, int64_t column) {
  using S = typename V::Scalar;
  constexpr int kRows = tile_rows(kVectors);
  V sum[kRows][kVectors];
  const S* a[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    a[r] = p.a + min_int(row + r, p.rows - 1) * p.a_row;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[r][v] = V::zero();
  }
  const S* b = p.b + column;
  int64_t at = 0;
  for (int64_t step = 0; step < p.steps; ++step, at += p.a_step, b += p.b_step) {
    V right[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) right[v] = V::load(b + v * V::kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const V left = V::broadcast(a[r][at]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[r][v] = fma(left, right[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    if (row + r >= p.rows) return;
    S* c = p.c + (row + r) * p.c_row + column;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      V value = sum[r][v];
      if (p.carry != nullptr) {
        value = fma(V::load(c + v * V::kLanes), V::load(p.carry + column + v * V::kLanes), value);
      } else if (p.add) {
        value = V::load(c + v * V::kLanes) + value;
      }
      store(c + v * V::kLanes, value);
    }
  }
}

// Not inlined: one copy of each tile serves every product.
template <class V, int kVectors>
__attribute__((noinline)) void multiply_columns(const Product<V>& p, int64_t column) {
  for (int64_t row = 0; row < p.rows; row += tile_rows(kVectors)) {
    multiply_tile<V, kVectors>(p, row, column);
  }
}

// The product over one chain of steps.
template <class V>
inline void multiply_chain(const Product<V>& p) {
  int64_t done = 0;
  while (done < p.vectors) {
    const int64_t left = p.vectors - done;
    // Four are two and two: a tile of one vector waits for its own sums.
    const int64_t width = left == 4 ? 2 : min_int(left, kTileVectors);
    const int64_t column = done * V::kLanes;
    if (width == 3) {
      multiply_columns<V, 3>(p, column);
    } else if (width == 2) {
      multiply_columns<V, 2>(p, column);
    } else {
      multiply_columns<V, 1>(p, column);
    }
    done += width;
  }
}

template <class V>
inline void multiply(const Product<V>& p) {
  Product<V> part = p;
  for (int64_t begin = 0; begin == 0 || begin < p.steps; begin += kChain) {
    part.steps = min_int(kChain, p.steps - begin);
    multiply_chain(part);
    part.a += kChain * p.a_step;
    part.b += kChain * p.b_step;
    part.carry = nullptr;
    part.add = true;
  }
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
