// The part all backward passes share: a panel of queries with its dout, and for one block of keys
// the (dropped) weights and the gradient of the scores, both recomputed from lse.
#pragma once

#include "attention/dropout-inl.h"
#include "attention/mask-inl.h"
#include "attention/panel-inl.h"
#include "attention/product-inl.h"
#include "attention/rows-inl.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

constexpr int64_t kGradientKeyBlock = 64;
constexpr int64_t kGradientPanels = 8;  // share the copies of keys and values

template <class V>
struct GradientPanel {
  using S = typename V::Scalar;
  Range queries, keys;
  int64_t width;
  S *query, *dout;            // (D, width) scaled; (Dv, width)
  S *query_rows, *dout_rows;  // the same as rows: (width, D), (width, Dv) in whole vectors
  S* dquery;                  // (D, width)
  bool started;               // dquery holds something
  S *lse, *delta;             // (width,): lse, inf without keys; sum of dout * out, less dlse
  S* weight_scale;            // (width,): where the sum of the weights was rounded away
  bool scaled;                // whether weight_scale says anything
  uint32_t* dropout_words;    // (2, width)
  PanelDropout dropout;
};

template <class V>
struct GradientScratch {
  using S = typename V::Scalar;
  GradientPanel<V> panels[kGradientPanels];
  S *weights, *dscores;  // (kGradientKeyBlock, width)
  S* shares;             // the same, with dropout: weights * delta
  S *keys, *values;      // one block of rows
  S* out;                // (Dv, width) of one panel
};

template <class V>
GradientScratch<V> gradient_scratch(const AttentionCall& call, int64_t panels, Arena* arena) {
  using S = typename V::Scalar;
  const int64_t width = panel_width<V>(call), block = min_int(kGradientKeyBlock, call.length_k);
  const int64_t dim = round_up(call.dim, V::kLanes), dim_v = round_up(call.dim_v, V::kLanes);
  GradientScratch<V> room;
  room.weights = arena->take<S>(block * width);
  room.dscores = arena->take<S>(block * width);
  room.shares = arena->take<S>(call.dropout_p > 0 ? block * width : 0);
  room.keys = arena->take<S>(block * dim);
  room.values = arena->take<S>(block * dim_v);
  room.out = arena->take<S>(call.dim_v * width);
  for (int64_t i = 0; i < panels; ++i) {
    GradientPanel<V>& panel = room.panels[i];
    panel.query = arena->take<S>(call.dim * width);
    panel.dout = arena->take<S>(call.dim_v * width);
    panel.query_rows = arena->take<S>(width * dim);
    panel.dout_rows = arena->take<S>(width * dim_v);
    panel.dquery = arena->take<S>(call.dim * width);
    panel.lse = arena->take<S>(3 * width);
    panel.delta = panel.lse + width;
    panel.weight_scale = panel.delta + width;
    panel.dropout_words = arena->take<uint32_t>(2 * width);
  }
  return room;
}

template <class V>
inline void fill(typename V::Scalar* p, int64_t count, typename V::Scalar value) {
  for (int64_t i = 0; i < count; i += V::kLanes) {
    store_up_to(p + i, V::broadcast(value), count - i);
  }
}

// Sum of a[d, :] * b[d, :], in the order of the product that gives dscores.
template <class V>
inline V row_products(const typename V::Scalar* a, const typename V::Scalar* b, int64_t count,
                      int64_t width) {
  V total = V::zero();
  for (int64_t begin = 0; begin < count; begin += kChain) {
    V sum = V::zero();
    for (int64_t d = begin; d < min_int(count, begin + kChain); ++d) {
      sum = fma(V::load(a + d * width), V::load(b + d * width), sum);
    }
    total = begin > 0 ? total + sum : sum;
  }
  return total;
}

// lse and delta of a panel; lanes past the queries and queries without keys get weights 0. delta
// is summed as dout . v is, so that of a query with one key they are equal and dq is exactly 0.
template <class V, class T>
void begin_statistics(const AttentionCall& call, const AttentionGradients& gradients,
                      const Sequence& s, int64_t head, typename V::Scalar* out,
                      GradientPanel<V>* panel) {
  using S = typename V::Scalar;
  const int64_t width = panel->width, count = panel->queries.end - panel->queries.begin;
  const int64_t at = statistic_at(call, s, head, panel->queries.begin);
  load_transposed<V>(row_at<const T>(call.out, s, s.query, head, panel->queries.begin),
                     call.out.row, count, call.dim_v, 1, out, width);
  const S* lse = static_cast<const S*>(call.lse) + at;
  const S* dlse = static_cast<const S*>(gradients.dlse);
  const S* scale = static_cast<const S*>(gradients.weight_scale);
  panel->scaled = scale != nullptr;
  for (int64_t lane = 0; lane < width; lane += V::kLanes) {
    V delta = row_products<V>(out + lane, panel->dout + lane, call.dim_v, width);
    if (dlse != nullptr) delta = delta - load_up_to<V>(dlse + at + lane, count - lane);
    store(panel->delta + lane, delta);
    const V sum = load_up_to<V>(lse + lane, count - lane);
    const typename V::Mask none =
        equal(sum, off_score<V>()) | ~V::Mask::first(min_int(V::kLanes, count - lane));
    store(panel->lse + lane, select(none, V::zero() - off_score<V>(), sum));
    if (scale == nullptr) continue;
    store(panel->weight_scale + lane, load_up_to<V>(scale + at + lane, count - lane));
  }
}

