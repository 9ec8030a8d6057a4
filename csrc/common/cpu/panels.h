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

// Groups of rows that take K in pieces, and how long those are: a panel's stay in the first-level
// cache.
constexpr int64_t kFewGroups = 5;
constexpr int64_t kPieceSteps = kPanelParts == 3 ? 64 : 128;

// Rows of packed weights or of x that one unit of work may take: they stay in the second-level
// cache.
constexpr int64_t kCachedBytes = int64_t{1} << 20;

constexpr int64_t kCacheLine = 64;  // bytes
constexpr int64_t kLineFloats = kCacheLine / sizeof(float);

template <class W>
constexpr int64_t kStepLines = ceil_div(kPanelWidth * static_cast<int64_t>(sizeof(W)), kCacheLine);

// What is fetched ahead while a panel passes by: at every step as many lines as a step has, from
// `near` on and near_apart bytes apart; `near` moves by near_step bytes. At every line of a row of
// x so many lines, from `far` on, that go to the second-level cache.
struct Ahead {
  const char* near;
  int64_t near_step, near_apart;
  const char* far;
  int64_t far_lines;
};

// The steps [begin, end) of K of a product of some rows with a panel. sums: what is complete, in
// whole chains; chain: that of the steps before begin, if begin lies inside of one.
template <class W>
struct RowsTimesPanel {
  const float* x;
  int64_t x_row;  // floats from row to row; the rows that follow are the next call's
  const W* panel;
  int64_t begin, end, depth;
  float *sums, *chain;  // (rows, kPanelWidth)
};

template <int kRows>
struct PanelSums {
  Vec sum[kRows][kPanelParts];

  template <class F>
  __attribute__((always_inline)) void each(const F& f) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
      for (int v = 0; v < kPanelParts; ++v) f(sum[r][v], r * kPanelWidth + v * Vec::kLanes);
    }
  }
};

template <int kRows, class W>
__attribute__((noinline)) void multiply_rows(const RowsTimesPanel<W>& p, Ahead ahead) {
  const float* x = p.x;
  const int64_t x_row = p.x_row;
  const W* panel = p.panel + p.begin * kPanelWidth;
  for (int64_t begin = p.begin; begin < p.end;) {
    const int64_t chain = begin / kPanelChain * kPanelChain;
    const int64_t end = min_int(p.end, chain + kPanelChain);
    PanelSums<kRows> s;
    s.each([&](Vec& sum, int64_t) { sum = Vec::zero(); });
    if (begin > chain) s.each([&](Vec& sum, int64_t at) { sum = Vec::load(p.chain + at); });
    for (int64_t line = begin; line < end; line += kLineFloats) {
      // Rows are too short for the CPU to foresee what is next.
      const int64_t next = line + 2 * kLineFloats;
      const float* next_x = x + (next < p.end ? next : kRows * x_row + next - p.end + p.begin);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) __builtin_prefetch(next_x + r * x_row);
      for (int64_t i = 0; i < ahead.far_lines; ++i, ahead.far += kCacheLine)
        __builtin_prefetch(ahead.far, 0, 2);
      const int64_t stop = min_int(end, line + kLineFloats);
      for (int64_t k = line; k < stop; ++k, panel += kPanelWidth, ahead.near += ahead.near_step) {
        Vec right[kPanelParts];
#pragma GCC unroll 3
        for (int v = 0; v < kPanelParts; ++v) right[v] = Vec::load(panel + v * Vec::kLanes);
#pragma GCC unroll 3
        for (int64_t i = 0; i < kStepLines<W>; ++i)
          __builtin_prefetch(ahead.near + i * ahead.near_apart);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const Vec left = Vec::broadcast(x[r * x_row + k]);
#pragma GCC unroll 3
          for (int v = 0; v < kPanelParts; ++v) s.sum[r][v] = fma(left, right[v], s.sum[r][v]);
        }
      }
    }
    if (end < p.depth && end < chain + kPanelChain) {
      s.each([&](Vec& sum, int64_t at) { store(p.chain + at, sum); });
    } else if (chain > 0) {
      s.each([&](Vec& sum, int64_t at) { store(p.sums + at, Vec::load(p.sums + at) + sum); });
    } else {
      s.each([&](Vec& sum, int64_t at) { store(p.sums + at, sum); });
    }
    begin = end;
  }
}

