// Forward of bfloat16 on AMX tiles: for 32 queries, block after block of keys with an online
// softmax.
#pragma once

#include "attention/rows-inl.h"
#include "attention/tiles_softmax-inl.h"
#include "common/cpu/threads.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

// Panels of one unit of work share the packed keys and values.
constexpr int64_t kTilePanels = 8;

struct TileScratch {
  TilePanel panels[kTilePanels];
  BFloat16 *keys, *values;  // right operands: (D, keys) and (keys, Dv)
  int64_t value_block;      // elements of 32 columns of values
  float* scores;            // (32, kScoreRow)
  BFloat16* weights;        // left operand (32, keys)
};

// Whole tiles of every row, so that none is masked. Not beside a float32 mask: its gradient is
// float32 too, and accurate only if the backward, which has no tiles, meets the forward's scores to
// the last bit.
inline bool tiles_serve(const AttentionCall& call) {
  const auto fits = [](int64_t dim) { return dim > 0 && dim % kPairSide == 0 && dim <= 256; };
  return call.dtype == DType::kBFloat16 && call.mask.type != MaskType::kFloat32 && fits(call.dim) &&
         fits(call.dim_v);
}

inline TileScratch tile_scratch_of(const AttentionCall& call, Arena* arena) {
  const int64_t queries = min_int(kPairSide, round_up(call.length_q, kTileSide));
  const int64_t panels = min_int(kTilePanels, ceil_div(call.length_q, kPairSide));
  const int64_t keys = min_int(kTileKeys, round_up(call.length_k, kTileDepth));
  TileScratch room;
  room.keys = arena->take<BFloat16>(keys * call.dim);
  room.values = arena->take<BFloat16>(keys * call.dim_v);
  room.value_block = keys * kPairSide;
  room.scores = arena->take<float>(queries * kScoreRow);
  room.weights = arena->take<BFloat16>(queries * keys);
  for (int64_t i = 0; i < panels; ++i) {
    TilePanel& panel = room.panels[i];
    panel.query = arena->take<BFloat16>(queries * call.dim);
    panel.out = arena->take<float>(queries * call.dim_v);
    panel.top = arena->take<float>(3 * kPairSide);
    panel.sum = panel.top + kPairSide;
    panel.carry = panel.sum + kPairSide;
    panel.dropout_words = arena->take<uint32_t>(call.dropout_p > 0 ? 2 * kPairSide : 0);
  }
  return room;
}

inline void begin_tile_panel(const AttentionCall& call, const Sequence& s, int64_t head, Range on,
                             TilePanel* panel) {
  const int64_t count = panel->queries.end - panel->queries.begin;
  panel->tiles = ceil_div(count, kTileSide);
  panel->keys = keys_of(s, panel->queries, on);
  panel->started = false;
  const BFloat16* rows = row_at<const BFloat16>(call.q, s, s.query, head, panel->queries.begin);
  if (count % kTileSide == 0) {
    panel->left = {rows, kTileSide * call.q.row, kTileDepth,
                   call.q.row * int64_t{sizeof(BFloat16)}};
  } else {
    pack_left(rows, call.q.row, 0, count, call.dim, panel->tiles, panel->query);
    panel->left = LeftTiles::packed(panel->query, panel->tiles);
  }
  for (int64_t r = 0; r < kPairSide; r += Vec::kLanes) {
    store(panel->top + r, off_score<Vec>());
    store(panel->sum + r, Vec::zero());
  }
  panel->dropout = panel_dropout(call, s, head, panel->queries, kPairSide, panel->dropout_words);
}

// The keys of one block, from its first tile with a key in `keys` on.
inline void pack_keys(const AttentionCall& call, const Sequence& s, int64_t head_kv, Range keys,
                      int64_t block, const TileScratch& room) {
  const int64_t first = (keys.begin - block) / kTileDepth * kTileDepth;
  for (int64_t n = first; block + n < keys.end; n += kTileDepth) {
    pack_right_columns(row_at<const BFloat16>(call.k, s, s.key, head_kv, block + n), call.k.row,
                       keys.begin - block - n, keys.end - block - n, call.dim,
                       room.keys + n * call.dim);
  }
}

