// The CPU kernels of ffn.h, once per instruction set. README.md of the room has the maths.
#include "common/cpu/pair.h"
#include "common/cpu/threads.h"
#include "ffn/activation-inl.h"
#include "ffn/ffn.h"
#if defined(__AMX_BF16__)
#include "ffn/tiles-inl.h"
#endif

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

// The (M, F) plane in tiles: blocks of rows, whole or, when there are few, cut into columns.
struct FfnGrid {
  int64_t row_count, columns, block_rows, tile_columns;

  FfnGrid(int64_t row_count, int64_t columns, int64_t block_rows)
      : row_count(row_count), columns(columns), block_rows(block_rows) {
    constexpr int64_t kEnoughTiles = 16, kLeastColumns = 512, kMostColumns = 8192;
    const int64_t cuts = ceil_div(kEnoughTiles, max_int(1, blocks()));
    const int64_t even = round_up(ceil_div(columns, cuts), 64);
    tile_columns = min_int(max_int(even, kLeastColumns), kMostColumns);
  }
  int64_t blocks() const { return ceil_div(row_count, block_rows); }
  int64_t column_tiles() const { return ceil_div(columns, tile_columns); }

  // Calls body(block, row_begin, row_end, column_begin, column_end) for every tile.
  template <class F>
  void for_each(int num_threads, const F& body) const {
    // Less work than this is not worth waking a thread for.
    constexpr int64_t kSerialElements = 16384;
    const int threads = row_count * columns < kSerialElements ? 1 : num_threads;
    parallel_tiles(threads, blocks() * column_tiles(), [&](int64_t tile, int) {
      const int64_t block = tile / column_tiles();
      const int64_t row = block * block_rows, column = tile % column_tiles() * tile_columns;
      body(block, row, min_int(row + block_rows, row_count), column,
           min_int(column + tile_columns, columns));
    });
  }
};

// Column sums of a plane: partial ones of each block of rows, then those in order, in float64.
template <class S>
struct ColumnSums {
  S* partials;  // (blocks, N), or null: not wanted
  int64_t columns;

  S* of_block(int64_t block) const {
    return partials != nullptr ? partials + block * columns : nullptr;
  }

  static void clear(S* sums, int64_t begin, int64_t end) {
    using V = typename VecOf<S>::type;
    if (sums == nullptr) return;
    traverse<V>(begin, end, [&](int64_t c, auto extent) { store(sums + c, V::zero(), extent); });
  }

  template <class V, class Extent>
  static void add(S* sums, int64_t c, V v, Extent extent) {
    if (sums != nullptr) store(sums + c, load<V>(sums + c, extent) + v, extent);
  }

  static void round_to(double value, double* out) { *out = value; }
  template <class T>
  static void round_to(double value, T* out) {
    from_float(static_cast<float>(value), out);
  }

  template <class T>
  void finish(T* out, int64_t blocks, int num_threads) const {
    if (out == nullptr) return;
    const int64_t height = max_int(1, blocks);  // no rows at all: sums of 0
    FfnGrid(height, columns, height)
        .for_each(num_threads, [&](int64_t, int64_t, int64_t, int64_t begin, int64_t end) {
          traverse<VecD>(begin, end, [&](int64_t c, auto extent) {
            VecD total = VecD::zero();
            for (int64_t b = 0; b < blocks; ++b)
              total = total + load<VecD>(of_block(b) + c, extent);
            double lanes[VecD::kLanes];
            store(lanes, total);
            for (int64_t l = 0; l < VecD::kLanes && c + l < end; ++l)
              round_to(lanes[l], out + c + l);
          });
        });
  }
};

// How many vectors go in step: as many as the registers hold. float64 goes through libm.
template <class V>
struct Wide {
  using forward = V;
  using backward = V;
};
#if defined(__AVX512F__)
template <>
struct Wide<Vec> {
  using forward = Pair<Pair<Vec>>;
  using backward = Pair<Vec>;
};
#endif

// One vector of a product with its bias.
template <class V, class T, class Extent>
inline V with_bias(const T* data, const T* bias, int64_t c, Extent extent) {
  const V v = load<V>(data + c, extent);
  return bias != nullptr ? v + load<V>(bias + c, extent) : v;
}

inline Dropout dropout_of(const RowDropout& params) {
  return make_dropout(params.p, params.seed, params.offset);
}

