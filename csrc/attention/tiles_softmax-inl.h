// Softmax of a block of scores that lie query by query, a row of keys each, as tiles leave them:
// masks, maxima, exponentials, dropout. The weights become the left operand of the next product.
#pragma once

#include "attention/dropout-inl.h"
#include "attention/mask-inl.h"
#include "attention/panel-inl.h"
#include "common/cpu/tiles.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

// Keys of a block: a sequence no longer than this needs no second look at its scores. Blocks begin
// at multiples of it, and a key that is off adds exact zeros, so a row depends neither on padding
// nor on its neighbours.
constexpr int64_t kTileKeys = 256;
// Floats from query to query, no power of two.
constexpr int64_t kScoreRow = kTileKeys + kTileSide;

// The running state of up to 32 queries.
struct TilePanel {
  Range queries, keys;
  int64_t tiles;             // of queries: 1 or 2
  bool started;              // false: out holds nothing yet
  BFloat16* query;           // room for a left operand (32, D)
  LeftTiles left;            // the queries
  float* scores;             // (32, kScoreRow), then weights in their place
  float* out;                // (32, Dv), to be divided by sum
  float *top, *sum, *carry;  // (32,): maximum, sum of exponentials, factor of the last step
  uint32_t* dropout_words;   // (2, 32)
  PanelDropout dropout;
};

// Keys and values that are packed next, asked for from memory a row at a time beside other work.
struct RowsAhead {
  struct Rows {
    const char* next;
    int64_t stride, bytes;
  } rows[2];
  int64_t left;

  void fetch() {
    if (left-- <= 0) return;
    for (Rows& of : rows) {
      for (int64_t b = 0; b < of.bytes; b += 64) __builtin_prefetch(of.next + b, 0, 2);
      of.next += of.stride;
    }
  }
};

// 2^x in fewer instructions than exp2's: a table for the first five bits behind the point, two
// powers of the rest, relative error 1.7e-7. 0 below -126, as a subnormal result would take the CPU
// a hundred times as long; NaN stays; not for x above 127.
class ShortExp2 {
 public:
  ShortExp2() : low_(_mm512_load_ps(kTable)), high_(_mm512_load_ps(kTable + 16)) {}

  Vec operator()(Vec x) const {
    // Adding this leaves the multiple of 1/32 nearest to x in the last bits.
    const __m512 magic = _mm512_set1_ps(393216.0f);
    const __m512 rounded = _mm512_add_ps(x.v, magic);
    const __m512 n = _mm512_sub_ps(rounded, magic), f = _mm512_sub_ps(x.v, n);
    const __m512 power = _mm512_permutex2var_ps(low_, _mm512_castps_si512(rounded), high_);
    const __m512 slope =
        _mm512_fmadd_ps(f, _mm512_set1_ps(0.24022852f), _mm512_set1_ps(0.6931573f));
    const __m512 y = _mm512_fmadd_ps(_mm512_mul_ps(f, power), slope, power);
    const __mmask16 alive = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
    return {_mm512_maskz_scalef_ps(alive, y, n)};  // y * 2^floor(n)
  }

 private:
  alignas(64) static constexpr float kTable[32] = {  // 2^(i / 32)
      1.0f,        1.0218972f,  1.04427373f, 1.06714046f, 1.09050775f, 1.1143868f,  1.13878858f,
      1.1637249f,  1.18920708f, 1.21524739f, 1.24185777f, 1.26905096f, 1.29683959f, 1.32523668f,
      1.35425556f, 1.38390994f, 1.41421354f, 1.44518077f, 1.47682619f, 1.50916445f, 1.54221082f,
      1.5759809f,  1.61049032f, 1.64575553f, 1.68179286f, 1.71861935f, 1.75625217f, 1.79470909f,
      1.8340081f,  1.87416768f, 1.91520655f, 1.95714414f};
  __m512 low_, high_;
};

