// Gradients of q, k and v of bfloat16 on AMX tiles, cut into work as backward-inl.h does. A group
// of panels of 32 queries meets the keys 32 by 32: scores and dout . v, then dv and dk of those
// keys over all queries of the group, and after some keys dq over those.
#pragma once

#include "attention/backward-inl.h"
#include "attention/tiles_forward-inl.h"
#include "attention/tiles_gradient-inl.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

constexpr int64_t kGroupPanels = 8;  // of queries
constexpr int64_t kGroupTiles = 4;   // pairs of tiles of keys that dq takes at a time

// One thread's room. Operands of a block of 32 keys (or queries) are adjacent but for those that
// sum over keys or queries, whose blocks of 32 rows or columns are key_block, query_block apart.
struct TileGradientScratch {
  TileGradientPanel panels[kGroupPanels];
  int64_t key_block, query_block;
  BFloat16 *query_rows, *dout_rows;  // right operands (queries, D), (queries, Dv)
  BFloat16 *keys, *values;           // left operands (keys, D), (keys, Dv)
  BFloat16* key_columns;             // left operand (D, keys)
  BFloat16 *weights, *dscores;       // left operands (32 keys, queries)
  BFloat16* dscores_right;           // right operands (keys, queries), panel by panel
  float *scores, *dweights;          // (32, 32)
  BFloat16* out;                     // left operand (32, Dv)
  float *dk, *dv;                    // (keys of the unit, D), (.., Dv)
  bool* started;                     // by 32 keys: whether dk and dv hold something
};

inline TileGradientScratch tile_gradient_scratch(const AttentionCall& call,
                                                 const BackwardPlan& plan, Arena* arena) {
  const int64_t panels = min_int(kGroupPanels, ceil_div(call.length_q, kPairSide));
  const int64_t tiles = min_int(kGroupTiles, ceil_div(call.length_k, kPairSide));
  const int64_t queries = panels * kPairSide, keys = tiles * kPairSide;
  TileGradientScratch room;
  room.key_block = tiles * kPairTiles;
  room.query_block = panels * kPairTiles;
  for (int64_t i = 0; i < panels; ++i) {
    TileGradientPanel& panel = room.panels[i];
    panel.query = arena->take<BFloat16>(kPairSide * call.dim);
    panel.dout = arena->take<BFloat16>(kPairSide * call.dim_v);
    panel.dquery = arena->take<float>(kPairSide * call.dim);
    panel.lse = arena->take<float>(3 * kPairSide);
    panel.delta = panel.lse + kPairSide;
    panel.scale = panel.delta + kPairSide;
    panel.dropout_words = arena->take<uint32_t>(2 * kPairSide);
  }
  room.query_rows = arena->take<BFloat16>(queries * call.dim);
  room.dout_rows = arena->take<BFloat16>(queries * call.dim_v);
  room.keys = arena->take<BFloat16>(keys * call.dim);
  room.values = arena->take<BFloat16>(keys * call.dim_v);
  room.key_columns = arena->take<BFloat16>(keys * call.dim);
  room.weights = arena->take<BFloat16>(kPairSide * queries);
  room.dscores = arena->take<BFloat16>(kPairSide * queries);
  room.dscores_right = arena->take<BFloat16>(keys * queries);
  room.scores = arena->take<float>(kPairSums);
  room.dweights = arena->take<float>(kPairSums);
  room.out = arena->take<BFloat16>(kPairSide * call.dim_v);
  const int64_t own = round_up(min_int(plan.key_chunk, plan.longest), kPairSide);
  room.dk = arena->take<float>(own * call.dim);
  room.dv = arena->take<float>(own * call.dim_v);
  room.started = arena->take<bool>(own / kPairSide);
  return room;
}

