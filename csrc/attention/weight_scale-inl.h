// What rounding took from a large lse. The backward computes weights as e^(score - lse); with
// |lse| = 2^k they are off by up to 2^(k - 25), and rows of a mask's least finite numbers keep
// nothing of the sum of exponentials. So where lse is large, the weights are added up once more and
// scaled to the sum 1.
#pragma once

#include "attention/gradient-inl.h"
#include "common/cpu/threads.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

constexpr double kLargeLse = 32;

template <class V>
inline typename V::Mask large_lse(V lse) {
  using S = typename V::Scalar;
  const V size = abs(lse);
  return less(V::broadcast(static_cast<S>(kLargeLse)), size) &
         less(size, V::broadcast(static_cast<S>(__builtin_inff())));
}

// Of a panel of queries: 1 / what the weights add up to where lse is large, else 1.
template <class V, class T>
void panel_weight_scale(const AttentionCall& call, const Sequence& s, int64_t head, Range queries,
                        GradientScratch<V>* room, typename V::Scalar* all) {
  using S = typename V::Scalar;
  GradientPanel<V>& panel = room->panels[0];
  const int64_t count = queries.end - queries.begin, width = round_up(count, V::kLanes);
  const int64_t at = statistic_at(call, s, head, queries.begin);
  const S* lse = static_cast<const S*>(call.lse) + at;
  bool needed = false;
  for (int64_t lane = 0; lane < width; lane += V::kLanes) {
    store(panel.lse + lane, load_up_to<V>(lse + lane, count - lane));
    needed = needed || any(large_lse(V::load(panel.lse + lane)));
  }
  fill<V>(panel.weight_scale, width, 0);
  const Range keys = needed ? keys_of(s, queries, keys_on(call, s, head)) : Range{0, 0};
  if (needed) {
    load_transposed<V>(row_at<const T>(call.q, s, s.query, head, queries.begin), call.q.row, count,
                       call.dim, static_cast<S>(call.scale), panel.query, width);
  }
  const int64_t head_kv = head / (call.heads / call.heads_kv);
  for (int64_t key = keys.begin / kGradientKeyBlock * kGradientKeyBlock; key < keys.end;
       key += kGradientKeyBlock) {
    const Range block = {max_int(key, keys.begin), min_int(key + kGradientKeyBlock, keys.end)};
    const int64_t size = block.end - block.begin;
    const auto k = view_rows<V>(row_at<const T>(call.k, s, s.key, head_kv, block.begin), call.k.row,
                                size, call.dim, room->keys);
    multiply<V>({k.data, k.stride, 1, panel.query, width, room->weights, width, false, nullptr,
                 size, call.dim, width / V::kLanes});
    mask_scores<V, T>(call, s, head, queries, block, room->weights, width);
    for (int64_t lane = 0; lane < width; lane += V::kLanes) {
      const V sum = exponentials(room->weights + lane, size, width, V::load(panel.lse + lane));
      store(panel.weight_scale + lane, V::load(panel.weight_scale + lane) + sum);
    }
  }
  for (int64_t lane = 0; lane < width; lane += V::kLanes) {
    const typename V::Mask large = large_lse(V::load(panel.lse + lane));
    const V sum = select(large, V::load(panel.weight_scale + lane), V::broadcast(1));
    store_up_to(all + at + lane, V::broadcast(1) / sum, count - lane);
  }
}

inline int64_t statistic_count(const AttentionCall& call) {
  return (call.packed ? 1 : call.batch) * call.heads * call.length_q;
}

// Fills scale, which is like lse; false, and nothing done, where no lse is large. Needs the scratch
// of the backward.
template <class T>
bool find_weight_scale(const AttentionCall& call, int64_t per_thread,
                       typename VecOf<T>::type::Scalar* scale) {
  using V = typename VecOf<T>::type;
  using S = typename V::Scalar;
  const int64_t count = statistic_count(call);
  bool needed = false;
  for (int64_t i = 0; i < count && !needed; i += V::kLanes) {
    needed = any(large_lse(load_up_to<V>(static_cast<const S*>(call.lse) + i, count - i)));
  }
  if (!needed) return false;
  Arena arena = {reinterpret_cast<uintptr_t>(call.scratch), 0};
  int64_t* room = arena.take<int64_t>(call.packed ? call.batch + 1 : 0);
  const WorkList list = list_work(call, call.heads, false, kPanelVectors * V::kLanes, room);
  parallel_tiles(call.num_threads, list.count(), [&](int64_t tile, int thread) {
    Arena own = arena;
    own.used += thread * per_thread;
    GradientScratch<V> scratch = gradient_scratch<V>(call, 1, &own);
    const Work work = list[tile];
    const Sequence s = sequence_of(call, work.batch);
    const int64_t begin = work.chunk * list.chunk;
    panel_weight_scale<V, T>(call, s, work.head, {begin, min_int(s.queries, begin + list.chunk)},
                             &scratch, scale);
  });
  return true;
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