template <class V, class T>
void begin_gradient_panel(const AttentionCall& call, const AttentionGradients& gradients,
                          const Sequence& s, int64_t head, Range on, typename V::Scalar* out,
                          GradientPanel<V>* panel) {
  using S = typename V::Scalar;
  const Range queries = panel->queries;
  const int64_t count = queries.end - queries.begin;
  panel->width = round_up(count, V::kLanes);
  panel->keys = keys_of(s, queries, on);
  const T* q = row_at<const T>(call.q, s, s.query, head, queries.begin);
  const T* dout = row_at<const T>(gradients.dout, s, s.query, head, queries.begin);
  const S scale = static_cast<S>(call.scale);
  load_transposed<V>(q, call.q.row, count, call.dim, scale, panel->query, panel->width);
  load_transposed<V>(dout, gradients.dout.row, count, call.dim_v, 1, panel->dout, panel->width);
  widen_rows<V>(q, call.q.row, count, call.dim, scale, panel->query_rows,
                round_up(call.dim, V::kLanes));
  widen_rows<V>(dout, gradients.dout.row, count, call.dim_v, 1, panel->dout_rows,
                round_up(call.dim_v, V::kLanes));
  begin_statistics<V, T>(call, gradients, s, head, out, panel);
  panel->dropout = panel_dropout(call, s, head, queries, panel->width, panel->dropout_words);
}

// One lane of softmax_gradient: weights and what of dscores does not wait for dropout.
template <class V, bool kScaled>
inline void gradient_weights(const GradientScratch<V>& room, const GradientPanel<V>& panel,
                             int64_t lane, int64_t count) {
  const int64_t width = panel.width;
  const V log2e = V::broadcast(static_cast<typename V::Scalar>(kLog2EExact));
  const V lse = V::load(panel.lse + lane), delta = V::load(panel.delta + lane);
  const bool dropped = panel.dropout.on;
  const V scale = kScaled ? V::load(panel.weight_scale + lane) : V::zero();
  for (int64_t at = lane; at < count * width; at += width) {
    V weight = exp2((V::load(room.weights + at) - lse) * log2e);
    if (kScaled) weight = weight * scale;
    store(room.weights + at, weight);
    if (dropped) {
      store(room.shares + at, weight * delta);
    } else {
      store(room.dscores + at, weight * (V::load(room.dscores + at) - delta));
    }
  }
}

// With the scores in weights and dout . v in dscores: weights = P (dropped), dscores = their
// gradients, P (dP - delta). What dropout keeps scales P and dP alike: dS = P_dropped dP - P delta.
template <class V>
__attribute__((noinline)) void softmax_gradient(const GradientScratch<V>& room,
                                                const GradientPanel<V>& panel, int64_t key,
                                                int64_t count) {
  const int64_t width = panel.width;
  for (int64_t lane = 0; lane < width; lane += V::kLanes) {
    if (panel.scaled) {
      gradient_weights<V, true>(room, panel, lane, count);
    } else {
      gradient_weights<V, false>(room, panel, lane, count);
    }
  }
  if (!panel.dropout.on) return;
  drop_weights(panel.dropout, key, count, width, room.weights);
  for (int64_t at = 0; at < count * width; at += V::kLanes) {
    const V weight = V::load(room.weights + at), dweight = V::load(room.dscores + at);
    store(room.dscores + at, fma(weight, dweight, V::zero() - V::load(room.shares + at)));
  }
}

// room.weights and room.dscores of one block of keys.
template <class V, class T>
void gradient_block(const AttentionCall& call, const Sequence& s, int64_t head, Range keys,
                    RowView<typename V::Scalar> k, RowView<typename V::Scalar> v,
                    const GradientScratch<V>& room, const GradientPanel<V>& panel) {
  const int64_t width = panel.width, count = keys.end - keys.begin;
  const int64_t vectors = width / V::kLanes;
  multiply<V>({k.data, k.stride, 1, panel.query, width, room.weights, width, false, nullptr, count,
               call.dim, vectors});
  mask_scores<V, T>(call, s, head, panel.queries, keys, room.weights, width);
  multiply<V>({v.data, v.stride, 1, panel.dout, width, room.dscores, width, false, nullptr, count,
               call.dim_v, vectors});
  softmax_gradient<V>(room, panel, keys.begin, count);
}

// A block of keys and values as the products read them.
template <class V>
struct KeyBlock {
  Range keys;
  RowView<typename V::Scalar> k, v;

  // The part within `own`, possibly empty.
  KeyBlock within(Range own) const {
    const Range part = {max_int(keys.begin, own.begin), min_int(keys.end, own.end)};
    const int64_t skip = part.begin - keys.begin;
    return {part, {k.data + skip * k.stride, k.stride}, {v.data + skip * v.stride, v.stride}};
  }
};

template <class V, class T>
KeyBlock<V> view_block(const AttentionCall& call, const Sequence& s, int64_t head_kv, Range keys,
                       typename V::Scalar* key_room, typename V::Scalar* value_room) {
  const int64_t count = keys.end - keys.begin;
  const T* k = row_at<const T>(call.k, s, s.key, head_kv, keys.begin);
  const T* v = row_at<const T>(call.v, s, s.key, head_kv, keys.begin);
  return {keys, view_rows<V>(k, call.k.row, count, call.dim, key_room),
          view_rows<V>(v, call.v.row, count, call.dim_v, value_room)};
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
