// Packing of weights for tile products.
#pragma once

#include "common/cpu/tile_products.h"
#include "encoder/pack-inl.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

// 32 rows of the matrix from `begin` on; room: three times their elements in float32.
template <TileKind kKind>
void pack_tile_panel(const PackSource& source, int64_t begin, float* room, char* out) {
  const int64_t depth = source.depth(), size = kPairSide * depth;
  BFloat16* rows = reinterpret_cast<BFloat16*>(room + size);
  BFloat16* tiles = rows + size;
  for (int64_t n = 0; n < kPairSide; ++n) source.read_row(begin + n, room + n * depth);
  for (int part = 0; part < (kKind == TileKind::kSplit ? 2 : 1); ++part) {
    for (int64_t i = 0; i < size; i += kTileDepth) {
      Vec low = Vec::load(room + i), high = Vec::load(room + i + Vec::kLanes);
      store(rows + i, low);
      store(rows + i + Vec::kLanes, high);
      store(room + i, low - Vec::load(rows + i));
      store(room + i + Vec::kLanes, high - Vec::load(rows + i + Vec::kLanes));
    }
    pack_right_columns(rows, depth, 0, kPairSide, depth, tiles);
    const int64_t count = size / kTileSize;
    for (int64_t tile = 0; tile < count; ++tile) {
      __builtin_memcpy(out + tile * operand_bytes<kKind>() + part * kTileBytes,
                       tiles + tile * kTileSize, kTileBytes);
    }
  }
}

// 32 rows as integers for kInt8 and kInt16.
inline void pack_int8_panel(const PackSource& source, int64_t begin, float* row, char* out) {
  const int64_t depth = source.depth();
  for (int64_t n = 0; n < kPairSide; ++n) {
    read_integers(source, begin + n, row);
    int32_t sum = 0;
    for (int64_t k = 0; k < depth; ++k) {
      const int integer = static_cast<int>(row[k]);
      const int64_t tile = k / 64 * 2 + n / kTileSide;
      const int64_t place = (k % 64 / 4 * kTileSide + n % kTileSide) * 4 + k % 4;
      out[tile * kTileBytes + place] = static_cast<char>(integer);
      sum += integer;
    }
    integer_sums_of(source.bias, source.rows())[begin + n] = static_cast<float>(sum);
  }
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
