// Between the tensors' rows and the panels the products work on. A panel holds up to
// kPanelVectors * kLanes queries, one a lane: element (d, lane) at d * width + lane. Keys and
// values stay as they are.
#pragma once

#include "common/cpu/simd.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

constexpr int64_t kRowsAhead = 8;

template <class V, class T>
inline V load_up_to(const T* p, int64_t count) {
  return count >= V::kLanes ? V::load(p) : V::load(p, count);
}

template <class V, class T>
inline void store_up_to(T* p, V value, int64_t count) {
  if (count >= V::kLanes) {
    store(p, value);
  } else {
    store(p, value, count);
  }
}

// The hardware follows no stride as long as a row of all heads.
template <class T>
inline void prefetch_rows(const T* rows, int64_t row_stride, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) __builtin_prefetch(rows + i * row_stride);
}

// A square of kLanes rows by kLanes elements, 0 outside count rows and length elements.
template <class V, class T>
inline void load_square(const T* rows, int64_t row_stride, int64_t count, int64_t length,
                        V (&square)[V::kLanes]) {
  if (count >= V::kLanes && length >= V::kLanes) {
    for (int l = 0; l < V::kLanes; ++l) square[l] = V::load(rows + l * row_stride);
    return;
  }
  for (int l = 0; l < V::kLanes; ++l) {
    square[l] = l < count ? load_up_to<V>(rows + l * row_stride, length) : V::zero();
  }
}

// panel (dim, width) = scale * rows^T; lanes past count are 0.
template <class V, class T>
__attribute__((noinline)) void load_transposed(const T* rows, int64_t row_stride, int64_t count,
                                               int64_t dim, typename V::Scalar scale,
                                               typename V::Scalar* panel, int64_t width) {
  const V factor = V::broadcast(scale);
  for (int64_t lane = 0; lane < width; lane += V::kLanes) {
    for (int64_t d = 0; d < dim; d += V::kLanes) {
      V square[V::kLanes];
      load_square(rows + lane * row_stride + d, row_stride, count - lane, dim - d, square);
      prefetch_rows(rows + d, row_stride, lane + V::kLanes, min_int(count, lane + 2 * V::kLanes));
      transpose(square);
      const int64_t filled = min_int(V::kLanes, dim - d);
      for (int64_t l = 0; l < filled; ++l) {
        store(panel + (d + l) * width + lane, square[l] * factor);
      }
    }
  }
}

// rows[lane, :] = panel[:, lane] * factor[lane], for the first count lanes.
template <class V, class T>
__attribute__((noinline)) void store_transposed(const typename V::Scalar* panel, int64_t width,
                                                int64_t count, int64_t dim,
                                                const typename V::Scalar* factor, T* rows,
                                                int64_t row_stride) {
  for (int64_t lane = 0; lane < count; lane += V::kLanes) {
    const V by = V::load(factor + lane);
    for (int64_t d = 0; d < dim; d += V::kLanes) {
      V square[V::kLanes];
      load_square(panel + d * width + lane, width, dim - d, V::kLanes, square);
      for (int l = 0; l < V::kLanes; ++l) square[l] = square[l] * by;
      transpose(square);
      T* out = rows + lane * row_stride + d;
      const int64_t filled = min_int(V::kLanes, count - lane);
      if (filled == V::kLanes && dim - d >= V::kLanes) {
        for (int l = 0; l < V::kLanes; ++l) store(out + l * row_stride, square[l]);
        continue;
      }
      for (int64_t l = 0; l < filled; ++l) store_up_to(out + l * row_stride, square[l], dim - d);
    }
  }
}

// Rows in the type of the arithmetic, out_stride apart; elements from dim to out_stride are 0.
template <class V, class T>
void widen_rows(const T* rows, int64_t row_stride, int64_t count, int64_t dim,
                typename V::Scalar scale, typename V::Scalar* out, int64_t out_stride) {
  const V factor = V::broadcast(scale);
  const int64_t whole = dim / V::kLanes * V::kLanes;
  for (int64_t i = 0; i < count; ++i) {
    const T* row = rows + i * row_stride;
    const T* ahead = rows + min_int(i + kRowsAhead, count - 1) * row_stride;
    for (int64_t d = 0; d < whole; d += V::kLanes) {
      __builtin_prefetch(ahead + d);
      store(out + i * out_stride + d, V::load(row + d) * factor);
    }
    for (int64_t d = whole; d < out_stride; d += V::kLanes) {
      store(out + i * out_stride + d, V::load(row + d, max_int(dim - d, 0)) * factor);
    }
  }
}

// rows[i, :dim] = sums[i, :dim].
template <class V, class T>
void narrow_rows(const typename V::Scalar* sums, int64_t sums_stride, int64_t count, int64_t dim,
                 T* rows, int64_t row_stride) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t d = 0; d < dim; d += V::kLanes) {
      store_up_to(rows + i * row_stride + d, V::load(sums + i * sums_stride + d), dim - d);
    }
  }
}

// Key or value rows as the products read them: in place where they lie one after another in the
// type of the arithmetic, else copied into `room`. Rows far apart would be missed in the caches
// once for each tile.
template <class S>
struct RowView {
  const S* data;
  int64_t stride;
};

template <class V, class T>
RowView<typename V::Scalar> view_rows(const T* rows, int64_t row_stride, int64_t count, int64_t dim,
                                      typename V::Scalar* room) {
  const int64_t stride = round_up(dim, V::kLanes);
  if constexpr (sizeof(T) == sizeof(typename V::Scalar)) {
    if (row_stride <= stride) return {rows, row_stride};
  }
  widen_rows<V>(rows, row_stride, count, dim, 1, room, stride);
  return {room, stride};
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
