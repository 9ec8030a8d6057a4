// Dropout of a block of weights (transposed: key by key, one query a lane). The words of key j and
// query i are a function of (seed, offset, b * H + h, i, j) alone, so the backward draws them
// again.
#pragma once

#include "attention/sequence-inl.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

// The dropout of one panel of queries: counter words 1 and 2 of each lane.
struct PanelDropout {
  bool on;
  uint64_t seed, threshold;
  uint32_t offset;
  double scale;  // 1 / (1 - p), 0 when p = 1
  const uint32_t *query, *head;
};

// `room` holds 2 * width words.
inline PanelDropout panel_dropout(const AttentionCall& call, const Sequence& s, int64_t head,
                                  Range queries, int64_t width, uint32_t* room) {
  PanelDropout d = {};
  d.on = call.dropout_p > 0;
  if (!d.on) return d;
  d.seed = static_cast<uint64_t>(call.seed);
  d.offset = static_cast<uint32_t>(call.offset);
  d.threshold = dropout_threshold(call.dropout_p);
  d.scale = call.dropout_p < 1 ? 1 / (1 - call.dropout_p) : 0;
  d.query = room;
  d.head = room + width;
  const int64_t first = call.packed ? s.query : s.batch * call.length_q;
  for (int64_t lane = 0; lane < width; ++lane) {
    const int64_t i = min_int(queries.begin + lane, queries.end - 1);
    int64_t place = s.batch << 32 | i;
    if (call.rows != nullptr) place = call.rows[first + i];
    room[lane] = static_cast<uint32_t>(place);
    room[width + lane] = static_cast<uint32_t>((place >> 32) * call.heads + head);
  }
  return d;
}

// weights[j, lane] = kept ? weights * scale : 0 for `count` keys from `key`, a multiple of 4, on.
inline void drop_weights(const PanelDropout& d, int64_t key, int64_t count, int64_t width,
                         float* weights) {
  const VecU threshold = VecU::broadcast(static_cast<uint32_t>(d.threshold));
  const Vec scale = Vec::broadcast(static_cast<float>(d.scale));
  for (int64_t lane = 0; lane < width; lane += Vec::kLanes) {
    const VecU query = VecU::load(d.query + lane), head = VecU::load(d.head + lane);
    for (int64_t j = 0; j < count; j += 4) {
      const uint32_t quad = static_cast<uint32_t>((key + j) / 4);
      const LaneWords words = philox_lanes(quad, query, head, d.offset, d.seed);
      const int64_t filled = min_int(4, count - j);
      for (int64_t w = 0; w < filled; ++w) {
        float* row = weights + (j + w) * width + lane;
        // At p = 1 the threshold does not fit 32 bits, but the scale is 0.
        const Vec kept = Vec::load(row) * scale;
        store(row, select(greater_equal(words.words[w], threshold), kept, Vec::zero()));
      }
    }
  }
}

inline void drop_weights(const PanelDropout& d, int64_t key, int64_t count, int64_t width,
                         double* weights) {
  const uint32_t key0 = static_cast<uint32_t>(d.seed), key1 = static_cast<uint32_t>(d.seed >> 32);
  for (int64_t j = 0; j < count; j += 4) {
    const uint32_t quad = static_cast<uint32_t>((key + j) / 4);
    const int64_t filled = min_int(4, count - j);
    for (int64_t lane = 0; lane < width; ++lane) {
      const PhiloxWords words =
          bigkernels::philox({{quad, d.query[lane], d.head[lane], d.offset}}, key0, key1);
      for (int64_t w = 0; w < filled; ++w) {
        double* weight = weights + (j + w) * width + lane;
        *weight = words.word[w] >= d.threshold ? *weight * d.scale : 0;
      }
    }
  }
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
