// Vectors computed in step.
#pragma once

#include "common/cpu/rows.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

// Two V, vectors or pairs themselves, that go through the same verbs. One vector's chain of
// dependent instructions leaves the units idle, and the CPU does not look far enough ahead to fill
// the gaps with the next one's. (Members, not an array: that one would live in memory.)
template <class V>
struct Pair {
  using Scalar = typename V::Scalar;
  static constexpr int kLanes = 2 * V::kLanes;
  V low, high;

  static Pair broadcast(Scalar value) { return {V::broadcast(value), V::broadcast(value)}; }
  static Pair zero() { return {V::zero(), V::zero()}; }
  template <class T>
  static Pair load(const T* p) {
    return {V::load(p), V::load(p + V::kLanes)};
  }
};

template <class M>
struct PairMask {
  M low, high;
};

template <class T, class V>
inline void store(T* p, Pair<V> a) {
  store(p, a.low);
  store(p + V::kLanes, a.high);
}

template <class V>
inline Pair<V> operator+(Pair<V> a, Pair<V> b) {
  return {a.low + b.low, a.high + b.high};
}
template <class V>
inline Pair<V> operator-(Pair<V> a, Pair<V> b) {
  return {a.low - b.low, a.high - b.high};
}
template <class V>
inline Pair<V> operator*(Pair<V> a, Pair<V> b) {
  return {a.low * b.low, a.high * b.high};
}
template <class V>
inline Pair<V> operator/(Pair<V> a, Pair<V> b) {
  return {a.low / b.low, a.high / b.high};
}
template <class V>
inline Pair<V> fma(Pair<V> a, Pair<V> b, Pair<V> c) {
  return {fma(a.low, b.low, c.low), fma(a.high, b.high, c.high)};
}
template <class V>
inline Pair<V> max(Pair<V> a, Pair<V> b) {
  return {max(a.low, b.low), max(a.high, b.high)};
}
template <class V>
inline Pair<V> abs(Pair<V> a) {
  return {abs(a.low), abs(a.high)};
}
template <class V>
inline Pair<V> round(Pair<V> a) {
  return {round(a.low), round(a.high)};
}
template <class V>
inline Pair<V> scale_by_power(Pair<V> y, Pair<V> n) {
  return {scale_by_power(y.low, n.low), scale_by_power(y.high, n.high)};
}

template <class V>
inline auto less(Pair<V> a, Pair<V> b) {
  return PairMask{less(a.low, b.low), less(a.high, b.high)};
}
template <class V>
inline auto less_equal(Pair<V> a, Pair<V> b) {
  return PairMask{less_equal(a.low, b.low), less_equal(a.high, b.high)};
}
template <class M, class V>
inline Pair<V> select(PairMask<M> mask, Pair<V> yes, Pair<V> no) {
  return {select(mask.low, yes.low, no.low), select(mask.high, yes.high, no.high)};
}

template <class V>
inline Pair<V> drop(const Dropout& dropout, VecU row, int64_t column, Pair<V> x) {
  return {drop(dropout, row, column, x.low), drop(dropout, row, column + V::kLanes, x.high)};
}

// Calls step(TypeTag<W>{}, column, extent) for each W, V or pairs of it, of [begin, end); what is
// left over goes in single V.
template <class V, class W, class F>
inline void traverse_wide(int64_t begin, int64_t end, const F& step) {
  int64_t column = begin;
  if constexpr (W::kLanes > V::kLanes)
    for (; column + W::kLanes <= end; column += W::kLanes) step(TypeTag<W>{}, column, Whole{});
  traverse<V>(column, end, [&](int64_t c, auto extent) { step(TypeTag<V>{}, c, extent); });
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
