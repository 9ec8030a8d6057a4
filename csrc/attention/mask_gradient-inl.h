// Gradient of an additive mask, summed over the dimensions it is broadcast along. Every element
// belongs to one unit of work, which adds what it gets from samples, heads, queries and keys in
// ascending order.
#pragma once

#include "attention/gradient-inl.h"
#include "common/cpu/threads.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

constexpr int64_t kMaskKeys = 8 * kGradientKeyBlock;  // of one unit of work

// The part of dmask one unit of work computes, and all that adds to it.
struct MaskWork {
  Range batches, heads, queries, keys;
  bool by_query, by_key;  // whether the mask differs along them
};

// How the mask is cut into units of work.
struct MaskWorkList {
  int64_t batches, heads, query_chunk, query_chunks, key_chunk, key_chunks;

  MaskWorkList(const AttentionCall& call, const AttentionGradients& gradients, int64_t width)
      : batches(gradients.mask_sizes[0]), heads(gradients.mask_sizes[1]) {
    // Of a dimension broadcast along nothing the sum is 0, and to be written.
    const int64_t queries = gradients.mask_sizes[2], keys = gradients.mask_sizes[3];
    query_chunk = queries > 1 ? width : max_int(1, call.length_q);
    key_chunk = keys > 1 ? kMaskKeys : max_int(1, call.length_k);
    query_chunks = ceil_div(queries, queries > 1 ? query_chunk : 1);
    key_chunks = ceil_div(keys, keys > 1 ? key_chunk : 1);
  }

  int64_t count() const { return batches * heads * query_chunks * key_chunks; }

  MaskWork work(const AttentionCall& call, const AttentionGradients& gradients,
                int64_t index) const {
    const int64_t key = index % key_chunks * key_chunk;
    const int64_t query = index / key_chunks % query_chunks * query_chunk;
    const int64_t row = index / key_chunks / query_chunks;
    const int64_t head = row % heads, batch = row / heads;
    MaskWork work;
    work.batches = batches > 1 ? Range{batch, batch + 1} : Range{0, call.batch};
    work.heads = heads > 1 ? Range{head, head + 1} : Range{0, call.heads};
    work.queries = {query, min_int(call.length_q, query + query_chunk)};
    work.keys = {key, min_int(call.length_k, key + key_chunk)};
    work.by_query = gradients.mask_sizes[2] > 1;
    work.by_key = gradients.mask_sizes[3] > 1;
    return work;
  }
};

// Calls f(keys) after the gradients of the scores of those keys are in room->dscores, block by
// block.
template <class V, class T, class F>
inline void for_each_gradient_block(const AttentionCall& call, const Sequence& s, int64_t head,
                                    Range all, const GradientPanel<V>& panel,
                                    GradientScratch<V>* room, const F& f) {
  const int64_t head_kv = head / (call.heads / call.heads_kv);
  for (int64_t key = all.begin / kGradientKeyBlock * kGradientKeyBlock; key < all.end;
       key += kGradientKeyBlock) {
    const Range keys = {max_int(key, all.begin), min_int(key + kGradientKeyBlock, all.end)};
    const auto block = view_block<V, T>(call, s, head_kv, keys, room->keys, room->values);
    gradient_block<V, T>(call, s, head, keys, block.k, block.v, *room, panel);
    f(keys);
  }
}

// sum (width,) += row (width,)
template <class V>
inline void add_row(const typename V::Scalar* row, int64_t width, typename V::Scalar* sum) {
  for (int64_t lane = 0; lane < width; lane += V::kLanes) {
    store(sum + lane, V::load(sum + lane) + V::load(row + lane));
  }
}

// delta from the weights instead of from out, which 16-bit types have rounded: a float32 mask would
// show it. With delta 0 the scores' gradients are weights times dweights, and delta is their sum.
template <class V, class T>
void sharpen_delta(const AttentionCall& call, const AttentionGradients& gradients,
                   const Sequence& s, int64_t head, GradientPanel<V>* panel,
                   GradientScratch<V>* room) {
  using S = typename V::Scalar;
  const int64_t width = panel->width, count = panel->queries.end - panel->queries.begin;
  fill<V>(panel->delta, width, 0);
  fill<V>(room->out, width, 0);
  for_each_gradient_block<V, T>(call, s, head, panel->keys, *panel, room, [&](Range keys) {
    for (int64_t j = 0; j < keys.end - keys.begin; ++j) {
      add_row<V>(room->dscores + j * width, width, room->out);
    }
  });
  const S* dlse = static_cast<const S*>(gradients.dlse);
  const int64_t at = statistic_at(call, s, head, panel->queries.begin);
  for (int64_t lane = 0; lane < width; lane += V::kLanes) {
    V delta = V::load(room->out + lane);
    if (dlse != nullptr) delta = delta - load_up_to<V>(dlse + at + lane, count - lane);
    store(panel->delta + lane, delta);
  }
}