template <class W>
using MultiplyRows = void (*)(const RowsTimesPanel<W>&, Ahead);

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
};

// A unit of work of a thread: some groups of rows times one panel.
template <class W>
struct PanelUnit {
  const PanelProduct<W>& product;
  const PanelWork& work;
  RowGroups rows;
  int64_t first, count, panel;  // groups
  float *sums, *chains;

  static constexpr int64_t kStepBytes = kPanelWidth * static_cast<int64_t>(sizeof(W));

  void multiply(int64_t group, int64_t begin, int64_t end, int64_t place, Ahead ahead) const {
    const int64_t row = group * rows.group;
    float* s = sums + place * rows.group * kPanelWidth;
    float* chain = chains + place * rows.group * kPanelWidth;
    multiply_rows_of<W>(rows.rows_of(group))(
        {product.x + row * product.x_row, product.x_row, product.panel(panel), begin, end,
         product.depth, s, chain},
        ahead);
  }

  template <class E>
  void finish(int64_t group, int64_t place, const E& epilogue) const {
    const int64_t row = group * rows.group, column = panel * kPanelWidth;
    const float* s = sums + place * rows.group * kPanelWidth;
    for (int64_t r = 0; r < rows.rows_of(group); ++r)
      epilogue(product.out + (row + r) * product.out_row + column, column, s + r * kPanelWidth);
  }

  // One group after the other; each fetches a part of the next panel for those to come.
  template <class E>
  void by_groups(const E& epilogue) const {
    constexpr int64_t kSteps = 48;  // by which the panel is fetched ahead of its use
    const int64_t lines = ceil_div(kStepBytes / 4, count);
    const int64_t part = ceil_div(product.depth, kLineFloats) * lines * kCacheLine;
    const char* near = reinterpret_cast<const char*>(product.panel(panel)) + kSteps * kStepBytes;
    const char* far = reinterpret_cast<const char*>(product.panel((panel + 1) % work.panels));
    for (int64_t i = 0; i < count; ++i, far += part) {
      product.fetch_out((first + i) * rows.group, rows.rows_of(first + i), panel * kPanelWidth);
      multiply(first + i, 0, product.depth, 0, {near, kStepBytes, kCacheLine, far, lines});
      finish(first + i, 0, epilogue);
    }
  }

  // All groups of rows, a few, take a piece of K before the next, which they fetch meanwhile: the
  // weights come from memory in one even stream. A single group follows the CPU's own fetching,
  // which is faster, as closely as it can.
  template <class E>
  void by_pieces(const E& epilogue) const {
    constexpr int64_t kSteps = 8, kApart = kPieceSteps * kStepBytes / kStepLines<W>;
    const int64_t apart = count == 1 ? kCacheLine : kApart;
    const int64_t step = count == 1 ? kStepBytes : ceil_div(kApart, kPieceSteps * count);
    for (int64_t begin = 0; begin < product.depth; begin += kPieceSteps) {
      const int64_t end = min_int(product.depth, begin + kPieceSteps);
      const int64_t next = count == 1 ? begin + kSteps : end;
      const char* near = reinterpret_cast<const char*>(product.panel(panel) + next * kPanelWidth);
      for (int64_t i = 0; i < count; ++i, near += kPieceSteps * step)
        multiply(first + i, begin, end, i, {near, step, apart, nullptr, 0});
    }
    for (int64_t i = 0; i < count; ++i) finish(first + i, i, epilogue);
  }
};

// One thread's share of a product. epilogue(place, column, sums) gets kPanelWidth sums of a row and
// their place in `out`.
template <class W, class E>
inline void multiply_panels(TeamMember member, RowGroups rows, const PanelWork& work,
                            const PanelProduct<W>& product, const E& epilogue) {
  alignas(64) float sums[kFewGroups * kPanelRows * kPanelWidth];
  alignas(64) float chains[kFewGroups * kPanelRows * kPanelWidth];
  for (int64_t index = member.claim(); index >= 0; index = member.claim()) {
    const int64_t first = index / work.panels * work.block;
    const int64_t count = min_int(work.groups - first, work.block);
    const PanelUnit<W> unit = {product, work,  rows, first, count, index % work.panels,
                               sums,    chains};
    if (count > kFewGroups) {
      unit.by_groups(epilogue);
    } else {
      unit.by_pieces(epilogue);
    }
  }
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
