// Products of float32 rows with weights packed beforehand, in vector registers.
//
// A weight (N, K) is packed as [N / kPanelWidth][K][kPanelWidth], columns past N zero: y = x W^T
// walks each panel linearly. Weights may be bfloat16 or bytes, which are widened as they are
// loaded.
#pragma once

#include "common/cpu/simd.h"
#include "common/cpu/team.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

// Vectors of a panel and rows of a block of sums: with a panel's vectors and one of x they fill the
// registers.
constexpr int kPanelParts = Vec::kLanes == 16 ? 3 : 2;
constexpr int kPanelRows = Vec::kLanes == 16 ? 9 : 6;
constexpr int64_t kPanelWidth = kPanelParts * Vec::kLanes;
// Steps summed in one chain; longer sums are sums of those, which loses fewer bits.
constexpr int64_t kPanelChain = 256;

// Rows of packed weights or of x that one unit of work may take: they stay in the second-level
// cache.
constexpr int64_t kCachedBytes = int64_t{1} << 20;

constexpr int64_t kCacheLine = 64;  // bytes
constexpr int64_t kLineFloats = kCacheLine / sizeof(float);

// What a product brings into the second-level cache as it goes: so many lines, from `at` on, for
// every line of a row of x.
struct Soon {
  const char* at;
  int64_t lines;
};

// sums (kRows, kPanelWidth) = rows of x, x_row floats apart, times a panel. The rows that follow
// are the next call's.
template <int kRows, class W>
__attribute__((noinline)) void multiply_rows(const float* x, int64_t x_row, const W* panel,
                                             int64_t depth, float* sums, Soon soon) {
  constexpr int64_t kAhead = 48;  // steps by which the panel is fetched ahead
  for (int64_t begin = 0; begin < depth; begin += kPanelChain) {
    const int64_t end = min_int(depth, begin + kPanelChain);
    Vec sum[kRows][kPanelParts];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
      for (int v = 0; v < kPanelParts; ++v) sum[r][v] = Vec::zero();
    }
    for (int64_t line = begin; line < end; line += kLineFloats) {
      // Rows are too short for the CPU to foresee what is next.
      const int64_t next = line + 2 * kLineFloats;
      const float* ahead = x + (next < depth ? next : kRows * x_row + next - depth);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) __builtin_prefetch(ahead + r * x_row);
      for (int64_t i = 0; i < soon.lines; ++i, soon.at += kCacheLine)
        __builtin_prefetch(soon.at, 0, 2);
      const int64_t stop = min_int(end, line + kLineFloats);
      for (int64_t k = line; k < stop; ++k, panel += kPanelWidth) {
        Vec right[kPanelParts];
#pragma GCC unroll 3
        for (int v = 0; v < kPanelParts; ++v) right[v] = Vec::load(panel + v * Vec::kLanes);
#pragma GCC unroll 3
        for (int64_t b = 0; b < kPanelWidth; b += kCacheLine / sizeof(W))
          __builtin_prefetch(panel + kAhead * kPanelWidth + b);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const Vec left = Vec::broadcast(x[r * x_row + k]);
#pragma GCC unroll 3
          for (int v = 0; v < kPanelParts; ++v) sum[r][v] = fma(left, right[v], sum[r][v]);
        }
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
      for (int v = 0; v < kPanelParts; ++v) {
        float* place = sums + r * kPanelWidth + v * Vec::kLanes;
        store(place, begin > 0 ? Vec::load(place) + sum[r][v] : sum[r][v]);
      }
    }
  }
}

template <class W>
using MultiplyRows = void (*)(const float*, int64_t, const W*, int64_t, float*, Soon);

template <class W>
inline MultiplyRows<W> multiply_rows_of(int64_t rows) {
  static constexpr MultiplyRows<W> kAll[] = {
      multiply_rows<1, W>, multiply_rows<2, W>, multiply_rows<3, W>,
      multiply_rows<4, W>, multiply_rows<5, W>, multiply_rows<6, W>,
#if defined(__AVX512F__)
      multiply_rows<7, W>, multiply_rows<8, W>, multiply_rows<9, W>,
#endif
  };
  return kAll[rows - 1];
}