// sums (keys or 1, width) += the scores' gradients of one panel; a lane stays a query's own, or
// collects every width-th query.
template <class V, class T>
void add_mask_panel(const AttentionCall& call, const AttentionGradients& gradients,
                    const Sequence& s, int64_t head, Range queries, const MaskWork& work,
                    int64_t sums_width, GradientScratch<V>* room, typename V::Scalar* sums) {
  GradientPanel<V>& panel = room->panels[0];
  panel.queries = queries;
  begin_gradient_panel<V, T>(call, gradients, s, head, keys_on(call, s, head), room->out, &panel);
  if (sizeof(T) < sizeof(float)) sharpen_delta<V, T>(call, gradients, s, head, &panel, room);
  const Range all = {max_int(panel.keys.begin, work.keys.begin),
                     min_int(panel.keys.end, work.keys.end)};
  for_each_gradient_block<V, T>(call, s, head, all, panel, room, [&](Range keys) {
    for (int64_t j = keys.begin; j < keys.end; ++j) {
      const int64_t row = work.by_key ? j - work.keys.begin : 0;
      add_row<V>(room->dscores + (j - keys.begin) * panel.width, panel.width,
                 sums + row * sums_width);
    }
  });
}

// Sums of lanes that stand for one and the same element.
template <class V>
inline typename V::Scalar sum_lanes(const typename V::Scalar* sums, int64_t width) {
  V total = V::zero();
  for (int64_t lane = 0; lane < width; lane += V::kLanes) total = total + V::load(sums + lane);
  return reduce_add(total);
}

// dmask of one unit of work, in M, the mask's type.
template <class V, class M>
void store_mask_sums(const AttentionGradients& gradients, const MaskWork& work, int64_t width,
                     typename V::Scalar* sums) {
  const int64_t* sizes = gradients.mask_sizes;
  const int64_t batch = sizes[0] > 1 ? work.batches.begin : 0;
  const int64_t head = sizes[1] > 1 ? work.heads.begin : 0;
  const int64_t query = work.by_query ? work.queries.begin : 0;
  const int64_t key = work.by_key ? work.keys.begin : 0;
  M* out = static_cast<M*>(gradients.dmask) +
           ((batch * sizes[1] + head) * sizes[2] + query) * sizes[3] + key;
  const int64_t keys = work.by_key ? work.keys.end - work.keys.begin : 1;
  if (work.by_query) {
    typename V::Scalar* ones = sums + keys * width;
    fill<V>(ones, width, 1);
    store_transposed<V>(sums, width, work.queries.end - work.queries.begin, keys, ones, out,
                        sizes[3]);
    return;
  }
  for (int64_t j = 0; j < keys; ++j) {
    store(out + j, V::broadcast(sum_lanes<V>(sums + j * width, width)), 1);
  }
}

// sums, and one row of ones.
template <class V>
typename V::Scalar* take_mask_sums(const AttentionCall& call, Arena* arena) {
  return arena->take<typename V::Scalar>((min_int(kMaskKeys, max_int(1, call.length_k)) + 1) *
                                         panel_width<V>(call));
}

template <class V, class T>
void mask_gradient_work(const AttentionCall& call, const AttentionGradients& gradients,
                        const MaskWork& work, Arena arena) {
  GradientScratch<V> room = gradient_scratch<V>(call, 1, &arena);
  typename V::Scalar* sums = take_mask_sums<V>(call, &arena);
  const int64_t widest = kPanelVectors * V::kLanes;
  const int64_t width = min_int(
      widest, round_up(work.queries.end - work.queries.begin, static_cast<int64_t>(V::kLanes)));
  fill<V>(sums, (work.by_key ? work.keys.end - work.keys.begin : 1) * width, 0);
  for (int64_t batch = work.batches.begin; batch < work.batches.end; ++batch) {
    const Sequence s = sequence_of(call, batch);
    for (int64_t head = work.heads.begin; head < work.heads.end; ++head) {
      for (int64_t i = work.queries.begin; i < work.queries.end; i += widest) {
        const Range queries = {i, min_int(work.queries.end, i + widest)};
        add_mask_panel<V, T>(call, gradients, s, head, queries, work, width, &room, sums);
      }
    }
  }
  if (call.mask.type == MaskType::kFloat32) {
    store_mask_sums<V, float>(gradients, work, width, sums);
  } else {
    store_mask_sums<V, T>(gradients, work, width, sums);
  }
}

template <class V>
int64_t mask_gradient_scratch_per_thread(const AttentionCall& call) {
  Arena arena = {0, 0};
  gradient_scratch<V>(call, 1, &arena);
  take_mask_sums<V>(call, &arena);
  return arena.used;
}

template <class T>
void mask_gradient_typed(const AttentionCall& call, const AttentionGradients& gradients) {
  using V = typename VecOf<T>::type;
  const MaskWorkList list(call, gradients, kPanelVectors * V::kLanes);
  const int64_t per_thread = mask_gradient_scratch_per_thread<V>(call);
  parallel_tiles(call.num_threads, list.count(), [&](int64_t tile, int thread) {
    const Arena own = {reinterpret_cast<uintptr_t>(call.scratch), thread * per_thread};
    mask_gradient_work<V, T>(call, gradients, list.work(call, gradients, tile), own);
  });
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
