// The CPU kernels of layer_norm.h, once per instruction set. README.md of the room has the maths.
#include "common/cpu/row_norm.h"
#include "common/cpu/rows.h"
#include "common/cpu/threads.h"
#include "layer_norm/layer_norm.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

// Work below this many elements is not worth waking a thread for.
constexpr int64_t kSerialElements = 32768;
constexpr int64_t kTileElements = 16384;

inline int threads_for(int num_threads, int64_t row_count, int64_t columns) {
  return row_count * columns < kSerialElements ? 1 : num_threads;
}

template <class T>
struct ForwardPass {
  using V = typename VecOf<T>::type;
  using S = typename V::Scalar;

  const LayerNormForwardParams& params;
  const S* x_bias;
  const S* weight;
  const S* bias;
  S* sum_rows;  // one row of N per thread
  Dropout dropout;

  // Writes residual + dropout(x + x_bias) of row r to sum_row, unrounded; returns its sum.
  double add(int64_t r, S* sum_row) const {
    const T* x = static_cast<const T*>(params.x) + r * params.x_stride;
    const T* residual = static_cast<const T*>(params.residual) + r * params.residual_stride;
    T* rounded = params.sum ? static_cast<T*>(params.sum) + r * params.columns : nullptr;
    const bool drops = params.dropout.p > 0.0;
    const VecU counters = drops ? dropout_counters(dropout, params.dropout, r) : VecU::iota();
    return sum_columns<V>(params.columns, [&](int64_t c, auto extent) {
      // The next row's lines; past the last row a prefetch reads nothing and faults nowhere.
      __builtin_prefetch(x + params.x_stride + c);
      __builtin_prefetch(residual + params.residual_stride + c);
      V branch = load<V>(x + c, extent);
      if (x_bias != nullptr) branch = branch + load<V>(x_bias + c, extent);
      if (drops) branch = drop(dropout, counters, c, branch);
      const V total = load<V>(residual + c, extent) + branch;
      store(sum_row + c, total, extent);
      if (rounded != nullptr) store(rounded + c, total, extent);
      return inside(total, extent);
    });
  }

  // Normalizes row r, whose elements sum to `total`.
  template <class Source>
  void normalize(int64_t r, const Source* row, double total) const {
    const bool centred = params.mean != nullptr;
    const RowStatistics<V> found =
        row_statistics<V>(row, params.columns, total, params.eps, centred);
    if (centred) static_cast<S*>(params.mean)[r] = found.mean;
    static_cast<S*>(params.rstd)[r] = found.rstd;
    T* out = static_cast<T*>(params.out) + r * params.columns;
    traverse<V>(0, params.columns, [&](int64_t c, auto extent) {
      V y = found.normed(load<V>(row + c, extent));
      if (weight != nullptr) y = y * load<V>(weight + c, extent);
      if (bias != nullptr) y = y + load<V>(bias + c, extent);
      store(out + c, y, extent);
    });
  }

  void row(int64_t r, int thread) const {
    if (params.residual != nullptr) {
      S* sum_row = sum_rows + thread * sum_row_step(params.columns);
      return normalize(r, sum_row, add(r, sum_row));
    }
    const T* x = static_cast<const T*>(params.x) + r * params.x_stride;
    normalize(r, x, sum_columns<V>(params.columns, [&](int64_t c, auto extent) {
                __builtin_prefetch(x + params.x_stride + c);
                return load<V>(x + c, extent);
              }));
  }
};

template <class T>
void layer_norm_forward_rows(const LayerNormForwardParams& params) {
  using Pass = ForwardPass<T>;
  using S = typename Pass::S;
  S* scratch = static_cast<S*>(params.scratch);
  Pass pass{params, nullptr, nullptr, nullptr, nullptr, {}};
  pass.x_bias = parameters(params.x_bias, params.columns, &scratch);
  pass.weight = parameters(params.weight, params.columns, &scratch);
  pass.bias = parameters(params.bias, params.columns, &scratch);
  pass.sum_rows = scratch;
  if (params.dropout.p > 0.0)
    pass.dropout = make_dropout(params.dropout.p, params.dropout.seed, params.dropout.offset);
  const int64_t tile_rows = max_int(1, kTileElements / params.columns);
  const int threads = threads_for(params.num_threads, params.row_count, params.columns);
  parallel_tiles(threads, ceil_div(params.row_count, tile_rows), [&](int64_t tile, int thread) {
    const int64_t end = min_int((tile + 1) * tile_rows, params.row_count);
    for (int64_t r = tile * tile_rows; r < end; ++r) pass.row(r, thread);
  });
}

