// atom and red: one at a time over all blocks, vectors element by element.
#include <algorithm>
#include <cmath>

#include "block.h"
#include "decoder.h"
#include "memory.h"
#include "numbers.h"

namespace emulator {
namespace {

enum Operation {
  kAdd,
  kMin,
  kMax,
  kAnd,
  kOr,
  kXor,
  kExchange,
  kCompareSwap,
  kIncrement,
  kDecrement
};

double widen(uint64_t bits, Type type) {
  if (type.bits == 64) return to_double(bits);
  if (type.bits == 32) return to_float(static_cast<uint32_t>(bits));
  const auto half = static_cast<uint16_t>(bits);
  return type.kind == Type::kBFloat ? bfloat_to_float(half) : half_to_float(half);
}

uint64_t narrow(double value, Type type) {
  if (type.bits == 64) return to_bits(value);
  if (type.bits == 32) return to_bits(static_cast<float>(value));
  return type.kind == Type::kBFloat ? double_to_bfloat(value) : double_to_half(value);
}

uint64_t float_result(Operation operation, Type type, uint64_t old, uint64_t operand) {
  uint64_t result = 0;
  for (int part = 0; part < type.count; ++part) {
    const double a = widen(old >> (16 * part), type), b = widen(operand >> (16 * part), type);
    const double value = operation == kAdd   ? a + b
                         : operation == kMin ? std::fmin(a, b)
                         : operation == kMax ? std::fmax(a, b)
                                             : b;
    result |= narrow(value, type) << (16 * part);
  }
  return result;
}

// Of float32 in global memory: what is subnormal counts as zero, and becomes it.
uint64_t flushed_sum(uint64_t old, uint64_t operand) {
  const float a = to_float(static_cast<uint32_t>(old)),
              b = to_float(static_cast<uint32_t>(operand));
  return to_bits(flush(flush(a) + flush(b)));
}

bool in_global_memory(Space space, uint64_t address) {
  const uint64_t window = address & kWindowMask;
  return space == Space::kGlobal || (space == Space::kGeneric && window != kSharedWindow);
}

uint64_t integer_result(Operation operation, Type type, uint64_t old, uint64_t operand,
                        uint64_t other) {
  const int unused = 64 - type.bits;
  const auto as_signed = [&](uint64_t bits) {
    return static_cast<int64_t>(bits << unused) >> unused;
  };
  const bool is_signed = type.kind == Type::kSigned;
  const bool less = is_signed ? as_signed(operand) < as_signed(old) : operand < old;
  switch (operation) {
    case kAdd:
      return old + operand;
    case kMin:
      return less ? operand : old;
    case kMax:
      return less ? old : operand;
    case kAnd:
      return old & operand;
    case kOr:
      return old | operand;
    case kXor:
      return old ^ operand;
    case kExchange:
      return operand;
    case kCompareSwap:
      return old == operand ? other : old;
    case kIncrement:
      return old >= operand ? 0 : old + 1;
    case kDecrement:
      return old == 0 || old > operand ? operand : old - 1;
  }
  return old;
}

constexpr std::string_view kNames[] = {"add", "min",  "max", "and", "or",
                                       "xor", "exch", "cas", "inc", "dec"};

void atomic(Block& block, Warp& warp, const Instruction& i, uint32_t mask) {
  uint64_t address[kLanes];
  uint8_t* host[kLanes];
  const auto operation = static_cast<Operation>(i.mode);
  const size_t bytes = static_cast<size_t>(i.type.bytes());
  lane_addresses(warp, i.a, mask, address);
  const std::lock_guard lock(block.launch.atomics);
  block.locate(warp, i, i.space, address, mask, static_cast<uint32_t>(bytes) * i.count,
               Access::kAtomic, nullptr, host);
  const bool floats = i.type.is_float() && operation <= kMax;
  const bool may_flush = operation == kAdd && i.type == Type{Type::kFloat, 32};
  for (; mask != 0; mask &= mask - 1) {
    const int lane = __builtin_ctz(mask);
    if (host[lane] == nullptr) continue;
    for (int k = 0; k < i.count; ++k) {
      uint8_t* at = host[lane] + k * bytes;
      uint64_t old = 0, result;
      std::memcpy(&old, at, bytes);
      const Operand& source = i.vector[static_cast<size_t>(k)];
      const uint64_t operand = lane_value(warp, source, lane);
      if (may_flush && in_global_memory(i.space, address[lane])) {
        result = flushed_sum(old, operand);
      } else if (floats) {
        result = float_result(operation, i.type, old, operand);
      } else {
        const uint64_t other = i.c.present() ? lane_value(warp, i.c, lane) : 0;
        result = integer_result(operation, i.type, old, operand, other);
      }
      std::memcpy(at, &result, bytes);
      if (i.option) set_lane(warp, i.vector[static_cast<size_t>(i.count + k)], lane, old);
    }
  }
}

}  // namespace

int atomic_operation(std::string_view name) {
  const auto found = std::find(std::begin(kNames), std::end(kNames), name);
  return found == std::end(kNames) ? -1 : static_cast<int>(found - std::begin(kNames));
}

uint64_t atomic_result(int operation, Type type, uint64_t old, uint64_t operand) {
  const auto what = static_cast<Operation>(operation);
  return type.is_float() && what <= kMax ? float_result(what, type, old, operand)
                                         : integer_result(what, type, old, operand, 0);
}

bool decode_atomic(Decoder& decoder) {
  const bool returns = decoder.name == "atom";
  if (!returns && decoder.name != "red") return false;
  if (decoder.has("async")) return false;
  Instruction& out = decoder.out;
  decoder.allow({"global",  "shared",        "shared::cta", "shared::cluster",
                 "add",     "min",           "max",         "and",
                 "or",      "xor",           "exch",        "cas",
                 "inc",     "dec",           "relaxed",     "acquire",
                 "release", "acq_rel",       "cta",         "gpu",
                 "sys",     "noftz",         "v2",          "v4",
                 "v8",      "L2::cache_hint"});
  out.space = decoder.space();
  out.mode = decoder.which({"add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"});
  if (out.mode < 0) decoder.unsupported("operation");
  const int vectors = decoder.which({"v2", "v4", "v8"});
  out.count = vectors < 0 ? 1 : static_cast<uint8_t>(2 << vectors);
  const size_t first = returns ? 1 : 0;
  const int bytes = out.type.bytes();
  out.a = decoder.address(first);
  out.vector = decoder.elements(first + 1, bytes);
  if (out.vector.size() != out.count) decoder.unsupported("number of vector elements");
  if (out.mode == kCompareSwap) out.c = decoder.row(first + 2, bytes);
  out.option = returns;
  if (returns) {
    for (const Operand& result : decoder.elements(0, bytes)) out.vector.push_back(result);
  }
  if (out.space != Space::kGlobal)
    decoder.reader().note_shared_access(static_cast<uint32_t>(bytes));
  out.run = &atomic;
  return true;
}

}  // namespace emulator
