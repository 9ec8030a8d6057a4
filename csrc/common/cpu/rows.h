// Traversals of one row: a kernel says what happens to a vector, the traversal deals with the tail.
#pragma once

#include "common/cpu/simd.h"
#include "common/row_dropout.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

// How much of a vector lies inside the row: all lanes, or the first count.
struct Whole {};
struct Part {
  int64_t count;
};

template <class V, class T>
inline V load(const T* p, Whole) {
  return V::load(p);
}
template <class V, class T>
inline V load(const T* p, Part part) {
  return V::load(p, part.count);
}
template <class T, class V>
inline void store(T* p, V v, Whole) {
  store(p, v);
}
template <class T, class V>
inline void store(T* p, V v, Part part) {
  store(p, v, part.count);
}
// v inside the row, 0 outside.
template <class V>
inline V inside(V v, Whole) {
  return v;
}
template <class V>
inline V inside(V v, Part part) {
  return select(V::Mask::first(part.count), v, V::zero());
}

// Calls step(column, extent) for each vector of [begin, end).
template <class V, class F>
inline void traverse(int64_t begin, int64_t end, const F& step) {
  int64_t column = begin;
  for (; column + V::kLanes <= end; column += V::kLanes) step(column, Whole{});
  if (column < end) step(column, Part{end - column});
}

constexpr int kChains = 4;

// The same with a third argument in [0, kChains): sums kept one per chain do not wait for each
// other. Which chain a column falls into depends on begin and end only.
template <class V, class F>
inline void traverse_chains(int64_t begin, int64_t end, const F& step) {
  int64_t column = begin;
  for (; column + kChains * V::kLanes <= end; column += kChains * V::kLanes)
    for (int chain = 0; chain < kChains; ++chain) step(column + chain * V::kLanes, Whole{}, chain);
  traverse<V>(column, end, [&](int64_t c, auto extent) { step(c, extent, 0); });
}

template <class V>
inline typename V::Scalar reduce_chains(const V (&chains)[kChains]) {
  return reduce_add((chains[0] + chains[1]) + (chains[2] + chains[3]));
}

// The Philox counters of row r at column 0.
inline VecU dropout_counters(const Dropout& dropout, const RowDropout& params, int64_t r) {
  const uint64_t at = params.rows != nullptr ? static_cast<uint64_t>(params.rows[r]) : 0;
  const uint64_t b = params.rows != nullptr ? at >> 32 : r / params.period;
  const uint64_t i = params.rows != nullptr ? at : r % params.period;
  return dropout_row(dropout, static_cast<uint32_t>(i), static_cast<uint32_t>(b));
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