template <class T, FfnActivation kActivation, bool kGated>
struct FfnForward {
  using V = typename VecOf<T>::type;

  const FfnForwardParams& params;
  Dropout dropout;

  void row(int64_t r, int64_t begin, int64_t end) const {
    T* pre = static_cast<T*>(params.pre.data) + r * params.columns;
    T* gate = kGated ? static_cast<T*>(params.gate.data) + r * params.columns : nullptr;
    const T* pre_bias = static_cast<const T*>(params.pre.bias);
    const T* gate_bias = static_cast<const T*>(params.gate.bias);
    T* hidden = static_cast<T*>(params.hidden) + r * params.columns;
    const bool keeps_pre = params.keep_products && pre_bias != nullptr;
    const bool keeps_gate = params.keep_products && gate_bias != nullptr;
    const bool drops = params.dropout.p > 0.0;
    const VecU counters = drops ? dropout_counters(dropout, params.dropout, r) : VecU::iota();
    traverse_wide<V, typename Wide<V>::forward>(begin, end, [&](auto tag, int64_t c, auto extent) {
      using W = typename decltype(tag)::type;
      const W x = with_bias<W>(pre, pre_bias, c, extent);
      if (keeps_pre) store(pre + c, x, extent);
      W y;
      if constexpr (kGated) {
        const W g = with_bias<W>(gate, gate_bias, c, extent);
        if (keeps_gate) store(gate + c, g, extent);
        y = activate<kActivation>(g) * x;
      } else {
        y = activate<kActivation>(x);
      }
      if (drops) y = drop(dropout, counters, c, y);
      store(hidden + c, y, extent);
    });
  }

  static void run(const FfnForwardParams& params) {
    constexpr int64_t kTileElements = 16384;
    const FfnForward pass{params, dropout_of(params.dropout)};
    const int64_t block_rows = max_int(1, kTileElements / params.columns);
    FfnGrid(params.row_count, params.columns, block_rows)
        .for_each(params.num_threads,
                  [&](int64_t, int64_t row, int64_t row_end, int64_t begin, int64_t end) {
                    for (; row < row_end; ++row) pass.row(row, begin, end);
                  });
  }
};

template <class T, FfnActivation kActivation, bool kGated>
struct FfnBackward {
  using V = typename VecOf<T>::type;
  using S = typename V::Scalar;

  const FfnBackwardParams& params;
  Dropout dropout;
  ColumnSums<S> dbias1, dbias_gate;

  template <class P, class Extent>
  static void store_if(T* p, int64_t c, P v, Extent extent) {
    if (p != nullptr) store(p + c, v, extent);
  }

  T* row_of(void* plane, int64_t r) const {
    return plane != nullptr ? static_cast<T*>(plane) + r * params.columns : nullptr;
  }

  void row(int64_t r, int64_t begin, int64_t end, S* pre_sums, S* gate_sums) const {
    const T* pre = row_of(params.pre.data, r);
    const T* gate = row_of(params.gate.data, r);
    const T* pre_bias = static_cast<const T*>(params.pre.bias);
    const T* gate_bias = static_cast<const T*>(params.gate.bias);
    const T* dhidden = static_cast<const T*>(params.dhidden) + r * params.columns;
    T* dpre = row_of(params.dpre, r);
    T* dgate = row_of(params.dgate, r);
    T* hidden = row_of(params.hidden, r);
    const bool drops = params.dropout.p > 0.0;
    const VecU counters = drops ? dropout_counters(dropout, params.dropout, r) : VecU::iota();
    traverse_wide<V, typename Wide<V>::backward>(begin, end, [&](auto tag, int64_t c, auto extent) {
      using W = typename decltype(tag)::type;
      const W x = with_bias<W>(pre, pre_bias, c, extent);
      W d = load<W>(dhidden + c, extent);
      W act_input = x;
      if constexpr (kGated) act_input = with_bias<W>(gate, gate_bias, c, extent);
      const Activated<W> a = activate_with_slope<kActivation>(act_input);
      W y = kGated ? a.value * x : a.value;
      if (drops) {
        // What is dropped becomes 0 whatever it was, also where it was not finite.
        const W factor = drop(dropout, counters, c, W::broadcast(1));
        const auto kept = less(W::zero(), factor);
        d = select(kept, d * factor, W::zero());
        y = select(kept, y * factor, W::zero());
      }
      store_if(hidden, c, y, extent);
      if constexpr (kGated) {
        const W dg = d * x * a.slope;
        store_if(dgate, c, dg, extent);
        ColumnSums<S>::add(gate_sums, c, dg, extent);
        d = d * a.value;
      } else {
        d = d * a.slope;
      }
      store_if(dpre, c, d, extent);
      ColumnSums<S>::add(pre_sums, c, d, extent);
    });
  }

