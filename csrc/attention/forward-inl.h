// Forward: for a panel of queries (one a lane), block after block of keys with an online softmax.
// Blocks begin at multiples of kKeyBlock whatever the lengths, and a key that is off adds exact
// zeros, so a row depends neither on padding nor on its neighbours.
#pragma once

#include "attention/dropout-inl.h"
#include "attention/mask-inl.h"
#include "attention/panel-inl.h"
#include "attention/product-inl.h"
#include "attention/rows-inl.h"
#include "common/cpu/threads.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

constexpr int64_t kKeyBlock = 128;

// Panels of one unit of work share the copies of keys and values.
constexpr int64_t kPanelsPerWork = 8;

// The running state of a panel of queries.
template <class V>
struct ForwardPanel {
  using S = typename V::Scalar;
  Range queries, keys;
  int64_t width;            // lanes, a whole number of vectors
  bool started;             // false: sum and out hold nothing yet
  S* query;                 // (D, width), scaled
  S* out;                   // (Dv, width), to be divided by sum
  S *top, *sum, *carry;     // (width,): maximum, sum of exponentials, factor of the last step
  uint32_t* dropout_words;  // (2, width)
  PanelDropout dropout;
};

template <class V>
struct ForwardScratch {
  using S = typename V::Scalar;
  ForwardPanel<V> panels[kPanelsPerWork];
  S* weights;        // (kKeyBlock, width)
  S *keys, *values;  // widened rows of one block
};

template <class V>
ForwardScratch<V> forward_scratch_of(const AttentionCall& call, Arena* arena) {
  using S = typename V::Scalar;
  const int64_t width = panel_width<V>(call), block = min_int(kKeyBlock, call.length_k);
  ForwardScratch<V> room;
  room.weights = arena->take<S>(block * width);
  for (int64_t i = 0; i < kPanelsPerWork; ++i) {
    ForwardPanel<V>& panel = room.panels[i];
    panel.query = arena->take<S>(call.dim * width);
    panel.out = arena->take<S>(call.dim_v * width);
    panel.top = arena->take<S>(3 * width);
    panel.sum = panel.top + width;
    panel.carry = panel.sum + width;
    panel.dropout_words = arena->take<uint32_t>(2 * width);
  }
  room.keys = arena->take<S>(block * round_up(call.dim, V::kLanes));
  room.values = arena->take<S>(block * round_up(call.dim_v, V::kLanes));
  return room;
}

template <class V, class T>
void begin_panel(const AttentionCall& call, const Sequence& s, int64_t head, Range on,
                 ForwardPanel<V>* panel) {
  using S = typename V::Scalar;
  const int64_t count = panel->queries.end - panel->queries.begin;
  panel->width = round_up(count, V::kLanes);
  panel->keys = keys_of(s, panel->queries, on);
  panel->started = false;
  load_transposed<V>(row_at<const T>(call.q, s, s.query, head, panel->queries.begin), call.q.row,
                     count, call.dim, static_cast<S>(call.scale), panel->query, panel->width);
  for (int64_t lane = 0; lane < panel->width; lane += V::kLanes) {
    store(panel->top + lane, off_score<V>());
    store(panel->sum + lane, V::zero());
  }
  panel->dropout = panel_dropout(call, s, head, panel->queries, panel->width, panel->dropout_words);
}

// The largest score of each lane, and of what came before.
template <class V>
inline V top_score(const typename V::Scalar* scores, int64_t count, int64_t width, V before) {
  V top[4] = {before, before, before, before};  // four chains: one would wait for itself
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    for (int c = 0; c < 4; ++c) top[c] = max(top[c], V::load(scores + (j + c) * width));
  }
  for (; j < count; ++j) top[0] = max(top[0], V::load(scores + j * width));
  return max(max(top[0], top[1]), max(top[2], top[3]));
}

// Scores become exponentials; top, sum and carry move on.
template <class V>
__attribute__((noinline)) void softmax_step(ForwardPanel<V>* panel, int64_t count,
                                            typename V::Scalar* weights) {
  const int64_t width = panel->width;
  const V log2e = V::broadcast(static_cast<typename V::Scalar>(kLog2EExact));
  for (int64_t lane = 0; lane < width; lane += V::kLanes) {
    const V old_top = V::load(panel->top + lane);
    const V top = top_score<V>(weights + lane, count, width, old_top);
    // A lane without any key so far has nothing to subtract: -inf - -inf would be NaN.
    const V base = select(equal(top, off_score<V>()), V::zero(), top);
    const V carry = exp2((old_top - base) * log2e);
    const V sum = exponentials(weights + lane, count, width, base);
    store(panel->top + lane, top);
    store(panel->sum + lane, fma(V::load(panel->sum + lane), carry, sum));
    store(panel->carry + lane, carry);
  }
}

