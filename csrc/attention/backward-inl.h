// Gradients of q, k and v. One unit of work holds the gradients of a range of keys and goes through
// the queries panel by panel; if the range is the whole sequence it finishes dq on the way (five
// products). Where there are too few heads for the threads, dq has its own pass by queries and keys
// are cut into ranges (seven products). Both add in the same order, so the results are equal bits.
#pragma once

#include "attention/gradient-inl.h"
#include "common/cpu/threads.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

// What one unit of work computes.
struct GradientWork {
  int64_t batch;
  Range heads, queries, keys;
  bool dq, dkv;
};

// dk and dv of the keys of one unit of work: in scratch, in whole vectors, or the result's own
// rows.
template <class V>
struct KeySums {
  typename V::Scalar *dk, *dv;
  int64_t dk_row, dv_row;
  bool add;  // several panels add to them
};

// All products of one panel with one block of keys.
template <class V, class T>
void backward_block(const AttentionCall& call, const Sequence& s, int64_t head,
                    const KeyBlock<V>& block, const GradientScratch<V>& room,
                    const GradientWork& work, const KeySums<V>& sums, GradientPanel<V>* panel) {
  gradient_block<V, T>(call, s, head, block.keys, block.k, block.v, room, *panel);
  const int64_t width = panel->width, keys = block.keys.end - block.keys.begin;
  if (work.dq) {
    multiply<V>({block.k.data, 1, block.k.stride, room.dscores, width, panel->dquery, width,
                 panel->started, nullptr, call.dim, keys, width / V::kLanes});
    panel->started = true;
  }
  if (!work.dkv) return;
  const int64_t queries = panel->queries.end - panel->queries.begin;
  const int64_t dim = round_up(call.dim, V::kLanes), dim_v = round_up(call.dim_v, V::kLanes);
  const int64_t at = block.keys.begin - work.keys.begin;
  multiply<V>({room.weights, width, 1, panel->dout_rows, dim_v, sums.dv + at * sums.dv_row,
               sums.dv_row, sums.add, nullptr, keys, queries, dim_v / V::kLanes});
  multiply<V>({room.dscores, width, 1, panel->query_rows, dim, sums.dk + at * sums.dk_row,
               sums.dk_row, sums.add, nullptr, keys, queries, dim / V::kLanes});
}

// A few panels of one head, which share the copies of keys and values. Returns the first query
// after them.
template <class V, class T>
int64_t backward_panels(const AttentionCall& call, const AttentionGradients& gradients,
                        const Sequence& s, int64_t head, int64_t begin, Range on,
                        const GradientWork& work, const KeySums<V>& sums,
                        GradientScratch<V>* room) {
  int64_t panels = 0;
  Range all = {on.end, 0};
  for (; begin < work.queries.end && panels < kGradientPanels; ++panels) {
    GradientPanel<V>& panel = room->panels[panels];
    panel.queries = {begin, min_int(work.queries.end, begin + kPanelVectors * V::kLanes)};
    begin_gradient_panel<V, T>(call, gradients, s, head, on, room->out, &panel);
    panel.started = false;
    all = {min_int(all.begin, panel.keys.begin), max_int(all.end, panel.keys.end)};
    begin = panel.queries.end;
  }
  all = {max_int(all.begin, work.keys.begin), min_int(all.end, work.keys.end)};
  const int64_t head_kv = head / (call.heads / call.heads_kv);
  for (int64_t key = all.begin / kGradientKeyBlock * kGradientKeyBlock; key < all.end;
       key += kGradientKeyBlock) {
    const Range keys = {max_int(key, all.begin), min_int(key + kGradientKeyBlock, all.end)};
    const auto block = view_block<V, T>(call, s, head_kv, keys, room->keys, room->values);
    for (int64_t i = 0; i < panels; ++i) {
      const KeyBlock<V> part = block.within(room->panels[i].keys);
      if (part.keys.begin >= part.keys.end) continue;
      backward_block<V, T>(call, s, head, part, *room, work, sums, &room->panels[i]);
    }
  }
  for (int64_t i = 0; i < panels && work.dq; ++i) {
    GradientPanel<V>& panel = room->panels[i];
    if (!panel.started) fill<V>(panel.dquery, call.dim * panel.width, 0);
    fill<V>(panel.lse, panel.width, static_cast<typename V::Scalar>(call.scale));
    store_transposed<V>(
        panel.dquery, panel.width, panel.queries.end - panel.queries.begin, call.dim, panel.lse,
        row_at<T>(gradients.dq, s, s.query, head, panel.queries.begin), gradients.dq.row);
  }
  return begin;
}

