// mbarrier: barriers with phases, that count arrivals of threads and bytes of bulk copies.
#include <algorithm>

#include "block.h"
#include "decoder.h"
#include "memory.h"

namespace emulator {

void PhaseBarrier::arrive(const Clock& by) {
  for (size_t i = 0; i < by.size(); ++i) seen[i] = std::max(seen[i], by[i]);
}

void PhaseBarrier::advance() {
  if (pending != 0 || bytes != 0) return;
  ++phase;
  pending = count;
  done = seen;
}

PhaseBarrier* Block::phase_barrier(Warp& warp, const Instruction& i, uint32_t lane,
                                   uint32_t offset) {
  const auto found = phase_barriers.find(offset);
  if (found == phase_barriers.end()) {
    report(i, format("no mbarrier was initialised at byte %d of shared memory",
                     static_cast<int>(offset - kSharedStart)));
    return nullptr;
  }
  PhaseBarrier& barrier = found->second;
  const uint32_t thread = warp.id * kLanes + lane;
  if (barrier.thread != thread && warp.seen[barrier.thread / kLanes] <= barrier.born) {
    report(i, format("race: thread %u uses an mbarrier that thread %u initialised, with no barrier "
                     "between",
                     thread, barrier.thread));
  }
  return &barrier;
}

namespace {

constexpr int kRelaxed = 1;  // option: orders nothing
enum Mode { kInit, kInvalidate, kExpect, kArrive, kArriveExpect, kWait, kWaitParity };

uint32_t shared_offset(uint64_t address) { return static_cast<uint32_t>(address & 0xffffffff); }

void initialise(Block& block, Warp& warp, const Instruction& i, int lane, uint32_t offset) {
  if (offset % 8 != 0) return block.report(i, "misaligned mbarrier");
  const uint64_t zero = 0;
  if (block.phase_barriers.contains(offset)) {
    block.report(i, "an mbarrier is initialised again, with no mbarrier.inval before");
    block.shared_memory.hold_barrier(offset, false);
  }
  if (block.shared(warp, i, static_cast<uint32_t>(lane), offset, 8, Access::kWrite,
                   reinterpret_cast<const uint8_t*>(&zero)) == nullptr) {
    return;
  }
  block.shared_memory.hold_barrier(offset, true);
  PhaseBarrier made;
  made.count = made.pending = static_cast<uint32_t>(lane_value(warp, i.b, lane));
  made.seen.assign(warp.seen.size(), 0);
  made.thread = warp.id * kLanes + static_cast<uint32_t>(lane);
  made.born = warp.seen[warp.id];
  if (made.count == 0 || made.count > 0xfffff) block.report(i, "mbarrier count out of range");
  block.phase_barriers[offset] = made;
}

void arrive(Block& block, Warp& warp, const Instruction& i, int lane, PhaseBarrier& barrier) {
  uint32_t count = 1;
  if (i.mode == kArriveExpect) {
    barrier.bytes += static_cast<int64_t>(lane_value(warp, i.b, lane));
  } else if (i.b.present()) {
    count = static_cast<uint32_t>(lane_value(warp, i.b, lane));
  }
  set_lane(warp, i.d, lane, barrier.phase);
  ++warp.seen[warp.id];  // what follows is not covered by this arrival
  if (i.option != kRelaxed) barrier.arrive(warp.seen);
  if (barrier.pending < count) {
    return block.report(
        i, format("an mbarrier gets more arrivals than its count of %u", barrier.count));
  }
  barrier.pending -= count;
  barrier.advance();
  block.idle = 0;
}

void test(Block& block, Warp& warp, const Instruction& i, int lane, PhaseBarrier& barrier) {
  const uint64_t value = lane_value(warp, i.b, lane);
  const bool over =
      i.mode == kWaitParity ? (barrier.phase & 1) != (value & 1) : barrier.phase != value;
  set_lane(warp, i.d, lane, over);
  if (!over) {
    block.yielded = true;
    return;
  }
  if (i.option == kRelaxed) return;
  for (size_t k = 0; k < barrier.done.size(); ++k) {
    warp.seen[k] = std::max(warp.seen[k], barrier.done[k]);
  }
}

void run(Block& block, Warp& warp, const Instruction& i, uint32_t mask) {
  uint64_t address[kLanes];
  lane_addresses(warp, i.a, mask, address);
  for (; mask != 0; mask &= mask - 1) {
    const int lane = __builtin_ctz(mask);
    const uint32_t offset = shared_offset(address[lane]);
    if (i.mode == kInit) {
      initialise(block, warp, i, lane, offset);
      continue;
    }
    PhaseBarrier* barrier = block.phase_barrier(warp, i, static_cast<uint32_t>(lane), offset);
    if (barrier == nullptr) {
      if (i.d.present()) set_lane(warp, i.d, lane, 1);
      continue;
    }
    if (i.mode == kInvalidate) {
      block.phase_barriers.erase(offset);
      block.shared_memory.hold_barrier(offset, false);
      block.shared(warp, i, static_cast<uint32_t>(lane), offset, 8, Access::kWrite);
      continue;
    }
    block.shared_memory.use_barrier(offset, block.actor(warp, static_cast<uint32_t>(lane)));
    if (i.mode == kExpect) {
      barrier->bytes += static_cast<int64_t>(lane_value(warp, i.b, lane));
    } else if (i.mode == kArrive || i.mode == kArriveExpect) {
      arrive(block, warp, i, lane, *barrier);
    } else {
      test(block, warp, i, lane, *barrier);
    }
  }
}

}  // namespace

bool decode_phase_barrier(Decoder& decoder) {
  if (decoder.name != "mbarrier") return false;
  Instruction& out = decoder.out;
  decoder.allow({"init", "inval", "expect_tx", "arrive", "test_wait", "try_wait", "parity",
                 "shared", "shared::cta", "shared::cluster", "release", "acquire", "relaxed", "cta",
                 "cluster"});
  const bool arrives = decoder.has("arrive");
  const bool waits = decoder.has("test_wait") || decoder.has("try_wait");
  out.mode = decoder.has("init")                   ? kInit
             : decoder.has("inval")                ? kInvalidate
             : arrives && decoder.has("expect_tx") ? kArriveExpect
             : arrives                             ? kArrive
             : decoder.has("expect_tx")            ? kExpect
             : decoder.has("parity")               ? kWaitParity
                                                   : kWait;
  if (out.mode == kWait && !waits) decoder.unsupported("form");
  size_t at = 0;
  if (waits) out.d = decoder.predicate(at++);
  if (arrives && decoder.operands.at(0).front() != '[') out.d = decoder.destination(at++, 8);
  out.space = Space::kShared;
  out.a = decoder.address(at++);
  const int bytes = out.mode == kWait ? 8 : 4;
  if (decoder.operands.size() > at) out.b = decoder.row(at, bytes);
  if (decoder.has("relaxed")) out.option = kRelaxed;
  if (waits) out.flow = Flow::kWait;
  out.run = &run;
  return true;
}

}  // namespace emulator
