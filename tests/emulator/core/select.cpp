// Comparisons and selections: setp, set, selp, slct, testp.
#include <cmath>

#include "block.h"
#include "decoder.h"
#include "numbers.h"

namespace emulator {
namespace {

enum Comparison { kEqual, kNotEqual, kLess, kLessEqual, kGreater, kGreaterEqual, kNumber, kNan };

template <typename T>
bool holds(Comparison comparison, T a, T b) {
  switch (comparison) {
    case kEqual:
      return a == b;
    case kNotEqual:
      return a != b;
    case kLess:
      return a < b;
    case kLessEqual:
      return a <= b;
    case kGreater:
      return a > b;
    case kGreaterEqual:
      return a >= b;
    default:
      return false;
  }
}

template <typename T>
uint32_t compare_row(Warp& warp, const Instruction& i, Comparison comparison) {
  const T *a = row<T>(warp, i.a), *b = row<T>(warp, i.b);
  uint32_t result = 0;
  const auto gather = [&](auto test) {
    uint8_t bits[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) bits[lane] = test(a[lane], b[lane]);
    for (int lane = 0; lane < kLanes; ++lane) result |= static_cast<uint32_t>(bits[lane]) << lane;
  };
  switch (comparison) {
    case kEqual:
      gather([](T x, T y) { return x == y; });
      break;
    case kNotEqual:
      gather([](T x, T y) { return x != y; });
      break;
    case kLess:
      gather([](T x, T y) { return x < y; });
      break;
    case kLessEqual:
      gather([](T x, T y) { return x <= y; });
      break;
    case kGreater:
      gather([](T x, T y) { return x > y; });
      break;
    case kGreaterEqual:
      gather([](T x, T y) { return x >= y; });
      break;
    default:
      break;
  }
  return result;
}

float as_float(Type type, uint64_t bits, bool flushes) {
  const auto half = static_cast<uint16_t>(bits);
  if (type.kind == Type::kBFloat) return bfloat_to_float(half);
  if (type.bits == 16) return half_to_float(half);
  const float value = to_float(static_cast<uint32_t>(bits));
  return flushes ? flush(value) : value;
}

// `option`: the comparison; bit 8: true also if one side is NaN; bit 9: subnormals are zero.
bool compare_floats(const Instruction& i, uint64_t x, uint64_t y) {
  double a, b;
  if (i.source_type.bits == 64) {
    a = to_double(x), b = to_double(y);
  } else {
    a = as_float(i.source_type, x, i.option & 512), b = as_float(i.source_type, y, i.option & 512);
  }
  const auto comparison = static_cast<Comparison>(i.option & 255);
  const bool unordered = std::isnan(a) || std::isnan(b);
  if (comparison == kNumber) return !unordered;
  if (comparison == kNan) return unordered;
  return unordered ? (i.option & 256) != 0 : holds(comparison, a, b);
}

uint32_t compare(Warp& warp, const Instruction& i, uint32_t mask, int part = 0) {
  const Type type = i.source_type;
  const auto comparison = static_cast<Comparison>(i.option & 255);
  if (type.is_float()) {
    uint32_t result = 0;
    for (; mask != 0; mask &= mask - 1) {
      const int lane = __builtin_ctz(mask);
      const uint64_t x = lane_value(warp, i.a, lane), y = lane_value(warp, i.b, lane);
      result |= static_cast<uint32_t>(compare_floats(i, x >> (16 * part), y >> (16 * part)))
                << lane;
    }
    return result;
  }
  if (type.kind == Type::kSigned) {
    return type.bits == 16   ? compare_row<int16_t>(warp, i, comparison)
           : type.bits == 32 ? compare_row<int32_t>(warp, i, comparison)
                             : compare_row<int64_t>(warp, i, comparison);
  }
  return type.bits == 16   ? compare_row<uint16_t>(warp, i, comparison)
         : type.bits == 32 ? compare_row<uint32_t>(warp, i, comparison)
                           : compare_row<uint64_t>(warp, i, comparison);
}

// `mode`: how the result meets predicate c: 0 not at all, 1 and, 2 or, 3 xor.
uint32_t combine(Warp& warp, const Instruction& i, uint32_t result) {
  if (i.mode == 0) return result;
  const uint32_t other = predicate(warp, i.c);
  return i.mode == 1 ? result & other : i.mode == 2 ? result | other : result ^ other;
}

void set_predicates(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  const uint32_t first = compare(warp, i, mask);
  const uint32_t other = i.source_type.count == 2 ? compare(warp, i, mask, 1) : ~first;
  const uint32_t result = combine(warp, i, first), second = combine(warp, i, other);
  set_predicate(warp, i.d, mask, result);
  set_predicate(warp, i.second, mask, second);
}

void set_values(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  const uint32_t result = combine(warp, i, compare(warp, i, mask));
  const uint64_t yes = i.type.is_float() ? (i.type.bits == 32 ? to_bits(1.0f) : 0x3c00) : ~0ull;
  for_lanes(mask, [&](int lane) { set_lane(warp, i.d, lane, result >> lane & 1 ? yes : 0); });
}

template <typename T>
void select(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  T* d = row<T>(warp, i.d);
  const T *a = row<T>(warp, i.a), *b = row<T>(warp, i.b);
  const uint32_t which = predicate(warp, i.c);
  for_lanes(mask, [=](int lane) { d[lane] = which >> lane & 1 ? a[lane] : b[lane]; });
}

void select_by_sign(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  for_lanes(mask, [&](int lane) {
    const uint64_t by = lane_value(warp, i.c, lane);
    const bool first = i.source_type.is_float() ? to_float(static_cast<uint32_t>(by)) >= 0
                                                : static_cast<int32_t>(by) >= 0;
    set_lane(warp, i.d, lane, lane_value(warp, first ? i.a : i.b, lane));
  });
}

void test(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  for_lanes(mask, [&](int lane) {
    const uint64_t bits = lane_value(warp, i.a, lane);
    const bool wide = i.type.bits == 64;
    const double x = wide ? to_double(bits) : to_float(static_cast<uint32_t>(bits));
    const bool small = x != 0 && std::fabs(x) < (wide ? 0x1p-1022 : 0x1p-126);
    const bool found = i.mode == 0   ? std::isfinite(x)
                       : i.mode == 1 ? std::isinf(x)
                       : i.mode == 2 ? !std::isnan(x)
                       : i.mode == 3 ? std::isnan(x)
                       : i.mode == 4 ? std::isfinite(x) && !small  // zeros, too
                                     : small;
    set_lane(warp, i.d, lane, found);
  });
}

int comparison_of(Decoder& decoder) {
  const int ordered = decoder.which({"eq", "ne", "lt", "le", "gt", "ge", "num", "nan"});
  const int unordered = decoder.which({"equ", "neu", "ltu", "leu", "gtu", "geu"});
  const int flushes = decoder.has("ftz") ? 512 : 0;
  if (unordered >= 0) return unordered | 256 | flushes;
  if (ordered >= 0) return ordered | flushes;
  const int by_bits = decoder.which({"lo", "ls", "hi", "hs"});  // unsigned
  if (by_bits < 0) decoder.unsupported("comparison");
  return kLess + by_bits;
}

void decode_set(Decoder& decoder, bool to_predicate) {
  Instruction& out = decoder.out;
  decoder.allow({"eq",  "ne",  "lt",  "le", "gt", "ge", "num", "nan", "equ", "neu", "ltu",
                 "leu", "gtu", "geu", "lo", "ls", "hi", "hs",  "and", "or",  "xor", "ftz"});
  out.source_type = decoder.types.back();
  out.option = comparison_of(decoder);
  out.mode = decoder.which({"and", "or", "xor"}) + 1;
  if (to_predicate) {
    out.d = decoder.with_predicate(0, 0);
    out.run = &set_predicates;
  } else {
    out.d = decoder.destination(0, out.type.bytes());
    out.run = &set_values;
  }
  out.a = decoder.row(1, out.source_type.bytes());
  out.b = decoder.row(2, out.source_type.bytes());
  if (out.mode > 0) out.c = decoder.predicate(3);
}

}  // namespace

bool decode_select(Decoder& decoder) {
  Instruction& out = decoder.out;
  if (decoder.name == "setp" || decoder.name == "set") {
    decode_set(decoder, decoder.name == "setp");
  } else if (decoder.name == "selp" || decoder.name == "slct") {
    const bool by_predicate = decoder.name == "selp";
    const int bytes = out.type.bytes();
    decoder.allow({});
    out.d = decoder.destination(0, bytes);
    out.a = decoder.row(1, bytes);
    out.b = decoder.row(2, bytes);
    if (by_predicate) {
      out.c = decoder.predicate(3);
      out.run = bytes == 2 ? &select<uint16_t> : bytes == 4 ? &select<uint32_t> : &select<uint64_t>;
    } else {
      out.source_type = decoder.type(1);
      out.c = decoder.row(3, 4);
      out.run = &select_by_sign;
    }
  } else if (decoder.name == "testp") {
    decoder.allow({"finite", "infinite", "number", "notanumber", "normal", "subnormal"});
    out.mode = decoder.which({"finite", "infinite", "number", "notanumber", "normal", "subnormal"});
    if (out.mode < 0 || out.type.kind != Type::kFloat) decoder.unsupported("form");
    out.d = decoder.predicate(0);
    out.a = decoder.row(1, out.type.bytes());
    out.run = &test;
  } else {
    return false;
  }
  return true;
}

}  // namespace emulator
