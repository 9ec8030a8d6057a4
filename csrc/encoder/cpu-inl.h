// The CPU kernels of the encoder for the instruction set of the including translation unit.
#pragma once

#include "encoder/pack-inl.h"
#include "encoder/vectors-inl.h"
#if defined(__AMX_BF16__)
#include "encoder/tiles-inl.h"
#endif

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

// How the products of an encoder are made.
enum class EncoderPath {
  kNone,
  kFloat32,
  kBFloat16,
  kIntegers,
  kTiles,
  kSplitTiles,
  kInt8Tiles,
  kInt16Tiles
};

inline EncoderPath path_of(const EncoderShape& shape) {
  const bool narrow = shape.precision == EncoderPrecision::kBFloat16;
  const bool split = shape.precision == EncoderPrecision::kHigh;
  const bool integers = shape.precision == EncoderPrecision::kInt8Weights;
#if defined(__AMX_BF16__)
  if (tiles_serve(shape, kTileDepth) && (narrow || split)) {
    return narrow ? EncoderPath::kTiles : EncoderPath::kSplitTiles;
  }
  const bool whole = tiles_serve(shape, 2 * kTileDepth);
  if (integers && whole) return EncoderPath::kInt16Tiles;
  if (shape.precision == EncoderPrecision::kInt8) {
    return whole ? EncoderPath::kInt8Tiles : EncoderPath::kNone;
  }
#endif
  if (narrow) return EncoderPath::kBFloat16;
  if (integers) return EncoderPath::kIntegers;
  const bool plain = shape.precision == EncoderPrecision::kFloat32;
  return plain || split ? EncoderPath::kFloat32 : EncoderPath::kNone;
}

bool encoder_serves(const EncoderShape& shape) { return path_of(shape) != EncoderPath::kNone; }

template <class W>
void pack_for_vectors(const EncoderPackParams& params, const EncoderLayout& layout) {
  for_each_panel(params, layout, kPanelWidth,
                 [](const PackSource& source, int64_t n, char* out, float* room) {
                   W* panel = reinterpret_cast<W*>(out) + n * source.depth();
                   pack_vector_panel(source, n, room, panel);
                 });
}

#if defined(__AMX_BF16__)
template <TileKind kKind>
void pack_for_tiles(const EncoderPackParams& params, const EncoderLayout& layout) {
  for_each_panel(params, layout, kPairSide,
                 [](const PackSource& source, int64_t n, char* out, float* room) {
                   const int64_t tiles = n / kTileSide * (source.depth() / kTileDepth);
                   pack_tile_panel<kKind>(source, n, room, out + tiles * operand_bytes<kKind>());
                 });
}

void pack_for_int8_tiles(const EncoderPackParams& params, const EncoderLayout& layout) {
  for_each_panel(
      params, layout, kPairSide, [](const PackSource& source, int64_t n, char* out, float* room) {
        if (source.product == kOut) {
          const int64_t tiles = n / kTileSide * (source.depth() / kTileDepth);
          return pack_tile_panel<TileKind::kPlain>(source, n, room, out + tiles * kTileBytes);
        }
        pack_int8_panel(source, n, room, out + n * source.depth());
      });
}
#endif

void encoder_pack(const EncoderPackParams& params) {
  const EncoderLayout layout(params.shape);
  for (int64_t i = 0; i < params.shape.layers; ++i) pack_rows(params, layout, i);
  switch (path_of(params.shape)) {
#if defined(__AMX_BF16__)
    case EncoderPath::kTiles:
      return pack_for_tiles<TileKind::kPlain>(params, layout);
    case EncoderPath::kSplitTiles:
      return pack_for_tiles<TileKind::kSplit>(params, layout);
    case EncoderPath::kInt8Tiles:
    case EncoderPath::kInt16Tiles:
      return pack_for_int8_tiles(params, layout);
#endif
    case EncoderPath::kBFloat16:
      return pack_for_vectors<BFloat16>(params, layout);
    case EncoderPath::kIntegers:
      return pack_for_vectors<int8_t>(params, layout);
    default:
      return pack_for_vectors<float>(params, layout);
  }
}

int64_t encoder_workspace(const EncoderForwardParams& params) {
  switch (path_of(params.shape)) {
#if defined(__AMX_BF16__)
    case EncoderPath::kTiles:
      return TileEncoder<TileKind::kPlain>(params).bytes;
    case EncoderPath::kSplitTiles:
      return TileEncoder<TileKind::kSplit>(params).bytes;
    case EncoderPath::kInt8Tiles:
      return TileEncoder<TileKind::kInt8>(params).bytes;
    case EncoderPath::kInt16Tiles:
      return TileEncoder<TileKind::kInt16>(params).bytes;
#endif
    default:
      return VectorEncoder<float>(params).bytes;
  }
}

void encoder_forward(const EncoderForwardParams& params) {
  switch (path_of(params.shape)) {
#if defined(__AMX_BF16__)
    case EncoderPath::kTiles:
      return forward_tiles<TileKind::kPlain>(params);
    case EncoderPath::kSplitTiles:
      return forward_tiles<TileKind::kSplit>(params);
    case EncoderPath::kInt8Tiles:
      return forward_tiles<TileKind::kInt8>(params);
    case EncoderPath::kInt16Tiles:
      return forward_tiles<TileKind::kInt16>(params);
#endif
    case EncoderPath::kBFloat16:
      return forward_vectors<BFloat16>(params);
    case EncoderPath::kIntegers:
      return forward_vectors<int8_t>(params);
    default:
      return forward_vectors<float>(params);
  }
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
