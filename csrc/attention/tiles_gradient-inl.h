// The part of the backward on AMX tiles that belongs to 32 queries: their operands, and for 32 keys
// the weights and the gradients of the scores. Both lie transposed, one query a lane, as the vector
// kernels' do.
#pragma once

#include "attention/gradient-inl.h"
#include "attention/tiles_softmax-inl.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

constexpr int64_t kPairTiles = 2 * kTileSize;         // elements of an operand of 32 by 32
constexpr int64_t kPairSums = kPairSide * kPairSide;  // of a block of sums

struct TileGradientPanel {
  Range queries, keys;
  BFloat16 *query, *dout;      // right operands (D, 32), (Dv, 32)
  float* dquery;               // (D, 32), columns in the order of query_of_column
  bool started;                // dquery holds something
  float *lse, *delta, *scale;  // (32,) as in GradientPanel; scale: where weights were rounded away
  bool scaled;
  uint32_t* dropout_words;  // (2, 32)
  PanelDropout dropout;
};

// Interleaving two rows of 32 in the quarters of a vector leaves the queries in this order.
inline int64_t query_of_column(int64_t column) {
  return column % 16 / 4 * 8 + column / 16 * 4 + column % 4;
}

// delta = dout . out - dlse, by the very instructions that give dout . v: of a query with one key
// they are equal and dq is exactly 0. `left` holds 32 rows of out, `sums` a block of sums.
inline void tile_deltas(const AttentionCall& call, const TileGradientPanel& panel,
                        const BFloat16* left, float* sums) {
  finish_stores();
  _tile_zero(0);
  _tile_zero(1);
  for (int64_t at = 0; at < call.dim_v * kPairSide; at += kPairTiles) {
    _tile_loadd(4, left + at, 64);
    _tile_loadd(6, panel.dout + at, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, left + at + kTileSize, 64);
    _tile_loadd(7, panel.dout + at + kTileSize, 64);
    _tile_dpbf16ps(1, 5, 7);
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + kTileSide * kTileSide, 64);
  for (int64_t r = 0; r < kPairSide; ++r) {
    panel.delta[r] = sums[r / kTileSide * kTileSide * kTileSide + r % kTileSide * (kTileSide + 1)];
  }
}

// One block of weights and gradients on their way through softmax_gradient.
struct GradientBlock {
  const float *scores, *dweights;  // (32 keys, 32 queries)
  BFloat16 *weights, *dscores;     // left operands, (32 keys, 32 queries)
  BFloat16* dscores_right;         // right operand, in the order of query_of_column
};

// From the scores, multiplied by `by`, and dout . v the operands of the last three products.
// Weights lack the factor of dropout, which dv gets in the end.
template <bool kScaled, bool kDrop>
void softmax_gradient(const TileGradientPanel& panel, int64_t key, float by,
                      const GradientBlock& block) {
  const ShortExp2 power;
  const PanelDropout& dropout = panel.dropout;
  const Vec log2e = Vec::broadcast(static_cast<float>(kLog2EExact)), factor = Vec::broadcast(by);
  const Vec kept = Vec::broadcast(static_cast<float>(dropout.scale));
  const VecU threshold = VecU::broadcast(static_cast<uint32_t>(dropout.threshold));
  Vec lse[2], delta[2], scale[2];
  for (int half = 0; half < 2; ++half) {
    lse[half] = Vec::load(panel.lse + half * Vec::kLanes);
    delta[half] = Vec::load(panel.delta + half * Vec::kLanes);
    if constexpr (kScaled) scale[half] = Vec::load(panel.scale + half * Vec::kLanes);
  }
  LaneWords words[2];
  for (int64_t j = 0; j < kPairSide; j += 2) {
    if constexpr (kDrop) {
      for (int half = 0; half < 2 && j % 4 == 0; ++half) {
        words[half] = philox_lanes(
            static_cast<uint32_t>((key + j) / 4), VecU::load(dropout.query + half * Vec::kLanes),
            VecU::load(dropout.head + half * Vec::kLanes), dropout.offset, dropout.seed);
      }
    }
    __m512i rows[2];
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; ++odd) {
      const int64_t at = (j + odd) * kPairSide;
      Vec weight[2], dscore[2];
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const Vec score = Vec::load(block.scores + at + half * Vec::kLanes);
        weight[half] = power(Vec{_mm512_fmsub_ps(score.v, factor.v, lse[half].v)} * log2e);
        if constexpr (kScaled) weight[half] = weight[half] * scale[half];
        Vec dweight = Vec::load(block.dweights + at + half * Vec::kLanes);
        Vec::Mask keep = {};
        if constexpr (kDrop) {
          keep = greater_equal(words[half].words[(j + odd) % 4], threshold);
          dweight = select(keep, dweight * kept, Vec::zero());
        }
        dscore[half] = weight[half] * (dweight - delta[half]);
        if constexpr (kDrop) weight[half] = select(keep, weight[half], Vec::zero());
      }
      rows[odd] = narrow_pair(dscore[0], dscore[1]);
      store_bits(block.weights + at, narrow_pair(weight[0], weight[1]));
      store_bits(block.dscores + at, rows[odd]);
    }
    BFloat16* right = block.dscores_right + j / 2 * kTileDepth;
    store_bits(right, _mm512_unpacklo_epi16(rows[0], rows[1]));
    store_bits(right + kTileSize, _mm512_unpackhi_epi16(rows[0], rows[1]));
  }
}

// What turns keys off or adds to the scores of 32 keys from `key` on. Returns the factor that
// scores still lack.
inline float mask_block(const AttentionCall& call, const Sequence& s, int64_t head,
                        const TileGradientPanel& panel, int64_t key, float* scores) {
  const Range keys = {max_int(key, panel.keys.begin), min_int(key + kPairSide, panel.keys.end)};
  float factor = static_cast<float>(call.scale);
  if (call.mask.type == MaskType::kSameAsQuery || !(factor > 0)) {
    for (int64_t i = 0; i < kPairSums; i += Vec::kLanes) {
      store(scores + i, Vec::load(scores + i) * Vec::broadcast(factor));
    }
    factor = 1;
  }
  mask_scores<Vec, BFloat16>(call, s, head, panel.queries, keys,
                             scores + (keys.begin - key) * kPairSide, kPairSide);
  const float off = -__builtin_inff();
  fill<Vec>(scores, (keys.begin - key) * kPairSide, off);
  fill<Vec>(scores + (keys.end - key) * kPairSide, (key + kPairSide - keys.end) * kPairSide, off);
  return factor;
}

// rows[query, :dim] = scale * panel[:, column of the query] for the first count queries.
inline void store_queries(const float* panel, int64_t count, int64_t dim, float scale,
                          BFloat16* rows, int64_t row_stride) {
  const Vec by = Vec::broadcast(scale);
  for (int64_t first = 0; first < kPairSide; first += Vec::kLanes) {
    for (int64_t d = 0; d < dim; d += kPairSide) {
      Vec low[Vec::kLanes], high[Vec::kLanes];
      for (int64_t l = 0; l < Vec::kLanes; ++l) {
        low[l] = Vec::load(panel + (d + l) * kPairSide + first) * by;
        high[l] = Vec::load(panel + (d + Vec::kLanes + l) * kPairSide + first) * by;
      }
      transpose(low);
      transpose(high);
      for (int64_t l = 0; l < Vec::kLanes; ++l) {
        const int64_t query = query_of_column(first + l);
        if (query >= count) continue;
        _mm512_storeu_si512(rows + query * row_stride + d, narrow_pair(low[l], high[l]));
      }
    }
  }
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
