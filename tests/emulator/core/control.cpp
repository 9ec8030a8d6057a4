// The end of a thread, barriers of the block, fences, hints.
#include "block.h"
#include "decoder.h"

namespace emulator {
namespace {

void nothing(Block&, Warp&, const Instruction&, uint32_t) {}

void trap(Block& block, Warp& warp, const Instruction& i, uint32_t mask) {
  block.report(i, format("trap in thread %u", warp.id * kLanes + __builtin_ctz(mask)));
}

void clock(Block& block, Warp& warp, const Instruction& i, uint32_t mask) {
  for_lanes(mask, [&](int lane) { set_lane(warp, i.d, lane, block.steps); });
}

bool decode_barrier(Decoder& decoder) {
  if (decoder.has("red") || decoder.has("cluster")) return false;
  decoder.allow({"sync", "arrive", "cta", "aligned"});
  Instruction& out = decoder.out;
  out.flow = Flow::kBarrier;
  out.mode = decoder.has("arrive") ? 1 : 0;
  out.a = decoder.row(0, 4);
  if (decoder.operands.size() > 1) out.b = decoder.row(1, 4);
  return true;
}

}  // namespace

bool decode_control(Decoder& decoder) {
  Instruction& out = decoder.out;
  const std::string_view name = decoder.name;
  if (name == "ret" || name == "exit") {
    out.flow = Flow::kExit;
    return true;
  }
  if (name == "bar" || name == "barrier") return decode_barrier(decoder);
  if (name == "mov" && decoder.operands.size() == 2 && decoder.operands[1].starts_with("%clock")) {
    out.d = decoder.destination(0, decoder.type().bytes());
    out.run = &clock;
    return true;
  }
  if (name == "trap" || name == "brkpt") {
    out.run = &trap;
    return true;
  }
  // Blocks run on their own, so that fences between them have nothing to order.
  const bool between_proxies = decoder.has("proxy") || decoder.has("mbarrier_init");
  const bool fence = name == "membar" || (name == "fence" && !between_proxies);
  if (fence) {
    decoder.allow({"cta", "cluster", "gpu", "gl", "sys", "sc", "acq_rel", "acquire", "release"});
  } else if (name == "griddepcontrol") {
    decoder.allow({"wait", "launch_dependents"});
  } else if (name == "setmaxnreg") {
    decoder.allow({"inc", "dec", "sync", "aligned"});
  } else if (name != "nanosleep" && name != "createpolicy" && name != "pmevent") {
    return false;
  }
  out.run = &nothing;
  return true;
}

}  // namespace emulator