// Longest range of keys of one unit of work that also computes dk and dv.
struct BackwardPlan {
  bool together;  // dq along with dk and dv
  int64_t longest, key_chunk, query_chunk;
};

constexpr int64_t kSplitKeys = 4 * kGradientKeyBlock;

inline BackwardPlan plan_backward(const AttentionCall& call) {
  BackwardPlan plan = {true, call.length_k, 0, 0};
  if (call.packed) {
    plan.longest = 0;
    for (int64_t b = 0; b < call.batch; ++b) {
      plan.longest = max_int(plan.longest, call.starts_k[b + 1] - call.starts_k[b]);
    }
  }
  const int64_t heads = call.batch * call.heads_kv;
  plan.together =
      call.num_threads == 1 || heads >= 2 * call.num_threads || plan.longest <= kSplitKeys;
  plan.key_chunk = plan.together ? max_int(1, plan.longest) : kSplitKeys;
  return plan;
}

template <class V>
KeySums<V> key_sums(const AttentionCall& call, const BackwardPlan& plan, Arena* arena) {
  using S = typename V::Scalar;
  const int64_t keys = min_int(plan.key_chunk, plan.longest);
  const int64_t dim = round_up(call.dim, V::kLanes), dim_v = round_up(call.dim_v, V::kLanes);
  S* dk = arena->take<S>(keys * dim);
  return {dk, arena->take<S>(keys * dim_v), dim, dim_v, true};
}

// Rows begin .. end - 1 of dk and dv become 0.
template <class V>
void clear_sums(const KeySums<V>& sums, int64_t dim, int64_t dim_v, int64_t begin, int64_t end) {
  for (int64_t j = begin; j < end; ++j) {
    fill<V>(sums.dk + j * sums.dk_row, dim, 0);
    fill<V>(sums.dv + j * sums.dv_row, dim_v, 0);
  }
}

// Where only one panel adds, it overwrites what it reaches; only the other rows are cleared.
template <class V>
void begin_sums(const AttentionCall& call, const Sequence& s, const GradientWork& work,
                bool one_panel, KeySums<V>* sums) {
  const int64_t keys = work.keys.end - work.keys.begin;
  Range reached = {0, 0};
  if (one_panel && work.queries.begin < work.queries.end) {
    const Range seen = keys_of(s, work.queries, keys_on(call, s, work.heads.begin));
    reached = {seen.begin - work.keys.begin, seen.end - work.keys.begin};
    reached = {min_int(keys, max_int(0, reached.begin)), min_int(keys, reached.end)};
  }
  if (reached.end <= reached.begin) reached = {0, 0};
  sums->add = !one_panel;
  clear_sums(*sums, call.dim, call.dim_v, 0, reached.begin);
  clear_sums(*sums, call.dim, call.dim_v, reached.end, keys);
}

