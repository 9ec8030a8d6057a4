// cvt: between integers, between floats, and from one to the other, with each rounding.
#include <algorithm>
#include <bit>
#include <cmath>

#include "block.h"
#include "decoder.h"
#include "numbers.h"

namespace emulator {
namespace {

// `mode`: the rounding, kToInteger + rounding for .rni and the like. `option`: bits of what
// follows.
constexpr int kToInteger = 8;
enum Option { kFlush = 1, kSaturate = 2, kRelu = 4, kTiesAway = 8 };

double widen(uint64_t bits, Type type, bool flushes) {
  if (type.bits == 64) return to_double(bits);
  if (type.bits == 32) {
    const float value = to_float(static_cast<uint32_t>(bits));
    return flushes ? flush(value) : value;
  }
  const auto half = static_cast<uint16_t>(bits);
  return type.kind == Type::kBFloat ? bfloat_to_float(half) : half_to_float(half);
}

double to_integer(double value, Rounding rounding) {
  switch (rounding) {
    case Rounding::kNearest:
      return std::nearbyint(value);
    case Rounding::kZero:
      return std::trunc(value);
    case Rounding::kDown:
      return std::floor(value);
    case Rounding::kUp:
      return std::ceil(value);
  }
  return value;
}

uint64_t narrow(double value, const Instruction& i) {
  const Type type = i.type;
  const auto rounding = static_cast<Rounding>(i.mode % kToInteger);
  if (i.mode >= kToInteger) value = to_integer(value, rounding);
  if (i.option & kSaturate) value = std::isnan(value) ? 0 : std::clamp(value, 0.0, 1.0);
  if ((i.option & kRelu) && !std::isnan(value)) value = std::max(value, 0.0);
  if (type.bits == 64) return to_bits(value);
  if (type.bits == 32) {
    const Rounding how = i.mode >= kToInteger ? Rounding::kNearest : rounding;
    const float result = round_to_float(value, how);
    if (type.kind == Type::kTf32) return float_to_tf32(result, i.option & kTiesAway);
    return to_bits(i.option & kFlush ? flush(result) : result);
  }
  const Rounding how =
      rounding == Rounding::kZero && i.mode < kToInteger ? rounding : Rounding::kNearest;
  if (type.kind == Type::kBFloat) return float_to_bfloat(to_odd(value), how);
  return float_to_half(to_odd(value), how);
}

// Out of range gives the nearest integer there is; NaN gives 0.
uint64_t float_to_integer(double value, const Instruction& i) {
  const Type type = i.type;
  const int fallback = static_cast<int>(Rounding::kZero);
  const int rounding = i.mode >= kToInteger ? i.mode - kToInteger : fallback;
  value = to_integer(value, static_cast<Rounding>(rounding));
  if (std::isnan(value)) return 0;
  if (type.kind == Type::kSigned) {
    const double limit = std::ldexp(1.0, type.bits - 1);
    if (value >= limit) return (1ull << (type.bits - 1)) - 1;
    if (value < -limit) return static_cast<uint64_t>(-1) << (type.bits - 1);
    return static_cast<uint64_t>(static_cast<int64_t>(value));
  }
  if (value <= 0) return 0;
  if (value >= std::ldexp(1.0, type.bits)) return type.bits == 64 ? ~0ull : (1ull << type.bits) - 1;
  return static_cast<uint64_t>(value);
}

uint64_t extend(uint64_t bits, Type type) {
  if (type.bits >= 64) return bits;
  const int unused = 64 - type.bits;
  if (type.kind == Type::kSigned) {
    return static_cast<uint64_t>(static_cast<int64_t>(bits << unused) >> unused);
  }
  return bits << unused >> unused;
}

// An integer at once: by way of a double, one of 64 bits would be rounded twice, or not as asked
// for.
double rounded_integer(uint64_t magnitude, bool negative, int digits, Rounding rounding) {
  const int drop = std::max(0, 64 - std::countl_zero(magnitude) - digits);
  uint64_t kept = drop == 0 ? magnitude : magnitude >> drop;
  const uint64_t rest = magnitude - (kept << drop), half = drop == 0 ? 1 : 1ull << (drop - 1);
  switch (rounding) {
    case Rounding::kNearest:
      kept += rest > half || (rest == half && (kept & 1));
      break;
    case Rounding::kZero:
      break;
    case Rounding::kDown:
      kept += negative && rest > 0;
      break;
    case Rounding::kUp:
      kept += !negative && rest > 0;
      break;
  }
  const double value = std::ldexp(static_cast<double>(kept), drop);
  return negative ? -value : value;
}

uint64_t integer_to_float(uint64_t value, const Instruction& i) {
  const bool negative = i.source_type.kind == Type::kSigned && static_cast<int64_t>(value) < 0;
  const int digits = i.type.bits == 32 ? 24 : 53;
  const auto rounding = static_cast<Rounding>(i.mode);
  return narrow(rounded_integer(negative ? 0 - value : value, negative, digits, rounding), i);
}

uint64_t saturated(uint64_t value, const Instruction& i) {
  const bool from_signed = i.source_type.kind == Type::kSigned;
  const __int128 exact = from_signed ? static_cast<__int128>(static_cast<int64_t>(value))
                                     : static_cast<__int128>(value);
  const bool to_signed = i.type.kind == Type::kSigned;
  const __int128 top = (static_cast<__int128>(1) << (i.type.bits - (to_signed ? 1 : 0))) - 1;
  return static_cast<uint64_t>(std::clamp<__int128>(exact, to_signed ? -top - 1 : 0, top));
}

uint64_t converted(uint64_t bits, const Instruction& i) {
  const bool to_float_type = i.type.is_float() || i.type.kind == Type::kTf32;
  const bool from_float = i.source_type.is_float();
  if (from_float) {
    const double value = widen(bits, i.source_type, i.option & kFlush);
    return to_float_type ? narrow(value, i) : extend(float_to_integer(value, i), i.type);
  }
  const uint64_t value = extend(bits, i.source_type);
  if (to_float_type) return integer_to_float(value, i);
  return extend(i.option & kSaturate ? saturated(value, i) : value, i.type);
}

void convert(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  for_lanes(mask, [&](int lane) {
    set_lane(warp, i.d, lane, converted(lane_value(warp, i.a, lane), i));
  });
}

void convert_pair(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  for_lanes(mask, [&](int lane) {
    const uint64_t high = converted(lane_value(warp, i.a, lane), i);
    const uint64_t low = converted(lane_value(warp, i.b, lane), i);
    set_lane(warp, i.d, lane, high << 16 | low);
  });
}

// The common conversions between rows of exactly these types.
template <typename To, typename From>
void convert_row(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  To* d = row<To>(warp, i.d);
  const From* a = row<From>(warp, i.a);
  for_lanes(mask, [=](int lane) { d[lane] = static_cast<To>(a[lane]); });
}

void widen_half(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  float* d = row<float>(warp, i.d);
  const uint16_t* a = row<uint16_t>(warp, i.a);
  for_lanes(mask, [=](int lane) { d[lane] = half_to_float(a[lane]); });
}

void widen_bfloat(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  float* d = row<float>(warp, i.d);
  const uint16_t* a = row<uint16_t>(warp, i.a);
  for_lanes(mask, [=](int lane) { d[lane] = bfloat_to_float(a[lane]); });
}

Handler fast(const Instruction& i) {
  const auto is = [&](Type to, Type from) {
    return i.type == to && i.source_type == from && i.d.bytes == to.bytes() &&
           i.a.bytes == from.bytes();
  };
  constexpr Type kS32{Type::kSigned, 32}, kS64{Type::kSigned, 64}, kU32{Type::kUnsigned, 32},
      kU64{Type::kUnsigned, 64}, kF32{Type::kFloat, 32}, kF16{Type::kFloat, 16},
      kBF16{Type::kBFloat, 16};
  if (i.option != 0) return nullptr;
  if (is(kS64, kS32)) return &convert_row<int64_t, int32_t>;
  if (is(kU64, kU32)) return &convert_row<uint64_t, uint32_t>;
  if (is(kU32, kU64)) return &convert_row<uint32_t, uint64_t>;
  if (is(kF32, kF16)) return &widen_half;
  if (is(kF32, kBF16)) return &widen_bfloat;
  if (i.mode == 0 && is(kF32, kS32)) return &convert_row<float, int32_t>;
  return nullptr;
}

}  // namespace

bool decode_convert(Decoder& decoder) {
  if (decoder.name != "cvt") return false;
  decoder.allow({"rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "rna", "ftz", "sat", "relu",
                 "satfinite"});
  Instruction& out = decoder.out;
  out.source_type = decoder.type(1);
  const int rounding = decoder.which({"rn", "rz", "rm", "rp"});
  const int integer = decoder.which({"rni", "rzi", "rmi", "rpi"});
  out.mode = integer >= 0 ? kToInteger + integer : std::max(rounding, 0);
  out.option = (decoder.has("ftz") ? kFlush : 0) | (decoder.has("sat") ? kSaturate : 0) |
               (decoder.has("relu") ? kRelu : 0) | (decoder.has("rna") ? kTiesAway : 0);
  if (out.type.count == 2) {
    if (decoder.operands.size() != 3) decoder.unsupported("a pair from one operand");
    out.d = decoder.destination(0, 4);
    out.a = decoder.row(1, out.source_type.bytes());
    out.b = decoder.row(2, out.source_type.bytes());
    out.type.count = 1;
    out.run = &convert_pair;
    return true;
  }
  out.d = decoder.destination(0, -1);
  out.a = decoder.row(1, 0);
  if (out.d.bytes < std::max(2, out.type.bytes())) decoder.unsupported("too narrow a destination");
  out.run = fast(out);
  if (out.run == nullptr) out.run = &convert;
  return true;
}

}  // namespace emulator
