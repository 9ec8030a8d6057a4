// What the lanes of a warp do together: shfl, vote, match, redux, elect, bar.warp.sync.
#include <algorithm>

#include "block.h"
#include "decoder.h"

namespace emulator {
namespace {

// The lanes named in the mask must be those that are here.
void check_members(Block& block, Warp& warp, const Instruction& i, uint32_t mask) {
  if (!i.members.present()) return;
  const uint32_t named = row<uint32_t>(warp, i.members)[__builtin_ctz(mask)];
  if ((named & warp.live) != mask) {
    block.report(i,
                 format("divergence: lanes %08x are here, the member mask says %08x", mask, named));
  }
}

enum Shuffle { kButterfly, kUp, kDown, kIndex };

void shuffle(Block& block, Warp& warp, const Instruction& i, uint32_t mask) {
  check_members(block, warp, i, mask);
  const uint32_t *a = row<uint32_t>(warp, i.a), *b = row<uint32_t>(warp, i.b);
  const uint32_t* c = row<uint32_t>(warp, i.c);
  uint32_t result[kLanes], inside = 0;
  for (uint32_t left = mask; left != 0; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    const int by = static_cast<int>(b[lane] & 31), segment = static_cast<int>(c[lane] >> 8 & 31);
    const int clamp = static_cast<int>(c[lane] & 31);
    const int last = (lane & segment) | (clamp & ~segment), first = lane & segment;
    int from = 0;
    switch (i.mode) {
      case kButterfly:
        from = lane ^ by;
        break;
      case kUp:
        from = lane - by;
        break;
      case kDown:
        from = lane + by;
        break;
      default:
        from = first | (by & ~segment);
    }
    const bool good = i.mode == kUp ? from >= last : from <= last;
    if (!good) from = lane;
    if (!(mask >> from & 1)) {
      block.report(i, format("shuffle reads lane %d, which does not take part", from));
      from = lane;
    }
    result[lane] = a[from];
    inside |= static_cast<uint32_t>(good) << lane;
  }
  uint32_t* d = row<uint32_t>(warp, i.d);
  for_lanes(mask, [&](int lane) { d[lane] = result[lane]; });
  set_predicate(warp, i.second, mask, inside);
}

enum Vote { kAll, kAny, kUniform, kBallot };

void vote(Block& block, Warp& warp, const Instruction& i, uint32_t mask) {
  check_members(block, warp, i, mask);
  const uint32_t ballot = predicate(warp, i.a) & mask;
  if (i.mode == kBallot) {
    for_lanes(mask, [&](int lane) { set_lane(warp, i.d, lane, ballot); });
    return;
  }
  const bool all = ballot == mask, any = ballot != 0;
  const bool result = i.mode == kAll ? all : i.mode == kAny ? any : all || !any;
  set_predicate(warp, i.d, mask, result ? kAllLanes : 0);
}

void match(Block& block, Warp& warp, const Instruction& i, uint32_t mask) {
  check_members(block, warp, i, mask);
  uint32_t result[kLanes] = {}, agree = 0;
  for (uint32_t left = mask; left != 0; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    for (uint32_t others = mask; others != 0; others &= others - 1) {
      const int other = __builtin_ctz(others);
      const bool same = lane_value(warp, i.a, lane) == lane_value(warp, i.a, other);
      result[lane] |= static_cast<uint32_t>(same) << other;
    }
    if (result[lane] == mask) agree |= 1u << lane;
  }
  const bool wants_all = i.mode == kAll;
  for_lanes(mask, [&](int lane) {
    set_lane(warp, i.d, lane, wants_all && result[lane] != mask ? 0 : result[lane]);
  });
  set_predicate(warp, i.second, mask, agree);
}

enum Reduction { kAdd, kMin, kMax, kAnd, kOr, kXor };

void reduce(Block& block, Warp& warp, const Instruction& i, uint32_t mask) {
  check_members(block, warp, i, mask);
  const bool is_signed = i.type.kind == Type::kSigned;
  const uint32_t* a = row<uint32_t>(warp, i.a);
  uint32_t result = a[__builtin_ctz(mask)];
  for (uint32_t left = mask & (mask - 1); left != 0; left &= left - 1) {
    const uint32_t value = a[__builtin_ctz(left)];
    const bool less =
        is_signed ? static_cast<int32_t>(value) < static_cast<int32_t>(result) : value < result;
    switch (i.mode) {
      case kAdd:
        result += value;
        break;
      case kMin:
        result = less ? value : result;
        break;
      case kMax:
        result = less ? result : value;
        break;
      case kAnd:
        result &= value;
        break;
      case kOr:
        result |= value;
        break;
      default:
        result ^= value;
    }
  }
  for_lanes(mask, [&](int lane) { set_lane(warp, i.d, lane, result); });
}

void elect(Block& block, Warp& warp, const Instruction& i, uint32_t mask) {
  check_members(block, warp, i, mask);
  const int leader = __builtin_ctz(mask);
  for_lanes(mask, [&](int lane) { set_lane(warp, i.d, lane, static_cast<uint64_t>(leader)); });
  set_predicate(warp, i.second, mask, 1u << leader);
}

void active_lanes(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  for_lanes(mask, [&](int lane) { set_lane(warp, i.d, lane, mask); });
}

// Orders the lanes' accesses to shared memory.
void synchronise(Block& block, Warp& warp, const Instruction& i, uint32_t mask) {
  check_members(block, warp, i, mask);
  ++warp.seen[warp.id];
}

void decode_members(Decoder& decoder, size_t operand) {
  decoder.out.flow = Flow::kConverge;
  decoder.out.members = decoder.row(operand, 4);
}

}  // namespace

bool decode_warp(Decoder& decoder) {
  Instruction& out = decoder.out;
  const std::string_view name = decoder.name;
  if (name == "shfl") {
    decoder.allow({"sync", "bfly", "up", "down", "idx"});
    out.mode = decoder.which({"bfly", "up", "down", "idx"});
    out.d = decoder.with_predicate(0, 4);
    out.a = decoder.row(1, 4);
    out.b = decoder.row(2, 4);
    out.c = decoder.row(3, 4);
    decode_members(decoder, 4);
    out.run = &shuffle;
  } else if (name == "vote") {
    decoder.allow({"sync", "all", "any", "uni", "ballot"});
    out.mode = decoder.which({"all", "any", "uni", "ballot"});
    out.d = decoder.destination(0, out.mode == kBallot ? 4 : 0);
    out.a = decoder.predicate(1);
    decode_members(decoder, 2);
    out.run = &vote;
  } else if (name == "match") {
    decoder.allow({"sync", "all", "any"});
    out.mode = decoder.which({"all", "any"});
    out.d = decoder.with_predicate(0, 4);
    out.a = decoder.row(1, out.type.bytes());
    decode_members(decoder, 2);
    out.run = &match;
  } else if (name == "redux") {
    decoder.allow({"sync", "add", "min", "max", "and", "or", "xor"});
    if (out.type.is_float()) decoder.unsupported("operand type");
    out.mode = decoder.which({"add", "min", "max", "and", "or", "xor"});
    out.d = decoder.destination(0, 4);
    out.a = decoder.row(1, 4);
    decode_members(decoder, 2);
    out.run = &reduce;
  } else if (name == "elect") {
    decoder.allow({"sync"});
    out.d = decoder.with_predicate(0, 4);
    decode_members(decoder, 1);
    out.run = &elect;
  } else if (name == "activemask") {
    out.d = decoder.destination(0, 4);
    out.run = &active_lanes;
  } else if ((name == "bar" || name == "barrier") && decoder.has("warp")) {
    decode_members(decoder, 0);
    out.run = &synchronise;
  } else {
    return false;
  }
  if (out.mode < 0) decoder.unsupported("form");
  return true;
}

}  // namespace emulator
