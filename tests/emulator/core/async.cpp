// cp.async: what it copies is in shared memory only after its thread has waited for it.
#include <algorithm>

#include "block.h"
#include "decoder.h"
#include "memory.h"

namespace emulator {
namespace {

// Bytes that the source has not are zeros.
void copy(Block& block, Warp& warp, const Instruction& i, uint32_t mask) {
  uint64_t to[kLanes], from[kLanes];
  lane_addresses(warp, i.a, mask, to);
  lane_addresses(warp, i.b, mask, from);
  const auto bytes = static_cast<uint32_t>(i.option);
  for (; mask != 0; mask &= mask - 1) {
    const int lane = __builtin_ctz(mask);
    const uint64_t offset = to[lane] & 0xffffffff;
    const auto given = i.c.present() ? static_cast<uint32_t>(lane_value(warp, i.c, lane)) : bytes;
    if (given > bytes) block.report(i, "cp.async reads more bytes than it writes");
    if (offset % bytes != 0 || (given > 0 && from[lane] % bytes != 0)) {
      block.report(i, format("misaligned cp.async of %u bytes", bytes));
      continue;
    }
    CopyRequest request{static_cast<uint32_t>(offset), bytes, {}};
    const uint32_t used = std::min(given, bytes);
    if (used > 0) {
      const uint8_t* source = block.global(i, from[lane], used, Access::kRead);
      if (source != nullptr) std::memcpy(request.data.data(), source, used);
    }
    if (!block.shared_memory.holds(offset, bytes)) {
      block.report(i, format("shared write of %u bytes out of bounds", bytes));
      continue;
    }
    const Actor by = block.actor(warp, static_cast<uint32_t>(lane));
    block.report(i, block.shared_memory.begin_copy(offset, bytes, by));
    warp.open_copies[lane].push_back(request);
  }
}

void commit(Block&, Warp& warp, const Instruction&, uint32_t mask) {
  for_lanes(mask, [&](int lane) {
    warp.copy_groups[lane].push_back(std::move(warp.open_copies[lane]));
    warp.open_copies[lane].clear();
  });
}

// mode: groups that may still be under way; -1: none, and what is not committed is waited for too.
void wait(Block& block, Warp& warp, const Instruction& i, uint32_t mask) {
  if (i.mode < 0) commit(block, warp, i, mask);
  const size_t keep = static_cast<size_t>(std::max(i.mode, 0));
  for (; mask != 0; mask &= mask - 1) {
    const int lane = __builtin_ctz(mask);
    auto& groups = warp.copy_groups[lane];
    for (; groups.size() > keep; groups.pop_front()) {
      for (const CopyRequest& request : groups.front()) {
        block.shared_memory.end_copy(request.offset, request.bytes, request.data.data(),
                                     block.actor(warp, static_cast<uint32_t>(lane)));
      }
      // Its memory serves the next group.
      if (warp.open_copies[lane].capacity() == 0) {
        groups.front().clear();
        warp.open_copies[lane] = std::move(groups.front());
      }
    }
  }
}

}  // namespace

bool decode_async(Decoder& decoder) {
  if (decoder.name != "cp" || !decoder.has("async") || decoder.has("bulk") ||
      decoder.has("mbarrier")) {
    return false;
  }
  Instruction& out = decoder.out;
  decoder.allow({"async", "ca", "cg", "shared", "shared::cta", "global", "commit_group",
                 "wait_group", "wait_all", "L2::64B", "L2::128B", "L2::256B", "L2::cache_hint"});
  if (decoder.has("commit_group")) {
    out.run = &commit;
  } else if (decoder.has("wait_all")) {
    out.mode = -1;
    out.run = &wait;
  } else if (decoder.has("wait_group")) {
    out.mode = static_cast<int>(decoder.literal(0));
    out.run = &wait;
  } else {
    out.space = Space::kShared;
    out.a = decoder.address(0);
    out.b = decoder.address(1);
    out.option = static_cast<int>(decoder.literal(2));
    if (out.option != 4 && out.option != 8 && out.option != 16) decoder.unsupported("size");
    // A fourth operand of 8 bytes is a cache policy.
    if (decoder.operands.size() > 3) {
      const Operand size = decoder.row(3, 0);
      if (size.bytes == 4) out.c = size;
    }
    out.run = &copy;
  }
  return true;
}

}  // namespace emulator