// kRows rows of the gradient side by side: each vector of weights and of column sums is loaded and
// stored once for all of them.
template <class T, int kRows>
struct RowGroup {
  using V = typename VecOf<T>::type;
  using S = typename V::Scalar;

  const T* dout;
  const T* x;
  int64_t dout_stride, x_stride;
  V mean[kRows], rstd[kRows];
  V g_mean[kRows], gx_mean[kRows];  // row means of dout * weight and of dout * weight * x_hat

  RowGroup(const LayerNormBackwardParams& params, int64_t r)
      : dout(static_cast<const T*>(params.dout) + r * params.dout_stride),
        x(static_cast<const T*>(params.x) + r * params.x_stride),
        dout_stride(params.dout_stride),
        x_stride(params.x_stride) {
    for (int row = 0; row < kRows; ++row) {
      mean[row] =
          V::broadcast(params.mean != nullptr ? static_cast<const S*>(params.mean)[r + row] : S(0));
      rstd[row] = V::broadcast(static_cast<const S*>(params.rstd)[r + row]);
    }
  }

  template <class Extent>
  V dout_at(int row, int64_t c, Extent extent) const {
    return load<V>(dout + row * dout_stride + c, extent);
  }
  template <class Extent>
  V x_hat_at(int row, int64_t c, Extent extent) const {
    return (load<V>(x + row * x_stride + c, extent) - mean[row]) * rstd[row];
  }
};

template <class T>
struct BackwardPass {
  using V = typename VecOf<T>::type;
  using S = typename V::Scalar;

  const LayerNormBackwardParams& params;
  const S* weight;
  S* partials;  // (blocks, 3, N): dweight, dbias, dx_bias of each block
  Dropout dropout;

  template <class Extent>
  V weight_at(int64_t c, Extent extent) const {
    return weight != nullptr ? load<V>(weight + c, extent) : V::broadcast(1);
  }

  template <class Extent>
  static void accumulate(S* sums, int64_t c, V v, Extent extent) {
    if (sums != nullptr) store(sums + c, load<V>(sums + c, extent) + v, extent);
  }

  // First pass over the columns: the row means, and the column sums of dweight and dbias.
  template <int kRows>
  void reduce(RowGroup<T, kRows>& group, S* dweight, S* dbias) const {
    const int64_t n = params.columns;
    double g_total[kRows] = {}, gx_total[kRows] = {};
    for (int64_t begin = 0; begin < n; begin += kSumColumns) {
      V g_sum[kRows], gx_sum[kRows];
      for (int row = 0; row < kRows; ++row) g_sum[row] = gx_sum[row] = V::zero();
      traverse<V>(begin, min_int(begin + kSumColumns, n), [&](int64_t c, auto extent) {
        const V w = weight_at(c, extent);
        V dw = V::zero(), db = V::zero();
        for (int row = 0; row < kRows; ++row) {
          const V d = group.dout_at(row, c, extent);
          const V x_hat = group.x_hat_at(row, c, extent);
          const V g = d * w;
          dw = fma(d, x_hat, dw);
          db = db + d;
          g_sum[row] = g_sum[row] + g;
          gx_sum[row] = fma(g, x_hat, gx_sum[row]);
        }
        accumulate(dweight, c, dw, extent);
        accumulate(dbias, c, db, extent);
      });
      for (int row = 0; row < kRows; ++row) {
        g_total[row] += reduce_add(g_sum[row]);
        gx_total[row] += reduce_add(gx_sum[row]);
      }
    }
    for (int row = 0; row < kRows; ++row) {
      // The mean of the gradient goes the way of the mean.
      const double g_mean = params.mean != nullptr ? g_total[row] / n : 0.0;
      group.g_mean[row] = V::broadcast(static_cast<S>(g_mean));
      group.gx_mean[row] = V::broadcast(static_cast<S>(gx_total[row] / n));
    }
  }