// Its values.
inline void pack_values(const AttentionCall& call, const Sequence& s, int64_t head_kv, Range keys,
                        int64_t block, const TileScratch& room) {
  const int64_t first = (keys.begin - block) / kTileDepth * kTileDepth;
  for (int64_t n = first; block + n < keys.end; n += kTileDepth) {
    pack_right_rows(row_at<const BFloat16>(call.v, s, s.key, head_kv, block + n), call.v.row,
                    keys.begin - block - n, keys.end - block - n, call.dim_v, room.value_block,
                    room.values + n * kPairSide);
  }
}

template <int kRows>
inline void score_tiles(const AttentionCall& call, const TileScratch& room, const TilePanel& panel,
                        int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; n += kPairSide) {
    multiply_tiles<kRows>(panel.left, room.keys + n * call.dim, call.dim / kTileDepth,
                          room.scores + n, kScoreRow, false);
  }
}

template <int kRows>
inline void add_values(const AttentionCall& call, const TileScratch& room, TilePanel* panel,
                       int64_t begin, int64_t end) {
  if (panel->started) {
    for (int64_t r = 0; r < kRows * kTileSide; ++r) {
      const Vec carry = Vec::broadcast(panel->carry[r]);
      float* row = panel->out + r * call.dim_v;
      for (int64_t d = 0; d < call.dim_v; d += Vec::kLanes)
        store(row + d, Vec::load(row + d) * carry);
    }
  }
  for (int64_t d = 0; d < call.dim_v; d += kPairSide) {
    const BFloat16* values = room.values + d / kPairSide * room.value_block + begin * kPairSide;
    multiply_tiles<kRows>(room.weights, values, (end - begin) / kTileDepth, panel->out + d,
                          call.dim_v, panel->started);
  }
}

// One block of keys for one panel. meanwhile() is called while the tiles are at the scores.
template <int kRows, class F>
void tile_block(const AttentionCall& call, const Sequence& s, int64_t head, Range keys,
                int64_t block, const Exponent& exponent, const Dropout* dropout,
                const TileScratch& room, const F& meanwhile, TilePanel* panel) {
  const int64_t begin = (keys.begin - block) / kTileDepth * kTileDepth;
  const int64_t end = round_up(keys.end - block, kTileDepth);
  score_tiles<kRows>(call, room, *panel, begin, end);
  meanwhile();
  mask_panel(call, s, head, *panel, keys, block, begin, end, exponent, room.scores);
  for (int64_t tile = 0; tile < kRows; ++tile) {
    const auto softmax =
        exponent.folded ? dropout != nullptr ? softmax_rows<true, true> : softmax_rows<true, false>
        : dropout != nullptr ? softmax_rows<false, true>
                             : softmax_rows<false, false>;
    softmax(panel, tile * kTileSide, room.scores + tile * kTileSide * kScoreRow, block, begin, end,
            exponent, dropout, room.weights + tile * kTileSize);
  }
  add_values<kRows>(call, room, panel, begin, end);
  panel->started = true;
}

// The factor of each query's sums, left in `carry`; its lse.
inline void finish_statistics(const AttentionCall& call, const Sequence& s, int64_t head,
                              const Exponent& exponent, TilePanel* panel) {
  const int64_t count = panel->queries.end - panel->queries.begin;
  float* lse = static_cast<float*>(call.lse) + statistic_at(call, s, head, panel->queries.begin);
  const float kept = panel->dropout.on ? static_cast<float>(panel->dropout.scale) : 1.0f;
  const float unit =
      exponent.folded ? 0.693147181f : 1.0f;  // ln 2: the maximum counts in powers of two
  for (int64_t r = 0; r < count; r += Vec::kLanes) {
    const Vec sum = Vec::load(panel->sum + r), one = Vec::broadcast(1);
    const Vec::Mask dead = equal(sum, Vec::zero());
    const Vec safe = select(dead, one, sum);
    store(panel->carry + r, select(dead, Vec::zero(), Vec::broadcast(kept) / safe));
    const Vec top = Vec::load(panel->top + r) * Vec::broadcast(unit);
    store_up_to(lse + r, select(dead, off_score<Vec>(), add_log(top, safe)), count - r);
  }
}

inline void finish_tile_panel(const AttentionCall& call, const Sequence& s, int64_t head,
                              const Exponent& exponent, TilePanel* panel) {
  finish_statistics(call, s, head, exponent, panel);
  const int64_t count = panel->queries.end - panel->queries.begin;
  for (int64_t r = 0; r < count; ++r) {
    BFloat16* out = row_at<BFloat16>(call.out, s, s.query, head, panel->queries.begin + r);
    const Vec factor = Vec::broadcast(panel->carry[r]);
    const float* row = panel->out + r * call.dim_v;
    for (int64_t d = 0; d < call.dim_v; d += kPairSide) {
      const __m512i bits = panel->started ? narrow_pair(Vec::load(row + d) * factor,
                                                        Vec::load(row + d + Vec::kLanes) * factor)
                                          : _mm512_setzero_si512();
      _mm512_storeu_si512(out + d, bits);
    }
  }
}