template <class V, class T>
void backward_work(const AttentionCall& call, const AttentionGradients& gradients,
                   const BackwardPlan& plan, const GradientWork& work, Arena arena) {
  using S = typename V::Scalar;
  GradientScratch<V> room = gradient_scratch<V>(call, kGradientPanels, &arena);
  KeySums<V> sums = key_sums<V>(call, plan, &arena);
  const Sequence s = sequence_of(call, work.batch);
  const int64_t dim = sums.dk_row, dim_v = sums.dv_row;
  const int64_t head_kv = work.heads.begin / (call.heads / call.heads_kv);
  T* dk = row_at<T>(gradients.dk, s, s.key, head_kv, work.keys.begin);
  T* dv = row_at<T>(gradients.dv, s, s.key, head_kv, work.keys.begin);
  const bool one_panel = work.heads.end - work.heads.begin == 1 &&
                         work.queries.end - work.queries.begin <= kPanelVectors * V::kLanes;
  bool in_place = false;
  if constexpr (sizeof(T) == sizeof(S)) {
    in_place = one_panel && dim == call.dim && dim_v == call.dim_v;
    if (in_place) sums = {dk, dv, gradients.dk.row, gradients.dv.row, false};
  }
  if (work.dkv) begin_sums(call, s, work, one_panel, &sums);
  for (int64_t head = work.heads.begin; head < work.heads.end; ++head) {
    const Range on = keys_on(call, s, head);
    for (int64_t i = work.queries.begin; i < work.queries.end;) {
      i = backward_panels<V, T>(call, gradients, s, head, i, on, work, sums, &room);
    }
  }
  if (!work.dkv || in_place) return;
  const int64_t keys = work.keys.end - work.keys.begin;
  narrow_rows<V>(sums.dk, dim, keys, call.dim, dk, gradients.dk.row);
  narrow_rows<V>(sums.dv, dim_v, keys, call.dim_v, dv, gradients.dv.row);
}

template <class V>
int64_t backward_scratch_per_thread(const AttentionCall& call, const BackwardPlan& plan) {
  Arena arena = {0, 0};
  gradient_scratch<V>(call, kGradientPanels, &arena);
  key_sums<V>(call, plan, &arena);
  return arena.used;
}

// Calls run(plan, work, arena) for every unit of work, on the threads of the call; `query_chunk`:
// queries of a unit that computes dq alone.
template <class F>
void for_each_gradient_work(const AttentionCall& call, int64_t query_chunk, int64_t per_thread,
                            const F& run) {
  const BackwardPlan plan = plan_backward(call);
  Arena arena = {reinterpret_cast<uintptr_t>(call.scratch), 0};
  int64_t* room = arena.take<int64_t>(call.packed ? call.batch + 1 : 0);
  const auto own = [&](int thread) { return Arena{arena.base, arena.used + thread * per_thread}; };
  const int64_t group = call.heads / call.heads_kv;
  const WorkList by_keys = list_work(call, call.heads_kv, true, plan.key_chunk, room);
  parallel_tiles(call.num_threads, by_keys.count(), [&](int64_t tile, int thread) {
    const Work work = by_keys[tile];
    const Sequence s = sequence_of(call, work.batch);
    const int64_t begin = work.chunk * by_keys.chunk;
    const GradientWork unit = {work.batch,     {work.head * group, (work.head + 1) * group},
                               {0, s.queries}, {begin, min_int(s.all_keys, begin + by_keys.chunk)},
                               plan.together,  true};
    run(plan, unit, own(thread));
  });
  if (plan.together) return;
  const WorkList by_queries = list_work(call, call.heads, false, query_chunk, room);
  parallel_tiles(call.num_threads, by_queries.count(), [&](int64_t tile, int thread) {
    const Work work = by_queries[tile];
    const Sequence s = sequence_of(call, work.batch);
    const int64_t begin = work.chunk * query_chunk;
    const GradientWork unit = {work.batch,
                               {work.head, work.head + 1},
                               {begin, min_int(s.queries, begin + query_chunk)},
                               {0, s.all_keys},
                               true,
                               false};
    run(plan, unit, own(thread));
  });
}

template <class T>
void backward_typed(const AttentionCall& call, const AttentionGradients& gradients) {
  using V = typename VecOf<T>::type;
  const int64_t per_thread = backward_scratch_per_thread<V>(call, plan_backward(call));
  for_each_gradient_work(call, kGradientPanels * kPanelVectors * V::kLanes, per_thread,
                         [&](const BackwardPlan& plan, const GradientWork& work, Arena own) {
                           backward_work<V, T>(call, gradients, plan, work, own);
                         });
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