  // Second pass: dx = rstd (g - mean(g) - x_hat mean(g x_hat)) + dsum, and what follows from it.
  template <int kRows>
  void differentiate(const RowGroup<T, kRows>& group, int64_t r, S* dx_bias) const {
    const int64_t n = params.columns;
    const bool drops = params.dropout.p > 0.0;
    VecU counters[kRows];
    for (int row = 0; row < kRows; ++row)
      counters[row] = drops ? dropout_counters(dropout, params.dropout, r + row) : VecU::iota();
    traverse<V>(0, n, [&](int64_t c, auto extent) {
      const V w = weight_at(c, extent);
      V dropped_sum = V::zero();
      for (int row = 0; row < kRows; ++row) {
        const V centred = group.dout_at(row, c, extent) * w - group.g_mean[row];
        const V x_hat = group.x_hat_at(row, c, extent);
        V dx = fnma(x_hat, group.gx_mean[row], centred) * group.rstd[row];
        if (params.dsum != nullptr) {
          const T* dsum = static_cast<const T*>(params.dsum) + (r + row) * params.dsum_stride;
          dx = dx + load<V>(dsum + c, extent);
        }
        const int64_t at = (r + row) * n + c;
        if (params.dx != nullptr) store(static_cast<T*>(params.dx) + at, dx, extent);
        if (drops) dx = drop(dropout, counters[row], c, dx);
        if (params.dx_dropped != nullptr)
          store(static_cast<T*>(params.dx_dropped) + at, dx, extent);
        dropped_sum = dropped_sum + dx;
      }
      accumulate(dx_bias, c, dropped_sum, extent);
    });
  }

  template <int kRows>
  void rows(int64_t r, S* dweight, S* dbias, S* dx_bias) const {
    RowGroup<T, kRows> group(params, r);
    reduce(group, dweight, dbias);
    if (params.dx != nullptr || params.dx_dropped != nullptr || dx_bias != nullptr)
      differentiate(group, r, dx_bias);
  }

  S* cleared(bool needed, int64_t block, int kind) const {
    if (!needed) return nullptr;
    S* sums = partials + (block * 3 + kind) * params.columns;
    std::memset(sums, 0, params.columns * sizeof(S));
    return sums;
  }

  void block(int64_t index) const {
    S* dweight = cleared(params.dweight != nullptr, index, 0);
    S* dbias = cleared(params.dbias != nullptr, index, 1);
    S* dx_bias = cleared(params.dx_bias != nullptr, index, 2);
    const int64_t block_rows = column_sum_block_rows(params.row_count);
    const int64_t end = min_int((index + 1) * block_rows, params.row_count);
    int64_t r = index * block_rows;
    for (; r + 2 <= end; r += 2) rows<2>(r, dweight, dbias, dx_bias);
    for (; r < end; ++r) rows<1>(r, dweight, dbias, dx_bias);
  }

  // One kind of column sums: those of the blocks, added in order, in float64.
  void finish(void* out, int kind, int64_t begin, int64_t end) const {
    if (out == nullptr) return;
    const int64_t blocks = column_sum_block_count(params.row_count);
    traverse<VecD>(begin, end, [&](int64_t c, auto extent) {
      VecD total = VecD::zero();
      for (int64_t b = 0; b < blocks; ++b)
        total = total + load<VecD>(partials + (b * 3 + kind) * params.columns + c, extent);
      double lanes[VecD::kLanes];
      store(lanes, total);
      for (int64_t l = 0; l < VecD::kLanes && c + l < end; ++l)
        static_cast<S*>(out)[c + l] = static_cast<S>(lanes[l]);
    });
  }
};

template <class T>
void layer_norm_backward_rows(const LayerNormBackwardParams& params) {
  using Pass = BackwardPass<T>;
  using S = typename Pass::S;
  S* scratch = static_cast<S*>(params.scratch);
  Pass pass{params, parameters(params.weight, params.columns, &scratch), nullptr, {}};
  pass.partials = scratch;
  if (params.dropout.p > 0.0)
    pass.dropout = make_dropout(params.dropout.p, params.dropout.seed, params.dropout.offset);
  const int threads = threads_for(params.num_threads, params.row_count, params.columns);
  parallel_tiles(threads, column_sum_block_count(params.row_count),
                 [&](int64_t block, int) { pass.block(block); });
  constexpr int64_t kTileColumns = 256;
  parallel_tiles(threads, ceil_div(params.columns, kTileColumns), [&](int64_t tile, int) {
    const int64_t begin = tile * kTileColumns;
    const int64_t end = min_int(begin + kTileColumns, params.columns);
    pass.finish(params.dweight, 0, begin, end);
    pass.finish(params.dbias, 1, begin, end);
    pass.finish(params.dx_bias, 2, begin, end);
  });
}

void layer_norm_forward(const LayerNormForwardParams& params) {
  visit_dtype(params.dtype,
              [&](auto tag) { layer_norm_forward_rows<typename decltype(tag)::type>(params); });
}

void layer_norm_backward(const LayerNormBackwardParams& params) {
  visit_dtype(params.dtype,
              [&](auto tag) { layer_norm_backward_rows<typename decltype(tag)::type>(params); });
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
