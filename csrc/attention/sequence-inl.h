// Where one sequence of the batch lies and which keys its queries may see.
#pragma once

#include "attention/attention.h"
#include "common/cpu/simd.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

constexpr int64_t kOpen = int64_t{1} << 40;  // further than any diagonal

struct Sequence {
  int64_t batch;           // index in the batch
  int64_t query, queries;  // first query and how many
  int64_t key, keys;       // first key; how many are on (key_lengths)
  int64_t all_keys;        // those and the others
  // Query i sees the keys from i - left to i + right. Both count the shift of the diagonal.
  int64_t left, right;
};

inline Sequence sequence_of(const AttentionCall& call, int64_t batch) {
  Sequence s = {batch, 0, call.length_q, 0, call.length_k, 0, kOpen, kOpen};
  if (call.packed) {
    s.query = call.starts_q[batch];
    s.queries = call.starts_q[batch + 1] - s.query;
    s.key = call.starts_k[batch];
    s.keys = call.starts_k[batch + 1] - s.key;
  }
  s.all_keys = s.keys;
  const int64_t shift = call.causal >= kCausalBottomRight ? s.keys - s.queries : 0;
  const bool causal = call.causal == kCausalTopLeft || call.causal == kCausalBottomRight;
  if (causal || call.window_right >= 0) s.right = shift + (causal ? 0 : call.window_right);
  if (call.window_left >= 0) s.left = call.window_left - shift;
  if (call.key_lengths.data != nullptr) {
    s.keys = max_int(0, min_int(s.keys, call.key_lengths[batch]));
  }
  return s;
}

// The row of position `position` of the sequence.
template <class T>
inline T* row_at(const AttentionRows& rows, const Sequence& s, int64_t start, int64_t head,
                 int64_t position) {
  return static_cast<T*>(rows.data) + s.batch * rows.batch + head * rows.head +
         (start + position) * rows.row;
}

// Place of query i in lse, dlse: (B, H, Lq) or packed (H, T).
inline int64_t statistic_at(const AttentionCall& call, const Sequence& s, int64_t head, int64_t i) {
  if (call.packed) return head * call.length_q + s.query + i;
  return (s.batch * call.heads + head) * call.length_q + i;
}

struct Range {
  int64_t begin, end;
};

// Keys that queries [begin, end) may see by the band; begins at a multiple of 4, as random words
// do.
inline Range keys_of(const Sequence& s, Range queries, Range on) {
  const int64_t begin = max_int(on.begin, queries.begin - s.left);
  const int64_t end = min_int(on.end, queries.end + s.right);
  return {max_int(begin, 0) / 4 * 4, max_int(end, 0)};
}

// Whether every one of the queries sees every one of the keys by the band.
inline bool inside_band(const Sequence& s, Range queries, Range keys) {
  return keys.end - 1 <= queries.begin + s.right && keys.begin >= queries.end - 1 - s.left;
}

// The keys of the sequence without those at either end that a mask of padding (bool, the same for
// all queries) turns off for this head: whole blocks of padding cost nothing.
inline Range keys_on(const AttentionCall& call, const Sequence& s, int64_t head) {
  Range range = {0, s.keys};
  const AttentionMask& mask = call.mask;
  if (mask.type != MaskType::kBool || mask.query != 0) return range;
  const uint8_t* on =
      static_cast<const uint8_t*>(mask.data) + s.batch * mask.batch + head * mask.head;
  while (range.end > 0 && !on[(range.end - 1) * mask.key]) --range.end;
  while (range.begin < range.end && !on[range.begin * mask.key]) ++range.begin;
  return range;
}

// One unit of parallel work: a chunk of one head of one sequence.
struct Work {
  int64_t batch, head, chunk;
};

// The work of a call whose sequences are cut into chunks of their queries or keys. Dense: all
// sequences alike. Packed: chunks_before[b] chunks (of each head) come before sequence b.
struct WorkList {
  int64_t heads, chunk, chunks, batch;
  const int64_t* chunks_before;  // (B + 1,) or null

  int64_t count() const {
    return chunks_before != nullptr ? chunks_before[batch] * heads : batch * heads * chunks;
  }
  Work operator[](int64_t index) const {
    if (chunks_before == nullptr) {
      const int64_t row = index / chunks;
      return {row / heads, row % heads, index % chunks};
    }
    int64_t low = 0, high = batch;  // the last sequence with chunks_before * heads <= index
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (chunks_before[middle] * heads <= index ? low : high) = middle;
    }
    const int64_t rest = index - chunks_before[low] * heads;
    const int64_t own = chunks_before[low + 1] - chunks_before[low];
    return {low, rest / own, rest % own};
  }
};

// By queries or by keys; `room` holds batch + 1 integers if the call is packed. A sequence without
// keys is one chunk too: its dq is to be written.
inline WorkList list_work(const AttentionCall& call, int64_t heads, bool by_keys, int64_t chunk,
                          int64_t* room) {
  const int64_t least = by_keys ? 1 : 0;
  const int64_t length = by_keys ? call.length_k : call.length_q;
  WorkList list = {heads, chunk, max_int(least, ceil_div(length, chunk)), call.batch, nullptr};
  if (!call.packed) return list;
  const IndexArray& starts = by_keys ? call.starts_k : call.starts_q;
  room[0] = 0;
  for (int64_t b = 0; b < call.batch; ++b) {
    room[b + 1] = room[b] + max_int(least, ceil_div(starts[b + 1] - starts[b], chunk));
  }
  list.chunks_before = room;
  return list;
}

// The queries of one unit of work, the last ones first: with a causal mask they take longest.
inline Range queries_of(const Sequence& s, const WorkList& list, Work work) {
  const int64_t chunk = ceil_div(s.queries, list.chunk) - 1 - work.chunk;
  return {chunk * list.chunk, min_int(s.queries, (chunk + 1) * list.chunk)};
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
