// The CPU kernels of embedding.h, once per instruction set. README.md of the room has the maths.
#include "common/cpu/row_norm.h"
#include "common/cpu/rows.h"
#include "common/cpu/threads.h"
#include "embedding/embedding.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

constexpr int64_t kEmbeddingTileRows = 8;
// Rows of one id are added in chains of so many, the chains one after another.
constexpr int64_t kEmbeddingChain = 64;

inline int embedding_threads(int num_threads, int64_t row_count, int64_t columns) {
  return row_count * columns < 32768 ? 1 : num_threads;
}

// Writes the sum of row r's table rows to sum_row, unrounded; returns the sum of its elements.
template <class T, class S>
inline double embedding_sum(const EmbeddingTable (&tables)[kEmbeddingTables], int64_t r,
                            int64_t columns, S* sum_row) {
  using V = typename VecOf<T>::type;
  const T* rows[kEmbeddingTables];
  int count = 0;
  for (const EmbeddingTable& table : tables) {
    if (table.data == nullptr) continue;
    const int64_t id = table.ids != nullptr ? table.ids[r] : 0;
    rows[count++] = static_cast<const T*>(table.data) + id * columns;
  }
  return sum_columns<V>(columns, [&](int64_t c, auto extent) {
    V total = load<V>(rows[0] + c, extent);
    for (int t = 1; t < count; ++t) total = total + load<V>(rows[t] + c, extent);
    store(sum_row + c, total, extent);
    return total;
  });
}

template <class T>
void embedding_forward_rows(const EmbeddingForwardParams& params) {
  using V = typename VecOf<T>::type;
  using S = typename V::Scalar;
  const int64_t n = params.columns;
  S* sum_rows = static_cast<S*>(params.scratch);
  S* scratch = sum_rows + params.num_threads * n;
  const S* weight = parameters(params.weight, n, &scratch);
  const S* bias = parameters(params.bias, n, &scratch);
  const bool drops = params.dropout.p > 0.0;
  Dropout dropout = {};
  if (drops) dropout = make_dropout(params.dropout.p, params.dropout.seed, params.dropout.offset);
  const auto run_row = [&](int64_t r, S* sum_row) {
    const double total = embedding_sum<T>(params.tables, r, n, sum_row);
    const RowStatistics<V> found = row_statistics<V>(sum_row, n, total, params.eps);
    static_cast<S*>(params.mean)[r] = found.mean;
    static_cast<S*>(params.rstd)[r] = found.rstd;
    const VecU counters = drops ? dropout_counters(dropout, params.dropout, r) : VecU::iota();
    T* out = static_cast<T*>(params.out) + r * n;
    traverse<V>(0, n, [&](int64_t c, auto extent) {
      V y = found.normed(load<V>(sum_row + c, extent));
      if (weight != nullptr) y = y * load<V>(weight + c, extent);
      if (bias != nullptr) y = y + load<V>(bias + c, extent);
      if (drops) y = drop(dropout, counters, c, y);
      store(out + c, y, extent);
    });
  };
  const int threads = embedding_threads(params.num_threads, params.row_count, n);
  const int64_t tiles = ceil_div(params.row_count, kEmbeddingTileRows);
  parallel_tiles(threads, tiles, [&](int64_t tile, int thread) {
    const int64_t end = min_int((tile + 1) * kEmbeddingTileRows, params.row_count);
    for (int64_t r = tile * kEmbeddingTileRows; r < end; ++r) run_row(r, sum_rows + thread * n);
  });
}

// The tokens sorted by id, those of one id in their own order: those of id i are
// order[begins[i]] .. order[begins[i + 1] - 1].
struct EmbeddingOrder {
  int64_t* begins;  // (count + 1,)
  int64_t* order;   // (M,)