// How M rows are cut: groups of rows multiplied at once, as even as can be, and blocks of groups
// that stay cached while all panels pass by.
struct RowGroups {
  int64_t rows, group;

  explicit RowGroups(int64_t rows)
      : rows(rows), group(ceil_div(rows, max_int(1, ceil_div(rows, kPanelRows)))) {}
  int64_t count() const { return rows > 0 ? ceil_div(rows, group) : 0; }
  int64_t rows_of(int64_t index) const { return min_int(group, rows - index * group); }
};

// The units of work of one product: (block of groups, panel), panels innermost.
struct PanelWork {
  int64_t groups, block, panels;  // groups in all, in a block

  PanelWork(RowGroups rows, int64_t columns, int64_t depth)
      : groups(rows.count()), panels(ceil_div(columns, kPanelWidth)) {
    const int64_t bytes = rows.group * depth * static_cast<int64_t>(sizeof(float));
    const int64_t most = max_int(1, kCachedBytes / max_int(1, bytes));
    block = max_int(1, ceil_div(groups, max_int(1, ceil_div(groups, most))));
  }
  int64_t count() const { return ceil_div(groups, block) * panels; }
};

// y = x W^T: rows of x and of what the epilogue writes lie x_row and out_row floats apart.
template <class W>
struct PanelProduct {
  const float* x;
  int64_t x_row;
  const W* weight;
  int64_t depth;
  float* out;
  int64_t out_row;

  const W* panel(int64_t index) const { return weight + index * kPanelWidth * depth; }
  // While sums are made, the lines that they will be written to come into the cache.
  void fetch_out(int64_t row, int64_t count, int64_t column) const {
    for (int64_t r = row; r < row + count; ++r)
      for (int64_t c = 0; c < kPanelWidth; c += kLineFloats)
        __builtin_prefetch(out + r * out_row + column + c, 1);
  }
  // The part of panel `index` that the group-th of `groups` of rows brings for those to come. A few
  // groups would have to bring too much at once.
  Soon part(int64_t index, int64_t group, int64_t groups) const {
    if (groups < 6) return {nullptr, 0};
    const int64_t whole = kPanelWidth * static_cast<int64_t>(sizeof(W)) / 4;
    const int64_t lines = ceil_div(whole, groups);
    const int64_t bytes = ceil_div(depth, kLineFloats) * lines * kCacheLine;
    return {reinterpret_cast<const char*>(panel(index)) + group * bytes, lines};
  }
};

// One thread's share of a product. epilogue(place, column, sums) gets kPanelWidth sums of a row and
// their place in `out`.
template <class W, class E>
inline void multiply_panels(TeamMember member, RowGroups rows, const PanelWork& work,
                            const PanelProduct<W>& product, const E& epilogue) {
  alignas(64) float sums[kPanelRows * kPanelWidth];
  for (int64_t unit = member.claim(); unit >= 0; unit = member.claim()) {
    const int64_t first = unit / work.panels * work.block, panel = unit % work.panels;
    const int64_t last = min_int(work.groups, first + work.block);
    for (int64_t group = first; group < last; ++group) {
      const int64_t row = group * rows.group, count = rows.rows_of(group);
      const Soon soon = product.part((panel + 1) % work.panels, group - first, last - first);
      product.fetch_out(row, count, panel * kPanelWidth);
      multiply_rows_of<W>(count)(product.x + row * product.x_row, product.x_row,
                                 product.panel(panel), product.depth, sums, soon);
      for (int64_t r = 0; r < count; ++r) {
        epilogue(product.out + (row + r) * product.out_row + panel * kPanelWidth,
                 panel * kPanelWidth, sums + r * kPanelWidth);
      }
    }
  }
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