// lse, delta and scale of a panel; lanes past the queries and queries without keys get weights 0.
inline void begin_tile_statistics(const AttentionCall& call, const AttentionGradients& gradients,
                                  const Sequence& s, int64_t head, const TileGradientScratch& room,
                                  TileGradientPanel* panel) {
  const int64_t count = panel->queries.end - panel->queries.begin;
  const int64_t at = statistic_at(call, s, head, panel->queries.begin);
  pack_left(row_at<const BFloat16>(call.out, s, s.query, head, panel->queries.begin), call.out.row,
            0, count, call.dim_v, 2, room.out);
  tile_deltas(call, *panel, room.out, room.scores);
  const float* lse = static_cast<const float*>(call.lse) + at;
  const float* dlse = static_cast<const float*>(gradients.dlse);
  const float* scale = static_cast<const float*>(gradients.weight_scale);
  panel->scaled = scale != nullptr;
  for (int64_t lane = 0; lane < kPairSide; lane += Vec::kLanes) {
    const int64_t filled = max_int(0, count - lane);
    const Vec sum = load_up_to<Vec>(lse + lane, filled);
    const Vec::Mask none =
        equal(sum, off_score<Vec>()) | ~Vec::Mask::first(min_int(Vec::kLanes, filled));
    store(panel->lse + lane, select(none, Vec::zero() - off_score<Vec>(), sum));
    if (dlse != nullptr) {
      store(panel->delta + lane,
            Vec::load(panel->delta + lane) - load_up_to<Vec>(dlse + at + lane, filled));
    }
    if (scale != nullptr) {
      store(panel->scale + lane, load_up_to<Vec>(scale + at + lane, filled));
    }
  }
}

// Panel `index` of a group.
inline void begin_tile_gradient(const AttentionCall& call, const AttentionGradients& gradients,
                                const Sequence& s, int64_t head, Range on, int64_t index,
                                TileGradientScratch* room) {
  TileGradientPanel& panel = room->panels[index];
  const Range queries = panel.queries;
  const int64_t count = queries.end - queries.begin;
  panel.keys = keys_of(s, queries, on);
  panel.started = false;
  const BFloat16* q = row_at<const BFloat16>(call.q, s, s.query, head, queries.begin);
  const BFloat16* dout = row_at<const BFloat16>(gradients.dout, s, s.query, head, queries.begin);
  pack_right_columns(q, call.q.row, 0, count, call.dim, panel.query);
  pack_right_columns(dout, gradients.dout.row, 0, count, call.dim_v, panel.dout);
  pack_right_rows(q, call.q.row, 0, count, call.dim, room->query_block,
                  room->query_rows + index * kPairTiles);
  pack_right_rows(dout, gradients.dout.row, 0, count, call.dim_v, room->query_block,
                  room->dout_rows + index * kPairTiles);
  begin_tile_statistics(call, gradients, s, head, *room, &panel);
  panel.dropout = panel_dropout(call, s, head, queries, kPairSide, panel.dropout_words);
}

// The keys and values from `first` on, one of `tiles` pairs of tiles after another.
inline void pack_gradient_keys(const AttentionCall& call, const Sequence& s, int64_t head_kv,
                               Range on, int64_t first, int64_t tiles, bool dq,
                               const TileGradientScratch& room) {
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t key = first + tile * kPairSide;
    const int64_t begin = on.begin - key, end = on.end - key;
    const BFloat16* k = row_at<const BFloat16>(call.k, s, s.key, head_kv, key);
    pack_left(k, call.k.row, begin, end, call.dim, 2, room.keys + tile * kPairSide * call.dim);
    pack_left(row_at<const BFloat16>(call.v, s, s.key, head_kv, key), call.v.row, begin, end,
              call.dim_v, 2, room.values + tile * kPairSide * call.dim_v);
    if (!dq) continue;
    pack_left_columns(k, call.k.row, begin, end, call.dim, room.key_block,
                      room.key_columns + tile * kPairTiles);
  }
}

// Weights and gradients of the scores of one panel and one pair of tiles of keys.
inline void tile_gradient_block(const AttentionCall& call, const Sequence& s, int64_t head,
                                int64_t key, int64_t tile, int64_t index,
                                const TileGradientScratch& room) {
  const TileGradientPanel& panel = room.panels[index];
  multiply_tiles<2>(room.keys + tile * kPairSide * call.dim, panel.query, call.dim / kTileDepth,
                    room.scores, kPairSide, false);
  multiply_tiles<2>(room.values + tile * kPairSide * call.dim_v, panel.dout,
                    call.dim_v / kTileDepth, room.dweights, kPairSide, false);
  const float factor = mask_block(call, s, head, panel, key, room.scores);
  const auto softmax =
      panel.scaled ? panel.dropout.on ? softmax_gradient<true, true> : softmax_gradient<true, false>
      : panel.dropout.on ? softmax_gradient<false, true>
                         : softmax_gradient<false, false>;
  softmax(panel, key, factor,
          {room.scores, room.dweights, room.weights + index * kPairTiles,
           room.dscores + index * kPairTiles,
           room.dscores_right + index * room.key_block + tile * kPairTiles});
}

