// 8x8 tiles between shared memory and registers (ldmatrix, stmatrix, movmatrix), and mma.sync.
//
// Lane l holds of an 8x8 tile of 16-bit elements row l / 4, columns 2 * (l % 4) and one more. The
// fragments of mma.m16n8kK are made of such tiles; those of tf32 have one 32-bit element there.
#include "block.h"
#include "decoder.h"
#include "memory.h"
#include "sums.h"

namespace emulator {
namespace {

using Tile = uint16_t[8][8];

bool whole_warp(Block& block, Warp& warp, const Instruction& i, uint32_t mask) {
  if (mask == kAllLanes) return true;
  block.report(i,
               format("divergence: lanes %08x of warp %u run a matrix instruction", mask, warp.id));
  return false;
}

uint32_t element_pair(const Tile& tile, int lane, bool transposed) {
  const int r = lane / 4, c = 2 * (lane % 4);
  const uint32_t low = transposed ? tile[c][r] : tile[r][c];
  const uint32_t high = transposed ? tile[c + 1][r] : tile[r][c + 1];
  return low | high << 16;
}

void set_element_pair(Tile& tile, int lane, bool transposed, uint32_t value) {
  const int r = lane / 4, c = 2 * (lane % 4);
  (transposed ? tile[c][r] : tile[r][c]) = static_cast<uint16_t>(value);
  (transposed ? tile[c + 1][r] : tile[r][c + 1]) = static_cast<uint16_t>(value >> 16);
}

// The 8 rows of tile k are named by lanes 8 * k and following.
template <bool kLoads>
void move_tiles(Block& block, Warp& warp, const Instruction& i, uint32_t mask) {
  if (!whole_warp(block, warp, i, mask)) return;
  uint64_t address[kLanes];
  uint8_t* host[kLanes] = {};
  lane_addresses(warp, i.a, mask, address);
  const bool transposed = i.mode != 0;
  for (int k = 0; k < i.count; ++k) {
    Tile tile = {};
    uint8_t fresh[kLanes * 16] = {};
    if (!kLoads) {
      const uint32_t* source = row<uint32_t>(warp, i.vector[static_cast<size_t>(k)]);
      for (int lane = 0; lane < kLanes; ++lane)
        set_element_pair(tile, lane, transposed, source[lane]);
      std::memcpy(fresh + 128 * k, tile, sizeof tile);
    }
    block.locate(warp, i, i.space, address, 0xffu << (8 * k), 16,
                 kLoads ? Access::kRead : Access::kWrite, kLoads ? nullptr : fresh, host);
    if (!kLoads) continue;  // locate() has stored it
    for (int r = 0; r < 8; ++r) {
      if (host[8 * k + r] != nullptr) std::memcpy(tile[r], host[8 * k + r], 16);
    }
    uint32_t* d = row<uint32_t>(warp, i.vector[static_cast<size_t>(k)]);
    for (int lane = 0; lane < kLanes; ++lane) d[lane] = element_pair(tile, lane, transposed);
  }
}

void transpose(Block& block, Warp& warp, const Instruction& i, uint32_t mask) {
  if (!whole_warp(block, warp, i, mask)) return;
  Tile tile;
  const uint32_t* a = row<uint32_t>(warp, i.a);
  for (int lane = 0; lane < kLanes; ++lane) set_element_pair(tile, lane, false, a[lane]);
  uint32_t* d = row<uint32_t>(warp, i.d);
  for (int lane = 0; lane < kLanes; ++lane) d[lane] = element_pair(tile, lane, true);
}

// Operand `i.vector`: registers of d, a, b, c in this order, `i.option` the depth K.
template <Type::Kind kKind>
void read_fragments(Warp& warp, const Instruction& i, size_t accumulators, Left& a, Right<8>& b) {
  constexpr bool kSingle = kKind == Type::kTf32;  // tf32: one element a register
  constexpr int kPer = kSingle ? 1 : 2, kChunk = kSingle ? 4 : 8;
  const size_t a_count = static_cast<size_t>(2 * i.option / kChunk), b_count = a_count / 2;
  const Operand* registers = &i.vector[accumulators];
  for (size_t k = 0; k < a_count; ++k) {
    const uint32_t* bits = row<uint32_t>(warp, registers[k]);
    const int first = kChunk * static_cast<int>(k / 2), half = static_cast<int>(k % 2);
    for (int v = 0; v < kLanes; v += 8) {
      const __m256i eight = _mm256_load_si256(reinterpret_cast<const __m256i*>(bits + v));
      // Lanes 4 r ... 4 r + 3 hold row r: each of them in turn, for all four.
      const __m256i of[] = {_mm256_shuffle_epi32(eight, 0x00), _mm256_shuffle_epi32(eight, 0x55),
                            _mm256_shuffle_epi32(eight, 0xaa), _mm256_shuffle_epi32(eight, 0xff)};
      for (int at = 0; at < 4; ++at) {
        for (int h = 0; h < kPer; ++h) {
          _mm256_store_ps(&a.of[first + at * kPer + h][half][v], widen_part<kKind>(of[at], h));
        }
      }
    }
  }
  // Even columns first: see Right.
  const __m256i lanes = _mm256_setr_epi32(0, 8, 16, 24, 4, 12, 20, 28);
  for (size_t k = 0; k < b_count; ++k) {
    const int* bits = row<int>(warp, registers[a_count + k]);
    for (int at = 0; at < 4; ++at) {
      const __m256i columns = _mm256_i32gather_epi32(bits + at, lanes, 4);
      for (int h = 0; h < kPer; ++h) {
        const int depth = kChunk * static_cast<int>(k) + at * kPer + h;
        _mm256_store_ps(b.of[depth], widen_part<kKind>(columns, h));
      }
    }
  }
}

void multiply(Block& block, Warp& warp, const Instruction& i, uint32_t mask) {
  if (!whole_warp(block, warp, i, mask)) return;
  const size_t accumulators = i.type.bits == 32 ? 4 : 2;
  Left a;
  Right<8> b;
  const auto read = i.source_type.kind == Type::kTf32     ? &read_fragments<Type::kTf32>
                    : i.source_type.kind == Type::kBFloat ? &read_fragments<Type::kBFloat>
                                                          : &read_fragments<Type::kFloat>;
  read(warp, i, accumulators, a, b);
  uint32_t sums[4][kLanes];
  const Operand* c = &i.vector[i.vector.size() - accumulators];
  for (size_t k = 0; k < accumulators; ++k) {
    const uint32_t* before = row<uint32_t>(warp, c[k]);
    for (int lane = 0; lane < kLanes; ++lane) {
      if (accumulators == 4) {
        sums[k][lane] = before[lane];
      } else {
        sums[2 * k][lane] = to_bits(half_to_float(static_cast<uint16_t>(before[lane])));
        sums[2 * k + 1][lane] = to_bits(half_to_float(static_cast<uint16_t>(before[lane] >> 16)));
      }
    }
  }
  add_products(a, b, 0, 0, i.option, {sums[0], sums[1]}, {sums[0], sums[1]});
  add_products(a, b, 1, 0, i.option, {sums[2], sums[3]}, {sums[2], sums[3]});
  for (size_t k = 0; k < accumulators; ++k) {
    uint32_t* d = row<uint32_t>(warp, i.vector[k]);
    for (int lane = 0; lane < kLanes; ++lane) {
      const size_t even = 2 * k, odd = even + 1;
      d[lane] = accumulators == 4
                    ? sums[k][lane]
                    : float_to_half(to_float(sums[even][lane])) |
                          static_cast<uint32_t>(float_to_half(to_float(sums[odd][lane]))) << 16;
    }
  }
}

bool decode_mma(Decoder& decoder) {
  Instruction& out = decoder.out;
  decoder.allow({"sync", "aligned", "m16n8k16", "m16n8k8", "m16n8k4", "row", "col"});
  const int shape = decoder.which({"m16n8k16", "m16n8k8", "m16n8k4"});
  if (shape < 0) decoder.unsupported("shape");
  out.option = 16 >> shape;
  out.source_type = decoder.type(1);
  const Type source = out.source_type;
  const bool known =
      source == decoder.type(2) && out.type == decoder.type(3) &&
      (source.kind == Type::kTf32 ? out.option <= 8
                                  : source.is_float() && source.bits == 16 && out.option >= 8);
  if (!known || out.type.kind != Type::kFloat || decoder.has("row") == false) {
    decoder.unsupported("operand types");
  }
  const size_t accumulators = out.type.bits == 32 ? 4 : 2;
  const size_t a = static_cast<size_t>(2 * out.option / (source.bits == 32 ? 4 : 8));
  const size_t sizes[] = {accumulators, a, a / 2, accumulators};
  for (size_t k = 0; k < 4; ++k) {
    const std::vector<Operand> registers = decoder.elements(k, 4);
    if (registers.size() != sizes[k]) decoder.unsupported("number of registers");
    out.vector.insert(out.vector.end(), registers.begin(), registers.end());
  }
  out.run = &multiply;
  return true;
}

}  // namespace

bool decode_matrix(Decoder& decoder) {
  Instruction& out = decoder.out;
  const std::string_view name = decoder.name;
  const bool loads = name == "ldmatrix";
  if (!loads && name != "stmatrix" && name != "movmatrix" && name != "mma") return false;
  out.flow = Flow::kConverge;
  if (name == "mma") return decode_mma(decoder);
  decoder.allow({"sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta"});
  out.mode = decoder.has("trans");
  if (name == "movmatrix") {
    out.d = decoder.destination(0, 4);
    out.a = decoder.row(1, 4);
    out.run = &transpose;
    return true;
  }
  const int tiles = decoder.which({"x1", "x2", "x4"});
  if (tiles < 0 || !decoder.has("m8n8") || out.type.bits != 16) decoder.unsupported("shape");
  out.count = static_cast<uint8_t>(1 << tiles);
  out.space = decoder.space();
  out.a = decoder.address(loads ? 1 : 0);
  out.vector = decoder.elements(loads ? 0 : 1, 4);
  if (out.vector.size() != out.count) decoder.unsupported("number of registers");
  out.run = loads ? &move_tiles<true> : &move_tiles<false>;
  return true;
}

}  // namespace emulator
