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

// The scores of all panels with so many keys stay in a fair part of the second cache.
constexpr int64_t kFewKeys = 128;

struct TileScratch {
  TilePanel panels[kTilePanels];
  BFloat16 *keys, *values;  // right operands: (D, keys) and (keys, Dv)
  int64_t value_block;      // elements of 32 columns of values
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
  for (int64_t i = 0; i < panels; ++i) {
    TilePanel& panel = room.panels[i];
    panel.query = arena->take<BFloat16>(queries * call.dim);
    panel.scores = arena->take<float>(queries * kScoreRow);
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

// One panel at one block of keys: `keys` among its tiles [begin, end), counted from the block's
// first key.
struct TileBlock {
  Range keys;
  int64_t begin, end;
};

inline TileBlock keys_in_block(const TilePanel& panel, Range keys, int64_t block) {
  const Range own = {max_int(keys.begin, panel.keys.begin), min_int(keys.end, panel.keys.end)};
  if (own.begin >= own.end) return {own, 0, 0};
  return {own, (own.begin - block) / kTileDepth * kTileDepth,
          round_up(own.end - block, kTileDepth)};
}

template <int kRows>
inline void score_tiles(const AttentionCall& call, const TileScratch& room, const TilePanel& panel,
                        const TileBlock& at) {
  for (int64_t n = at.begin; n < at.end; n += kPairSide) {
    multiply_tiles<kRows>(panel.left, room.keys + n * call.dim, call.dim / kTileDepth,
                          panel.scores + n, kScoreRow, false);
  }
}

template <int kRows>
inline void add_values(const AttentionCall& call, const TileScratch& room, const TileBlock& at,
                       TilePanel* panel) {
  if (panel->started) {
    for (int64_t r = 0; r < kRows * kTileSide; ++r) {
      const Vec carry = Vec::broadcast(panel->carry[r]);
      float* row = panel->out + r * call.dim_v;
      for (int64_t d = 0; d < call.dim_v; d += Vec::kLanes)
        store(row + d, Vec::load(row + d) * carry);
    }
  }
  constexpr int64_t kWeightRow = kScoreRow * (sizeof(float) / sizeof(BFloat16));
  const LeftTiles weights = {weights_of(panel->scores) + at.begin, kTileSide * kWeightRow,
                             kTileDepth, kWeightRow * int64_t{sizeof(BFloat16)}};
  for (int64_t d = 0; d < call.dim_v; d += kPairSide) {
    const BFloat16* values = room.values + d / kPairSide * room.value_block + at.begin * kPairSide;
    multiply_tiles<kRows>(weights, values, (at.end - at.begin) / kTileDepth, panel->out + d,
                          call.dim_v, panel->started);
  }
  panel->started = true;
}

inline void weigh_panel(const AttentionCall& call, const Sequence& s, int64_t head, int64_t block,
                        const TileBlock& at, const Exponent& exponent, const Dropout* dropout,
                        RowsAhead* ahead, TilePanel* panel) {
  mask_panel(call, s, head, *panel, at.keys, block, at.begin, at.end, exponent, panel->scores);
  const auto softmax =
      exponent.folded ? dropout != nullptr ? softmax_rows<true, true> : softmax_rows<true, false>
      : dropout != nullptr ? softmax_rows<false, true>
                           : softmax_rows<false, false>;
  for (int64_t tile = 0; tile < panel->tiles; ++tile) {
    softmax(panel, tile * kTileSide, panel->scores + tile * kTileSide * kScoreRow, block, at.begin,
            at.end, exponent, dropout, ahead);
  }
}

// Panels at one block of keys, step by step: the unit of tiles takes hundreds of cycles to wake
// once it has idled for a thousand, and while it is awake vectors of 512 bits go at half the speed,
// so the two neither take turns often nor work side by side. meanwhile() is called behind the
// scores.
template <class F>
void meet_keys(const AttentionCall& call, const Sequence& s, int64_t head, Range keys,
               int64_t block, TilePanel* begin, TilePanel* end, const Exponent& exponent,
               const Dropout* dropout, const TileScratch& room, const F& meanwhile,
               RowsAhead* ahead) {
  const auto each = [&](const auto& step) {
    for (TilePanel* panel = begin; panel < end; ++panel) {
      const TileBlock at = keys_in_block(*panel, keys, block);
      if (at.begin < at.end) step(panel, at);
    }
  };
  each([&](TilePanel* panel, const TileBlock& at) {
    panel->tiles == 2 ? score_tiles<2>(call, room, *panel, at)
                      : score_tiles<1>(call, room, *panel, at);
  });
  meanwhile();
  each([&](TilePanel* panel, const TileBlock& at) {
    weigh_panel(call, s, head, block, at, exponent, dropout, ahead, panel);
  });
  each([&](TilePanel* panel, const TileBlock& at) {
    panel->tiles == 2 ? add_values<2>(call, room, at, panel) : add_values<1>(call, room, at, panel);
  });
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

// What the next work packs first, if it is of other keys. Not beside a single panel, whose time it
// would take a tenth of.
inline RowsAhead rows_ahead(const AttentionCall& call, const Work& now, int64_t panels,
                            const Work* next) {
  if (next == nullptr || panels < 2) return {};
  const int64_t group = call.heads / call.heads_kv, head = next->head / group;
  if (next->batch == now.batch && head == now.head / group) return {};
  const Sequence s = sequence_of(call, next->batch);
  const auto rows = [&](const AttentionRows& of, int64_t dim) -> RowsAhead::Rows {
    constexpr int64_t kSize = sizeof(BFloat16);
    return {reinterpret_cast<const char*>(row_at<const BFloat16>(of, s, s.key, head, 0)),
            of.row * kSize, dim * kSize};
  };
  return {{rows(call.k, call.dim), rows(call.v, call.dim_v)}, min_int(s.keys, kTileKeys)};
}

// Within a TileScope. finish(call, sequence, head, exponent, panel) writes a panel's results. next:
// the work that follows, or null.
template <class F>
inline void forward_tile_work(const AttentionCall& call, const WorkList& list, Work work,
                              const Exponent& exponent, const Dropout* dropout, Arena arena,
                              const Work* next, const F& finish) {
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
  RowsAhead ahead = rows_ahead(call, work, panels, next);
  for (int64_t block = all.begin / kTileKeys * kTileKeys; block < all.end; block += kTileKeys) {
    const Range keys = {max_int(block, all.begin), min_int(block + kTileKeys, all.end)};
    pack_keys(call, s, head_kv, keys, block, room);
    bool packed = false;
    const auto meanwhile = [&] {
      if (!packed) pack_values(call, s, head_kv, keys, block, room);
      packed = true;
    };
    const int64_t step = keys.end - keys.begin > kFewKeys ? 1 : panels;
    for (int64_t i = 0; i < panels; i += step) {
      TilePanel* first = room.panels + i;
      meet_keys(call, s, work.head, keys, block, first, first + step, exponent, dropout, room,
                meanwhile, &ahead);
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
      const Work next = list[min_int(i + 1, count - 1)];
      forward_tile_work(call, list, list[i], exponent, drops ? &dropout : nullptr, own, &next,
                        finish_tile_panel);
    }
  });
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