// One block of keys for one panel.
template <class V, class T>
void forward_block(const AttentionCall& call, const Sequence& s, int64_t head, Range keys,
                   RowView<typename V::Scalar> k, RowView<typename V::Scalar> v,
                   typename V::Scalar* weights, ForwardPanel<V>* panel) {
  const int64_t width = panel->width, count = keys.end - keys.begin;
  const int64_t vectors = width / V::kLanes;
  multiply<V>({k.data, k.stride, 1, panel->query, width, weights, width, false, nullptr, count,
               call.dim, vectors});
  mask_scores<V, T>(call, s, head, panel->queries, keys, weights, width);
  softmax_step<V>(panel, count, weights);
  if (panel->dropout.on) drop_weights(panel->dropout, keys.begin, count, width, weights);
  multiply<V>({v.data, 1, v.stride, weights, width, panel->out, width, false,
               panel->started ? panel->carry : nullptr, call.dim_v, count, vectors});
  panel->started = true;
}

template <class V, class T>
void finish_panel(const AttentionCall& call, const Sequence& s, int64_t head,
                  ForwardPanel<V>* panel) {
  using S = typename V::Scalar;
  const int64_t width = panel->width, count = panel->queries.end - panel->queries.begin;
  if (!panel->started) {
    for (int64_t i = 0; i < call.dim_v * width; i += V::kLanes) store(panel->out + i, V::zero());
  }
  S* lse = static_cast<S*>(call.lse) + statistic_at(call, s, head, panel->queries.begin);
  for (int64_t lane = 0; lane < width; lane += V::kLanes) {
    const V sum = V::load(panel->sum + lane), top = V::load(panel->top + lane);
    const V one = V::broadcast(1);
    const typename V::Mask dead = equal(sum, V::zero());
    const V safe = select(dead, one, sum);
    store(panel->carry + lane, select(dead, V::zero(), one / safe));
    store_up_to(lse + lane, select(dead, off_score<V>(), add_log(top, safe)), count - lane);
  }
  store_transposed<V>(panel->out, width, count, call.dim_v, panel->carry,
                      row_at<T>(call.out, s, s.query, head, panel->queries.begin), call.out.row);
}

template <class V, class T>
void forward_work(const AttentionCall& call, const WorkList& list, Work work, Arena arena) {
  ForwardScratch<V> room = forward_scratch_of<V>(call, &arena);
  const Sequence s = sequence_of(call, work.batch);
  const int64_t head_kv = work.head / (call.heads / call.heads_kv);
  const Range on = keys_on(call, s, work.head);
  const Range queries = queries_of(s, list, work);
  Range all = {on.end, 0};
  int64_t panels = 0;
  for (int64_t i = queries.begin; i < queries.end; ++panels) {
    ForwardPanel<V>& panel = room.panels[panels];
    panel.queries = {i, min_int(queries.end, i + kPanelVectors * V::kLanes)};
    begin_panel<V, T>(call, s, work.head, on, &panel);
    all = {min_int(all.begin, panel.keys.begin), max_int(all.end, panel.keys.end)};
    i = panel.queries.end;
  }
  for (int64_t block = all.begin / kKeyBlock * kKeyBlock; block < all.end; block += kKeyBlock) {
    const Range keys = {max_int(block, all.begin), min_int(block + kKeyBlock, all.end)};
    const int64_t count = keys.end - keys.begin;
    const auto k = view_rows<V>(row_at<const T>(call.k, s, s.key, head_kv, keys.begin), call.k.row,
                                count, call.dim, room.keys);
    const auto v = view_rows<V>(row_at<const T>(call.v, s, s.key, head_kv, keys.begin), call.v.row,
                                count, call.dim_v, room.values);
    for (int64_t i = 0; i < panels; ++i) {
      ForwardPanel<V>& panel = room.panels[i];
      const Range own = {max_int(keys.begin, panel.keys.begin), min_int(keys.end, panel.keys.end)};
      if (own.begin >= own.end) continue;
      const int64_t skip = own.begin - keys.begin;
      forward_block<V, T>(call, s, work.head, own, {k.data + skip * k.stride, k.stride},
                          {v.data + skip * v.stride, v.stride}, room.weights, &panel);
    }
  }
  for (int64_t i = 0; i < panels; ++i) finish_panel<V, T>(call, s, work.head, &room.panels[i]);
}

template <class V>
int64_t forward_scratch_per_thread(const AttentionCall& call) {
  Arena arena = {0, 0};
  forward_scratch_of<V>(call, &arena);
  return arena.used;
}

template <class T>
void forward_typed(const AttentionCall& call) {
  using V = typename VecOf<T>::type;
  Arena arena = {reinterpret_cast<uintptr_t>(call.scratch), 0};
  int64_t* room = arena.take<int64_t>(call.packed ? call.batch + 1 : 0);
  const int64_t chunk = kPanelsPerWork * kPanelVectors * V::kLanes;
  const WorkList list = list_work(call, call.heads, false, chunk, room);
  const int64_t per_thread = forward_scratch_per_thread<V>(call);
  parallel_tiles(call.num_threads, list.count(), [&](int64_t tile, int thread) {
    Arena own = arena;
    own.used += thread * per_thread;
    forward_work<V, T>(call, list, list[tile], own);
  });
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
