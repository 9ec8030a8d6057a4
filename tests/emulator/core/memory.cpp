// Loads, stores, and addresses: ld, st, cvta, isspacep, prefetch.
#include "memory.h"

#include <algorithm>

#include "block.h"
#include "decoder.h"

namespace emulator {

void lane_addresses(const Warp& warp, const Operand& operand, uint32_t mask, uint64_t* address) {
  const int64_t more = operand.displacement;
  if (operand.bytes == 8) {
    const uint64_t* base = row<uint64_t>(warp, operand);
    for_lanes(mask, [=](int lane) { address[lane] = base[lane] + static_cast<uint64_t>(more); });
  } else {
    const uint32_t* base = row<uint32_t>(warp, operand);
    for_lanes(mask, [=](int lane) { address[lane] = base[lane] + static_cast<uint64_t>(more); });
  }
}

namespace {

template <typename Memory, typename Register>
void load_rows(Warp& warp, const Instruction& i, uint32_t mask, uint8_t* const* host) {
  for (size_t k = 0; k < i.vector.size(); ++k) {
    if (!i.vector[k].present()) continue;
    Register* d = row<Register>(warp, i.vector[k]);
    for_lanes(mask, [=](int lane) {
      Memory value = 0;
      if (host[lane] != nullptr) std::memcpy(&value, host[lane] + k * sizeof value, sizeof value);
      d[lane] = static_cast<Register>(value);
    });
  }
}

void load(Block& block, Warp& warp, const Instruction& i, uint32_t mask) {
  uint64_t address[kLanes];
  uint8_t* host[kLanes];
  const int bytes = i.type.bytes();
  lane_addresses(warp, i.a, mask, address);
  block.locate(warp, i, i.space, address, mask, static_cast<uint32_t>(bytes) * i.count,
               Access::kRead, nullptr, host);
  const int width = i.vector[0].bytes;
  if (bytes == 4 && width == 4) return load_rows<uint32_t, uint32_t>(warp, i, mask, host);
  if (bytes == 2 && width == 2) return load_rows<uint16_t, uint16_t>(warp, i, mask, host);
  if (bytes == 8 && width == 8) return load_rows<uint64_t, uint64_t>(warp, i, mask, host);
  // Registers wider than what is in memory: signed types are extended.
  const int unused = 64 - 8 * bytes;
  for_lanes(mask, [&](int lane) {
    for (size_t k = 0; k < i.vector.size(); ++k) {
      uint64_t value = 0;
      if (host[lane] != nullptr) std::memcpy(&value, host[lane] + k * bytes, bytes);
      if (i.type.kind == Type::kSigned) {
        value = static_cast<uint64_t>(static_cast<int64_t>(value << unused) >> unused);
      }
      set_lane(warp, i.vector[k], lane, value);
    }
  });
}

// The same address for all lanes, most often a constant one.
void load_parameter(Block& block, Warp& warp, const Instruction& i, uint32_t mask) {
  const int first = __builtin_ctz(mask);
  const uint64_t address = lane_value(warp, i.a, first) + static_cast<uint64_t>(i.a.displacement);
  const size_t bytes = static_cast<size_t>(i.type.bytes());
  const std::vector<uint8_t>& parameters = block.launch.parameters;
  if (i.a.bank == Operand::kRegisters || i.type.kind == Type::kSigned ||
      address + bytes * i.count > parameters.size()) {
    return load(block, warp, i, mask);
  }
  for (size_t k = 0; k < i.vector.size(); ++k) {
    uint64_t value = 0;
    std::memcpy(&value, &parameters[address + k * bytes], bytes);
    for_lanes(mask, [&](int lane) { set_lane(warp, i.vector[k], lane, value); });
  }
}

void store(Block& block, Warp& warp, const Instruction& i, uint32_t mask) {
  uint64_t address[kLanes];
  uint8_t* host[kLanes];
  uint8_t fresh[kLanes * 32] = {};
  const size_t bytes = static_cast<size_t>(i.type.bytes()), all = bytes * i.count;
  lane_addresses(warp, i.a, mask, address);
  for_lanes(mask, [&](int lane) {
    for (size_t k = 0; k < i.vector.size(); ++k) {
      const uint64_t value = lane_value(warp, i.vector[k], lane);
      std::memcpy(fresh + lane * all + k * bytes, &value, bytes);
    }
  });
  block.locate(warp, i, i.space, address, mask, static_cast<uint32_t>(all), Access::kWrite, fresh,
               host);
  for_lanes(mask, [&](int lane) {
    if (host[lane] != nullptr) std::memcpy(host[lane], fresh + lane * all, all);
  });
}

uint64_t window(Space space) {
  return space == Space::kShared      ? kSharedWindow
         : space == Space::kLocal     ? kLocalWindow
         : space == Space::kParameter ? kParameterWindow
                                      : 0;
}

// mode 1: to the space, 0: from it to a generic address.
void convert_address(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  const uint64_t base = window(i.space);
  for_lanes(mask, [&](int lane) {
    const uint64_t value = lane_value(warp, i.a, lane) + static_cast<uint64_t>(i.a.displacement);
    set_lane(warp, i.d, lane, i.mode ? value - base : value + base);
  });
}

void test_space(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  for_lanes(mask, [&](int lane) {
    const uint64_t found = lane_value(warp, i.a, lane) & kWindowMask;
    const bool special =
        found == kSharedWindow || found == kLocalWindow || found == kParameterWindow;
    set_lane(warp, i.d, lane, i.space == Space::kGlobal ? !special : found == window(i.space));
  });
}

void nothing(Block&, Warp&, const Instruction&, uint32_t) {}

// Raises unless each register of the vector can hold what it is given.
void check_registers(Decoder& decoder) {
  const Instruction& out = decoder.out;
  if (out.vector.size() != out.count) decoder.unsupported("number of vector elements");
  if (out.type.bits > 64) decoder.unsupported("operand type");
  for (const Operand& element : out.vector) {
    if (!element.present()) continue;
    if (element.bytes == 0) decoder.unsupported("a predicate in memory");
    if (element.bytes < out.type.bytes()) decoder.unsupported("too narrow a register");
  }
}

bool decode_access(Decoder& decoder, bool loads) {
  Instruction& out = decoder.out;
  decoder.allow({"global",
                 "const",
                 "shared",
                 "shared::cta",
                 "shared::cluster",
                 "local",
                 "param",
                 "param::entry",
                 "v2",
                 "v4",
                 "v8",
                 "nc",
                 "volatile",
                 "relaxed",
                 "acquire",
                 "release",
                 "weak",
                 "cta",
                 "gpu",
                 "sys",
                 "ca",
                 "cg",
                 "cs",
                 "lu",
                 "cv",
                 "wb",
                 "wt",
                 "L1::evict_last",
                 "L1::evict_first",
                 "L1::evict_normal",
                 "L1::evict_unchanged",
                 "L1::no_allocate",
                 "L2::cache_hint",
                 "L2::64B",
                 "L2::128B",
                 "L2::256B"});
  out.space = decoder.space();
  const size_t data = loads ? 0 : 1, where = loads ? 1 : 0;
  out.a = decoder.address(where);
  out.vector = decoder.elements(data, 0);
  const bool is_vector = decoder.operands[data].front() == '{';
  if (!loads && !is_vector && out.vector[0].bank == Operand::kConstants) {
    out.vector[0] = decoder.row(data, std::max(2, out.type.bytes()));
  }
  const int vectors = decoder.which({"v2", "v4", "v8"});
  out.count = vectors < 0 ? 1 : static_cast<uint8_t>(2 << vectors);
  check_registers(decoder);
  // A symbol's own space, for generic accesses to it.
  std::string_view name = decoder.operands[where].substr(1);
  name = name.substr(0, name.find_first_of("+]"));
  const Symbol* symbol = decoder.reader().symbol(name);
  if (symbol != nullptr && out.space == Space::kGeneric) out.space = symbol->space;
  if (out.space == Space::kShared || out.space == Space::kGeneric) {
    decoder.reader().note_shared_access(static_cast<uint32_t>(out.type.bytes()));
  }
  out.run = !loads ? &store : out.space == Space::kParameter ? &load_parameter : &load;
  return true;
}

}  // namespace

bool decode_memory(Decoder& decoder) {
  Instruction& out = decoder.out;
  const std::string_view name = decoder.name;
  if (name == "st" && decoder.has("const")) decoder.unsupported("a store to constants");
  if (name == "ld" || name == "ldu" || name == "st") return decode_access(decoder, name != "st");
  if (name == "cvta") {
    decoder.allow(
        {"to", "global", "const", "shared", "shared::cta", "local", "param", "param::entry"});
    out.space = decoder.space();
    out.mode = decoder.has("to");
    out.d = decoder.destination(0, out.type.bytes());
    out.a = decoder.row(1, out.type.bytes());
    out.run = &convert_address;
  } else if (name == "isspacep") {
    decoder.allow({"global", "const", "shared", "shared::cta", "local", "param"});
    out.space = decoder.space();
    out.d = decoder.predicate(0);
    out.a = decoder.row(1, 8);
    out.run = &test_space;
  } else if (name == "prefetch" || name == "prefetchu" || name == "discard" ||
             name == "applypriority") {
    out.run = &nothing;
  } else {
    return false;
  }
  return true;
}

}  // namespace emulator