// dv and dk of one pair of tiles of keys += the sums over panels [begin, end).
inline void add_key_gradients(const AttentionCall& call, Range panels, int64_t at,
                              const TileGradientScratch& room) {
  const int64_t steps = panels.end - panels.begin, skip = panels.begin * kPairTiles;
  const bool add = room.started[at];
  for (int64_t d = 0; d < call.dim_v; d += kPairSide) {
    multiply_tiles<2>(room.weights + skip, room.dout_rows + d / kPairSide * room.query_block + skip,
                      steps, room.dv + at * kPairSide * call.dim_v + d, call.dim_v, add);
  }
  for (int64_t d = 0; d < call.dim; d += kPairSide) {
    multiply_tiles<2>(room.dscores + skip,
                      room.query_rows + d / kPairSide * room.query_block + skip, steps,
                      room.dk + at * kPairSide * call.dim + d, call.dim, add);
  }
  room.started[at] = true;
}

// dq of one panel += the sums over pairs of tiles [begin, end) of keys.
inline void add_query_gradients(const AttentionCall& call, Range tiles, int64_t index,
                                TileGradientScratch* room) {
  TileGradientPanel& panel = room->panels[index];
  const int64_t skip = tiles.begin * kPairTiles;
  for (int64_t d = 0; d < call.dim; d += kPairSide) {
    multiply_tiles<2>(room->key_columns + d / kPairSide * room->key_block + skip,
                      room->dscores_right + index * room->key_block + skip, tiles.end - tiles.begin,
                      panel.dquery + d * kPairSide, kPairSide, panel.started);
  }
  panel.started = true;
}

// The pairs of tiles from key `first` on in which the panel has keys.
inline Range tiles_of(Range keys, int64_t first, int64_t tiles) {
  if (keys.begin >= keys.end) return {0, 0};
  return {max_int(0, (keys.begin - first) / kPairSide),
          min_int(tiles, ceil_div(max_int(0, keys.end - first), kPairSide))};
}

// A group of panels and up to kGroupTiles pairs of tiles of keys.
inline void tile_gradient_blocks(const AttentionCall& call, const Sequence& s, int64_t head,
                                 int64_t first, int64_t tiles, int64_t panels,
                                 const GradientWork& work, TileGradientScratch* room) {
  for (int64_t tile = 0; tile < tiles; ++tile) {
    // With later queries the keys they see begin and end later: those that see these are adjacent.
    Range seeing = {panels, 0};
    for (int64_t i = 0; i < panels; ++i) {
      const Range own = tiles_of(room->panels[i].keys, first, tiles);
      if (tile < own.begin || tile >= own.end) continue;
      tile_gradient_block(call, s, head, first + tile * kPairSide, tile, i, *room);
      seeing = {min_int(seeing.begin, i), i + 1};
    }
    if (!work.dkv || seeing.begin >= seeing.end) continue;
    add_key_gradients(call, seeing, (first - work.keys.begin) / kPairSide + tile, *room);
  }
  for (int64_t i = 0; work.dq && i < panels; ++i) {
    const Range own = tiles_of(room->panels[i].keys, first, tiles);
    if (own.begin < own.end) add_query_gradients(call, own, i, room);
  }
}

