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

// The numbers of a packed row beside its bias: the scale, and the sum of its integers.
inline float* scales_of(float* bias, int64_t rows) {
  return bias + round_up(rows, EncoderLayout::kBlock);
}
inline int32_t* integer_sums_of(float* bias, int64_t rows) {
  return reinterpret_cast<int32_t*>(bias + 2 * round_up(rows, EncoderLayout::kBlock));
}

// 32 rows as integers in [-127, 127] times a scale each.
inline void pack_int8_panel(const PackSource& source, int64_t begin, float* row, char* out) {
  const int64_t depth = source.depth();
  for (int64_t n = 0; n < kPairSide; ++n) {
    source.read_row(begin + n, row);
    Vec top = Vec::zero();
    for (int64_t k = 0; k < depth; k += Vec::kLanes) top = max(top, abs(Vec::load(row + k)));
    const float most = reduce_max(top), scale = most > 0 ? most / 127.0f : 1.0f;
    int32_t sum = 0;
    for (int64_t k = 0; k < depth; ++k) {
      const int integer = static_cast<int>(__builtin_rintf(row[k] / scale));
      const int64_t tile = k / 64 * 2 + n / kTileSide;
      const int64_t place = (k % 64 / 4 * kTileSide + n % kTileSide) * 4 + k % 4;
      out[tile * kTileBytes + place] = static_cast<char>(integer);
      sum += integer;
    }
    scales_of(source.bias, source.rows())[begin + n] = scale;
    integer_sums_of(source.bias, source.rows())[begin + n] = sum;
  }
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