  void sort(const EmbeddingTable& table, int64_t row_count) const {
    std::memset(begins, 0, (table.count + 1) * sizeof(int64_t));
    const auto id_of = [&](int64_t r) { return table.ids != nullptr ? table.ids[r] : 0; };
    for (int64_t r = 0; r < row_count; ++r) ++begins[id_of(r)];
    for (int64_t id = 0; id < table.count; ++id) begins[id + 1] += begins[id];
    // Now begins[i] is where id i ends; filling from the back moves it to where it begins.
    for (int64_t r = row_count; r-- > 0;) order[--begins[id_of(r)]] = r;
  }
};

template <class T>
struct EmbeddingBackwardPass {
  using V = typename VecOf<T>::type;
  using S = typename V::Scalar;

  const EmbeddingBackwardParams& params;
  const S* weight;
  S* dsum;      // (M, N): gradient of each row's sum
  S* partials;  // (blocks, 2, N): dweight, dbias of each block
  S* rows;      // (threads, 2, N)
  Dropout dropout;

  // x_hat of row r and its gradient through the dropout, dy, to `row` and `row + N`; column sums.
  void differentiate(int64_t r, S* row, S* dweight, S* dbias) const {
    const int64_t n = params.columns;
    S *x_hat = row, *dy = row + n;
    embedding_sum<T>(params.tables, r, n, x_hat);
    const V mean = V::broadcast(static_cast<const S*>(params.mean)[r]);
    const V rstd = V::broadcast(static_cast<const S*>(params.rstd)[r]);
    const bool drops = params.dropout.p > 0.0;
    const VecU counters = drops ? dropout_counters(dropout, params.dropout, r) : VecU::iota();
    const T* dout = static_cast<const T*>(params.dout) + r * n;
    traverse<V>(0, n, [&](int64_t c, auto extent) {
      const V x = (load<V>(x_hat + c, extent) - mean) * rstd;
      V d = load<V>(dout + c, extent);
      if (drops) d = drop(dropout, counters, c, d);
      if (dweight != nullptr) store(dweight + c, fma(d, x, load<V>(dweight + c, extent)), extent);
      if (dbias != nullptr) store(dbias + c, load<V>(dbias + c, extent) + d, extent);
      store(x_hat + c, x, extent);
      store(dy + c, weight != nullptr ? d * load<V>(weight + c, extent) : d, extent);
    });
    const double g =
        sum_columns<V>(n, [&](int64_t c, auto extent) { return load<V>(dy + c, extent); });
    const double gx = sum_columns<V>(n, [&](int64_t c, auto extent) {
      return load<V>(dy + c, extent) * load<V>(x_hat + c, extent);
    });
    const V g_mean = V::broadcast(static_cast<S>(g / n));
    const V gx_mean = V::broadcast(static_cast<S>(gx / n));
    traverse<V>(0, n, [&](int64_t c, auto extent) {
      const V centred = load<V>(dy + c, extent) - g_mean;
      const V x = load<V>(x_hat + c, extent);
      store(dsum + r * n + c, fnma(x, gx_mean, centred) * rstd, extent);
    });
  }

  S* cleared(const void* needed, int64_t block, int kind) const {
    if (needed == nullptr) return nullptr;
    S* sums = partials + (block * 2 + kind) * params.columns;
    std::memset(sums, 0, params.columns * sizeof(S));
    return sums;
  }

  void block(int64_t index, int thread) const {
    S* dweight = cleared(params.dweight, index, 0);
    S* dbias = cleared(params.dbias, index, 1);
    const int64_t block_rows = column_sum_block_rows(params.row_count);
    const int64_t end = min_int((index + 1) * block_rows, params.row_count);
    S* row = rows + 2 * thread * params.columns;
    for (int64_t r = index * block_rows; r < end; ++r) differentiate(r, row, dweight, dbias);
  }

  // One kind of column sums: those of the blocks, added in order, in float64.
  void finish(void* out, int kind) const {
    if (out == nullptr) return;
    const int64_t blocks = column_sum_block_count(params.row_count);
    for (int64_t c = 0; c < params.columns; ++c) {
      double total = 0.0;
      for (int64_t b = 0; b < blocks; ++b) total += partials[(b * 2 + kind) * params.columns + c];
      static_cast<S*>(out)[c] = static_cast<S>(total);
    }
  }

