// The products of a feed-forward network in bfloat16 on AMX tiles. Both operands are packed first;
// every element is summed in one chain over K.
#pragma once

#include "common/cpu/tile_products.h"
#include "ffn/ffn.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

// What is adjacent in memory is read in whole lines.
inline bool by_rows(const FfnOperand& operand, int64_t columns) {
  return operand.column == 1 && columns % kTileDepth == 0;
}
inline bool by_columns(const FfnOperand& operand, int64_t rows) {
  return operand.row == 1 && rows % kTileDepth == 0;
}

inline bool ffn_tiles_serve(const FfnMultiplyParams& p) {
  return p.dtype == DType::kBFloat16 && p.rows > 0 && p.depth > 0 && p.columns > 0 &&
         p.columns % kPairSide == 0 && (by_rows(p.a, p.depth) || by_columns(p.a, p.rows)) &&
         (by_rows(p.b, p.columns) || by_columns(p.b, p.depth));
}

// Where the packed operands lie, and the work of packing them.
struct FfnTileProduct {
  const FfnMultiplyParams& p;
  const int64_t depth, steps;
  const TileWork work;
  LeftRows<TileKind::kPlain> left;
  BFloat16* right;
  float* carried;
  int64_t bytes;

  explicit FfnTileProduct(const FfnMultiplyParams& p)
      : p(p),
        depth(round_up(p.depth, kTileDepth)),
        steps(depth / kTileDepth),
        work(ceil_div(p.rows, kTileSide), p.columns, steps, kTileBytes, p.num_threads),
        left(nullptr, p.rows, depth) {
    char* at = static_cast<char*>(p.scratch);
    const int64_t left_bytes = LeftRows<TileKind::kPlain>::bytes(p.rows, depth);
    left.data = at;
    right = reinterpret_cast<BFloat16*>(at + left_bytes);
    bytes = left_bytes + depth * p.columns * 2;
    carried = reinterpret_cast<float*>(at + bytes);
    bytes += work.carried() * p.num_threads * static_cast<int64_t>(sizeof(float));
  }

  static const BFloat16* at(const FfnOperand& operand, int64_t row, int64_t column) {
    return static_cast<const BFloat16*>(operand.data) + row * operand.row + column * operand.column;
  }

  int64_t left_items() const { return by_rows(p.a, p.depth) ? work.groups : steps; }
  int64_t right_items() const { return by_columns(p.b, p.depth) ? work.panels : steps; }

  void pack_left_item(int64_t item) const {
    BFloat16* out = reinterpret_cast<BFloat16*>(left.data);
    const int64_t first = item * kPairSide, group = steps * 2 * kTileSize;
    if (by_rows(p.a, p.depth)) {
      const int64_t count = min_int(kPairSide, p.rows - first);
      pack_left(at(p.a, first, 0), p.a.row, 0, count, depth, ceil_div(count, kTileSide),
                out + item * group);
    } else {
      pack_left_columns(at(p.a, 0, first), p.a.column, 0, p.depth - first, p.rows, group,
                        out + item * 2 * kTileSize);
    }
  }

  void pack_right_item(int64_t item) const {
    const int64_t first = item * kPairSide, panel = steps * 2 * kTileSize;
    if (by_columns(p.b, p.depth)) {
      pack_right_columns(at(p.b, 0, first), p.b.column, 0, kPairSide, depth, right + item * panel);
    } else {
      pack_right_rows(at(p.b, first, 0), p.b.row, 0, p.depth - first, p.columns, panel,
                      right + item * 2 * kTileSize);
    }
  }

  // 32 sums of a row, with what is added to them, rounded once.
  void store_sums(int64_t row, int64_t column, const float* sums) const {
    if (row >= p.rows) return;
    Vec low = Vec::load(sums), high = Vec::load(sums + Vec::kLanes);
    BFloat16* out = static_cast<BFloat16*>(p.out) + row * p.out_row + column;
    const BFloat16* bias = static_cast<const BFloat16*>(p.bias) + column;
    if (p.bias != nullptr || p.add) {
      const BFloat16* more = p.bias != nullptr ? bias : out;
      low = low + Vec::load(more);
      high = high + Vec::load(more + Vec::kLanes);
    }
    _mm512_storeu_si512(out, narrow_pair(low, high));
  }

  void run(TeamMember member) const {
    const int64_t packs = left_items() + right_items();
    member.begin(packs);
    for (int64_t item = member.claim(); item >= 0; item = member.claim()) {
      if (item < right_items()) {
        pack_right_item(item);
      } else {
        pack_left_item(item - right_items());
      }
    }
    member.begin(work.count());
    multiply_tile_panels(
        member, work, left, reinterpret_cast<const char*>(right),
        carried + member.thread * work.carried(), [](int64_t, int64_t) {},
        [&](int64_t row, int64_t column, const float* sums)
            __attribute__((always_inline)) { store_sums(row, column, sums); });
  }
};

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
