// Bulk copies (TMA): the copy engine finishes those under way in any order, at any time until they
// are waited for. What they fill is NaN until then, and what they read must stay as it was.
#include <algorithm>

#include "block.h"
#include "decoder.h"
#include "memory.h"
#include "tensor_map.h"
#include "text.h"

namespace emulator {
namespace {

enum Mode { kTensor, kLinear, kCommit, kWait };
constexpr uint32_t kChunk = 16;

uint32_t swizzled(uint32_t at, int swizzle) {
  static constexpr uint32_t kRows[] = {0, 1, 3, 7};
  return at ^ ((at >> 7 & kRows[swizzle]) << 4);
}

bool read_map(Block& block, const Instruction& i, uint64_t address, TensorMap& map) {
  if (address % 64 != 0) block.report(i, "a tensor map that is not aligned to 64 bytes");
  const uint64_t offset = address & ~kWindowMask;
  if ((address & kWindowMask) == kParameterWindow) {
    if (offset + sizeof map > block.launch.parameters.size()) return false;
    std::memcpy(&map, &block.launch.parameters[offset], sizeof map);
  } else {
    const uint8_t* found = block.global(i, address, sizeof map, Access::kRead);
    if (found == nullptr) return false;
    std::memcpy(&map, found, sizeof map);
  }
  if (map.magic == TensorMap::kMagic) return true;
  block.report(i, "there is no tensor map at this address");
  return false;
}

// The pieces of the tile at the coordinates, in the order in which they lie in shared memory.
std::vector<Piece> tile(Block& block, const Instruction& i, const TensorMap& map, const int64_t* at,
                        uint32_t shared) {
  static constexpr uint32_t kAlignment[] = {128, 256, 512, 1024};
  if (shared % 128 != 0) block.report(i, "a TMA tile that is not aligned to 128 bytes");
  if (map.swizzle != 0 && shared % kAlignment[map.swizzle] != 0) {
    block.report(
        i, format("a swizzled TMA tile that is not aligned to %u bytes", kAlignment[map.swizzle]));
  }
  uint64_t rows = 1;
  for (uint32_t k = 1; k < map.rank; ++k) rows *= map.box[k];
  const uint32_t bytes = map.element_bytes, width = map.box[0] * bytes;
  const int64_t first = -at[0] * bytes, last = (static_cast<int64_t>(map.sizes[0]) - at[0]) * bytes;
  std::vector<Piece> pieces;
  for (uint64_t row = 0; row < rows; ++row) {
    uint64_t rest = row, place = map.address + static_cast<uint64_t>(at[0] * bytes);
    bool inside = true;
    for (uint32_t k = 1; k < map.rank; ++k) {
      const int64_t c = at[k] + static_cast<int64_t>(rest % map.box[k]);
      rest /= map.box[k];
      inside &= c >= 0 && c < static_cast<int64_t>(map.sizes[k]);
      place += static_cast<uint64_t>(c) * map.strides[k];
    }
    for (uint32_t begin = 0; begin < width; begin += kChunk) {
      const auto within = [&](int64_t v) {
        return static_cast<uint32_t>(std::clamp<int64_t>(v - begin, 0, kChunk));
      };
      Piece piece{swizzled(shared + static_cast<uint32_t>(row) * width + begin, map.swizzle),
                  within(first), within(last), 0};
      if (!inside || piece.low >= piece.high) piece.low = piece.high = 0;
      piece.global = place + begin + piece.low;
      pieces.push_back(piece);
    }
  }
  return pieces;
}

std::vector<Piece> line(Block& block, const Instruction& i, uint64_t global, uint32_t shared,
                        uint32_t bytes) {
  if (bytes % kChunk != 0 || global % kChunk != 0 || shared % kChunk != 0) {
    block.report(i, "misaligned bulk copy: addresses and size are multiples of 16 bytes");
  }
  std::vector<Piece> pieces;
  for (uint32_t at = 0; at < bytes; at += kChunk) {
    pieces.push_back({shared + at, 0, std::min(kChunk, bytes - at), global + at});
  }
  return pieces;
}

void begin(Block& block, Warp& warp, const Instruction& i, int lane, Transfer transfer) {
  const Actor by = block.actor(warp, static_cast<uint32_t>(lane));
  for (const Piece& piece : transfer.pieces) {
    if (!block.shared_memory.holds(piece.shared, kChunk)) {
      return block.report(i, "bulk copy: shared memory out of bounds");
    }
    block.report(i, block.used_by_async_proxy(warp, piece.shared, kChunk,
                                              transfer.store ? "reads" : "fills"));
    if (!transfer.store) block.report(i, block.shared_memory.begin_copy(piece.shared, kChunk, by));
  }
  block.transfers.push_back(std::move(transfer));
  block.idle = 0;
}

// The copy engine sees an mbarrier only behind a fence, of the warp that initialised it or of this
// one.
void check_init_fence(Block& block, const Warp& warp, const Instruction& i,
                      const PhaseBarrier& barrier) {
  const uint32_t by = barrier.thread / kLanes;
  const Warp& maker = block.warps[by];
  const uint32_t fenced = std::max({warp.fenced[by], maker.fenced[by], maker.init_fenced[by]});
  if (fenced > barrier.born || !block.launch.options.init_fences) return;
  block.report(i, format("the async proxy uses an mbarrier that thread %u initialised, with no "
                         "fence.mbarrier_init or fence.proxy.async between",
                         barrier.thread));
}

void copy(Block& block, Warp& warp, const Instruction& i, uint32_t mask) {
  uint64_t shared[kLanes], global[kLanes], barrier[kLanes] = {};
  lane_addresses(warp, i.a, mask, shared);
  lane_addresses(warp, i.b, mask, global);
  const bool store = !i.c.present();
  if (!store) lane_addresses(warp, i.c, mask, barrier);
  for (; mask != 0; mask &= mask - 1) {
    const int lane = __builtin_ctz(mask);
    const auto at = static_cast<uint32_t>(shared[lane] & 0xffffffff);
    Transfer made{&i,
                  warp.id * kLanes + static_cast<uint32_t>(lane),
                  warp.bulk_groups[lane],
                  static_cast<uint32_t>(barrier[lane] & 0xffffffff),
                  store,
                  i.option,
                  i.type,
                  warp.seen,
                  {}};
    if (i.mode == kTensor) {
      TensorMap map;
      if (!read_map(block, i, global[lane], map)) continue;
      if (map.rank != i.vector.size()) {
        block.report(
            i, format("a tensor map of rank %u with %zu coordinates", map.rank, i.vector.size()));
        continue;
      }
      int64_t place[5];
      for (size_t k = 0; k < i.vector.size(); ++k) {
        place[k] = static_cast<int32_t>(lane_value(warp, i.vector[k], lane));
      }
      made.pieces = tile(block, i, map, place, at);
      static constexpr Type kTypes[] = {
          {Type::kUnsigned, 8},  {Type::kUnsigned, 16}, {Type::kUnsigned, 32}, {Type::kSigned, 32},
          {Type::kUnsigned, 64}, {Type::kSigned, 64},   {Type::kFloat, 16},    {Type::kFloat, 32},
          {Type::kFloat, 64},    {Type::kBFloat, 16},   {Type::kFloat, 32},    {Type::kFloat, 32},
          {Type::kFloat, 32}};
      made.type = kTypes[map.type];
    } else {
      made.pieces =
          line(block, i, global[lane], at, static_cast<uint32_t>(lane_value(warp, i.e, lane)));
    }
    if (!store) {
      const PhaseBarrier* told =
          block.phase_barrier(warp, i, static_cast<uint32_t>(lane), made.barrier);
      if (told == nullptr) continue;
      block.shared_memory.use_barrier(made.barrier, block.actor(warp, static_cast<uint32_t>(lane)));
      check_init_fence(block, warp, i, *told);
    }
    begin(block, warp, i, lane, std::move(made));
  }
}

void commit(Block&, Warp& warp, const Instruction&, uint32_t mask) {
  for_lanes(mask, [&](int lane) { ++warp.bulk_groups[lane]; });
}

void wait(Block& block, Warp& warp, const Instruction& i, uint32_t mask) {
  for (; mask != 0; mask &= mask - 1) {
    const int lane = __builtin_ctz(mask);
    const uint32_t thread = warp.id * kLanes + static_cast<uint32_t>(lane);
    const uint64_t begun = warp.bulk_groups[lane], keep = static_cast<uint64_t>(i.option);
    for (size_t k = 0; k < block.transfers.size();) {
      const Transfer& transfer = block.transfers[k];
      const bool old = transfer.store && transfer.thread == thread && transfer.group + keep < begun;
      old ? block.finish_transfer(k) : static_cast<void>(++k);
    }
    warp.seen.back() = std::max(warp.seen.back(), block.engine_clock);
  }
}

void write_back(Block& block, const Transfer& transfer, const Piece& piece) {
  const Instruction& i = *transfer.instruction;
  const uint32_t bytes = piece.high - piece.low;
  if (bytes == 0) return;
  const bool reduces = transfer.reduction >= 0;
  uint8_t* to = block.global(i, piece.global, bytes, reduces ? Access::kAtomic : Access::kWrite);
  const uint8_t* from = block.shared_memory.data(piece.shared) + piece.low;
  if (to == nullptr) return;
  if (!reduces) {
    std::memcpy(to, from, bytes);
    return;
  }
  const size_t size = static_cast<size_t>(transfer.type.bytes());
  const std::lock_guard lock(block.launch.atomics);
  for (size_t k = 0; k < bytes; k += size) {
    uint64_t old = 0, operand = 0;
    std::memcpy(&old, to + k, size);
    std::memcpy(&operand, from + k, size);
    const uint64_t result = atomic_result(transfer.reduction, transfer.type, old, operand);
    std::memcpy(to + k, &result, size);
  }
}

void decode_tile(Decoder& decoder, size_t operand) {
  std::string_view text = decoder.operands.at(operand);
  text = text.substr(1, text.size() - 2);
  const std::vector<std::string_view> parts = split(text, ',');
  if (parts.size() != 2 || parts[1].front() != '{') decoder.unsupported("form of a tile");
  decoder.out.b = decoder.element(parts[0], 8);
  for (const std::string_view item : split(parts[1].substr(1, parts[1].size() - 2), ',')) {
    decoder.out.vector.push_back(decoder.element(item, 4));
  }
}

}  // namespace

void Block::finish_transfer(size_t index) {
  const Transfer transfer = std::move(transfers[index]);
  transfers.erase(transfers.begin() + static_cast<ptrdiff_t>(index));
  const Instruction& i = *transfer.instruction;
  const auto engine = static_cast<uint32_t>(warps.size());
  Clock seen = transfer.seen;
  seen[engine] = engine_clock;
  const Actor by{engine * kLanes, engine, &seen, ++accesses_};
  for (const Piece& piece : transfer.pieces) {
    if (transfer.store) {
      report(i, shared_memory.read(piece.shared, kChunk, by));
      write_back(*this, transfer, piece);
      continue;
    }
    uint8_t data[kChunk] = {};
    const uint32_t bytes = piece.high - piece.low;
    const uint8_t* from = bytes > 0 ? global(i, piece.global, bytes, Access::kRead) : nullptr;
    if (from != nullptr) std::memcpy(data + piece.low, from, bytes);
    shared_memory.end_copy(piece.shared, kChunk, data, by);
  }
  ++engine_clock;
  idle = 0;
  if (transfer.store) return;
  const auto found = phase_barriers.find(transfer.barrier);
  if (found == phase_barriers.end()) return report(i, "its mbarrier is gone when a copy ends");
  seen[engine] = engine_clock;
  found->second.arrive(seen);
  found->second.bytes -= static_cast<int64_t>(transfer.pieces.size() * kChunk);
  found->second.advance();
}

bool decode_bulk(Decoder& decoder) {
  if (decoder.name != "cp" || !decoder.has("bulk")) return false;
  Instruction& out = decoder.out;
  decoder.allow({"async",
                 "bulk",
                 "tensor",
                 "1d",
                 "2d",
                 "3d",
                 "4d",
                 "5d",
                 "shared::cluster",
                 "shared::cta",
                 "global",
                 "tile",
                 "mbarrier::complete_tx::bytes",
                 "bulk_group",
                 "L2::cache_hint",
                 "commit_group",
                 "wait_group",
                 "read",
                 "reduce",
                 "add",
                 "min",
                 "max",
                 "inc",
                 "dec",
                 "and",
                 "or",
                 "xor",
                 "noftz",
                 "prefetch",
                 "L2"});
  if (decoder.has("prefetch")) {
    out.run = [](Block&, Warp&, const Instruction&, uint32_t) {};
    return true;
  }
  out.run = decoder.has("commit_group") ? &commit : decoder.has("wait_group") ? &wait : &copy;
  if (out.run == &wait) out.option = static_cast<int>(decoder.literal(0));
  if (out.run != &copy) return true;
  const bool loads = decoder.has("mbarrier::complete_tx::bytes");
  if (!loads && !decoder.has("bulk_group")) decoder.unsupported("direction");
  out.space = Space::kShared;
  out.mode = decoder.has("tensor") ? kTensor : kLinear;
  out.a = decoder.address(loads ? 0 : 1);
  if (out.mode == kTensor) {
    decode_tile(decoder, loads ? 1 : 0);
  } else {
    out.b = decoder.address(loads ? 1 : 0);
    out.e = decoder.row(2, 4);
  }
  if (loads) out.c = decoder.address(out.mode == kTensor ? 2 : 3);
  out.option = -1;
  for (const std::string_view modifier : decoder.modifiers) {
    if (decoder.has("reduce")) out.option = std::max(out.option, atomic_operation(modifier));
  }
  return true;
}

}  // namespace emulator