// How scores become exponents of two. Folded: 2^(score * factor - top), one rounding. Else masks
// were added to scores already scaled, and as those may hold the least finite number, which has no
// multiple, the difference comes first: 2^((score - top) * factor).
struct Exponent {
  bool folded;
  float scale, factor;
};

inline Exponent exponent_of(const AttentionCall& call) {
  const bool additive = call.mask.type == MaskType::kSameAsQuery;
  const double folded = call.scale * kLog2EExact;
  // The largest score is the largest exponent only under a positive scale.
  const bool usual = !additive && folded > 1e-30 && folded < 1e30;
  return {usual, static_cast<float>(call.scale), static_cast<float>(usual ? folded : kLog2EExact)};
}

// Scores of keys [keys.begin, keys.end) from the block's first on, scaled unless the exponent is
// folded, and the mask.
template <class M>
void mask_rows(const AttentionCall& call, const Sequence& s, int64_t head, const TilePanel& panel,
               Range keys, int64_t block, const Exponent& exponent, float* scores) {
  const AttentionMask& m = call.mask;
  const M* mask = static_cast<const M*>(m.data) + s.batch * m.batch + head * m.head;
  const Vec scale = Vec::broadcast(exponent.folded ? 1.0f : exponent.scale);
  for (int64_t i = panel.queries.begin; i < panel.queries.end; ++i) {
    float* row = scores + (i - panel.queries.begin) * kScoreRow - block;
    for (int64_t j = keys.begin; j < keys.end; j += Vec::kLanes) {
      const int64_t filled = min_int(Vec::kLanes, keys.end - j);
      const Vec bias = load_biases<Vec>(mask + i * m.query + j * m.key, m.key, filled);
      const Vec score = Vec::load(row + j);
      if constexpr (sizeof(M) == 1) {  // a bool mask decides even where the score is NaN
        store(row + j, select(less(bias, Vec::zero()), bias, score * scale), filled);
      } else {
        store(row + j, fma(score, scale, bias), filled);
      }
    }
  }
}

inline void scale_rows(const TilePanel& panel, int64_t begin, int64_t end, float scale,
                       float* scores) {
  for (int64_t r = 0; r < panel.queries.end - panel.queries.begin; ++r) {
    float* row = scores + r * kScoreRow;
    for (int64_t j = begin; j < end; j += Vec::kLanes) {
      store(row + j, Vec::load(row + j) * Vec::broadcast(scale));
    }
  }
}

inline void fill_off(float* row, int64_t begin, int64_t end) {
  for (int64_t j = begin; j < end; j += Vec::kLanes) {
    store(row + j, off_score<Vec>(), min_int(Vec::kLanes, end - j));
  }
}

// Turns off what is not a key of the query: outside `keys`, which share tiles [begin, end) with
// others, and outside the causal band and the window.
inline void mask_ends(const Sequence& s, const TilePanel& panel, Range keys, int64_t block,
                      int64_t begin, int64_t end, float* scores) {
  const bool whole = keys.begin == block + begin && keys.end == block + end;
  if (whole && inside_band(s, panel.queries, keys)) return;
  for (int64_t i = panel.queries.begin; i < panel.queries.end; ++i) {
    float* row = scores + (i - panel.queries.begin) * kScoreRow;
    const int64_t first = max_int(keys.begin, i - s.left) - block;
    const int64_t last = min_int(keys.end, i + s.right + 1) - block;
    fill_off(row, begin, min_int(first, end));
    fill_off(row, max_int(last, begin), end);
  }
}

// All that turns keys off or adds to scores.
inline void mask_panel(const AttentionCall& call, const Sequence& s, int64_t head,
                       const TilePanel& panel, Range keys, int64_t block, int64_t begin,
                       int64_t end, const Exponent& exponent, float* scores) {
  if (call.mask.type == MaskType::kBool) {
    mask_rows<uint8_t>(call, s, head, panel, keys, block, exponent, scores);
  } else if (call.mask.type == MaskType::kSameAsQuery) {
    mask_rows<BFloat16>(call, s, head, panel, keys, block, exponent, scores);
  } else if (!exponent.folded) {
    scale_rows(panel, begin, end, exponent.scale, scores);
  }
  mask_ends(s, panel, keys, block, begin, end, scores);
}