  // Columns [begin, end) of the gradient of table row `id`.
  void scatter(const EmbeddingTable& table, const EmbeddingOrder& sorted, int64_t id, int64_t begin,
               int64_t end) const {
    T* out = static_cast<T*>(table.gradient) + id * params.columns;
    const int64_t first = sorted.begins[id];
    const int64_t last = id == table.padding_row ? first : sorted.begins[id + 1];
    if (first == last) {
      std::memset(static_cast<void*>(out + begin), 0, (end - begin) * sizeof(T));
      return;
    }
    traverse<V>(begin, end, [&](int64_t c, auto extent) {
      V total = V::zero();
      for (int64_t at = first; at < last; at += kEmbeddingChain) {
        V chain = V::zero();
        for (int64_t k = at; k < min_int(at + kEmbeddingChain, last); ++k)
          chain = chain + load<V>(dsum + sorted.order[k] * params.columns + c, extent);
        total = total + chain;
      }
      store(out + c, total, extent);
    });
  }

  void scatter_all(const EmbeddingTable& table, const EmbeddingOrder& sorted, int threads) const {
    constexpr int64_t kIds = 64, kColumns = 256;
    const int64_t column_tiles = ceil_div(params.columns, kColumns);
    const int64_t tiles = ceil_div(table.count, kIds) * column_tiles;
    parallel_tiles(threads, tiles, [&](int64_t tile, int) {
      const int64_t begin = tile % column_tiles * kColumns;
      const int64_t end = min_int(begin + kColumns, params.columns);
      const int64_t first = tile / column_tiles * kIds;
      const int64_t last = min_int(first + kIds, table.count);
      for (int64_t id = first; id < last; ++id) scatter(table, sorted, id, begin, end);
    });
  }
};

template <class T>
void embedding_backward_rows(const EmbeddingBackwardParams& params) {
  using Pass = EmbeddingBackwardPass<T>;
  using S = typename Pass::S;
  const int64_t n = params.columns;
  EmbeddingOrder sorted;
  sorted.begins = static_cast<int64_t*>(params.scratch);
  sorted.order = sorted.begins + embedding_largest_table(params) + 1;
  S* scratch = reinterpret_cast<S*>(sorted.order + params.row_count);
  Pass pass{params, nullptr, scratch, nullptr, nullptr, {}};
  pass.partials = pass.dsum + params.row_count * n;
  pass.rows = pass.partials + 2 * column_sum_block_count(params.row_count) * n;
  scratch = pass.rows + 2 * params.num_threads * n;
  pass.weight = parameters(params.weight, n, &scratch);
  if (params.dropout.p > 0.0)
    pass.dropout = make_dropout(params.dropout.p, params.dropout.seed, params.dropout.offset);
  const int threads = embedding_threads(params.num_threads, params.row_count, n);
  parallel_tiles(threads, column_sum_block_count(params.row_count),
                 [&](int64_t block, int thread) { pass.block(block, thread); });
  pass.finish(params.dweight, 0);
  pass.finish(params.dbias, 1);
  for (const EmbeddingTable& table : params.tables) {
    if (table.gradient == nullptr) continue;
    sorted.sort(table, params.row_count);
    pass.scatter_all(table, sorted, embedding_threads(params.num_threads, table.count, n));
  }
}

void embedding_forward(const EmbeddingForwardParams& params) {
  visit_dtype(params.dtype,
              [&](auto tag) { embedding_forward_rows<typename decltype(tag)::type>(params); });
}

void embedding_backward(const EmbeddingBackwardParams& params) {
  visit_dtype(params.dtype,
              [&](auto tag) { embedding_backward_rows<typename decltype(tag)::type>(params); });
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
