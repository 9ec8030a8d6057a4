// Barriers of a block: bar.sync and bar.arrive.
#include <algorithm>

#include "block.h"

namespace emulator {

void Block::arrive_at_barrier(Warp& warp, const Instruction& instruction, uint32_t mask) {
  if (mask != warp.started) {
    report(instruction, format("divergence: lanes %08x of %08x of warp %u reach a barrier", mask,
                               warp.started, warp.id));
  }
  const int lane = __builtin_ctz(mask);
  const auto id = static_cast<uint32_t>(lane_value(warp, instruction.a, lane));
  if (id > 15) report(instruction, format("barrier %u is not one of 0 to 15", id));
  Barrier& barrier = barriers_[id];
  barrier.seen.resize(warp.seen.size());
  const auto all = static_cast<uint32_t>(warps.size() * kLanes);
  const uint32_t count =
      instruction.b.present() ? static_cast<uint32_t>(lane_value(warp, instruction.b, lane)) : all;
  if (barrier.arrived > 0 && barrier.count != count) {
    report(instruction, format("barrier %u of %u threads is one of %u to those who wait", id, count,
                               barrier.count));
  }
  barrier.count = count;
  if (instruction.b.present()) {
    barrier.expected = count;
    barrier.arrived += kLanes;
    if (barrier.expected % kLanes != 0) report(instruction, "barrier count is no multiple of 32");
  } else {
    barrier.arrived += static_cast<uint32_t>(__builtin_popcount(mask));
  }
  ++warp.seen[warp.id];  // what follows is not covered by this arrival
  for (size_t i = 0; i < warp.seen.size(); ++i) {
    barrier.seen[i] = std::max(barrier.seen[i], warp.seen[i]);
  }
  const bool waits = instruction.mode == 0;
  if (waits) {
    barrier.waiting.push_back(warp.id);
    warp.suspended = true;
    warp.barrier = id;
  }
  release(id);
}

void Block::release(uint32_t id) {
  Barrier& barrier = barriers_[id];
  uint32_t expected = barrier.expected;
  if (expected == 0) {
    for (const Warp& warp : warps) expected += static_cast<uint32_t>(__builtin_popcount(warp.live));
  }
  if (barrier.arrived < expected) return;
  for (const uint32_t waiting : barrier.waiting) {
    Warp& warp = warps[waiting];
    warp.suspended = false;
    for (size_t i = 0; i < warp.seen.size(); ++i) {
      warp.seen[i] = std::max(warp.seen[i], barrier.seen[i]);
    }
  }
  barrier = Barrier();
}

}  // namespace emulator