// A row of scores as the row of weights that replaces it.
inline BFloat16* weights_of(float* scores) { return reinterpret_cast<BFloat16*>(scores); }

// Moves the maxima of 16 queries on and returns what their exponents count from.
inline Vec raise_tops(const float* scores, int64_t begin, int64_t end, const Exponent& exponent,
                      float* top, float* carry) {
  Vec rows[16];
  for (int r = 0; r < 16; ++r) rows[r] = off_score<Vec>();
  for (int64_t j = begin; j < end; j += Vec::kLanes) {
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) rows[r] = max(rows[r], Vec::load(scores + r * kScoreRow + j));
  }
  const Vec factor = Vec::broadcast(exponent.factor);
  Vec highest = reduce_rows(rows, [](Vec a, Vec b) { return max(a, b); });
  if (exponent.folded) highest = highest * factor;
  const Vec before = Vec::load(top), now = max(before, highest);
  store(top, now);
  // A query without any key so far has nothing to subtract: -inf - -inf would be NaN.
  const Vec base = select(equal(now, off_score<Vec>()), Vec::zero(), now);
  const Vec fall = before - base;
  store(carry, exp2(exponent.folded ? fall : fall * factor));
  return base;
}

// One query's scores become exponentials, rounded, after dropout, to bfloat16 in the front half of
// their row. Returns the sums (of what dropout sees) lane by lane.
template <bool kFolded, bool kDrop>
inline Vec weigh_row(float* scores, int64_t begin, int64_t end, float base, float factor,
                     const Dropout* dropout, VecU words, int64_t block) {
  const ShortExp2 power;
  const Vec by = Vec::broadcast(factor), from = Vec::broadcast(base);
  Vec sum = Vec::zero();
  BFloat16* weights = weights_of(scores);
  for (int64_t j = begin; j < end; j += kTileDepth) {
    Vec weight[2];
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const int64_t at = j + half * Vec::kLanes;
      const Vec score = Vec::load(scores + at);
      weight[half] =
          power(kFolded ? Vec{_mm512_fmsub_ps(score.v, by.v, from.v)} : (score - from) * by);
      sum = sum + weight[half];
      if constexpr (kDrop) {
        const Vec::Mask keep = dropout_keep(*dropout, words, block + at);
        weight[half] = select(keep, weight[half], Vec::zero());
      }
    }
    store_bits(weights + j, narrow_pair(weight[0], weight[1]));
  }
  return sum;
}

// 16 queries of the panel, from query `first` on.
template <bool kFolded, bool kDrop>
void softmax_rows(TilePanel* panel, int64_t first, float* scores, int64_t block, int64_t begin,
                  int64_t end, const Exponent& exponent, const Dropout* dropout, RowsAhead* ahead) {
  alignas(64) float base[16];
  store(base, raise_tops(scores, begin, end, exponent, panel->top + first, panel->carry + first));
  Vec sums[16];
  for (int r = 0; r < 16; ++r) {
    ahead->fetch();
    VecU words = {};
    if constexpr (kDrop) {
      words =
          dropout_row(*dropout, panel->dropout.query[first + r], panel->dropout.head[first + r]);
    }
    sums[r] = weigh_row<kFolded, kDrop>(scores + r * kScoreRow, begin, end, base[r],
                                        exponent.factor, dropout, words, block);
  }
  const Vec sum = reduce_rows(sums, [](Vec a, Vec b) { return a + b; });
  store(panel->sum + first,
        fma(Vec::load(panel->sum + first), Vec::load(panel->carry + first), sum));
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
