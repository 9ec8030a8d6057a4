// Masks on a block of scores. Scores lie transposed: key by key, one query a lane; element
// (key, query) at (key - keys.begin) * width + (query - queries.begin).
#pragma once

#include "attention/rows-inl.h"
#include "attention/sequence-inl.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

template <class V>
inline V off_score() {
  return V::broadcast(-static_cast<typename V::Scalar>(__builtin_inff()));
}

// 0, 1, 2, ... in the lanes, from `first` on.
template <class V>
inline V lane_numbers(int64_t first) {
  typename V::Scalar numbers[V::kLanes];
  for (int l = 0; l < V::kLanes; ++l) numbers[l] = static_cast<typename V::Scalar>(first + l);
  return V::load(numbers);
}

// Causal and window: of key j, the lanes from j - right to j + left stay on.
template <class V>
void mask_band(const Sequence& s, Range queries, Range keys, typename V::Scalar* scores,
               int64_t width) {
  using S = typename V::Scalar;
  for (int64_t lane = 0; lane < width; lane += V::kLanes) {
    const V numbers = lane_numbers<V>(lane);
    for (int64_t j = keys.begin; j < keys.end; ++j) {
      // Clamped, so that they are exact as floats.
      const int64_t first = max_int(-1, min_int(width, j - s.right - queries.begin));
      const int64_t last = max_int(-1, min_int(width, j + s.left - queries.begin));
      S* row = scores + (j - keys.begin) * width + lane;
      const typename V::Mask off = less(numbers, V::broadcast(static_cast<S>(first))) |
                                   less(V::broadcast(static_cast<S>(last)), numbers);
      store(row, select(off, off_score<V>(), V::load(row)));
    }
  }
}

// One element of the mask as a number to add; where it says "off" of a bool mask, -inf.
template <class S>
inline S bias_of(uint8_t on) {
  return on != 0 ? S(0) : -static_cast<S>(__builtin_inff());
}
template <class S>
inline S bias_of(double value) {
  return static_cast<S>(value);
}
template <class S, class M>
inline S bias_of(M value) {
  return to_float(value);
}

// Mask elements (of one query) for `count` adjacent keys.
template <class V, class M>
inline V load_biases(const M* p, int64_t stride, int64_t count) {
  if constexpr (sizeof(M) > 1) {
    if (stride == 1) return load_up_to<V>(p, count);
  } else if constexpr (sizeof(typename V::Scalar) == sizeof(float)) {
    if (stride == 1) return select(load_mask(p, count), V::zero(), off_score<V>());
  }
  typename V::Scalar lanes[V::kLanes] = {};
  for (int64_t l = 0; l < count; ++l) lanes[l] = bias_of<typename V::Scalar>(p[l * stride]);
  return V::load(lanes);
}

// A bool mask decides even where the score is NaN; an additive one is added.
template <class V, class M>
inline V masked(V score, V bias) {
  if constexpr (sizeof(M) == 1) {
    return select(less(bias, V::zero()), bias, score);
  } else {
    return score + bias;
  }
}

// The same for every query: one number a key.
template <class V, class M>
void mask_keys(const M* mask, int64_t stride, Range keys, typename V::Scalar* scores,
               int64_t width) {
  for (int64_t j = keys.begin; j < keys.end; ++j) {
    const V bias = V::broadcast(bias_of<typename V::Scalar>(mask[j * stride]));
    typename V::Scalar* row = scores + (j - keys.begin) * width;
    for (int64_t lane = 0; lane < width; lane += V::kLanes) {
      store(row + lane, masked<V, M>(V::load(row + lane), bias));
    }
  }
}

// A number for every pair, transposed square by square.
template <class V, class M>
void mask_pairs(const M* mask, int64_t query_stride, int64_t key_stride, Range queries, Range keys,
                typename V::Scalar* scores, int64_t width) {
  const int64_t count = queries.end - queries.begin;
  for (int64_t lane = 0; lane < count; lane += V::kLanes) {
    for (int64_t j = keys.begin; j < keys.end; j += V::kLanes) {
      const int64_t filled = min_int(V::kLanes, keys.end - j);
      V square[V::kLanes];
      for (int l = 0; l < V::kLanes; ++l) {
        const M* row = mask + (queries.begin + lane + l) * query_stride + j * key_stride;
        square[l] = lane + l < count ? load_biases<V>(row, key_stride, filled) : V::zero();
      }
      transpose(square);
      typename V::Scalar* at = scores + (j - keys.begin) * width + lane;
      for (int64_t l = 0; l < filled; ++l) {
        store(at + l * width, masked<V, M>(V::load(at + l * width), square[l]));
      }
    }
  }
}

template <class V, class M>
inline void apply_mask(const AttentionCall& call, const Sequence& s, int64_t head, Range queries,
                       Range keys, typename V::Scalar* scores, int64_t width) {
  const AttentionMask& m = call.mask;
  const M* mask = static_cast<const M*>(m.data) + s.batch * m.batch + head * m.head;
  if (m.query == 0) {
    mask_keys<V>(mask, m.key, keys, scores, width);
  } else {
    mask_pairs<V>(mask, m.query, m.key, queries, keys, scores, width);
  }
}

// All that turns keys off or adds to scores. T: the type of q.
template <class V, class T>
void mask_scores(const AttentionCall& call, const Sequence& s, int64_t head, Range queries,
                 Range keys, typename V::Scalar* scores, int64_t width) {
  if (call.mask.type == MaskType::kBool) {
    apply_mask<V, uint8_t>(call, s, head, queries, keys, scores, width);
  } else if (call.mask.type == MaskType::kSameAsQuery) {
    apply_mask<V, T>(call, s, head, queries, keys, scores, width);
  } else if (call.mask.type == MaskType::kFloat32) {
    apply_mask<V, float>(call, s, head, queries, keys, scores, width);
  }
  if (!inside_band(s, queries, keys)) mask_band<V>(s, queries, keys, scores, width);
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