// A group of panels of one head from query `begin` on. Returns the first query after them.
inline int64_t backward_tile_panels(const AttentionCall& call, const AttentionGradients& gradients,
                                    const Sequence& s, int64_t head, int64_t begin, Range on,
                                    const GradientWork& work, TileGradientScratch* room) {
  int64_t panels = 0;
  Range all = {on.end, 0};
  for (; begin < work.queries.end && panels < kGroupPanels; ++panels) {
    TileGradientPanel& panel = room->panels[panels];
    panel.queries = {begin, min_int(work.queries.end, begin + kPairSide)};
    begin_tile_gradient(call, gradients, s, head, on, panels, room);
    begin = panel.queries.end;
    if (panel.keys.begin >= panel.keys.end) continue;
    all = {min_int(all.begin, panel.keys.begin), max_int(all.end, panel.keys.end)};
  }
  all = {max_int(all.begin, work.keys.begin), min_int(all.end, work.keys.end)};
  const int64_t head_kv = head / (call.heads / call.heads_kv);
  for (int64_t first = all.begin / kPairSide * kPairSide; first < all.end;
       first += kGroupTiles * kPairSide) {
    const int64_t tiles = min_int(kGroupTiles, ceil_div(all.end - first, kPairSide));
    pack_gradient_keys(call, s, head_kv, all, first, tiles, work.dq, *room);
    tile_gradient_blocks(call, s, head, first, tiles, panels, work, room);
  }
  for (int64_t i = 0; work.dq && i < panels; ++i) {
    TileGradientPanel& panel = room->panels[i];
    if (!panel.started) fill<Vec>(panel.dquery, call.dim * kPairSide, 0);
    store_queries(panel.dquery, panel.queries.end - panel.queries.begin, call.dim,
                  static_cast<float>(call.scale),
                  row_at<BFloat16>(gradients.dq, s, s.query, head, panel.queries.begin),
                  gradients.dq.row);
  }
  return begin;
}

// rows[key, :dim] = scale * sums, 0 where nothing was summed.
inline void store_key_gradients(const float* sums, const bool* started, int64_t keys, int64_t dim,
                                float scale, BFloat16* rows, int64_t row_stride) {
  const Vec by = Vec::broadcast(scale);
  for (int64_t j = 0; j < keys; ++j) {
    const float* from = sums + j * dim;
    for (int64_t d = 0; d < dim; d += kPairSide) {
      const __m512i bits =
          started[j / kPairSide]
              ? narrow_pair(Vec::load(from + d) * by, Vec::load(from + d + Vec::kLanes) * by)
              : _mm512_setzero_si512();
      _mm512_storeu_si512(rows + j * row_stride + d, bits);
    }
  }
}

inline void backward_tile_work(const AttentionCall& call, const AttentionGradients& gradients,
                               const BackwardPlan& plan, const GradientWork& work, Arena arena) {
  TileGradientScratch room = tile_gradient_scratch(call, plan, &arena);
  const Sequence s = sequence_of(call, work.batch);
  const int64_t keys = work.keys.end - work.keys.begin;
  for (int64_t i = 0; work.dkv && i < ceil_div(keys, kPairSide); ++i) room.started[i] = false;
  const TileScope tiles;
  for (int64_t head = work.heads.begin; head < work.heads.end; ++head) {
    const Range on = keys_on(call, s, head);
    for (int64_t i = work.queries.begin; i < work.queries.end;) {
      i = backward_tile_panels(call, gradients, s, head, i, on, work, &room);
    }
  }
  if (!work.dkv) return;
  const int64_t head_kv = work.heads.begin / (call.heads / call.heads_kv);
  const double kept = call.dropout_p > 0 ? call.dropout_p < 1 ? 1 / (1 - call.dropout_p) : 0 : 1;
  store_key_gradients(room.dk, room.started, keys, call.dim, static_cast<float>(call.scale),
                      row_at<BFloat16>(gradients.dk, s, s.key, head_kv, work.keys.begin),
                      gradients.dk.row);
  store_key_gradients(room.dv, room.started, keys, call.dim_v, static_cast<float>(kept),
                      row_at<BFloat16>(gradients.dv, s, s.key, head_kv, work.keys.begin),
                      gradients.dv.row);
}

inline int64_t backward_tile_scratch(const AttentionCall& call) {
  Arena arena = {0, 0};
  tile_gradient_scratch(call, plan_backward(call), &arena);
  return arena.used;
}

inline void backward_tiles(const AttentionCall& call, const AttentionGradients& gradients) {
  for_each_gradient_work(call, kGroupPanels * kPairSide, backward_tile_scratch(call),
                         [&](const BackwardPlan& plan, const GradientWork& work, Arena own) {
                           backward_tile_work(call, gradients, plan, work, own);
                         });
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