// Within a TileScope. finish(call, sequence, head, exponent, panel) writes a panel's results.
template <class F>
inline void forward_tile_work(const AttentionCall& call, const WorkList& list, Work work,
                              const Exponent& exponent, const Dropout* dropout, Arena arena,
                              const F& finish) {
  TileScratch room = tile_scratch_of(call, &arena);
  const Sequence s = sequence_of(call, work.batch);
  const int64_t head_kv = work.head / (call.heads / call.heads_kv);
  const Range on = keys_on(call, s, work.head);
  const Range queries = queries_of(s, list, work);
  Range all = {on.end, 0};
  int64_t panels = 0;
  for (int64_t i = queries.begin; i < queries.end; i += kPairSide, ++panels) {
    TilePanel& panel = room.panels[panels];
    panel.queries = {i, min_int(queries.end, i + kPairSide)};
    begin_tile_panel(call, s, work.head, on, &panel);
    all = {min_int(all.begin, panel.keys.begin), max_int(all.end, panel.keys.end)};
  }
  for (int64_t block = all.begin / kTileKeys * kTileKeys; block < all.end; block += kTileKeys) {
    const Range keys = {max_int(block, all.begin), min_int(block + kTileKeys, all.end)};
    pack_keys(call, s, head_kv, keys, block, room);
    bool packed = false;
    const auto meanwhile = [&] {
      if (!packed) pack_values(call, s, head_kv, keys, block, room);
      packed = true;
    };
    for (int64_t i = 0; i < panels; ++i) {
      TilePanel& panel = room.panels[i];
      const Range own = {max_int(keys.begin, panel.keys.begin), min_int(keys.end, panel.keys.end)};
      if (own.begin >= own.end) continue;
      if (panel.tiles == 2) {
        tile_block<2>(call, s, work.head, own, block, exponent, dropout, room, meanwhile, &panel);
      } else {
        tile_block<1>(call, s, work.head, own, block, exponent, dropout, room, meanwhile, &panel);
      }
    }
  }
  for (int64_t i = 0; i < panels; ++i) finish(call, s, work.head, exponent, &room.panels[i]);
}

inline int64_t forward_tile_scratch(const AttentionCall& call) {
  Arena arena = {0, 0};
  tile_scratch_of(call, &arena);
  return arena.used;
}

// To wake a thread takes some microseconds, where idle ones sleep some tens of them: no more
// threads than have about ten microseconds of work.
inline int worthwhile_threads(const AttentionCall& call) {
  constexpr int64_t kScores = 1 << 13;
  const int64_t keys =
      call.packed ? ceil_div(call.length_k, max_int(1, call.batch)) : call.length_k * call.batch;
  const int64_t shares = call.heads * call.length_q * keys / kScores;
  return static_cast<int>(max_int(1, min_int(call.num_threads, shares)));
}

inline void forward_tiles(const AttentionCall& call) {
  Arena arena = {reinterpret_cast<uintptr_t>(call.scratch), 0};
  int64_t* room = arena.take<int64_t>(call.packed ? call.batch + 1 : 0);
  const WorkList list = list_work(call, call.heads, false, kTilePanels * kPairSide, room);
  const int64_t per_thread = forward_tile_scratch(call);
  const Exponent exponent = exponent_of(call);
  const bool drops = call.dropout_p > 0;
  const Dropout dropout = make_dropout(drops ? call.dropout_p : 0, call.seed, call.offset);
  const int threads = worthwhile_threads(call);
  // Some works share a configuration of tiles, which takes a tenth of the time of a short one.
  const int64_t count = list.count(), together = max_int(1, min_int(8, count / (8 * threads)));
  parallel_tiles(threads, ceil_div(count, together), [&](int64_t share, int thread) {
    const TileScope tiles;
    Arena own = arena;
    own.used += thread * per_thread;
    for (int64_t i = share * together; i < min_int(count, (share + 1) * together); ++i) {
      forward_tile_work(call, list, list[i], exponent, drops ? &dropout : nullptr, own,
                        finish_tile_panel);
    }
  });
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