  void tile(int64_t block, int64_t row_begin, int64_t row_end, int64_t begin, int64_t end) const {
    S* pre_sums = dbias1.of_block(block);
    S* gate_sums = dbias_gate.of_block(block);
    ColumnSums<S>::clear(pre_sums, begin, end);
    ColumnSums<S>::clear(gate_sums, begin, end);
    for (int64_t r = row_begin; r < row_end; ++r) row(r, begin, end, pre_sums, gate_sums);
  }

  static void run(const FfnBackwardParams& params) {
    const FfnGrid grid(params.row_count, params.columns, kFfnBlockRows);
    S* scratch = static_cast<S*>(params.scratch);
    const int64_t plane = grid.blocks() * params.columns;
    FfnBackward pass{
        params, dropout_of(params.dropout), {nullptr, params.columns}, {nullptr, params.columns}};
    if (params.dbias1 != nullptr) pass.dbias1.partials = scratch;
    if (params.dbias_gate != nullptr)
      pass.dbias_gate.partials = scratch + (params.dbias1 != nullptr ? plane : 0);
    grid.for_each(params.num_threads,
                  [&](int64_t block, int64_t row, int64_t row_end, int64_t begin, int64_t end) {
                    pass.tile(block, row, row_end, begin, end);
                  });
    pass.dbias1.finish(static_cast<T*>(params.dbias1), grid.blocks(), params.num_threads);
    pass.dbias_gate.finish(static_cast<T*>(params.dbias_gate), grid.blocks(), params.num_threads);
  }
};

template <class T>
void column_sums_of(const ColumnSumsParams& params) {
  using V = typename VecOf<T>::type;
  using S = typename V::Scalar;
  const FfnGrid grid(params.row_count, params.columns, kFfnBlockRows);
  const ColumnSums<S> sums{static_cast<S*>(params.scratch), params.columns};
  grid.for_each(params.num_threads,
                [&](int64_t block, int64_t row, int64_t row_end, int64_t begin, int64_t end) {
                  S* partial = sums.of_block(block);
                  ColumnSums<S>::clear(partial, begin, end);
                  for (; row < row_end; ++row) {
                    const T* data = static_cast<const T*>(params.data) + row * params.row_stride;
                    traverse<V>(begin, end, [&](int64_t c, auto extent) {
                      ColumnSums<S>::add(partial, c, load<V>(data + c, extent), extent);
                    });
                  }
                });
  sums.finish(static_cast<T*>(params.out), grid.blocks(), params.num_threads);
}

// Runs Pass<T, activation, gated> for what the params say.
template <template <class, FfnActivation, bool> class Pass, class T, class Params>
void run_ffn(const Params& params) {
  const auto run = [&]<FfnActivation kActivation>() {
    if (params.gate.data != nullptr) return Pass<T, kActivation, true>::run(params);
    Pass<T, kActivation, false>::run(params);
  };
  visit_activation(params.activation, run);
}

int64_t ffn_multiply_scratch([[maybe_unused]] const FfnMultiplyParams& params) {
#if defined(__AMX_BF16__)
  if (ffn_tiles_serve(params)) return FfnTileProduct(params).bytes;
#endif
  return -1;
}

void ffn_multiply([[maybe_unused]] const FfnMultiplyParams& params) {
#if defined(__AMX_BF16__)
  const FfnTileProduct product(params);
  run_team(params.num_threads, [&](TeamMember member) { product.run(member); });
#endif
}

void ffn_forward(const FfnForwardParams& params) {
  visit_dtype(params.dtype,
              [&](auto tag) { run_ffn<FfnForward, typename decltype(tag)::type>(params); });
}

void ffn_backward(const FfnBackwardParams& params) {
  visit_dtype(params.dtype,
              [&](auto tag) { run_ffn<FfnBackward, typename decltype(tag)::type>(params); });
}

void ffn_column_sums(const ColumnSumsParams& params) {
  visit_dtype(params.dtype,
              [&](auto tag) { column_sums_of<typename decltype(tag)::type>(params); });
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
